//! LoRA teaches a frozen T5 in 8 bits to summarise chats: LLM.int8(), as a FLAN-T5-XXL is fine-tuned on one card.
//!
//! `cargo run --release --example samsum_int8_lora` needs no network: a small T5 and a few chats come with the repository. It
//! shows the way; ten chats teach nothing. `--model DIR --dataset DIR` takes real ones: a Hugging Face directory with
//! `config.json`, weights and `tokenizer.json`, such as a download of `google/flan-t5-xxl` or what `sideburn quantize --to int8`
//! has made of it, and SAMSum as JSON, JSON Lines, CSV or Parquet. The settings are those that notebooks fine-tune FLAN-T5-XXL
//! with: r 16, lora_alpha 32, dropout 0.05 on `q` and `v`, a learning rate of 1e-3 that falls to 0 over five epochs, prompts of
//! at most 255 tokens, and summaries of at most 50, drawn from the most probable tokens that make up 0.9.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use sideburn::files::check_writable;
use sideburn::nn::ModelDir;
use sideburn::prelude::*;
use sideburn_examples::{Console, Interrupt, asset_or, exit, model_or, summaries};

/// What stands before a chat, as T5 was taught.
const TEMPLATE: &str = "summarize: {dialogue}";

#[derive(Parser)]
struct Args {
    /// Directory or id of the base model and its tokenizer [default: a small T5 that comes with the repository]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Directory of SAMSum [default: a few chats that come with the repository]
    #[arg(long)]
    dataset: Option<PathBuf>,
    /// Where to run: flex (the CPU), wgpu, vulkan, metal or cuda, with :INDEX behind a GPU's
    #[arg(long, default_value = "flex")]
    device: String,
    #[arg(long, default_value_t = 5)]
    num_train_epochs: u64,
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Where the adapter and the training log are written
    #[arg(long, default_value = "out/samsum_int8_lora")]
    output: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Chats of the test split that are summarised
    #[arg(long, default_value_t = 819)]
    max_eval_samples: usize,
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = Console::default();
    check_writable(&args.output)?;
    ensure!(args.max_eval_samples > 0, "--max-eval-samples is 0, so that nothing would be measured; give at least 1");

    // The base in 8 bits, frozen, and its tokenizer. A base that is packed already is only read.
    let device = parse_device(&args.device)?.autodiff();
    let model_dir = model_or(&args.model, "t5-mini")?;
    let base = match ModelDir::new(&model_dir).quantization()? {
        None => AutoModel::from_dir_quantized(&model_dir, Quantization::INT8, &device)?,
        Some(_) => AutoModel::from_dir(&model_dir, &device)?,
    };
    let tokenizer = Tokenizer::from_dir(&model_dir)?;
    tokenizer.check_fits(base.vocab_size())?;

    // The data.
    let (samsum, directory) = (Dataset::samsum(), asset_or(&args.dataset, "chats"));
    let limits = Limits { max_source_length: 255, max_target_length: 50 };
    let template = Template::new(TEMPLATE)?;
    let tokens = |examples: &[Example]| tokenize(examples, &tokenizer, &template, limits);
    let mut test = samsum.read(&directory, Split::Test)?.examples;
    test.truncate(args.max_eval_samples);
    let (train_set, test_set) = (tokens(&samsum.read(&directory, Split::Train)?.examples)?, tokens(&test)?);
    writeln!(out, "train: {train_set}\ntest: {test_set}");

    // The adapter, in f32 beside every q and v.
    let mut model = base.clone();
    let lora = LoraConfig { r: 16, lora_alpha: 32.0, lora_dropout: 0.05, ..LoraConfig::new(["q", "v"]) };
    model.attach("samsum", lora, Key::from_seed(args.seed))?;
    writeln!(out, "{}", ParameterReport::of(&model));

    // In training, what goes into a packed layer stays floats, as in bitsandbytes on the CPU.
    let sampler = ShuffledSampler::new(train_set.len(), args.batch_size, args.seed)?;
    let steps = args.num_train_epochs.saturating_mul(sampler.batches_per_epoch() as u64);
    let (learning_rate, seed) = (args.learning_rate, args.seed);
    let config = TrainConfig { learning_rate, seed, ..TrainConfig::new(steps) };
    let clock = Instant::now();
    let report = Trainer::new(config)?
        .observe(ProgressLine::new())
        .observe(JsonLinesLog::create(args.output.join("training.jsonl"))?)
        .observe(Interrupt::listen()?)
        .train(&mut model, |step| train_set.batch(&sampler.batch(step)), AutoModel::token_losses)?;
    for difference in model.save_adapter("samsum", args.output.join("adapter"))? {
        eprintln!("{difference}");
    }
    if let [first, .., last] = &report.losses()[..] {
        writeln!(out, "loss {first:.3} to {last:.3} in {:.0} s", clock.elapsed().as_secs_f64());
    }

    // ROUGE of the saved adapter on the base, and of the base alone. Here layers take their input as integers.
    let mut reloaded = base.clone();
    reloaded.load_adapter("samsum", args.output.join("adapter"))?;
    let mut evaluation = Evaluation::new(test, BootstrapConfig::default());
    let rouge = RougeScorer::all().with_stemmer(true);
    for (name, model) in [("zero_shot", &base), ("lora", &reloaded)] {
        let generation = GenerationConfig { do_sample: true, top_p: 0.9, seed, ..model.generation_config(50) };
        let written = summaries(model, &tokenizer, &test_set.examples, generation)?;
        if let (Some(example), Some(summary)) = (test_set.examples.first(), written.first()) {
            writeln!(out, "{} {name}: {summary}", example.id);
        }
        evaluation.add(name, written, &[&rouge])?;
    }
    write!(out, "{evaluation}");
    out.finish()
}
