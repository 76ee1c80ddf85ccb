//! `sideburn plan`: how much memory a training run takes, before anything is loaded.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;
use sideburn::adapters::methods::MethodRegistry;
use sideburn::adapters::{Method, available_memory};
use sideburn::nn::{ModelDir, QuantizationConfig, stored_dtype};
use sideburn::plan::{BatchShape, MemoryPlan, Place, plan_training};
use sideburn::prelude::*;
use sideburn::weights::Dtype;

use crate::hub;
use crate::quantization::MaybeTo;
use crate::report::{Finding, grouped, in_line, shown, table};

/// Work out how much memory a training run takes: base, adapter, optimiser, activations, peak
///
/// Nothing is loaded: config.json is enough, and all that is fetched of a model on the hub. The peak is held against the memory that is left on this machine;
/// fails if it does not fit there. Without an adapter it is what the base takes, and what loading it takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the model, its config.json, or its id on the hub
    #[arg(long, value_name = "DIR|CONFIG|ID")]
    model: PathBuf,
    /// The adapter that is trained: a directory or an adapter_config.json as peft writes it, an id on the hub, or such an
    /// object itself: '{"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q", "v"]}'
    #[arg(long, value_name = "DIR|CONFIG|ID|JSON")]
    adapter: Option<String>,
    /// What the linear layers are packed in [default: as config.json says]
    #[arg(long, value_enum)]
    quantization: Option<MaybeTo>,
    /// What embeddings, heads and other matrices that are not packed are held in beside packed ones [default: as config.json says
    /// that they are stored, or float32]
    #[arg(long, value_enum)]
    dtype: Option<FloatType>,
    /// Pack what transformers keeps in float32, too: wo of T5
    #[arg(long)]
    pack_kept: bool,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a row: of a prompt, or of prompt and answer where the model is a decoder alone
    #[arg(long, default_value_t = 512)]
    seq: usize,
    /// Tokens of a target, or of an answer, which is a part of its row
    #[arg(long, default_value_t = 128)]
    target_seq: usize,
    /// Run each block again in the backward pass, instead of keeping what it computes
    #[arg(long)]
    gradient_checkpointing: bool,
}

/// What floats are held in.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FloatType {
    Float32,
    Float16,
    Bfloat16,
}

#[derive(Serialize)]
pub(crate) struct Planned {
    model: String,
    /// Elements of the base, and of the adapter those that are trained.
    parameters: u64,
    trainable: u64,
    base_packed_bytes: u64,
    base_float_bytes: u64,
    adapter_bytes: u64,
    optimizer_bytes: u64,
    loading_bytes: u64,
    backends: Vec<OfBackend>,
    /// What is left on this machine, if the system says.
    available_bytes: Option<u64>,
    fits: Option<bool>,
}

