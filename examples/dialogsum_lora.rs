//! LoRA teaches a frozen T5 to summarise dialogues, and is measured against the untouched base.
//!
//! `cargo run --release --example dialogsum_lora` needs no network: a small T5 and a sample of DialogSum come with the
//! repository. `--model DIR --dataset DIR` takes real ones: a Hugging Face directory with `config.json`,
//! `model.safetensors` and `tokenizer.json`, and DialogSum as CSV or JSON Lines.

use std::{error::Error, path::PathBuf, time::Instant};

use clap::Parser;
use serde_json::{Map, Value, json};
use sideburn::prelude::*;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/t5-mini");
const DATASET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/dialogsum-sample");
const ADAPTER: &str = "dialogsum";

#[derive(Parser, serde::Serialize)]
struct Args {
    /// Directory of the base model and its tokenizer.
    #[arg(long, default_value = MODEL)]
    model: PathBuf,
    /// Directory of DialogSum.
    #[arg(long, default_value = DATASET)]
    dataset: PathBuf,
    /// Where to run: flex (the CPU), wgpu, vulkan, metal or cuda, with :INDEX behind a GPU's.
    #[arg(long, default_value = "flex")]
    device: String,
    #[arg(long, default_value_t = 450)]
    max_steps: u64,
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 32)]
    r: usize,
    #[arg(long, default_value_t = 64.0)]
    lora_alpha: f64,
    /// Where the adapter and the training log are written.
    #[arg(long, default_value = "out/dialogsum_lora")]
    output: PathBuf,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Dialogues of the test split that are summarised.
    #[arg(long, default_value_t = 120)]
    max_eval_samples: usize,
    /// Writes the results to this file as well.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let device = parse_device(&args.device)?.autodiff();
    sideburn::weights::check_writable(&args.output)?;

    // The base, its tokenizer, and the data.
    let clock = Instant::now();
    let base = T5::from_dir(&args.model, &device)?;
    let tokenizer = Tokenizer::from_dir(&args.model)?;
    tokenizer.check_fits(base.config().vocab_size)?;
    let (template, limits) = (PromptTemplate::default(), Limits::default());
    let data = DialogSum::open(&args.dataset)?;
    let train_set = tokenize(&data.train, &tokenizer, &template, limits)?;
    println!("train: {train_set}");
    let test = &data.test[..data.test.len().min(args.max_eval_samples)];
    let test_set = tokenize(test, &tokenizer, &template, limits)?;
    println!("test: {test_set}");
    let seconds_load = clock.elapsed().as_secs_f64();

    let summarise = |model: &T5| -> Result<Vec<String>, Box<dyn Error>> {
        let (eos, start) = (model.config().eos_token_id, model.config().decoder_start_token_id);
        let greedy_config = GreedyConfig { max_new_tokens: 64, decoder_start_token_id: start, eos_token_id: eos };
        let mut summaries = Vec::new();
        for chunk in test_set.samples.chunks(args.batch_size) {
            let rows = TokenRows::from_rows(chunk.iter().map(|sample| &sample.source))?;
            for ids in greedy(model.start_decoding(&rows)?, &greedy_config)? {
                summaries.push(tokenizer.decode(&ids)?);
            }
        }
        Ok(summaries)
    };
    let clock = Instant::now();
    let zero_shot = summarise(&base)?;
    let mut seconds_generate = clock.elapsed().as_secs_f64();
    println!("\n{}\n\nzero-shot: {}\n", test[0].dialogue, zero_shot[0]);

    // The adapter: trainable factors beside every q and v; the base is shared, frozen and never changed.
    let mut model = base.clone();
    let lora = LoraConfig {
        r: args.r,
        lora_alpha: args.lora_alpha,
        lora_dropout: 0.05,
        base_model_name_or_path: Some(args.model.display().to_string()),
        ..LoraConfig::new(["q", "v"])
    };
    attach_lora(&mut model, ADAPTER, &lora, Key::from_seed(args.seed))?;
    let parameters = ParameterReport::of(&model);
    println!("{parameters}");

    let clock = Instant::now();
    let sampler = BatchSampler::new(train_set.len(), args.batch_size, args.seed)?;
    let config = TrainConfig {
        learning_rate: args.learning_rate,
        warmup_steps: args.max_steps / 20,
        seed: args.seed,
        ..TrainConfig::new(args.max_steps)
    };
    std::fs::create_dir_all(&args.output)?;
    let report = Trainer::new(config)?
        .observe(ProgressLine::new(args.max_steps))
        .observe(JsonLinesLog::create(args.output.join("training.jsonl"))?)
        .train(&mut model, |step| train_set.batch(&sampler.batch(step)), T5::token_losses);
    // Also after an error: the model then has the weights of the last good step.
    save_lora(&model, ADAPTER, &lora, &args.output)?;
    let losses = report?.losses();
    let seconds_train = clock.elapsed().as_secs_f64();
    println!("{} steps in {seconds_train:.0} s; adapter in {}\n", losses.len(), args.output.display());

    // The saved adapter on a base that has never been trained.
    let clock = Instant::now();
    let mut reloaded = T5::from_dir(&args.model, &device)?;
    load_lora(&mut reloaded, ADAPTER, &args.output)?;
    let tuned = summarise(&reloaded)?;
    seconds_generate += clock.elapsed().as_secs_f64();

    // ROUGE against all references of each dialogue.
    let clock = Instant::now();
    let first_line: Vec<String> =
        test.iter().map(|sample| sample.dialogue.lines().next().unwrap_or_default().to_owned()).collect();
    let references: Vec<&[String]> = test.iter().map(Sample::references).collect();
    let scorer = RougeScorer::all().with_stemmer(true);
    let mut rouge = Map::new();
    println!("F, 95 % interval  {:22}{:22}{:22}rougeLsum", "rouge1", "rouge2", "rougeL");
    for (name, predictions) in [("zero_shot", &zero_shot), ("first_line", &first_line), ("lora", &tuned)] {
        let intervals = aggregate(&scorer.score_corpus(&references, predictions)?, &BootstrapConfig::default())?;
        let of = |metric: Metric| intervals[metric];
        let mut scores = Map::new();
        print!("{name:18}");
        for metric in Metric::STANDARD {
            let [low, mid, high] = [of(metric).low, of(metric).mid, of(metric).high].map(|score| score.fmeasure);
            print!("{:<22}", format!("{:.2} [{:.2}, {:.2}]", 100.0 * mid, 100.0 * low, 100.0 * high));
            scores.insert(metric.to_string(), json!({ "fmeasure": mid, "low": low, "high": high }));
        }
        println!();
        rouge.insert(name.to_owned(), Value::Object(scores));
    }
    let seconds_score = clock.elapsed().as_secs_f64();

    let mut samples = Vec::new();
    for (index, sample) in test.iter().enumerate() {
        let [reference, before, after] = [&sample.references()[0], &zero_shot[index], &tuned[index]];
        if index < 4 {
            println!("\n{}\n  reference  {reference}\n  zero-shot  {before}\n  LoRA       {after}", sample.id);
        }
        samples.push(json!({ "id": sample.id, "reference": reference, "zero_shot": before, "lora": after }));
    }
    if let Some(path) = &args.json {
        let seconds = json!({
            "load": seconds_load, "train": seconds_train, "generate": seconds_generate, "score": seconds_score,
        });
        let results = json!({
            "config": args, "parameters": { "trainable": parameters.trainable, "all": parameters.all },
            "losses": losses, "rouge": rouge, "samples": samples, "seconds": seconds,
        });
        sideburn::weights::write_atomic(path, serde_json::to_string_pretty(&results)?.as_bytes())?;
    }
    Ok(())
}
