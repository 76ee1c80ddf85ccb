//! A run between two steps, on disk.
//!
//! ```text
//! checkpoint-N/                  after N steps
//!   model.safetensors            every trained parameter by its name: `default:SITE.lora_A.weight`, or that of the base
//!   optimizer.safetensors        what the optimiser remembers: `PARAMETER/exp_avg`, `PARAMETER/exp_avg_sq`, `PARAMETER/step`
//!   methods.safetensors          what methods remember: `ADAPTER/NAME`; only if one does
//!   trainer_state.json           how far the run is, its settings, model and data, and the best evaluation so far
//!   adapters/NAME/               each trained adapter as `peft` reads it
//!   manifest.json                bytes and SHA-256 of all files but itself, and which layout this is
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sideburn_adapters::{Adapters, Parameter, for_each_parameter, parameters};
use sideburn_files::{AtomicDir, MAX_CONFIG, open_regular, read_text, write_atomic};
use sideburn_weights::{Dtype, SafetensorsFile, TensorSource, write_safetensors};

use crate::{Run, RunState, TrainConfig, TrainError};

/// The layout of the files.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const STATE: &str = "trainer_state.json";
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const METHODS: &str = "methods.safetensors";
/// What the adapters are in.
const ADAPTERS: &str = "adapters";

/// What a run directory knows of its run, beside what the run knows of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Steps that are made.
    pub(crate) global_step: u64,
    pub(crate) config: TrainConfig,
    pub(crate) identity: Identity,
    pub(crate) best: Option<Best>,
    /// Evaluations since there was a better one than all before.
    pub(crate) evaluations_since_best: u64,
}

/// What a run is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The fingerprint of the base model, before it was trained.
    pub(crate) model: String,
    /// What the caller says of the data.
    pub(crate) data: String,
}

/// The best evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) metric: f64,
    /// The steps that were made then.
    pub(crate) global_step: u64,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The release that wrote it.
    sideburn: String,
    files: BTreeMap<String, Entry>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
}

/// The directory of a checkpoint.
pub(crate) fn path_of(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoint-{step}"))
}

