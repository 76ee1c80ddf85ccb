//! Full fine-tuning, LoRA and prompt tuning, each from the same untouched base, measured on whole dialogues with all their
//! references.
//!
//! `cargo run --release --example dialogsum_compare` trains each on the embedded model and sample. It prints what was trained,
//! how large the saved adapter is and how long training took, then ROUGE with intervals and paired tests, and writes all
//! summaries and scores as a page, `report.html`. `--model` and `--dataset` take real ones, as in `dialogsum_lora`.
//!
//! `--notebook 002` and `--notebook 003` train as two well-known notebooks do, which score 10 rows, of 4 dialogues: on every
//! 100th dialogue once, in full and by LoRA; on every 1,000th ten times, by prompt tuning as well.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use sideburn::adapters::Method;
use sideburn::adapters::methods::{FullConfig, PromptInit, PromptTuningConfig};
use sideburn::data::Subsample;
use sideburn::eval::Report;
use sideburn::files::{check_writable, grouped};
use sideburn::prelude::*;
use sideburn_examples::{Console, Interrupt, asset_or, divergence, exit, model_or, summaries, write_file};

#[derive(Parser, serde::Serialize)]
struct Args {
    /// Directory or id of the base model and its tokenizer [default: a small T5 that comes with the repository]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Directory of DialogSum [default: a sample that comes with the repository]
    #[arg(long)]
    dataset: Option<PathBuf>,
    /// Where to run: flex (the CPU), wgpu, vulkan, metal or cuda, with :INDEX behind a GPU's
    #[arg(long, default_value = "flex")]
    device: String,
    /// The settings of a notebook, in place of those that suit the embedded model
    #[arg(long)]
    notebook: Option<Notebook>,
    /// Steps of each method [default: 600; of a notebook, its epochs]
    #[arg(long)]
    max_steps: Option<u64>,
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Dialogues of the test split that are summarised
    #[arg(long, default_value_t = 120)]
    max_eval_samples: usize,
    /// Where the adapters and the page are written
    #[arg(long, default_value = "out/dialogsum_compare")]
    output: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
enum Notebook {
    /// FLAN-T5-base: full fine-tuning against LoRA
    #[value(name = "002")]
    FullAgainstLora,
    /// FLAN-T5-small: full fine-tuning, LoRA and prompt tuning
    #[value(name = "003")]
    ThreeWays,
}

impl Notebook {
    /// What it trains on, and how often.
    fn data(self) -> (Subsample, u64) {
        match self {
            Self::FullAgainstLora => (Subsample::Every(100), 1),
            Self::ThreeWays => (Subsample::Every(1000), 10),
        }
    }
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

/// A method by its name, with the learning rate that suits it.
type Candidate = (&'static str, Arc<dyn Method>, f64);

/// What is compared.
fn candidates(tokenizer: &Tokenizer, notebook: Option<Notebook>) -> anyhow::Result<Vec<Candidate>> {
    let lora_alpha = if notebook.is_some() { 32.0 } else { 64.0 };
    let lora = LoraConfig { r: 32, lora_alpha, lora_dropout: 0.05, ..LoraConfig::new(["q", "v"]) };
    let text = "Summarize the following conversation.".to_owned();
    let ids = tokenizer.encode_prompt(&text, None)?.ids;
    let prompt =
        PromptTuningConfig { prompt_tuning_init: PromptInit::Text { ids, text }, ..PromptTuningConfig::new(20) };
    let [of_full, of_lora, of_prompt] = if notebook.is_some() { [1e-5, 1e-3, 3e-2] } else { [1e-3, 4e-3, 1e-1] };
    let mut candidates: Vec<Candidate> = vec![
        ("full fine-tuning", Arc::new(FullConfig::default()), of_full),
        ("LoRA", Arc::new(lora), of_lora),
        ("prompt tuning", Arc::new(prompt), of_prompt),
    ];
    if notebook == Some(Notebook::FullAgainstLora) {
        candidates.truncate(2);
    }
    Ok(candidates)
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = Console::default();
    let config = serde_json::to_value(args).context("the results name all paths, which must be UTF-8")?;
    check_writable(&args.output)?;
    ensure!(args.max_eval_samples > 0, "--max-eval-samples is 0, so that nothing would be measured; give at least 1");
    let device = parse_device(&args.device)?.autodiff();
    let (model_dir, dataset) = (model_or(&args.model, "t5-mini")?, asset_or(&args.dataset, "dialogsum-sample"));
    let base = AutoModel::from_dir(&model_dir, &device)?;
    let tokenizer = Tokenizer::from_dir(&model_dir)?;
    tokenizer.check_fits(base.vocab_size())?;

    // A dialogue stands once in the test split, with all its references.
    let dialogsum = Dataset::dialogsum();
    let mut test = dialogsum.read(&dataset, Split::Test)?.examples;
    test.truncate(args.max_eval_samples);
    let tokens = |examples: &[Example]| tokenize(examples, &tokenizer, &dialogsum.template, Limits::default());
    let mut train = dialogsum.read(&dataset, Split::Train)?.examples;
    if let Some((part, _)) = args.notebook.map(Notebook::data) {
        train = part.indices(train.len(), args.seed)?.into_iter().map(|index| train[index].clone()).collect();
    }
    let (train_set, test_set) = (tokens(&train)?, tokens(&test)?);
    let sampler = ShuffledSampler::new(train_set.len(), args.batch_size, args.seed)?;
    let steps_of = |notebook: Notebook| notebook.data().1 * sampler.batches_per_epoch() as u64;
    let max_steps = args.max_steps.or(args.notebook.map(steps_of)).unwrap_or(600);
    let (weight_decay, warmup_ratio) = if args.notebook.is_some() { (0.01, 0.0) } else { (0.0, 0.05) };
    let rouge = RougeScorer::all().with_stemmer(true);
    let summarise = |model: &AutoModel| {
        let generation = GenerationConfig { no_repeat_ngram_size: 3, ..model.generation_config(64) };
        summaries(model, &tokenizer, &test_set.examples, generation)
    };
    let mut evaluation = Evaluation::new(test, BootstrapConfig::default());
    evaluation.config = config;
    evaluation.add("zero-shot", summarise(&base)?, &[&rouge])?;

    writeln!(out, "{:18}{:>12}{:>14}{:>10}", "", "trained", "bytes", "seconds");
    for (name, method, learning_rate) in candidates(&tokenizer, args.notebook)? {
        // The copy shares the base's weights, which nothing writes to: full fine-tuning trains copies of them.
        let mut model = base.clone();
        model.attach_read("dialogsum", method, Key::from_seed(args.seed)).context(name)?;
        let trained = ParameterReport::of(&model).trainable;
        let seed = args.seed;
        let config = TrainConfig { learning_rate, weight_decay, warmup_ratio, seed, ..TrainConfig::new(max_steps) };
        let clock = Instant::now();
        let report = Trainer::new(config)?
            .observe(ProgressLine::new())
            .observe(Interrupt::listen()?)
            .train(&mut model, |step| train_set.batch(&sampler.batch(step)), AutoModel::token_losses)
            .context(name)?;
        let seconds = clock.elapsed().as_secs_f64();
        if let Some(reason) = divergence(&report.steps) {
            writeln!(out, "{name:18}{reason}");
            continue;
        }
        let adapter = args.output.join(name.replace(' ', "_"));
        for difference in model.save_adapter("dialogsum", &adapter)? {
            eprintln!("{name}: {difference}");
        }
        let bytes = std::fs::metadata(adapter.join("adapter_model.safetensors"))?.len();
        writeln!(out, "{name:18}{:>12}{:>14}{seconds:>10.0}", grouped(trained), grouped(bytes));
        evaluation.add(name, summarise(&model)?, &[&rouge])?;
    }
    let report = Report::new("DialogSum, test", evaluation)?;
    writeln!(out, "\n{report}");
    let page = args.output.join("report.html");
    write_file(&page, &report.to_html())?;
    writeln!(out, "{}", page.display());
    out.finish()
}
