//! LoRA in the PEFT directory format: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use sideburn_kernels::Key;
use sideburn_weights::{AtomicDir, SafetensorsFile, write_safetensors};

use super::{LoraConfig, LoraLayer, attach_lora};
use crate::tensors::{from_param, frozen_param};
use crate::{AdaptedModel, AdapterError, Misshapen};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// No adapter configuration comes near this; a larger file is something else.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// `lora_A` and `lora_B` of a site under the names that `peft` gives them.
fn tensor_names(site: &str) -> [String; 2] {
    ["A", "B"].map(|factor| format!("base_model.model.{site}.lora_{factor}.weight"))
}

/// Saves the adapter called `name` as a directory that `peft.PeftModel.from_pretrained` reads.
///
/// The directory appears whole or not at all; of an existing one only the files of the same names are replaced.
///
/// # Errors
/// If the model has no such adapter, `config` is not the one that it was made with, or the directory cannot be written.
pub fn save_lora<M: AdaptedModel>(
    model: &M,
    name: &str,
    config: &LoraConfig,
    directory: impl AsRef<Path>,
) -> Result<(), AdapterError> {
    if model.sites().iter().all(|(_, linear)| linear.adapter(name).is_none()) {
        return Err(AdapterError::NoSuchAdapter { name: name.to_owned() });
    }
    config.validate()?;
    let sites: Vec<String> = model.sites().into_iter().map(|(site, _)| site).collect();
    let chosen = config.target_modules.select(&sites, model.output_head())?;
    let mut tensors = BTreeMap::new();
    for ((site, linear), chosen) in model.sites().into_iter().zip(chosen) {
        if chosen != linear.adapter(name).is_some() {
            let (found, expected) = (format!("such that it selects {site}: {chosen}"), "the adapter's own sites");
            return Err(AdapterError::InvalidField { field: "target_modules", found, expected });
        }
        if let Some(layer) = linear.adapter(name) {
            layer.check(config)?;
            let [a, b] = tensor_names(&site);
            tensors.insert(a, from_param(layer.lora_a()));
            tensors.insert(b, from_param(layer.lora_b()));
        }
    }
    let directory = AtomicDir::create(directory)?;
    let json = serde_json::to_string_pretty(&config.to_json()).expect("a JSON value is always printable");
    sideburn_weights::write_atomic(directory.path().join(CONFIG_FILE), (json + "\n").as_bytes())?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(directory.path().join(WEIGHTS_FILE), tensors, Some(metadata))?;
    directory.commit()?;
    Ok(())
}

/// Attaches the adapter in a PEFT directory to `model` under `name`, active and trainable, and freezes all that was
/// there before. Returns its configuration.
///
/// # Errors
/// If a file is missing or broken, the configuration asks for what is not supported, or its sites and the tensors do
/// not fit the model: a missing, unexpected or misshapen tensor is an error that lists them all. The model is then as
/// before.
pub fn load_lora<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    directory: impl AsRef<Path>,
) -> Result<LoraConfig, AdapterError> {
    let directory = directory.as_ref();
    let config = read_config(&directory.join(CONFIG_FILE))?;
    let path = directory.join(WEIGHTS_FILE);
    let file = SafetensorsFile::open(&path)?;

    // All is tried on a copy, which shares the weights, so that an error leaves the model as it was.
    let mut adapted = model.clone();
    attach_lora(&mut adapted, name, &config, Key::from_seed(0))?;
    let mut unexpected: BTreeSet<String> = file.names().map(str::to_owned).collect();
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    for (site, linear) in adapted.sites_mut() {
        let Some(layer) = linear.adapter_mut(name) else { continue };
        for (tensor, factor) in tensor_names(&site).into_iter().zip(LoraLayer::factors_mut(layer)) {
            unexpected.remove(&tensor);
            match file.info(&tensor) {
                None => missing.push(tensor),
                Some(info) => {
                    let expected = factor.lazy_shape().as_slice().to_vec();
                    if info.shape != expected {
                        misshapen.push(Misshapen { tensor, found: info.shape.to_vec(), expected });
                    } else {
                        let values = file.read_f32(&tensor)?;
                        *factor = frozen_param(values, &expected, &factor.lazy_device()).set_require_grad(true);
                    }
                }
            }
        }
    }
    if !(missing.is_empty() && misshapen.is_empty() && unexpected.is_empty()) {
        let unexpected = unexpected.into_iter().collect();
        return Err(AdapterError::TensorsDoNotFit { path, missing, unexpected, misshapen });
    }
    *model = adapted;
    Ok(config)
}

fn read_config(path: &Path) -> Result<LoraConfig, AdapterError> {
    let unreadable = |message: String| AdapterError::UnreadableConfig { path: path.to_owned(), message };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(unreadable(format!("{size} bytes is no adapter configuration")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    let value = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    LoraConfig::from_json(&value)
        .map_err(|error| AdapterError::InFile { path: path.to_owned(), source: Box::new(error) })
}
