//! Adapters in the PEFT directory format: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use burn::module::Param;
use serde_json::Value;
use sideburn_kernels::Key;
use sideburn_weights::{AtomicDir, SafetensorsFile, Tensor, write_safetensors};

use crate::method::{Method, Outline, read_config};
use crate::registry::{attach_dyn, slots_of, try_each_slots};
use crate::tensors::{frozen_param, to_file};
use crate::{AdaptedModel, AdapterError, Misshapen};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// No adapter configuration comes near this; a larger file is something else.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Saves the adapter called `name` as a directory that `peft.PeftModel.from_pretrained` reads.
///
/// The directory appears whole or not at all; of an existing one only the files of the same names are replaced.
///
/// # Errors
/// If the model has no such adapter, or the directory cannot be written.
pub fn save_adapter<M: AdaptedModel>(model: &M, name: &str, directory: impl AsRef<Path>) -> Result<(), AdapterError> {
    let method = model.adapters().get(name)?.method();
    let mut tensors = BTreeMap::new();
    for (place, slot) in slots_of(model, name) {
        let own: Vec<_> = slot.tensors().iter().map(Param::val).collect();
        for (spec, tensor) in slot.rule().saved(&own) {
            let Some(name) = spec.name.in_file(&place) else { continue };
            for copy in spec.copies {
                tensors.entry(copy).or_insert_with(|| to_file(tensor.clone(), spec.shape.clone()));
            }
            tensors.entry(name).or_insert_with(|| to_file(tensor, spec.shape));
        }
    }
    let mut config = method.to_json();
    for (field, value) in method.model_fields(&Outline::of(model)) {
        config[field] = value;
    }
    write_adapter(&config, tensors, directory.as_ref())
}

/// Writes a PEFT directory.
pub(crate) fn write_adapter(
    config: &Value,
    tensors: BTreeMap<String, Tensor>,
    directory: &Path,
) -> Result<(), AdapterError> {
    let directory = AtomicDir::create(directory)?;
    let json = serde_json::to_string_pretty(config).expect("a JSON value is always printable");
    sideburn_weights::write_atomic(directory.path().join(CONFIG_FILE), (json + "\n").as_bytes())?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(directory.path().join(WEIGHTS_FILE), tensors, Some(metadata))?;
    directory.commit()?;
    Ok(())
}

/// Attaches the adapter in a PEFT directory to `model` under `name`, alone active and alone trainable.
///
/// # Errors
/// If a file is missing or broken, the configuration asks for what is not supported, or its places and the tensors do
/// not fit the model: a missing, unexpected or misshapen tensor is an error that lists them all. The model is then as
/// before.
pub fn load_adapter<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    directory: impl AsRef<Path>,
) -> Result<(), AdapterError> {
    let (method, file) = open_adapter(directory.as_ref())?;
    // All is tried on a copy, which shares the weights, so that an error leaves the model as it was.
    let mut adapted = model.clone();
    attach_dyn(&mut adapted, name, method, Key::from_seed(0))?;
    fill(&mut adapted, name, &file)?;
    *model = adapted;
    Ok(())
}

/// Replaces the tensors of the attached adapter `name` by those of a PEFT directory, which must hold an adapter of the
/// same configuration. Whether it is active, and what is trainable, stays.
///
/// # Errors
/// As for [`load_adapter`], or if the configuration is another. The model is then as before.
pub fn swap_adapter<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    directory: impl AsRef<Path>,
) -> Result<(), AdapterError> {
    let directory = directory.as_ref();
    let entry = model.adapters().get(name)?;
    if entry.is_merged() {
        return Err(AdapterError::IsMerged { name: name.to_owned() });
    }
    let (method, file) = open_adapter(directory)?;
    let (mut own, mut other) = (entry.method().to_json(), method.to_json());
    for field in ["base_model_name_or_path", "task_type", "init_lora_weights", "lora_dropout"] {
        for config in [&mut own, &mut other] {
            config.as_object_mut().expect("a configuration is an object").remove(field);
        }
    }
    if own != other {
        let path = directory.join(CONFIG_FILE);
        let message = format!("{other} is another configuration than that of the adapter {name:?}, {own}");
        return Err(AdapterError::UnreadableConfig { path, message });
    }
    let mut swapped = model.clone();
    fill(&mut swapped, name, &file)?;
    *model = swapped;
    Ok(())
}

/// The configuration of a PEFT directory, and its tensors.
pub(crate) fn open_adapter(directory: &Path) -> Result<(Arc<dyn Method>, SafetensorsFile), AdapterError> {
    let method = read_config_file(&directory.join(CONFIG_FILE))?;
    Ok((method, SafetensorsFile::open(directory.join(WEIGHTS_FILE))?))
}

/// Fills the tensors of an attached adapter from a file.
fn fill<M: AdaptedModel>(model: &mut M, name: &str, file: &SafetensorsFile) -> Result<(), AdapterError> {
    let mut unexpected: BTreeSet<String> = file.names().map(str::to_owned).collect();
    let (mut missing, mut misshapen) = (BTreeSet::new(), Vec::new());
    let mut read = HashMap::new();
    try_each_slots(model, |place, slots| {
        for slot in slots.iter_mut().filter(|slot| slot.name() == name) {
            let specs = slot.rule().tensors();
            for (spec, param) in specs.into_iter().zip(slot.tensors_mut()) {
                let Some(tensor) = spec.name.in_file(place) else { continue };
                unexpected.remove(&tensor);
                let Some(info) = file.info(&tensor) else {
                    missing.insert(tensor);
                    continue;
                };
                if info.shape != spec.shape {
                    misshapen.push(Misshapen { tensor, found: info.shape.to_vec(), expected: spec.shape });
                    continue;
                }
                if !read.contains_key(&tensor) {
                    let values = file.read_f32(&tensor)?;
                    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                        let path = file.path().to_owned();
                        return Err(AdapterError::NotFinite { path, tensor, index, value: values[index] });
                    }
                    let filled = frozen_param(values, &spec.dims(), &param.lazy_device());
                    read.insert(tensor.clone(), filled.set_require_grad(spec.trainable));
                }
                *param = read[&tensor].clone();
                for copy in spec.copies {
                    if file.info(&copy).is_some() && file.read(&copy)? != file.read(&tensor)? {
                        return Err(AdapterError::NotACopy { path: file.path().to_owned(), tensor: copy, of: tensor });
                    }
                    unexpected.remove(&copy);
                }
            }
        }
        Ok(())
    })?;
    if missing.is_empty() && misshapen.is_empty() && unexpected.is_empty() {
        return Ok(());
    }
    let (missing, unexpected) = (missing.into_iter().collect(), unexpected.into_iter().collect());
    Err(AdapterError::TensorsDoNotFit { path: file.path().to_owned(), missing, unexpected, misshapen })
}

/// Reads the configuration of an adapter of any method.
///
/// # Errors
/// If the file cannot be read, is not JSON, or asks for what is not supported; the file is named.
pub fn read_config_file(path: &Path) -> Result<Arc<dyn Method>, AdapterError> {
    let unreadable = |message: String| AdapterError::UnreadableConfig { path: path.to_owned(), message };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(unreadable(format!("{size} bytes is no adapter configuration")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    let value = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    read_config(&value).map_err(|error| AdapterError::InFile { path: path.to_owned(), source: Box::new(error) })
}
