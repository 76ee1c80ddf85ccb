//! Our side of the comparison with Hugging Face: one case in one process, as flags say, and one JSON line of what was
//! measured. `benches/peer/run.py` runs it beside `hugging_face.py`, which takes the same flags, and on a GPU
//! `benches/gpu.sh` does.
//!
//! `tokens` turns dialogues into the token ids that both sides read; `train` repeats training steps of a model
//! directory over a file of such samples; `decode` writes a number of tokens, greedily or with beams, in
//! floats or in integers; `products` multiplies
//! matrices. Only public API is used: what is timed is `Trainer::train` and `generate`, as a program would call them.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::Context;
use burn::module::Module;
use burn::tensor::{FloatDType, Tensor};
use clap::{Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sideburn::adapters::methods::PromptTuningConfig;
use sideburn::batch::Batch;
use sideburn::data::{DataError, GroupedSampler};
use sideburn::device::parse_device_in;
use sideburn::kernels::{ChromeEvents, MatmulPrecision, matmul, record_profile, set_matmul_precision, take_profile};
use sideburn::prelude::*;
use sideburn::train::{Control, Observer, Optim, Run, StepRecord, TrainError};

/// Sideburn's side of benches/peer/run.py
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the token ids of the first training dialogues, a JSON object a line
    Tokens {
        /// Directory of DialogSum
        #[arg(long)]
        dataset: PathBuf,
        /// Directory of the tokenizer
        #[arg(long)]
        tokenizer: PathBuf,
        #[arg(long)]
        count: usize,
        #[arg(long)]
        out: PathBuf,
    },
    /// Times training steps: forward, backward, clipping, AdamW
    Train {
        #[command(flatten)]
        case: Case,
        #[arg(long)]
        method: Method,
        /// Of LoRA's branch; the model's own stands in its config.json
        #[arg(long, default_value_t = 0.0)]
        lora_dropout: f64,
        #[arg(long, default_value = "order")]
        batching: Batching,
        /// The optimiser, as `transformers` names it
        #[arg(long, default_value = "adamw_torch", value_parser = optim)]
        optim: Optim,
    },
    /// Times decoding, greedily or with beams
    Decode {
        #[command(flatten)]
        case: Case,
        /// Every row writes this many; none ends before
        #[arg(long)]
        new_tokens: usize,
        #[arg(long, default_value_t = 1)]
        num_beams: usize,
        /// In floats, or in integers of 8 bits
        #[arg(long, default_value = "f32")]
        compute: Compute,
    },
    /// Times the products of a feed-forward layer
    Products {
        #[command(flatten)]
        place: Place,
        /// Rows
        #[arg(long)]
        tokens: usize,
        /// Of the layer, which is four times as wide within
        #[arg(long)]
        width: usize,
    },
}

/// Where to compute, and in what.
#[derive(clap::Args)]
struct Place {
    /// flex, wgpu, vulkan, metal or cuda, with :INDEX behind a GPU's
    #[arg(long, default_value = "flex")]
    device: String,
    /// Of the base: f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: FloatDType,
    /// How exactly a GPU multiplies f32: highest, high or medium
    #[arg(long, default_value_t)]
    matmul_precision: MatmulPrecision,
}

#[derive(clap::Args)]
struct Case {
    /// Directory of the base model; one that holds nothing but config.json gives a model of random weights
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Token ids, as `tokens` writes them; a repetition goes through the file once
    #[arg(long)]
    samples: PathBuf,
    /// Rows of a batch
    #[arg(long)]
    rows: usize,
    /// Repetitions that are not counted
    #[arg(long, default_value_t = 0)]
    warmup: usize,
    /// Repetitions that are counted
    #[arg(long, default_value_t = 1)]
    reps: usize,
    /// Writes what each operation took to this file, for <https://ui.perfetto.dev>
    #[arg(long)]
    profile: Option<PathBuf>,
}

fn optim(name: &str) -> Result<Optim, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

fn dtype(name: &str) -> Result<FloatDType, String> {
    match name {
        "f32" => Ok(FloatDType::F32),
        "bf16" => Ok(FloatDType::BF16),
        "f16" => Ok(FloatDType::F16),
        _ => Err("expected f32, bf16 or f16".to_owned()),
    }
}

impl Place {
    /// The device, which makes tensors in the dtype that was asked for.
    fn device(&self) -> anyhow::Result<Device> {
        set_matmul_precision(self.matmul_precision);
        Ok(if self.dtype == FloatDType::F32 {
            parse_device(&self.device)?
        } else {
            parse_device_in(&self.device, self.dtype)?
        })
    }
}

