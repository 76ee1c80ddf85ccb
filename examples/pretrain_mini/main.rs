//! How the small T5 under `assets/t5-mini` was made: a Unigram vocabulary and a T5, trained from nothing on text.
//!
//! ```text
//! cargo run --release --example pretrain_mini -- --text dialogues.jsonl --output t5-mini
//! ```
//!
//! The text is JSON Lines with the fields `dialogue` and `summary`; `assets/dialogsum-sample/make_sample.py
//! --pretraining-text` writes it from what the sample leaves of DialogSum. A summary is a text of its own here: it is
//! never shown with its dialogue. There are four kinds of examples:
//!
//! * gap sentences (Zhang et al., 2020), a quarter: behind the prompt of the summarisation task, write the turn of a
//!   dialogue that says most about the others, which in three of ten cases has been taken out;
//! * keywords, a quarter: write the words of a dialogue with the highest tf-idf;
//! * denoising (Lewis et al., 2020), three tenths: write a summary whole, of which the words with the highest tf-idf
//!   are given, in any order;
//! * span corruption (Raffel et al., 2020, section 3.1.4), a fifth: write what the sentinels in a dialogue stand for.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sideburn::adapters::Precision;
use sideburn::data::{Columns, read_examples};
use sideburn::prelude::*;
use sideburn::t5::FeedForward;
use sideburn_examples::{Console, Interrupt, divergence, exit};

use corpus::Corpus;

mod corpus;
mod vocabulary;
mod weights;
mod words;

#[derive(Parser)]
struct Args {
    /// JSON Lines with the fields `dialogue` and `summary`.
    #[arg(long)]
    text: PathBuf,
    /// Where the model directory is written.
    #[arg(long, default_value = "out/t5-mini")]
    output: PathBuf,
    /// Steps of the optimiser.
    #[arg(long, default_value_t = 10_000)]
    max_steps: u64,
    /// Examples of a step.
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// The learning rate after the warm-up.
    #[arg(long, default_value_t = 5e-4)]
    learning_rate: f64,
    /// Entries of the vocabulary, sentinels included.
    #[arg(long, default_value_t = 4096, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1000..100_000))]
    vocab_size: usize,
    /// What all random draws follow from.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Where training runs: flex, wgpu, vulkan, metal, cuda.
    #[arg(long, default_value = "flex")]
    device: String,
}

/// Tokens of the vocabulary that stand for what was taken out of a text.
const SENTINELS: usize = 32;

fn main() -> ExitCode {
    exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = Console::default();
    let device = parse_device(&args.device)?.autodiff();
    let texts = read_examples(&args.text, &Columns::new(["dialogue"], "summary"))?.examples;
    std::fs::create_dir_all(&args.output)?;
    vocabulary::train(&texts, args.vocab_size, &args.output.join("tokenizer.json"))
        .map_err(anyhow::Error::from_boxed)?;
    let corpus = Corpus::new(&texts, &Tokenizer::from_dir(&args.output)?)?;
    writeln!(out, "{} dialogues, {} tokens", corpus.len(), corpus.tokens());

    let config = T5Config {
        vocab_size: args.vocab_size,
        d_model: 192,
        d_kv: 48,
        d_ff: 384,
        num_heads: 4,
        num_layers: 2,
        feed_forward_proj: FeedForward::GATED_GELU,
        tie_word_embeddings: true,
        scale_decoder_outputs: Some(false),
        dropout_rate: 0.0,
        ..T5Config::default()
    };
    let mut model = T5::random(&config, Key::from_seed(args.seed).fold_in_name("weights"), &device);
    weights::prepare(&mut model);
    writeln!(out, "{}", ParameterReport::of(&model));

    let sampler = ShuffledSampler::new(corpus.len(), args.batch_size, args.seed)?.drop_last()?;
    let key = Key::from_seed(args.seed).fold_in_name("corruption");
    let train = TrainConfig {
        learning_rate: args.learning_rate,
        warmup_steps: args.max_steps / 20,
        lr_scheduler_type: Schedule::Cosine,
        weight_decay: 0.01,
        seed: args.seed,
        ..TrainConfig::new(args.max_steps)
    };
    let ended = Trainer::new(train)?
        .observe(ProgressLine::new())
        .observe(JsonLinesLog::create(args.output.join("pretraining.jsonl"))?)
        .observe(Interrupt::listen()?)
        .train(&mut model, |step| corpus.batch(&sampler.batch(step), key.fold_in(step)), T5::token_losses)
        .map_err(anyhow::Error::from)
        .and_then(|report| divergence(&report.steps).map_or(Ok(()), |reason| Err(anyhow::anyhow!(reason))));
    if let Err(error) = ended {
        let unfinished = args.output.join("unfinished");
        model.save_dir(&unfinished, Precision::F32)?;
        return Err(error.context(format!("the model as it is, is in {}", unfinished.display())));
    }
    model.save_dir(&args.output, Precision::Bf16)?;
    writeln!(out, "written to {}", args.output.display());
    out.finish()
}
