//! LoRA steps over a large frozen base in 4 or 8 bits, at the size of real models: loading, peak memory, seconds a step beside
//! the floor of the machine, and losses.
//!
//! `cargo bench --bench large_base -- --config config.json --weights DIR --quantization nf4` writes seeded weights in bf16
//! into DIR, in shards as Hugging Face has them, if there are none yet (14 GB for Falcon-7B), reads them as any model, and
//! trains LoRA for three steps on one batch of random tokens. The floor is what the products take at the speed that `gemm`
//! has for such a product here, and reading the codes once each way at the speed of memory.
//!
//! Falcon-7B: `--config falcon-7b` (no file needed), `--quantization nf4 --prompt 96 --target 32`, LoRA on all four layers of a
//! block. FLAN-T5-XXL: `--config testdata/flan_t5_xxl/config.json --quantization int8 --prompt 255 --target 50`, on q and v.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use sideburn::adapters::Weight;
use sideburn::kernels::{linear, on_workers};
use sideburn::plan::{BatchShape, Place, plan_training};
use sideburn::prelude::*;
use sideburn::weights::{Dtype, Tensor as Stored, TensorInfo, WeightsError, write_safetensors_lazily};

#[derive(Parser)]
struct Args {
    /// config.json of the model, or falcon-7b
    #[arg(long, default_value = "falcon-7b")]
    config: String,
    /// Directory of the seeded weights, which are written if they are not there
    #[arg(long)]
    weights: PathBuf,
    #[arg(long, value_enum, default_value = "nf4")]
    quantization: To,
    /// Rows of the batch
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 96)]
    prompt: usize,
    /// Tokens of each target
    #[arg(long, default_value_t = 32)]
    target: usize,
    #[arg(long, default_value_t = 3)]
    steps: u64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    Nf4,
    Fp4,
    Int8,
}

