//! LoRA teaches a frozen T5 to summarise dialogues, and is measured against the untouched base.
//!
//! `cargo run --release --example dialogsum_lora` needs no network: a small T5 and a sample of DialogSum come with the
//! repository. `--model DIR --dataset DIR` takes real ones: a Hugging Face directory with `config.json`,
//! `model.safetensors` and `tokenizer.json`, or its id on the hub (with `--features hub`), and DialogSum as CSV or JSON Lines.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use clap::Parser;
use serde_json::json;
use sideburn::data::DataError;
use sideburn::files::check_writable;
use sideburn::prelude::*;
use sideburn::train::TrainReport;
use sideburn_examples::{Console, Interrupt, asset_or, check_file, divergence, exit, model_or, summaries, write_file};

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
    #[arg(long, default_value_t = 600)]
    max_steps: u64,
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    #[arg(long, default_value_t = 4e-3)]
    learning_rate: f64,
    #[arg(long, default_value_t = 32)]
    r: usize,
    #[arg(long, default_value_t = 64.0)]
    lora_alpha: f64,
    /// Where the adapter and the training log are written; those of a run that did not end well go to `unfinished` there
    #[arg(long, default_value = "out/dialogsum_lora")]
    output: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Dialogues of the test split that are summarised
    #[arg(long, default_value_t = 120)]
    max_eval_samples: usize,
    /// Writes the results to this file as well
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes what each operation of the training took to this file, for https://ui.perfetto.dev
    #[arg(long)]
    profile: Option<PathBuf>,
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = Console::default();
    // What cannot be written had better be known before the training.
    let config = serde_json::to_value(args).context("the results name all paths, which must be UTF-8")?;
    check_writable(&args.output)?;
    [&args.json, &args.profile].into_iter().flatten().try_for_each(|path| check_file(path))?;
    ensure!(args.max_eval_samples > 0, "--max-eval-samples is 0, so that nothing would be measured; give at least 1");

    // The base, its tokenizer, and the data.
    let clock = Instant::now();
    let device = parse_device(&args.device)?.autodiff();
    let model_dir = model_or(&args.model, "t5-mini")?;
    let base = AutoModel::from_dir(&model_dir, &device)?;
    let tokenizer = Tokenizer::from_dir(&model_dir)?;
    tokenizer.check_fits(base.vocab_size())?;
    let (dialogsum, directory) = (Dataset::dialogsum(), asset_or(&args.dataset, "dialogsum-sample"));
    let mut test = dialogsum.read(&directory, Split::Test)?.examples;
    test.truncate(args.max_eval_samples);
    let tokens = |examples: &[Example]| tokenize(examples, &tokenizer, &dialogsum.template, Limits::default());
    let (train_set, test_set) = (tokens(&dialogsum.read(&directory, Split::Train)?.examples)?, tokens(&test)?);
    let sampler = ShuffledSampler::new(train_set.len(), args.batch_size, args.seed)?;
    writeln!(out, "train: {train_set}\ntest: {test_set}");
    let seconds_load = clock.elapsed().as_secs_f64();

    let summarise = |model: &AutoModel, examples: &[TokenizedExample]| {
        let generation = GenerationConfig { no_repeat_ngram_size: 3, ..model.generation_config(64) };
        summaries(model, &tokenizer, examples, generation)
    };
    let zero_shot = summarise(&base, &test_set.examples[..1])?;
    writeln!(out, "\n{}\n\nzero-shot: {}\n", test[0].fields["dialogue"], zero_shot[0]);

    // The adapter: trainable factors beside every q and v. The base is shared, frozen, and never changed.
    let mut model = base.clone();
    let lora = LoraConfig { r: args.r, lora_alpha: args.lora_alpha, lora_dropout: 0.05, ..LoraConfig::new(["q", "v"]) };
    model.attach("dialogsum", lora, Key::from_seed(args.seed))?;
    let parameters = ParameterReport::of(&model);
    writeln!(out, "{parameters}");
    let clock = Instant::now();
    let (adapter, losses) = train(&mut model, |step| train_set.batch(&sampler.batch(step)), args)?;
    let seconds_train = clock.elapsed().as_secs_f64();
    writeln!(out, "{} steps in {seconds_train:.0} s; adapter in {}\n", losses.len(), adapter.display());

    // The saved adapter on a base read anew, and the untouched base. Whoever does not beat the first line of a dialogue has
    // learnt nothing.
    let clock = Instant::now();
    let mut reloaded = AutoModel::from_dir(&model_dir, &device)?;
    reloaded.load_adapter("dialogsum", &adapter)?;
    let zero_shot = summarise(&base, &test_set.examples)?;
    let tuned = summarise(&reloaded, &test_set.examples)?;
    let seconds_generate = clock.elapsed().as_secs_f64();
    for ((example, before), after) in test.iter().zip(&zero_shot).zip(&tuned).take(4) {
        let reference = &example.targets[0];
        writeln!(out, "{}\n  reference  {reference}\n  zero-shot  {before}\n  LoRA       {after}\n", example.id);
    }
    let first_line = |example: &Example| example.fields["dialogue"].lines().next().unwrap_or_default().to_owned();
    let first_line = test.iter().map(first_line).collect();

    // ROUGE, against all references of each dialogue.
    let clock = Instant::now();
    let rouge = RougeScorer::all().with_stemmer(true);
    let mut evaluation = Evaluation::new(test, BootstrapConfig::default());
    for (name, summaries) in [("zero_shot", zero_shot), ("first_line", first_line), ("lora", tuned)] {
        evaluation.add(name, summaries, &[&rouge])?;
    }
    write!(out, "{evaluation}");
    let seconds_score = clock.elapsed().as_secs_f64();

    if let Some(path) = &args.json {
        evaluation.config = config;
        let mut results = serde_json::to_value(&evaluation)?;
        results["losses"] = json!(losses);
        results["parameters"] = json!({ "trainable": parameters.trainable, "all": parameters.all });
        results["seconds"] = json!({
            "load": seconds_load, "train": seconds_train, "generate": seconds_generate, "score": seconds_score,
        });
        write_file(path, &serde_json::to_string_pretty(&results)?)?;
    }
    out.finish()
}

