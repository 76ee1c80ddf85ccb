//! The methods of fine-tuning side by side: one base, one data set, one number of steps.
//!
//! `cargo run --release --example compare_methods` trains each method on the embedded model and sample, and prints a
//! table: trained parameters, bytes of the saved adapter, seconds of training, ROUGE. `--methods lora,ia3` chooses some;
//! `--model` and `--dataset` take real ones, as in `dialogsum_lora`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use sideburn::adapters::Method;
use sideburn::adapters::methods::{
    AdaLoraConfig, FullConfig, Ia3Config, LnTuningConfig, LoHaConfig, LoKrConfig, Lycoris, OftConfig, PTuningConfig,
    PrefixTuningConfig, PromptInit, PromptTuningConfig, VeraConfig,
};
use sideburn::files::check_writable;
use sideburn::prelude::*;
use sideburn_examples::{Console, Interrupt, asset_or, divergence, exit, model_or, summaries};

#[derive(Parser)]
struct Args {
    /// Which methods, with commas between them [default: all]
    #[arg(long, value_delimiter = ',')]
    methods: Vec<String>,
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
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Dialogues of the test split that are summarised
    #[arg(long, default_value_t = 120)]
    max_eval_samples: usize,
    /// Where the adapters are written
    #[arg(long, default_value = "out/compare_methods")]
    output: PathBuf,
}

/// A method with the learning rate that suits it, and the second factor's over the first's.
struct Candidate {
    name: &'static str,
    attach: fn(&mut AutoModel, &Run<'_>) -> anyhow::Result<()>,
    learning_rate: f64,
    loraplus_lr_ratio: f64,
}

/// What a method may need to know of the run that it begins.
struct Run<'a> {
    tokenizer: &'a Tokenizer,
    steps: usize,
    key: Key,
}

