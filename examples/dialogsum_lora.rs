//! LoRA teaches a frozen T5 to summarise dialogues, and is measured against the untouched base.
//!
//! `cargo run --release --example dialogsum_lora` needs no network: a small T5 and a sample of DialogSum come with the
//! repository. `--model DIR --dataset DIR` takes real ones: a Hugging Face directory with `config.json`,
//! `model.safetensors` and `tokenizer.json`, and DialogSum as CSV or JSON Lines.

use anyhow::Context;
use std::{path::PathBuf, time::Instant};

use clap::Parser;
use serde_json::{Map, Value, json};
use sideburn::prelude::*;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets");

#[derive(Parser, serde::Serialize)]
struct Args {
    /// Directory of the base model and its tokenizer [default: a small T5 that comes with the repository]
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
    /// Where the adapter and the training log are written
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

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let device = parse_device(&args.device)?.autodiff();
    let directory = |given: &Option<PathBuf>, own| given.clone().unwrap_or(PathBuf::from(ASSETS).join(own));
    let (model_dir, dataset) = (directory(&args.model, "t5-mini"), directory(&args.dataset, "dialogsum-sample"));
    sideburn::weights::check_writable(&args.output)?;

    // The base, its tokenizer, and the data.
    let clock = Instant::now();
    let base = T5::from_dir(&model_dir, &device)?;
    let tokenizer = Tokenizer::from_dir(&model_dir)?;
    tokenizer.check_fits(base.config().vocab_size)?;
    let data = DialogSum::open(&dataset)?;
    let test = &data.test[..data.test.len().min(args.max_eval_samples)];
    anyhow::ensure!(!data.train.is_empty() && !test.is_empty(), "{}: a split is empty", dataset.display());
    let tokens = |samples| tokenize(samples, &tokenizer, &PromptTemplate::default(), Limits::default());
    let (train_set, test_set) = (tokens(&data.train)?, tokens(test)?);
    let sampler = BatchSampler::new(train_set.len(), args.batch_size, args.seed)?;
    println!("train: {train_set}\ntest: {test_set}");
    let seconds_load = clock.elapsed().as_secs_f64();
    let tokens = base.special_tokens();
    let eos_token_id = *tokens.end.first().context("no end token")?;
    let decoder_start_token_id = tokens.start.context("no start token")?;
    let config = GreedyConfig { max_new_tokens: 64, decoder_start_token_id, eos_token_id, no_repeat_ngram_size: 3 };
    let summarise = |model: &T5, samples: &[TokenizedSample]| -> anyhow::Result<Vec<String>> {
        let mut summaries = Vec::new();
        for chunk in samples.chunks(args.batch_size) {
            let source = TokenRows::from_rows(chunk.iter().map(|sample| &sample.source))?;
            for ids in greedy(model.start_decoding(&source)?, &config)? {
                summaries.push(tokenizer.decode(&ids)?);
            }
        }
        Ok(summaries)
    };
    println!("\n{}\n\nzero-shot: {}\n", test[0].dialogue, summarise(&base, &test_set.samples[..1])?[0]);

    // The adapter: trainable factors beside every q and v. The base is shared, frozen, and never changed.
    let mut model = base.clone();
    let (r, lora_alpha, common) = (args.r, args.lora_alpha, Common::seq_2_seq());
    let lora = LoraConfig { r, lora_alpha, lora_dropout: 0.05, common, ..LoraConfig::new(["q", "v"]) };
    attach(&mut model, "dialogsum", lora, Key::from_seed(args.seed))?;
    let parameters = ParameterReport::of(&model);
    println!("{parameters}");
    let clock = Instant::now();
    let Args { max_steps, learning_rate, seed, .. } = args;
    let config = TrainConfig { learning_rate, warmup_steps: max_steps / 20, seed, ..TrainConfig::new(max_steps) };
    let report = Trainer::new(config)?
        .observe(ProgressLine::new(max_steps))
        .observe(JsonLinesLog::create(args.output.join("training.jsonl"))?)
        .observe(args.profile.as_ref().map(ChromeTrace::create).transpose()?)
        .train(&mut model, |step| train_set.batch(&sampler.batch(step)), T5::token_losses);
    // After an error the model has its last good weights, which do not replace an earlier adapter.
    let adapter = args.output.join(if report.is_ok() { "adapter" } else { "last_good_adapter" });
    let saved = save_adapter(&model, "dialogsum", &adapter);
    let (losses, seconds_train, ()) = (report?.losses(), clock.elapsed().as_secs_f64(), saved?);
    println!("{} steps in {seconds_train:.0} s; adapter in {}\n", losses.len(), adapter.display());
    // The saved adapter on a base read anew, and the untouched base.
    let clock = Instant::now();
    let mut reloaded = T5::from_dir(&model_dir, &device)?;
    load_adapter(&mut reloaded, "dialogsum", &adapter)?;
    let (zero_shot, tuned) = (summarise(&base, &test_set.samples)?, summarise(&reloaded, &test_set.samples)?);
    let seconds_generate = clock.elapsed().as_secs_f64();
    for (index, sample) in test.iter().take(4).enumerate() {
        let [reference, before, after] = [&sample.references()[0], &zero_shot[index], &tuned[index]];
        println!("{}\n  reference  {reference}\n  zero-shot  {before}\n  LoRA       {after}\n", sample.id);
    }
    // ROUGE, against all references of each dialogue.
    let clock = Instant::now();
    let first_line: Vec<&str> = test.iter().filter_map(|sample| sample.dialogue.lines().next()).collect();
    let references: Vec<&[String]> = test.iter().map(Sample::references).collect();
    let scorer = RougeScorer::all().with_stemmer(true);
    let mut rouge = Map::new();
    println!("mean F [95 %]     {:22}{:22}{:22}rougeLsum", "rouge1", "rouge2", "rougeL");
    for (name, scores) in [
        ("zero_shot", scorer.score_corpus(&references, &zero_shot)?),
        ("first_line", scorer.score_corpus(&references, &first_line)?),
        ("lora", scorer.score_corpus(&references, &tuned)?),
    ] {
        let (means, intervals) = (mean(&scores)?, aggregate(&scores, &BootstrapConfig::default())?);
        print!("{name:18}");
        for (metric, interval) in intervals.iter() {
            let [low, mean, high] = [interval.low, means[metric], interval.high].map(|score| score.fmeasure);
            print!("{:22}", format!("{:.2} [{:.2}, {:.2}]", 100.0 * mean, 100.0 * low, 100.0 * high));
            rouge.entry(name).or_insert(json!({}))[metric.name()] =
                json!({ "fmeasure": mean, "low": low, "high": high });
        }
        println!();
    }
    let seconds_score = clock.elapsed().as_secs_f64();
    if let Some(path) = &args.json {
        let sample = |i: usize| json!({ "id": test[i].id, "zero_shot": zero_shot[i], "lora": tuned[i] });
        let results = json!({
            "config": args, "losses": losses, "rouge": rouge,
            "parameters": { "trainable": parameters.trainable, "all": parameters.all },
            "samples": (0..test.len()).map(sample).collect::<Vec<Value>>(),
            "seconds": { "load": seconds_load, "train": seconds_train, "generate": seconds_generate, "score": seconds_score },
        });
        sideburn::weights::write_atomic(path, serde_json::to_string_pretty(&results)?.as_bytes())?;
    }
    Ok(())
}
