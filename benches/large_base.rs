//! LoRA steps over a large frozen base in 4 or 8 bits, at the size of real models: loading, peak memory, seconds a step beside
//! the floor of the machine, and losses.
//!
//! `cargo bench --bench large_base -- --config config.json --weights DIR --quantization nf4` writes seeded weights in bf16
//! into DIR, in shards as Hugging Face has them, if there are none yet (14 GB for Falcon-7B), reads them as any model, and
//! trains LoRA for three steps on one batch of random tokens. Without `--weights` they are drawn as they are read, and take no disk.
//!
//! The floor of a step is what the products take at the speed that `gemm` has for such a product here, and reading the codes once
//! each way at the speed of memory; that of loading is reading the files, or quantising, whichever takes longer. All are measured
//! in the same run, in seconds and in seconds of processor time, which can be compared on a machine that is at work on other
//! things, too.
//!
//! Falcon-7B: `--config falcon-7b` (no file needed), `--quantization nf4 --prompt 96 --target 32`, LoRA on all four layers of a
//! block. FLAN-T5-XXL: `--config testdata/flan_t5_xxl/config.json --quantization int8 --pack-kept --prompt 255 --target 50`, on q
//! and v. `--layers 2` cuts a model short.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use sideburn::adapters::Weight;
use sideburn::kernels::{linear, on_workers};
use sideburn::nn::QuantizationConfig;
use sideburn::plan::{BatchShape, Place, plan_training};
use sideburn::prelude::*;
use sideburn::quant::Packed;
use sideburn::weights::{Dtype, Tensor as Stored, TensorInfo, TensorSource, WeightsError, write_safetensors_lazily};
use sideburn_benches::clock::{Clock, Seconds, fewest};