/// Trains the adapter, and saves it with the log of its training. Returns where it is, and the loss of each step.
///
/// Adapter and log of a run that fails, diverges or is interrupted stay in `unfinished`, so that they never replace one
/// that is well, and no log ever stands beside an adapter of another run.
fn train(
    model: &mut AutoModel,
    batches: impl Fn(u64) -> Result<PromptBatch, DataError>,
    args: &Args,
) -> anyhow::Result<(PathBuf, Vec<f64>)> {
    let Args { max_steps, learning_rate, seed, .. } = *args;
    let [adapter, log] = ["adapter", "training.jsonl"].map(|name| args.output.join(name));
    let unfinished = args.output.join("unfinished");
    let warmup_steps = max_steps / 20;
    let config = TrainConfig { learning_rate, warmup_steps, seed, ..TrainConfig::new(max_steps.max(1)) };
    let trainer = Trainer::new(config)?;
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let trainer = trainer
        .observe(ProgressLine::new())
        .observe(JsonLinesLog::create(unfinished.join("training.jsonl"))?)
        .observe(args.profile.as_ref().map(ChromeTrace::create).transpose()?)
        .observe(Interrupt::listen()?);
    let ended = match max_steps {
        // Only the base is evaluated.
        0 => Ok(TrainReport::default()),
        _ => trainer.train(model, batches, AutoModel::token_losses).map_err(anyhow::Error::from),
    };
    let ended = ended.and_then(|report| divergence(&report.steps).map_or(Ok(report), |reason| Err(anyhow!(reason))));
    let report = match ended {
        Ok(report) => report,
        Err(error) => {
            model.save_adapter("dialogsum", unfinished.join("adapter"))?;
            let saved = format!("the adapter as it is, and its log, are in {}", unfinished.display());
            return Err(error.context(format!("the training did not end well ({saved})")));
        }
    };
    // The earlier log goes before the earlier adapter does.
    if log.exists() {
        fs::remove_file(&log)?;
    }
    for difference in model.save_adapter("dialogsum", &adapter)? {
        eprintln!("{difference}");
    }
    fs::rename(unfinished.join("training.jsonl"), &log)?;
    fs::remove_dir(&unfinished)?;
    Ok((adapter, report.losses()))
}