#[derive(Serialize)]
struct OfBackend {
    backends: Vec<&'static str>,
    activation_bytes: u64,
    workspace_bytes: u64,
    peak_bytes: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Planned> {
    ensure!(args.batch > 0 && args.seq > 0, "--batch {} and --seq {}: give at least 1", args.batch, args.seq);
    let config = hub::config_of(&args.model)?;
    let config = if config.is_dir() { ModelDir::new(&config).config_path() } else { config };
    let mut model = AutoModel::random(&config, Key::from_seed(0), &parse_device("flex")?.autodiff())?;
    let fields = sideburn::nn::read_json(&config)?;
    let quantization = match args.quantization {
        None => QuantizationConfig::of_model(&fields).with_context(|| shown(&config))?,
        Some(MaybeTo(to)) => to.map(|to| to.quantization().into()),
    };
    let dtype = match args.dtype {
        None => stored_dtype(&fields),
        Some(FloatType::Float32) => Some(Dtype::F32),
        Some(FloatType::Float16) => Some(Dtype::F16),
        Some(FloatType::Bfloat16) => Some(Dtype::BF16),
    };
    let keep_in_fp32_modules = !args.pack_kept;
    let quantization = quantization.map(|config| QuantizationConfig { dtype, keep_in_fp32_modules, ..config });
    let parameters = ParameterReport::of(&model).all;
    if let Some(adapter) = &args.adapter {
        model.attach_read("adapter", method(adapter)?, Key::from_seed(0))?;
    }
    let trainable = if args.adapter.is_some() { ParameterReport::of(&model).trainable } else { 0 };
    let target = match model.shape().encoder_decoder {
        true => args.target_seq,
        false => args.target_seq.min(args.seq),
    };
    let prompt = if model.shape().encoder_decoder { args.seq } else { args.seq - target };
    let gradient_checkpointing = args.gradient_checkpointing;
    let batch = BatchShape { rows: args.batch, prompt, target, gradient_checkpointing };
    let plan = |place| plan_training(&model, quantization.as_ref(), batch, place);
    let of = |backends: &[&'static str], plan: MemoryPlan| OfBackend {
        backends: backends.to_vec(),
        activation_bytes: if trainable > 0 { plan.activations } else { 0 },
        workspace_bytes: if trainable > 0 { plan.workspace } else { 0 },
        peak_bytes: if trainable > 0 { plan.peak().max(plan.base.loading) } else { plan.base.loading },
    };
    let (cpu, gpu) = (plan(Place::Cpu), plan(Place::Gpu));
    let backends = vec![of(&["flex"], cpu), of(&["wgpu", "vulkan", "metal", "cuda"], gpu)];
    let available = available_memory();
    Ok(Planned {
        model: shown(&args.model),
        parameters,
        trainable,
        base_packed_bytes: cpu.base.packed,
        base_float_bytes: cpu.base.floats,
        adapter_bytes: cpu.adapter,
        optimizer_bytes: if trainable > 0 { cpu.optimizer } else { 0 },
        loading_bytes: cpu.base.loading,
        fits: available.map(|available| backends[0].peak_bytes <= available),
        backends,
        available_bytes: available,
    })
}

/// The method of an adapter that is a directory, a file, or the text of a configuration.
fn method(adapter: &str) -> anyhow::Result<Arc<dyn Method>> {
    let methods = MethodRegistry::peft();
    if adapter.trim_start().starts_with('{') {
        let fields = serde_json::from_str(adapter).context("--adapter is no JSON object")?;
        return methods.read(&fields).context("--adapter");
    }
    let path = hub::adapter(Path::new(adapter))?;
    let file = if path.is_dir() { path.join("adapter_config.json") } else { path };
    Ok(methods.read_file(&file)?)
}

impl Finding for Planned {
    fn passed(&self) -> bool {
        self.fits != Some(false)
    }
}

/// Bytes in the unit that suits them.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        bytes => format!("{:.1} MB", bytes / 1e6),
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = format!(
            "{}: {} packed, {} floats",
            size(self.base_packed_bytes + self.base_float_bytes),
            size(self.base_packed_bytes),
            size(self.base_float_bytes)
        );
        let mut rows = vec![
            ["model".to_owned(), in_line(&self.model)],
            [
                "parameters".to_owned(),
                format!("{}, of which {} train", grouped(self.parameters), grouped(self.trainable)),
            ],
            ["base".to_owned(), base],
            ["loading".to_owned(), format!("{} at most", size(self.loading_bytes))],
        ];
        if self.trainable > 0 {
            rows.push(["adapter".to_owned(), size(self.adapter_bytes)]);
            rows.push(["optimiser".to_owned(), format!("{}: gradients, moments, a copy", size(self.optimizer_bytes))]);
        }
        for of in &self.backends {
            let parts = match self.trainable {
                0 => String::new(),
                _ => format!(": {} activations, {} workspace", size(of.activation_bytes), size(of.workspace_bytes)),
            };
            rows.push([format!("peak on {}", of.backends.join(", ")), format!("{}{parts}", size(of.peak_bytes))]);
        }
        if let (Some(available), Some(fits)) = (self.available_bytes, self.fits) {
            let verdict = if fits { "it fits" } else { "it does NOT fit" };
            rows.push(["left on this machine".to_owned(), format!("{}: {verdict}", size(available))]);
        }
        table(f, &rows)
    }
}