#[derive(Parser)]
struct Args {
    /// config.json of the model, or falcon-7b
    #[arg(long, default_value = "falcon-7b")]
    config: String,
    /// Directory of the seeded weights, which are written if they are not there [default: they are drawn as they are read]
    #[arg(long)]
    weights: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "nf4")]
    quantization: To,
    /// Pack what transformers keeps in f32, too: wo of T5
    #[arg(long)]
    pack_kept: bool,
    /// Blocks, of an encoder and of a decoder, in place of as many as the configuration has
    #[arg(long)]
    layers: Option<u64>,
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
    let text = match args.config.as_str() {
        "falcon-7b" => r#"{"model_type": "falcon", "num_hidden_layers": 32}"#.to_owned(),
        path => fs::read_to_string(path).context(path.to_owned())?,
    };
    let mut fields: serde_json::Value = serde_json::from_str(&text)?;
    for name in ["num_hidden_layers", "num_layers", "num_decoder_layers"] {
        if let (Some(layers), Some(field)) = (args.layers, fields.get_mut(name)) {
            *field = layers.into();
        }
    }
    fields["dtype"] = "bfloat16".into();
    let directory = args.weights.clone().unwrap_or_else(|| std::env::temp_dir().join("large_base"));
    fs::create_dir_all(&directory)?;
    let config = directory.join("config.json");
    fs::write(&config, fields.to_string())?;
    let mut outline = AutoModel::random(&config, Key::from_seed(0), &device)?;
    let seeded = Seeded::of(&outline);
    if args.weights.is_some() {
        seeded.write(&directory)?;
    }

    let quantization = match args.quantization {
        To::Nf4 => Quantization::NF4,
        To::Fp4 => Quantization::FP4,
        To::Int8 => Quantization::INT8,
    };
    let packing = QuantizationConfig { keep_in_fp32_modules: !args.pack_kept, ..quantization.into() };
    let planned = QuantizationConfig { dtype: Some(Dtype::BF16), ..packing.clone() };
    let lora = |model: &AutoModel| match model {
        AutoModel::T5(_) => LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::new(["q", "v"]) },
        _ => {
            let all = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
            LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::new(all) }
        }
    };
    outline.attach("default", lora(&outline), Key::from_seed(0))?;
    let batch = BatchShape { rows: args.rows, prompt: args.prompt, target: args.target, gradient_checkpointing: false };
    let plan = plan_training(&outline, Some(&planned), batch, Place::Cpu);
    let base = plan.base;
    println!(
        "planned: base {} packed, {} floats; loading {}, peak {}",
        gigabytes(base.packed),
        gigabytes(base.floats),
        gigabytes(base.loading),
        gigabytes(plan.peak())
    );

    let floor = floor(&outline, base.packed, args.rows * args.prompt, args.rows * args.target);
    println!("floor of a step: {floor}");
    let loading =
        args.weights.as_ref().map(|directory| floor_of_loading(&outline, directory, quantization)).transpose()?;
    // What that took is no part of the peak.
    fs::write("/proc/self/clear_refs", "5").context("the peak of the process")?;

    let before = resident("VmRSS");
    let clock = Clock::start();
    let mut model = match &args.weights {
        Some(directory) => AutoModel::from_dir_quantized(directory, packing, &device)?,
        None => {
            fn own(name: &str) -> Option<&str> {
                Some(name)
            }
            let mut model = AutoModel::random(&config, Key::from_seed(0), &device)?;
            model.load_base_quantized(&seeded, own, &packing)?;
            model
        }
    };
    let taken = clock.spent();
    let (held, peak, packed) = (resident("VmRSS") - before, resident("VmHWM") - before, model.base_bytes(None));
    println!("base: {} packed, {} floats", gigabytes(packed.packed), gigabytes(packed.floats));
    println!(
        "loaded in {taken}, {} of the floor; {} resident, at most {}: {:.2} times the base",
        loading.map_or_else(|| "not to be held against a part".to_owned(), |loading| loading.of(taken)),
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
    let clock = Clock::start();
    let next = |step| {
        println!("step {step} begins, {}", clock.spent());
        Ok::<_, WeightsError>(batch.clone())
    };
    let report = Trainer::new(config)?.train(&mut model, next, AutoModel::token_losses)?;
    let taken = clock.spent().times(1.0 / args.steps as f64);
    for step in &report.steps {
        println!("step {}: loss {:.4}, {:.2} s", step.step, step.loss, step.seconds);
    }
    println!("a step: {taken}, {} of the floor", floor.of(taken));
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

/// What a step takes at least: products there and back, and the codes read in both directions.
fn floor(model: &AutoModel, packed: u64, prompts: usize, targets: usize) -> Seconds {
    let device = model.device();
    let rows = prompts.max(targets);
    let (out, input) = (4096, 4096);
    let x = Tensor::<2>::ones([rows, input], &device.clone().inner());
    let weight = Tensor::<2>::ones([out, input], &device.clone().inner());
    let product = fewest(|| drop(on_workers(&device, || black_box(linear(x.clone(), weight.clone())))));
    let memory = vec![1u64; 1 << 26];
    let reading = fewest(|| _ = black_box(memory.iter().sum::<u64>()));
    let mut operations = 0.0;
    for (name, linear) in model.linears() {
        let tokens = model.tokens_at(&name, prompts, targets);
        operations += 2.0 * 2.0 * tokens as f64 * linear.shape().iter().product::<usize>() as f64;
    }
    let (flops, bytes) = ((2 * rows * out * input) as f64, (8 << 26) as f64);
    let speed = |amount: f64, wall: f64| amount / wall / 1e9;
    println!(
        "gemm {:.0} GFLOP/s ({:.0} on each processor), memory {:.1} GB/s, {operations:.2e} operations",
        speed(flops, product.wall),
        speed(flops, product.processor),
        speed(bytes, reading.wall)
    );
    product.times(operations / flops).plus(reading.times(2.0 * packed as f64 / bytes))
}

/// What loading takes at least: reading the files, or quantising, which goes on meanwhile. Of files that are larger than
/// memory, a part is read.
fn floor_of_loading(model: &AutoModel, directory: &Path, quantization: Quantization) -> anyhow::Result<Seconds> {
    use std::io::Read;

    const PART: u64 = 2 << 30;
    let (mut read, mut buffer, clock) = (0u64, vec![0u8; 16 << 20], Clock::start());
    let files = fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    let files = files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    let mut all = 0;
    for file in files {
        let mut file = fs::File::open(file)?;
        all += file.metadata()?.len();
        while read < PART {
            match file.read(&mut buffer)? {
                0 => break,
                count => read += count as u64,
            }
        }
    }
    let reading = clock.spent().times(all as f64 / read as f64);
    let (rows, columns) = (4096, 4096);
    let values: Vec<f32> = (0..rows * columns).map(|index| (index as f32 * 0.37).sin()).collect();
    let quantising = fewest(|| drop(black_box(Packed::quantize("weight", &values, [rows, columns], quantization))));
    let elements: usize = model.linears().iter().map(|(_, linear)| linear.shape().iter().product::<usize>()).sum();
    let quantising = quantising.times(elements as f64 / (rows * columns) as f64);
    println!("floor of loading {}: reading {reading}, quantising {quantising}", gigabytes(all));
    // Processor time is of both, whichever goes on longer.
    let processor = reading.processor + quantising.processor;
    Ok(Seconds { wall: reading.wall.max(quantising.wall), processor })
}

/// Seeded weights in bf16 for every tensor of a model, each drawn when it is read.
struct Seeded(BTreeMap<String, Drawn>);

/// What a tensor is drawn from: uniform numbers.
struct Drawn {
    info: TensorInfo,
    mean: f32,
    deviation: f32,
}

impl Seeded {
    fn of(model: &AutoModel) -> Self {
        let mut tensors = BTreeMap::new();
        for (name, weight) in model.weights() {
            for (part, (tensor, held)) in weight.tensors(&name).enumerate() {
                let shape = held.shape();
                let (mean, deviation) = match (&weight, shape.len()) {
                    (Weight::Linear(_), 2) => (0.0, (*shape.last().unwrap_or(&1) as f32).powf(-0.5)),
                    (Weight::Table(_), _) => (0.0, 0.02),
                    // The scale of a norm; biases are behind it.
                    _ if part == 0 && tensor.ends_with(".weight") => (1.0, 0.0),
                    _ => (0.0, 0.0),
                };
                tensors.insert(tensor, Drawn { info: TensorInfo { dtype: Dtype::BF16, shape }, mean, deviation });
            }
        }
        Self(tensors)
    }

    /// Writes them in shards, if there are none.
    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let index = directory.join("model.safetensors.index.json");
        if index.exists() {
            return Ok(());
        }
        let clock = Clock::start();
        let (mut shards, mut size, mut total) = (vec![Vec::new()], 0, 0);
        for (name, Drawn { info, .. }) in &self.0 {
            let bytes = info.num_bytes() as u64;
            if size + bytes > SHARD && size > 0 {
                shards.push(Vec::new());
                size = 0;
            }
            (size, total) = (size + bytes, total + bytes);
            shards.last_mut().expect("there is one").push((name.clone(), info.clone()));
        }
        let (count, mut map) = (shards.len(), serde_json::Map::new());
        for (number, shard) in shards.into_iter().enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
            map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone().into())));
            write_safetensors_lazily(directory.join(file), shard, |name| self.read(name), None)?;
        }
        let text = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
        fs::write(index, text.to_string())?;
        println!("{} of weights written in {}", gigabytes(total), clock.spent());
        Ok(())
    }
}

impl TensorSource for Seeded {
    fn path(&self) -> &Path {
        Path::new("seeded weights")
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        Box::new(self.0.keys().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.0.get(name).map(|drawn| &drawn.info)
    }

    fn read(&self, name: &str) -> Result<Stored, WeightsError> {
        let Drawn { info, mean, deviation } =
            self.0.get(name).ok_or_else(|| WeightsError::tensor_not_found(self, name))?;
        let (key, step) = (Key::from_seed(7).fold_in_name(name), deviation * 3f32.sqrt() / 32768.0);
        let words = (0..info.num_elements().div_ceil(4) as u64).map(|index| key.bits(index));
        let number = |bits: u64| (f32::from(bits as u16) - 32767.5) * step + mean;
        let rounded = |x: f32| ((x.to_bits() + 0x7fff + ((x.to_bits() >> 16) & 1)) >> 16) as u16;
        let numbers = words.flat_map(|word| [0, 16, 32, 48].map(|shift| rounded(number(word >> shift)).to_le_bytes()));
        Stored::new(Dtype::BF16, info.shape.clone(), numbers.flatten().take(info.num_bytes()).collect())
    }
}