impl Case {
    fn load(&self, device: &Device) -> anyhow::Result<T5> {
        if self.model.join("model.safetensors").exists() {
            return Ok(T5::from_dir(&self.model, device)?);
        }
        Ok(T5::random(&T5Config::from_file(self.model.join("config.json"))?, Key::from_seed(4), device))
    }

    /// Begins to record, if that is asked for.
    fn begin_profile(&self) {
        record_profile(self.profile.is_some());
    }

    fn write_profile(&self) -> anyhow::Result<()> {
        let Some(path) = &self.profile else { return Ok(()) };
        Ok(ChromeEvents::begin(BufWriter::new(File::create(path)?))?.write(&take_profile())?)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compute {
    F32,
    Int8,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    /// Rank 32 on q and v
    Lora,
    /// 20 virtual tokens
    Prompt,
    /// Every weight
    Full,
}

#[derive(Clone, Copy, ValueEnum)]
enum Batching {
    /// As many rows as `--rows` says, in the order of the file
    Order,
    /// Shuffled, and as many rows as fit into as many tokens as `--rows` samples have on average
    Budget,
}

/// One line of a file of samples.
#[derive(Serialize, Deserialize)]
struct Ids {
    source: Vec<u32>,
    target: Vec<u32>,
}

fn main() -> anyhow::Result<()> {
    // `cargo bench` runs every benchmark, with this flag. Alone, there is nothing to compare with.
    if std::env::args().any(|argument| argument == "--bench") {
        println!("peer: run benches/peer/run.py, which compares with Hugging Face");
        return Ok(());
    }
    match Args::parse().command {
        Command::Tokens { dataset, tokenizer, count, out } => write_tokens(&dataset, &tokenizer, count, &out)?,
        Command::Train { case, method, lora_dropout, batching, optim } => {
            println!("{}", train(&case, method, lora_dropout, batching, optim)?);
        }
        Command::Decode { case, new_tokens, num_beams, compute } => {
            println!("{}", decode(&case, new_tokens, num_beams, compute)?);
        }
        Command::Products { place, tokens, width } => println!("{}", products(&place.device()?, tokens, width)?),
    }
    Ok(())
}

fn write_tokens(dataset: &Path, tokenizer: &Path, count: usize, out: &Path) -> anyhow::Result<()> {
    let dialogsum = Dataset::dialogsum();
    let train = dialogsum.read(dataset, Split::Train)?.examples;
    anyhow::ensure!(train.len() >= count, "{}: {} dialogues, wanted {count}", dataset.display(), train.len());
    let tokenizer = Tokenizer::from_dir(tokenizer)?;
    let set = tokenize(&train[..count], &tokenizer, &dialogsum.template, Limits::default())?;
    let mut file = BufWriter::new(File::create(out)?);
    for TokenizedExample { prompt, target, .. } in set.examples {
        serde_json::to_writer(&mut file, &Ids { source: prompt, target })?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(())
}

fn train(case: &Case, method: Method, lora_dropout: f64, batching: Batching, optim: Optim) -> anyhow::Result<Value> {
    let samples = read_samples(&case.samples)?;
    let batches = match batching {
        Batching::Order => in_order(samples.len(), case.rows),
        Batching::Budget => by_budget(&samples, case.rows)?,
    };
    let batches: Vec<PromptBatch> = batches.iter().map(|batch| collate(&samples, batch)).collect::<Result<_, _>>()?;
    let device = case.place.device()?;
    let mut model = case.load(&device.clone().autodiff())?;
    attach_method(&mut model, method, lora_dropout)?;
    let trainable = ParameterReport::of(&model).trainable;

    let steps = ((case.warmup + case.reps) * batches.len()) as u64;
    let (learning_rate, lr_scheduler_type) = (1e-4, Schedule::Constant);
    let config = TrainConfig { learning_rate, lr_scheduler_type, optim, ..TrainConfig::new(steps) };
    let batch = |step: u64| Ok::<_, Infallible>(batches[step as usize % batches.len()].clone());
    let (resting_mib, ready_at) = (resident_mib("VmRSS"), now());
    let mut watch = Watch { batches: batches.len() as u64, first_step_at: 0.0, laps: Laps::start() };
    case.begin_profile();
    let report = Trainer::new(config)?.observe(&mut watch).train(&mut model, batch, T5::token_losses)?;
    case.write_profile()?;

    let mut record = watch.laps.record(case.warmup);
    let memory = device_mib(&device);
    let launches = launches(&device, || {
        let config = TrainConfig::new(1);
        let first = |_| Ok::<_, Infallible>(batches[0].clone());
        Trainer::new(config)?.train(&mut model, first, T5::token_losses)
    })?;
    let tokens: usize = batches.iter().map(Batch::tokens).sum();
    extend(
        &mut record,
        json!({
            "batches": batches.len(), "tokens": tokens, "computed_tokens": tokens, "losses": report.losses(),
            "trainable": trainable, "resting_mib": resting_mib, "device_mib": memory, "launches": launches,
            "ready_at": ready_at, "first_step_at": watch.first_step_at,
        }),
    );
    Ok(record)
}

fn attach_method(model: &mut T5, method: Method, lora_dropout: f64) -> anyhow::Result<()> {
    let key = Key::from_seed(0);
    match method {
        Method::Lora => {
            let lora = LoraConfig { r: 32, lora_alpha: 32.0, lora_dropout, ..LoraConfig::new(["q", "v"]) };
            model.attach("default", lora, key)?;
        }
        Method::Prompt => {
            model.attach("default", PromptTuningConfig::new(20), key)?;
        }
        Method::Full => {
            *model = model.clone().unfreeze();
        }
    }
    Ok(())
}

fn decode(case: &Case, new_tokens: usize, num_beams: usize, compute: Compute) -> anyhow::Result<Value> {
    let samples = read_samples(&case.samples)?;
    let batches = in_order(samples.len(), case.rows);
    let sources: Vec<TokenRows> = batches
        .iter()
        .map(|batch| TokenRows::from_rows(batch.iter().map(|index| &samples[*index].source)))
        .collect::<Result<_, _>>()?;
    let device = case.place.device()?;
    let mut model = case.load(&device)?;
    if compute == Compute::Int8 {
        model.compute_in_int8()?;
    }
    // No token ends a row early.
    let config = GenerationConfig { num_beams, ..GenerationConfig::new(new_tokens) };
    let ready_at = now();
    case.begin_profile();
    let mut laps = Laps::start();
    let mut ids = Vec::new();
    for _ in 0..case.warmup + case.reps {
        ids.clear();
        for source in &sources {
            let written = generate(model.start_decoding(source, Pass::evaluate())?, &config)?;
            ids.extend(written.into_iter().map(|answer| answer.tokens));
        }
        laps.lap();
    }
    case.write_profile()?;
    let mut record = laps.record(case.warmup);
    let tokens = samples.len() * new_tokens;
    extend(
        &mut record,
        json!({
            "batches": sources.len(), "tokens": tokens, "computed_tokens": tokens, "ids": ids,
            "ready_at": ready_at, "device_mib": device_mib(&device),
        }),
    );
    Ok(record)
}

/// The rate of products `[m, k]` times `[k, n]`, the weight as PyTorch stores it, and transposed for the gradient.
fn products(device: &Device, tokens: usize, width: usize) -> anyhow::Result<Value> {
    let mut products = Vec::new();
    for [m, k, n] in
        [[tokens, width, width], [tokens, width, 4 * width], [tokens, 4 * width, width], [width, tokens, 32]]
    {
        let (lhs, rhs) = (Tensor::<2>::ones([m, k], device), Tensor::<2>::ones([n, k], device).transpose());
        let repeat = |count: usize| -> anyhow::Result<f64> {
            let start = Instant::now();
            for _ in 0..count {
                std::hint::black_box(matmul(lhs.clone(), rhs.clone()));
            }
            device.sync()?;
            Ok(start.elapsed().as_secs_f64())
        };
        let mut count = 1;
        repeat(count)?;
        let seconds = loop {
            let seconds = repeat(count)?;
            if seconds > 0.2 {
                break seconds / count as f64;
            }
            count *= 2;
        };
        let tflops = 2.0 * (m * k * n) as f64 / seconds / 1e12;
        products.push(json!({ "shape": format!("{m} x {k} x {n}"), "seconds": seconds, "tflops": tflops }));
    }
    Ok(json!({ "products": products }))
}

fn read_samples(path: &Path) -> anyhow::Result<Vec<Ids>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let samples: Vec<Ids> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    anyhow::ensure!(!samples.is_empty(), "{} holds no sample", path.display());
    Ok(samples)
}

fn in_order(samples: usize, rows: usize) -> Vec<Vec<usize>> {
    (0..samples).collect::<Vec<_>>().chunks(rows).map(<[usize]>::to_vec).collect()
}

/// Batches of at most as many tokens as `rows` samples have on average, so that an epoch has about as many steps as
/// with batches of `rows`.
fn by_budget(samples: &[Ids], rows: usize) -> Result<Vec<Vec<usize>>, DataError> {
    let tokens: Vec<usize> = samples.iter().map(|ids| ids.source.len() + ids.target.len()).collect();
    let sampler = GroupedSampler::by_tokens(&tokens, tokens.iter().sum::<usize>() * rows / samples.len(), 0)?;
    Ok((0..sampler.batches_per_epoch() as u64).map(|step| sampler.batch(step)).collect())
}

fn collate(samples: &[Ids], batch: &[usize]) -> anyhow::Result<PromptBatch> {
    let source = TokenRows::from_rows(batch.iter().map(|index| &samples[*index].source))?;
    let target = TokenRows::from_rows(batch.iter().map(|index| &samples[*index].target))?;
    Ok(PromptBatch::new(source, target)?)
}

/// Takes the time whenever the trainer has gone through all batches.
struct Watch {
    batches: u64,
    first_step_at: f64,
    laps: Laps,
}

impl<M> Observer<M> for Watch {
    fn step(&mut self, record: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        if record.step == 0 {
            self.first_step_at = now();
        }
        if (record.step + 1).is_multiple_of(self.batches) {
            self.laps.lap();
        }
        Ok(Control::GoOn)
    }
}

/// The time of each repetition, and how many cores other processes kept busy meanwhile.
struct Laps {
    seconds: Vec<f64>,
    own_cores: Vec<f64>,
    other_cores: Vec<f64>,
    last: Reading,
}

impl Laps {
    fn start() -> Self {
        Self { seconds: Vec::new(), own_cores: Vec::new(), other_cores: Vec::new(), last: Reading::take() }
    }

    fn lap(&mut self) {
        let reading = Reading::take();
        let seconds = (reading.clock - self.last.clock).as_secs_f64();
        let own = (reading.own - self.last.own) / seconds;
        let other = (reading.machine - self.last.machine) / seconds - own;
        self.seconds.push(seconds);
        self.own_cores.push(own);
        self.other_cores.push(other.max(0.0));
        self.last = reading;
    }

    fn record(&self, warmup: usize) -> Value {
        json!({
            "seconds": self.seconds[warmup..], "own_cores": self.own_cores[warmup..],
            "other_cores": self.other_cores[warmup..], "peak_mib": resident_mib("VmHWM"),
            "versions": { "sideburn": env!("CARGO_PKG_VERSION") },
        })
    }
}

/// Processor seconds spent so far: by this process, and by all together. Zeros where there is no `/proc`.
struct Reading {
    clock: Instant,
    own: f64,
    machine: f64,
}

impl Reading {
    fn take() -> Self {
        /// `USER_HZ`, which is 100 on every Linux that Rust runs on.
        const TICKS: f64 = 100.0;
        let numbers =
            |text: &str| -> Vec<f64> { text.split_whitespace().filter_map(|word| word.parse().ok()).collect() };
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        // After the name of the program, which may hold blanks, and a letter: from the 4th field on.
        let own = read("/proc/self/stat");
        let own = numbers(own.rsplit_once(')').map_or("", |(_, fields)| fields));
        let own = own.get(10..12).map_or(0.0, |user_and_system| user_and_system.iter().sum());
        // User, nice, system, idle, waiting, interrupts, soft interrupts; time stolen by the host is nobody's.
        let machine = numbers(read("/proc/stat").lines().next().unwrap_or_default());
        let machine: f64 = machine
            .iter()
            .take(7)
            .enumerate()
            .filter(|(field, _)| ![3, 4].contains(field))
            .map(|(_, ticks)| ticks)
            .sum();
        Self { clock: Instant::now(), own: own / TICKS, machine: machine / TICKS }
    }
}

/// `VmRSS` or `VmHWM` of this process, in MiB; 0 where there is no `/proc`.
fn resident_mib(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// What a GPU's allocator has taken, in MiB; nothing for the CPU.
fn device_mib(device: &Device) -> Option<f64> {
    device.memory_pool_usage().map(|usage| usage.bytes_reserved as f64 / f64::from(1 << 20))
}

/// How many kernels `step` launches; nothing for the CPU.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
fn launches<R>(device: &Device, step: impl FnOnce() -> Result<R, TrainError>) -> anyhow::Result<Option<usize>> {
    if *device == Device::flex() {
        return Ok(None);
    }
    let (done, counts) = sideburn::kernels::count_launches(device, step);
    done?;
    Ok(Some(counts.values().sum()))
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda")))]
fn launches<R>(_: &Device, _: impl FnOnce() -> Result<R, TrainError>) -> anyhow::Result<Option<usize>> {
    Ok(None)
}

/// Seconds since 1970, the clock that this process shares with the one that started it.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn extend(record: &mut Value, fields: Value) {
    if let (Value::Object(record), Value::Object(fields)) = (record, fields) {
        record.extend(fields);
    }
}