/// Bytes of a shard.
const SHARD: u64 = 2 << 30;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let device = parse_device("flex")?.autodiff();
    fs::create_dir_all(&args.weights)?;
    let config = args.weights.join("config.json");
    match args.config.as_str() {
        "falcon-7b" => fs::write(&config, r#"{"model_type": "falcon"}"#)?,
        path => drop(fs::copy(path, &config).context(path.to_owned())?),
    }
    let mut outline = AutoModel::random(&config, Key::from_seed(0), &device)?;
    write_weights(&outline, &args.weights)?;

    let quantization = match args.quantization {
        To::Nf4 => Quantization::NF4,
        To::Fp4 => Quantization::FP4,
        To::Int8 => Quantization::INT8,
    };
    let lora = |model: &AutoModel| match model {
        AutoModel::T5(_) => LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::new(["q", "v"]) },
        _ => {
            let all = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
            LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::new(all) }
        }
    };
    outline.attach("default", lora(&outline), Key::from_seed(0))?;
    let batch = BatchShape { rows: args.rows, prompt: args.prompt, target: args.target };
    let plan = plan_training(&outline, Some(&quantization.into()), batch, Place::Cpu);
    println!("planned: {}, loading {}", gigabytes(plan.peak()), gigabytes(plan.base.loading));

    let packed = outline.base_bytes(Some(&quantization.into())).packed;
    let floor = floor(&outline, packed, args.rows * args.prompt, args.rows * args.target);
    println!("floor of a step: {floor:.1} s");
    // What that took is no part of the peak.
    fs::write("/proc/self/clear_refs", "5").context("the peak of the process")?;

    let before = resident("VmRSS");
    let clock = Instant::now();
    let mut model = AutoModel::from_dir_quantized(&args.weights, quantization, &device)?;
    let seconds = clock.elapsed().as_secs_f64();
    let (held, peak, packed) = (resident("VmRSS") - before, resident("VmHWM") - before, model.base_bytes(None));
    println!("base: {} packed, {} floats", gigabytes(packed.packed), gigabytes(packed.floats));
    println!(
        "loaded in {seconds:.1} s; {} resident, at most {}: {:.2} times the base",
        gigabytes(held),
        gigabytes(peak),
        peak as f64 / packed.total() as f64
    );

    model.attach("default", lora(&model), Key::from_seed(0))?;
    println!("{}", ParameterReport::of(&model));
    let key = Key::from_seed(1);
    let tokens = |rows: usize, length: usize, part: u64| {
        let token = |row: usize, column: usize| {
            key.fold_in(part).fold_in(row as u64).below(column as u64, model.vocab_size() as u64) as u32
        };
        TokenRows::from_rows((0..rows).map(|row| (0..length).map(|column| token(row, column)).collect::<Vec<_>>()))
    };
    let batch = PromptBatch::new(tokens(args.rows, args.prompt, 0)?, tokens(args.rows, args.target, 1)?)?;
    let config = TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(args.steps) };
    let report =
        Trainer::new(config)?.train(&mut model, |_| Ok::<_, WeightsError>(batch.clone()), AutoModel::token_losses)?;
    for step in &report.steps {
        println!(
            "step {}: loss {:.4}, {:.1} s, {:.0} % of the floor",
            step.step,
            step.loss,
            step.seconds,
            100.0 * floor / step.seconds
        );
    }
    println!("peak resident: {}", gigabytes(resident("VmHWM")));
    Ok(())
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// Bytes that the system counts for this process, under this name.
fn resident(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next());
    line.and_then(|kibibytes| kibibytes.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Seconds that a step takes at least: products there and back, and the codes read in both directions.
fn floor(model: &AutoModel, packed: u64, prompts: usize, targets: usize) -> f64 {
    let device = model.device();
    let rows = prompts.max(targets);
    let (out, input) = (4096, 4096);
    let x = Tensor::<2>::ones([rows, input], &device.clone().inner());
    let weight = Tensor::<2>::ones([out, input], &device.clone().inner());
    let product = || on_workers(&device, || black_box(linear(x.clone(), weight.clone())));
    let flops = best_of(|| drop(product())).recip() * (2 * rows * out * input) as f64;
    let memory = vec![1u64; 1 << 26];
    let bandwidth = best_of(|| _ = black_box(memory.iter().sum::<u64>())).recip() * (8 << 26) as f64;
    let mut operations = 0.0;
    for (name, linear) in model.linears() {
        let tokens = model.tokens_at(&name, prompts, targets);
        operations += 2.0 * 2.0 * tokens as f64 * linear.shape().iter().product::<usize>() as f64;
    }
    println!("gemm {:.0} GFLOP/s, memory {:.1} GB/s, {operations:.2e} operations", flops / 1e9, bandwidth / 1e9);
    operations / flops + 2.0 * packed as f64 / bandwidth
}

/// The fewest seconds of several runs.
fn best_of(run: impl Fn()) -> f64 {
    let seconds = || {
        let clock = Instant::now();
        run();
        clock.elapsed().as_secs_f64()
    };
    (0..7).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

/// Writes seeded weights for a model, in shards, if there are none.
fn write_weights(model: &AutoModel, directory: &Path) -> anyhow::Result<()> {
    let index = directory.join("model.safetensors.index.json");
    if index.exists() {
        return Ok(());
    }
    let clock = Instant::now();
    let mut shards: Vec<Vec<(String, TensorInfo, f32, f32)>> = vec![Vec::new()];
    let (mut size, mut total) = (0, 0);
    for (name, weight) in model.weights() {
        for (part, (tensor, held)) in weight.tensors(&name).enumerate() {
            let shape = held.shape();
            let bytes = 2 * shape.iter().product::<usize>() as u64;
            let (mean, deviation) = match (&weight, shape.len()) {
                (Weight::Linear(_), 2) => (0.0, (*shape.last().unwrap_or(&1) as f32).powf(-0.5)),
                (Weight::Table(_), _) => (0.0, 0.02),
                // The scale of a norm; biases are behind it.
                _ if part == 0 && tensor.ends_with(".weight") => (1.0, 0.0),
                _ => (0.0, 0.0),
            };
            if size + bytes > SHARD && size > 0 {
                shards.push(Vec::new());
                size = 0;
            }
            (size, total) = (size + bytes, total + bytes);
            let shard = shards.last_mut().expect("there is one");
            shard.push((tensor, TensorInfo { dtype: Dtype::BF16, shape }, mean, deviation));
        }
    }
    let count = shards.len();
    let mut map = serde_json::Map::new();
    for (number, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        map.extend(shard.iter().map(|(name, ..)| (name.clone(), file.clone().into())));
        let infos = shard.iter().map(|(name, info, ..)| (name.clone(), info.clone())).collect::<Vec<_>>();
        let make = |name: &str| {
            let (_, info, mean, deviation) = shard.iter().find(|(own, ..)| own == name).expect("one of them");
            Stored::new(Dtype::BF16, info.shape.clone(), drawn(name, info.num_elements(), *mean, *deviation))
        };
        write_safetensors_lazily::<WeightsError>(directory.join(file), infos, make, None)?;
    }
    let text = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    fs::write(index, text.to_string())?;
    println!("{} of weights written in {:.0} s", gigabytes(total), clock.elapsed().as_secs_f64());
    Ok(())
}

/// Uniform numbers around a mean as bf16, the same for each name.
fn drawn(name: &str, count: usize, mean: f32, deviation: f32) -> Vec<u8> {
    let (key, step) = (Key::from_seed(7).fold_in_name(name), deviation * 3f32.sqrt() / 32768.0);
    let words = (0..count.div_ceil(4) as u64).map(|index| key.bits(index));
    let number = |bits: u64| (f32::from(bits as u16) - 32767.5) * step + mean;
    let rounded = |x: f32| ((x.to_bits() + 0x7fff + ((x.to_bits() >> 16) & 1)) >> 16) as u16;
    let numbers = words.flat_map(|word| [0, 16, 32, 48].map(|shift| rounded(number(word >> shift)).to_le_bytes()));
    numbers.flatten().take(2 * count).collect()
}