fn candidates() -> Vec<Candidate> {
    fn lora() -> LoraConfig {
        LoraConfig { r: 32, lora_alpha: 64.0, lora_dropout: 0.05, ..LoraConfig::new(["q", "v"]) }
    }
    fn add(model: &mut AutoModel, method: impl Method, run: &Run<'_>) -> anyhow::Result<()> {
        model.attach("adapter", method, run.key)?;
        Ok(())
    }
    fn prompt(model: &mut AutoModel, run: &Run<'_>) -> anyhow::Result<()> {
        let text = "Summarize the following conversation.".to_owned();
        let prompt_tuning_init = PromptInit::Text { ids: run.tokenizer.encode_prompt(&text, None)?.ids, text };
        add(model, PromptTuningConfig { prompt_tuning_init, ..PromptTuningConfig::new(20) }, run)
    }
    let one = |name, learning_rate, attach| Candidate { name, attach, learning_rate, loraplus_lr_ratio: 1.0 };
    vec![
        one("full", 1e-3, |model, run| add(model, FullConfig::default(), run)),
        one("lora", 4e-3, |model, run| add(model, lora(), run)),
        one("rslora", 2e-3, |model, run| add(model, LoraConfig { use_rslora: true, ..lora() }, run)),
        one("dora", 4e-3, |model, run| add(model, LoraConfig { use_dora: true, ..lora() }, run)),
        Candidate { loraplus_lr_ratio: 16.0, ..one("lora+", 1e-3, |model, run| add(model, lora(), run)) },
        one("lora all-linear", 4e-3, |model, run| {
            add(model, LoraConfig { targets: TargetModules::all_linear().into(), ..lora() }, run)
        }),
        one("adalora", 4e-3, |model, run| {
            let (tinit, tfinal) = (run.steps / 10, run.steps * 3 / 10);
            let config = AdaLoraConfig { tinit, tfinal, delta_t: 10, ..AdaLoraConfig::new(["q", "v"], run.steps) };
            add(model, AdaLoraConfig { init_r: 48, target_r: 32, lora_alpha: 96.0, ..config }, run)
        }),
        one("loha", 4e-3, |model, run| {
            let lycoris = Lycoris { r: 8, alpha: 16.0, ..Lycoris::default() };
            add(model, LoHaConfig { lycoris, ..LoHaConfig::new(["q", "v"]) }, run)
        }),
        one("lokr", 4e-3, |model, run| {
            let lycoris = Lycoris { r: 8, alpha: 16.0, ..Lycoris::default() };
            add(model, LoKrConfig { lycoris, ..LoKrConfig::new(["q", "v"]) }, run)
        }),
        one("vera", 2e-2, |model, run| add(model, VeraConfig { r: 64, ..VeraConfig::new(["q", "v"]) }, run)),
        one("oft", 2e-3, |model, run| add(model, OftConfig::new(["q", "v"]), run)),
        one("ia3", 2e-2, |model, run| add(model, Ia3Config::default(), run)),
        one("ln tuning", 2e-2, |model, run| add(model, LnTuningConfig::default(), run)),
        one("prompt tuning", 1e-1, prompt),
        one("p-tuning", 5e-3, |model, run| add(model, PTuningConfig::new(20), run)),
        one("prefix tuning", 3e-2, |model, run| add(model, PrefixTuningConfig::new(20), run)),
    ]
}

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = Console::default();
    check_writable(&args.output)?;
    let device = parse_device(&args.device)?.autodiff();
    let (model_dir, dataset) = (model_or(&args.model, "t5-mini")?, asset_or(&args.dataset, "dialogsum-sample"));
    let candidates = candidates();
    for name in &args.methods {
        let known: Vec<&str> = candidates.iter().map(|candidate| candidate.name).collect();
        ensure!(known.contains(&name.as_str()), "no method {name:?}; choose among {known:?}");
    }
    ensure!(args.max_eval_samples > 0, "--max-eval-samples is 0, so that nothing would be measured; give at least 1");
    let base = AutoModel::from_dir(&model_dir, &device)?;
    let tokenizer = Tokenizer::from_dir(&model_dir)?;
    let dialogsum = Dataset::dialogsum();
    let mut test = dialogsum.read(&dataset, Split::Test)?.examples;
    test.truncate(args.max_eval_samples);
    let tokens = |examples: &[Example]| tokenize(examples, &tokenizer, &dialogsum.template, Limits::default());
    let (train_set, test_set) = (tokens(&dialogsum.read(&dataset, Split::Train)?.examples)?, tokens(&test)?);
    let sampler = ShuffledSampler::new(train_set.len(), args.batch_size, args.seed)?;

    writeln!(
        out,
        "{:18}{:>12}{:>14}{:>10}{:>10}{:>9}{:>9}",
        "", "trained", "bytes", "seconds", "rouge1", "rouge2", "rougeL"
    );
    let mut evaluation = Evaluation::new(test, BootstrapConfig::default());
    let rouge = RougeScorer::new(&[Metric::Rouge1, Metric::Rouge2, Metric::RougeL]).with_stemmer(true);
    let mut scores = |name: &str, model: &AutoModel| -> anyhow::Result<String> {
        let generation = GenerationConfig { no_repeat_ngram_size: 3, ..model.generation_config(64) };
        let written = summaries(model, &tokenizer, &test_set.examples, generation)?;
        let system = evaluation.add(name, written, &[&rouge])?;
        Ok(system.scores.iter().map(|scored| format!("{:>9}", scored.mean)).collect())
    };
    writeln!(out, "{:18}{:>12}{:>14}{:>10} {}", "zero-shot", 0, 0, 0, scores("zero-shot", &base)?);
    for Candidate { name, attach, learning_rate, loraplus_lr_ratio } in candidates {
        if !args.methods.is_empty() && !args.methods.iter().any(|chosen| chosen == name) {
            continue;
        }
        let mut model = base.clone();
        let run = Run { tokenizer: &tokenizer, steps: args.max_steps as usize, key: Key::from_seed(args.seed) };
        attach(&mut model, &run).context(name)?;
        let trained = ParameterReport::of(&model).trainable;
        let config = TrainConfig {
            learning_rate,
            loraplus_lr_ratio,
            warmup_steps: args.max_steps / 20,
            seed: args.seed,
            ..TrainConfig::new(args.max_steps)
        };
        let clock = Instant::now();
        let report = Trainer::new(config)?
            .observe(Interrupt::listen()?)
            .train(&mut model, |step| train_set.batch(&sampler.batch(step)), AutoModel::token_losses)
            .context(name)?;
        let seconds = clock.elapsed().as_secs_f64();
        if let Some(reason) = divergence(&report.steps) {
            writeln!(out, "{name:18}{reason}");
            continue;
        }
        let adapter = args.output.join(name);
        for difference in model.save_adapter("adapter", &adapter)? {
            eprintln!("{name}: {difference}");
        }
        let (scores, bytes) = (scores(name, &model)?, size(&adapter)?);
        writeln!(out, "{name:18}{trained:>12}{bytes:>14}{seconds:>10.0} {scores}");
    }
    out.finish()
}

fn size(adapter: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(adapter.join("adapter_model.safetensors"))?.len())
}