/// The steps of all checkpoints in a run directory, in order.
pub(crate) fn steps_in(run: &Path) -> Result<Vec<u64>, TrainError> {
    let reading = |source| sideburn_files::FileError::reading("listing", run, source);
    let mut steps = Vec::new();
    for entry in std::fs::read_dir(run).map_err(reading)? {
        let entry = entry.map_err(reading)?;
        let name = entry.file_name();
        let step: Option<u64> = name.to_str().and_then(|name| name.strip_prefix("checkpoint-")?.parse().ok());
        // `checkpoint-007` is none of ours.
        let is_ours = |step: &u64| name == *format!("checkpoint-{step}") && entry.path().is_dir();
        steps.extend(step.filter(is_ours));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Writes a checkpoint, whole or not at all.
pub(crate) fn write<M: Adapters>(path: &Path, model: &M, run: &Run<M>, state: &TrainerState) -> Result<(), TrainError> {
    let RunState { optimizer, adapters, .. } = run.state(model);
    let staged = AtomicDir::create(path)?;
    let file = |name: &str| staged.path().join(name);
    let trained = parameters(model).into_iter().filter(Parameter::is_trainable);
    let tensors = trained.map(|parameter| (parameter.whole_name(), to_file(&values(parameter.tensor).into_data())));
    write_safetensors(file(MODEL), tensors, Some([("format".to_owned(), "pt".to_owned())].into()))?;
    let tensors = optimizer.iter().flat_map(|(parameter, parts)| {
        parts.iter().map(move |(part, data)| (format!("{parameter}/{part}"), to_file(data)))
    });
    write_safetensors(file(OPTIMIZER), tensors, None)?;
    if !adapters.is_empty() {
        let tensors = adapters.iter().flat_map(|(adapter, state)| {
            state.iter().map(move |(name, data)| (format!("{adapter}/{name}"), to_file(data)))
        });
        write_safetensors(file(METHODS), tensors, None)?;
    }
    for name in trained_adapters(model)? {
        model.save_adapter(&name, file(ADAPTERS).join(&name))?;
    }
    write_json(&file(STATE), state)?;
    let mut files = BTreeMap::new();
    for relative in files_in(staged.path())? {
        let entry = entry_of(&file(&relative))?;
        files.insert(relative, entry);
    }
    let manifest = Manifest { format: FORMAT, sideburn: env!("CARGO_PKG_VERSION").to_owned(), files };
    write_json(&file(MANIFEST), &manifest)?;
    Ok(staged.commit()?)
}

/// Reads the state of a checkpoint, and sees to it that every file is as it was written.
pub(crate) fn open(path: &Path) -> Result<TrainerState, TrainError> {
    let broken = |message: String| TrainError::Checkpoint { path: path.to_owned(), message };
    let text = read_text(path.join(MANIFEST), MAX_CONFIG).map_err(|error| broken(error.to_string()))?;
    // Another layout may have another manifest.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unread = |error: serde_json::Error| broken(format!("{MANIFEST} cannot be read: {error}"));
    let Format { format } = serde_json::from_str(&text).map_err(unread)?;
    if format != FORMAT {
        return Err(TrainError::RunDirectory {
            path: path.to_owned(),
            message: format!(
                "a checkpoint of format {format}, and this release reads {FORMAT}; go on with the release that wrote it"
            ),
        });
    }
    let manifest: Manifest = serde_json::from_str(&text).map_err(unread)?;
    for name in [MODEL, OPTIMIZER, STATE] {
        if !manifest.files.contains_key(name) {
            return Err(broken(format!("{MANIFEST} does not list {name}")));
        }
    }
    for (name, Entry { bytes, .. }) in &manifest.files {
        let is_inside = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !is_inside {
            return Err(broken(format!("{MANIFEST} lists {name:?}, which is elsewhere")));
        }
        let (_, found) = open_regular(path.join(name)).map_err(|error| broken(error.to_string()))?;
        if found != *bytes {
            return Err(broken(format!("{name} has {found} bytes, expected {bytes}")));
        }
    }
    for (name, expected) in &manifest.files {
        let found = entry_of(&path.join(name)).map_err(|error| broken(error.to_string()))?;
        if found.sha256 != expected.sha256 {
            return Err(broken(format!("{name} is not as it was written: its SHA-256 is another")));
        }
    }
    let state = read_text(path.join(STATE), MAX_CONFIG)?;
    serde_json::from_str(&state).map_err(|error| broken(format!("{STATE} cannot be read: {error}")))
}

/// Fills `model` with the weights of an [`open`]ed checkpoint, and gives the state to go on from.
pub(crate) fn load<M: Adapters>(path: &Path, state: &TrainerState, model: &mut M) -> Result<RunState, TrainError> {
    let broken = |message: String| TrainError::Checkpoint { path: path.to_owned(), message };
    let tensors = read(&path.join(MODEL))?;
    let mut optimizer = BTreeMap::<String, BTreeMap<String, TensorData>>::new();
    for (name, data) in read(&path.join(OPTIMIZER))? {
        let (parameter, part) = name.rsplit_once('/').ok_or_else(|| broken(format!("{OPTIMIZER} has {name}")))?;
        optimizer.entry(parameter.to_owned()).or_default().insert(part.to_owned(), data);
    }
    let mut adapters = BTreeMap::<String, BTreeMap<String, TensorData>>::new();
    if path.join(METHODS).exists() {
        for (name, data) in read(&path.join(METHODS))? {
            let (adapter, of) = name.split_once('/').ok_or_else(|| broken(format!("{METHODS} has {name}")))?;
            adapters.entry(adapter.to_owned()).or_default().insert(of.to_owned(), data);
        }
    }
    fill(model, tensors).map_err(|message| broken(format!("{MODEL}: {message}")))?;
    Ok(RunState { config: state.config.clone(), step: state.global_step, optimizer, adapters })
}

/// Fills the trained parameters of `model`, by their names; nothing may be missing, and nothing left over.
pub(crate) fn fill<M: Adapters>(model: &mut M, mut tensors: BTreeMap<String, TensorData>) -> Result<(), String> {
    let mut loaded = std::collections::HashMap::new();
    for parameter in parameters(model).into_iter().filter(Parameter::is_trainable) {
        let name = parameter.whole_name();
        let data = tensors.remove(&name).ok_or_else(|| format!("there is no {name}, which is trained"))?;
        let (shape, dtype) = (parameter.tensor.lazy_shape(), values(parameter.tensor).dtype());
        if *data.shape() != shape || data.dtype() != dtype {
            let found = (data.dtype(), data.shape().as_slice().to_vec());
            return Err(format!("{name} is {found:?}, expected {:?}", (dtype, shape.as_slice())));
        }
        let device = parameter.tensor.lazy_device().inner();
        let values = Tensor::<2>::from_data(data, (&device, dtype));
        loaded.insert(parameter.id(), Param::initialized(parameter.id(), Tensor::from_inner(values).require_grad()));
    }
    if let Some(name) = tensors.keys().next() {
        return Err(format!("there is {name}, which is not trained"));
    }
    for_each_parameter(model, |param| {
        if let Some(values) = loaded.get(&param.id) {
            *param = values.clone();
        }
    });
    Ok(())
}

/// The values of a parameter, without a graph.
pub(crate) fn values(param: &Param<Tensor<2>>) -> Tensor<2> {
    let values = param.val();
    if values.device().is_autodiff() { values.inner() } else { values }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(value).expect("plain fields, and maps with text as keys");
    Ok(write_atomic(path, (text + "\n").as_bytes())?)
}

/// The files below `root` by their paths relative to it, with `/` between names.
fn files_in(root: &Path) -> Result<Vec<String>, TrainError> {
    let (mut files, mut pending) = (Vec::new(), vec![String::new()]);
    while let Some(relative) = pending.pop() {
        let directory = root.join(&relative);
        let reading = |source| sideburn_files::FileError::reading("listing", &directory, source);
        for entry in std::fs::read_dir(&directory).map_err(reading)? {
            let entry = entry.map_err(reading)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if relative.is_empty() { name } else { format!("{relative}/{name}") };
            match entry.file_type().map_err(reading)?.is_dir() {
                true => pending.push(path),
                false => files.push(path),
            }
        }
    }
    Ok(files)
}

/// The size of a file, and its SHA-256.
fn entry_of(path: &Path) -> Result<Entry, TrainError> {
    let (mut file, _) = open_regular(path)?;
    let mut hash = Sha256::new();
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let reading = |source| sideburn_files::FileError::reading("reading", path, source);
        match std::io::Read::read(&mut file, &mut buffer).map_err(reading)? {
            0 => break,
            read => {
                hash.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Entry { bytes, sha256 })
}

fn read(path: &Path) -> Result<BTreeMap<String, TensorData>, TrainError> {
    tensors_in(&SafetensorsFile::open(path)?, path)
}

/// The tensors of a file, which messages call `path`.
pub(crate) fn tensors_in(file: &SafetensorsFile, path: &Path) -> Result<BTreeMap<String, TensorData>, TrainError> {
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let tensor = |name: String| {
        let tensor = file.read(&name)?;
        let (shape, dtype) = (tensor.shape().to_vec(), tensor.dtype());
        let data = match dtype {
            Dtype::BOOL => TensorData::new(tensor.bytes().iter().map(|byte| *byte != 0).collect::<Vec<bool>>(), shape),
            dtype => {
                let known = DTYPES.iter().find(|(_, stored)| *stored == dtype).map(|(dtype, _)| *dtype);
                let message = || format!("{name} is stored as {dtype:?}, which no checkpoint has");
                let dtype =
                    known.ok_or_else(|| TrainError::Checkpoint { path: path.to_owned(), message: message() })?;
                TensorData::from_bytes_vec(tensor.into_bytes(), shape, dtype)
            }
        };
        Ok((name, data))
    };
    names.into_iter().map(tensor).collect()
}

/// What tensors of Burn are stored as. Truth values are seen to apart.
const DTYPES: [(DType, Dtype); 12] = [
    (DType::F64, Dtype::F64),
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I64, Dtype::I64),
    (DType::I32, Dtype::I32),
    (DType::I16, Dtype::I16),
    (DType::I8, Dtype::I8),
    (DType::U64, Dtype::U64),
    (DType::U32, Dtype::U32),
    (DType::U16, Dtype::U16),
    (DType::U8, Dtype::U8),
];

pub(crate) fn to_file(data: &TensorData) -> sideburn_weights::Tensor {
    let shape = data.shape().as_slice().to_vec();
    let (dtype, bytes) = match DTYPES.iter().find(|(dtype, _)| *dtype == data.dtype()) {
        Some((_, dtype)) => (*dtype, data.as_bytes().to_vec()),
        // Truth values, in whatever way a device keeps them.
        None => (Dtype::BOOL, data.iter::<bool>().map(u8::from).collect()),
    };
    sideburn_weights::Tensor::new(dtype, shape, bytes).expect("as many bytes as the shape says")
}

/// The adapters that are trained and that files can hold.
pub(crate) fn trained_adapters<M: Adapters>(model: &M) -> Result<Vec<String>, TrainError> {
    let parameters = parameters(model);
    let trained = parameters.iter().filter(|parameter| parameter.is_trainable());
    let names: BTreeSet<&str> = trained.filter_map(|parameter| parameter.adapter).collect();
    let mut adapters = Vec::new();
    for name in names {
        if model.adapters().get(name)?.method().check_storable().is_ok() {
            adapters.push(name.to_owned());
        }
    }
    Ok(adapters)
}
