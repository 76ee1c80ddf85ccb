//! QLoRA teaches a frozen Falcon in 4 bits to summarise chats: supervised fine-tuning of a decoder alone, with a loss on the
//! summaries.
//!
//! `cargo run --release --example samsum_falcon_qlora` needs no network: a tiny Falcon is drawn from a seed, and a few chats
//! come with the repository. It shows the way, and writes no sensible word. `--model DIR --dataset DIR` takes real ones: a
//! Hugging Face directory with `config.json`, weights and `tokenizer.json`, such as a download of `tiiuae/falcon-7b`, and
//! SAMSum as JSON, JSON Lines or CSV. The settings are those that notebooks fine-tune Falcon-7B with: NF4 with double
//! quantisation, r 16, lora_alpha 32, dropout 0.1 on all four layers of a block, a cosine schedule, clipping at 0.1, and four
//! micro-batches of one length a step.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use sideburn::data::GroupedSampler;
use sideburn::files::check_writable;
use sideburn::nn::Quantization;
use sideburn::prelude::*;
use sideburn_examples::{Console, Interrupt, asset_or, exit, model_or, summaries};

#[derive(Parser)]
struct Args {
    /// Directory or id of the base model and its tokenizer [default: a tiny Falcon with weights from the seed]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Directory of SAMSum [default: a few chats that come with the repository]
    #[arg(long)]
    dataset: Option<PathBuf>,
    /// Where to run: flex (the CPU), wgpu, vulkan, metal or cuda, with :INDEX behind a GPU's
    #[arg(long, default_value = "flex")]
    device: String,
    #[arg(long, default_value_t = 40)]
    max_steps: u64,
    /// Examples of a micro-batch, of about one length; a step has four micro-batches
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    #[arg(long, default_value_t = 2e-4)]
    learning_rate: f64,
    /// Where the adapter and the training log are written
    #[arg(long, default_value = "out/samsum_falcon_qlora")]
    output: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Chats of the test split that are summarised
    #[arg(long, default_value_t = 2)]
    max_eval_samples: usize,
    #[arg(long, default_value_t = 50)]
    max_new_tokens: usize,
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = Console::default();
    check_writable(&args.output)?;
    ensure!(args.max_eval_samples > 0, "--max-eval-samples is 0, so that nothing would be written; give at least 1");

    // The base in 4 bits, frozen, and its tokenizer.
    let device = parse_device(&args.device)?.autodiff();
    let quantization = Quantization::NF4;
    let model_dir = model_or(&args.model, "falcon-mini")?;
    let base = match &args.model {
        Some(_) => Falcon::from_dir_quantized(&model_dir, quantization, &device)?,
        None => {
            let config = FalconConfig::from_file(model_dir.join("config.json"))?;
            let mut base = Falcon::random(&config, Key::from_seed(args.seed), &device);
            base.quantize_base(&quantization.into())?;
            base
        }
    };
    let tokenizer = Tokenizer::from_dir(&model_dir)?;
    tokenizer.check_fits(base.vocab_size())?;

    // The data: prompts, and the summaries that are to be written behind them. A prompt has no loss.
    let (samsum, directory) = (Dataset::samsum(), asset_or(&args.dataset, "chats"));
    let template = Template::preset("instruction")?;
    let tokens = |split| tokenize(&samsum.read(&directory, split)?.examples, &tokenizer, &template, Limits::default());
    let (train, mut test) = (tokens(Split::Train)?, tokens(Split::Test)?);
    test.examples.truncate(args.max_eval_samples);
    writeln!(out, "train: {train}\ntest: {test}");

    // The adapter, at every linear layer of a block.
    let mut model = base.clone();
    let targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
    let lora = LoraConfig { r: 16, lora_alpha: 32.0, lora_dropout: 0.1, ..LoraConfig::new(targets) };
    model.attach("samsum", lora, Key::from_seed(args.seed))?;
    writeln!(out, "{}", ParameterReport::of(&model));

    // Batches of examples of about one length. No token is padding: the rows of a batch are packed.
    let sampler = GroupedSampler::by_length(&train.token_counts(), args.batch_size, args.seed)?;
    let config = TrainConfig {
        learning_rate: args.learning_rate,
        lr_scheduler_type: Schedule::Cosine,
        warmup_steps: args.max_steps.div_ceil(100),
        max_grad_norm: 0.1,
        gradient_accumulation_steps: 4,
        seed: args.seed,
        ..TrainConfig::new(args.max_steps)
    };
    let clock = Instant::now();
    let report = Trainer::new(config)?
        .observe(ProgressLine::new())
        .observe(JsonLinesLog::create(args.output.join("training.jsonl"))?)
        .observe(Interrupt::listen()?)
        .train(&mut model, |step| train.batch(&sampler.batch(step)), Falcon::token_losses)?;
    for difference in model.save_adapter("samsum", args.output.join("adapter"))? {
        eprintln!("{difference}");
    }
    if let [first, .., last] = &report.losses()[..] {
        writeln!(out, "loss {first:.3} to {last:.3} in {:.0} s", clock.elapsed().as_secs_f64());
    }

    // The saved adapter on the base, and the base alone.
    let mut reloaded = base.clone();
    reloaded.load_adapter("samsum", args.output.join("adapter"))?;
    let write =
        |model: &Falcon| summaries(model, &tokenizer, &test.examples, model.generation_config(args.max_new_tokens));
    let (before, after) = (write(&base)?, write(&reloaded)?);
    for ((example, before), after) in test.examples.iter().zip(before).zip(after) {
        let reference = tokenizer.decode(&example.target)?;
        writeln!(out, "\n{}\n  reference {reference}\n  base      {before}\n  LoRA      {after}", example.id);
    }
    out.finish()
}
