//! Adapters in the PEFT directory format: `adapter_config.json`, and `adapter_model.safetensors` or, from older releases
//! of `peft`, `adapter_model.bin`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Param;
use serde_json::{Map, Value};
use sideburn_files::{AtomicDir, write_atomic};
use sideburn_kernels::Key;
use sideburn_weights::{StateDict, Tensor, TensorSource, write_safetensors};

use crate::attach::attach_alone;
use crate::carried::carry_embeddings;
use crate::choose::check_combination;
use crate::fields::{DESCRIPTIVE, read_json};
use crate::fingerprint::fingerprint;
use crate::in_peft::PeftDifference;
use crate::method::Method;
use crate::methods::MethodRegistry;
use crate::model_card::model_card;
use crate::model_slots::{slots_of, tensors_of, try_each_slot};
use crate::peft_names::{name_at, name_in_file};
use crate::slot::Slot;
use crate::tensors::{param_like, to_file};
use crate::{AdaptedModel, AdapterError, Misshapen};

const CONFIG_FILE: &str = "adapter_config.json";
/// What the file of tensors is called, without its extension.
const TENSORS: &str = "adapter_model";
const CARD_FILE: &str = "README.md";
/// The key in the metadata of the tensors under which the base's fingerprint stands.
const BASE_FINGERPRINT: &str = "sideburn.base_fingerprint";
/// And the key under which a hash of the configuration stands that they were saved with.
const CONFIG_HASH: &str = "sideburn.config_hash";

/// [`Adapters::save_adapter`](crate::Adapters::save_adapter).
pub(crate) fn save_adapter(
    model: &dyn AdaptedModel,
    name: &str,
    directory: &Path,
) -> Result<Vec<PeftDifference>, AdapterError> {
    let method = model.adapters().get(name)?.method();
    method.check_storable()?;
    let mut tensors = BTreeMap::new();
    for ruled in model.adapters().input.iter().filter(|ruled| ruled.slot.name() == name) {
        if let Some((spec, tensor)) = ruled.rule.saved(&ruled.slot.own()) {
            tensors.insert(name_in_file(&spec.key("")), to_file(tensor, spec.shape));
        }
    }
    for slot in slots_of(model, name) {
        for ((spec, param), (key, _)) in slot.tensors().zip(slot.keyed()).filter(|((spec, _), _)| spec.stored) {
            let names = spec.copies.iter().map(|site| name_at(site, &spec.part)).chain([name_in_file(key)]);
            for name in names {
                tensors.entry(name).or_insert_with(|| to_file(param.val(), spec.shape.clone()));
            }
        }
    }
    let mut config = method.to_json();
    let outline = model.outline();
    if let (None, Some(task)) = (&method.meta().task_type, outline.shape.task_type()) {
        config["task_type"] = task.into();
    }
    for (field, value) in method.model_fields(&outline) {
        config[field] = value;
    }
    let differences = method.differences_in_peft(&outline)?;
    Files {
        text: pretty(&config),
        config,
        tensors,
        base: Some(fingerprint(model)),
        card: Some(model_card(method.as_ref(), &outline.shape)),
    }
    .write(directory)?;
    Ok(differences)
}

/// What a PEFT directory holds.
pub(crate) struct Files {
    /// The text of the configuration.
    pub(crate) text: String,
    /// What it says.
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
    /// The fingerprint of the base, if it is known.
    pub(crate) base: Option<String>,
    /// The model card, if there is to be one.
    pub(crate) card: Option<String>,
}

/// The text of a configuration.
pub(crate) fn pretty(config: &Value) -> String {
    serde_json::to_string_pretty(config).expect("a JSON value is always printable") + "\n"
}

impl Files {
    pub(crate) fn write(self, directory: &Path) -> Result<(), AdapterError> {
        let directory = AtomicDir::create(directory)?;
        write_atomic(directory.path().join(CONFIG_FILE), self.text.as_bytes())?;
        let base = self.base.map(|fingerprint| (BASE_FINGERPRINT.to_owned(), fingerprint));
        let metadata = base
            .into_iter()
            .chain([(CONFIG_HASH.to_owned(), config_hash(&self.config)), ("format".to_owned(), "pt".to_owned())]);
        let metadata = metadata.collect();
        let file = directory.path().join(format!("{TENSORS}.safetensors"));
        write_safetensors(file, self.tensors, Some(metadata))?;
        // A card that somebody has written stays, and so does a link to one.
        let has_card = directory.target().join(CARD_FILE).symlink_metadata().is_ok();
        if let Some(card) = self.card.filter(|_| !has_card) {
            write_atomic(directory.path().join(CARD_FILE), card.as_bytes())?;
        }
        directory.commit()?;
        Ok(())
    }
}

/// A short text that tells a configuration from others. Fields that say nothing of the result may be changed: those about
/// the file, the base and the task, and the probabilities of dropout.
fn config_hash(config: &Value) -> String {
    fn fold(key: Key, value: &Value) -> Key {
        match value {
            Value::Object(fields) => {
                let fields: BTreeMap<_, _> = fields.iter().collect();
                fields.into_iter().fold(key.fold_in(0), |key, (name, value)| fold(key.fold_in_name(name), value))
            }
            Value::Array(items) => items.iter().fold(key.fold_in(items.len() as u64), fold),
            value => key.fold_in_name(&value.to_string()),
        }
    }
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.retain(|field, _| {
            let is_told = ["base_model_name_or_path", "task_type"].contains(&field.as_str());
            !is_told && !DESCRIPTIVE.contains(&field.as_str()) && !field.ends_with("dropout")
        });
    }
    format!("v1-{:016x}", fold(Key::from_seed(0), &config).bits(0))
}

/// An adapter in a PEFT directory, opened without a model: its configuration has been read, its tensors have not.
#[derive(Debug)]
pub struct AdapterDir {
    path: PathBuf,
    /// As it stands in the file.
    text: String,
    config: Value,
    tensors: StateDict,
    methods: MethodRegistry,
}

impl AdapterDir {
    /// Opens `adapter_config.json`, and `adapter_model.safetensors` or, if there is none, `adapter_model.bin`.
    ///
    /// # Errors
    /// If a file is missing or broken, or Sideburn has saved the tensors with another configuration. What the
    /// configuration asks for is not looked at.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, AdapterError> {
        Self::open_with(directory, &MethodRegistry::peft())
    }

    /// The same for an adapter of any of these methods.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(directory: impl AsRef<Path>, methods: &MethodRegistry) -> Result<Self, AdapterError> {
        let path = directory.as_ref().to_owned();
        check_holds_adapter(&path)?;
        let (text, config) = read_json(&path.join(CONFIG_FILE))?;
        let tensors = StateDict::open(&path, TENSORS)?;
        let own = config_hash(&config);
        if let Some(other) = tensors.metadata(CONFIG_HASH).filter(|saved| *saved != own) {
            let (tensors, saved_with) = (tensors.path().to_owned(), other.to_owned());
            return Err(AdapterError::OtherHalf { path: path.join(CONFIG_FILE), found: own, tensors, saved_with });
        }
        Ok(Self { path, text, config, tensors, methods: methods.clone() })
    }

    /// The fields of the configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The method that the configuration describes.
    ///
    /// # Errors
    /// If it asks for what is not supported; the file is named.
    pub fn method(&self) -> Result<Arc<dyn Method>, AdapterError> {
        let in_file = |source| AdapterError::InFile { path: self.path.join(CONFIG_FILE), source: Box::new(source) };
        let method = self.methods.read(&self.config).map_err(in_file)?;
        method.check_storable().map_err(in_file)?;
        Ok(method)
    }

    /// The tensors.
    pub fn tensors(&self) -> &StateDict {
        &self.tensors
    }

    /// The [`fingerprint`](crate::Adapters::fingerprint) of the base that the adapter was saved with, if Sideburn has saved it.
    ///
    /// Loading does not compare it: the same base stored in another precision has another fingerprint.
    pub fn base_fingerprint(&self) -> Option<&str> {
        self.tensors.metadata(BASE_FINGERPRINT)
    }

    /// Writes the adapter to `directory`, the configuration as it stands and the tensors as safetensors in their own
    /// dtypes.
    ///
    /// # Errors
    /// If the configuration asks for what is not supported, a tensor cannot be read, or the directory cannot be written.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<(), AdapterError> {
        self.method()?;
        let read = |name: &str| Ok((name.to_owned(), self.tensors.read(name)?));
        let tensors = self.tensors.names().map(read).collect::<Result<_, AdapterError>>()?;
        let base = self.base_fingerprint().map(str::to_owned);
        Files { text: self.text.clone(), config: self.config.clone(), tensors, base, card: None }
            .write(directory.as_ref())
    }
}

/// [`Adapters::load_adapter`](crate::Adapters::load_adapter), on a copy of the model.
pub(crate) fn load_adapter(model: &mut dyn AdaptedModel, name: &str, directory: &Path) -> Result<(), AdapterError> {
    let saved = AdapterDir::open_with(directory, model.adapters().methods())?;
    let outline = model.outline();
    attach_alone(model, &outline, name, saved.method()?, Key::from_seed(0))?;
    let passed_over = carry_embeddings(model, &outline, name, &saved.tensors)?;
    fill(model, name, &saved.tensors, &passed_over)
}

/// [`Adapters::swap_adapter`](crate::Adapters::swap_adapter), on a copy of the model.
pub(crate) fn swap_adapter(model: &mut dyn AdaptedModel, name: &str, directory: &Path) -> Result<(), AdapterError> {
    let entry = model.adapters().get(name)?;
    if entry.is_merged() {
        return Err(AdapterError::IsMerged { name: name.to_owned() });
    }
    let saved = AdapterDir::open_with(directory, model.adapters().methods())?;
    let (mut own, mut other) = (entry.method().to_json(), saved.method()?.to_json());
    for config in [&mut own, &mut other] {
        let fields = config.as_object_mut().expect("a configuration is an object");
        for field in ["base_model_name_or_path", "task_type", "lora_dropout"] {
            fields.remove(field);
        }
        // How factors began is past, unless they began as a part of the base.
        let is_past = |init: &Value| init.as_str().is_none_or(|init| init == "gaussian");
        fields.retain(|field, value| field != "init_lora_weights" || !is_past(value));
    }
    if has_network(model, name) {
        let (path, name) = (saved.path.join(CONFIG_FILE), name.to_owned());
        let differences = vec!["it has the network that it is trained with, which no file holds".to_owned()];
        return Err(AdapterError::OtherConfiguration { path, name, differences });
    }
    if own != other {
        let fields = own.as_object().into_iter().chain(other.as_object()).flat_map(Map::keys).collect::<BTreeSet<_>>();
        let differ = fields.into_iter().filter(|field| own.get(*field) != other.get(*field));
        let value = |config: &Value, field: &str| config.get(field).unwrap_or(&Value::Null).to_string();
        let told = |field: &String| format!("`{field}` is {}, not {}", value(&other, field), value(&own, field));
        let (path, name) = (saved.path.join(CONFIG_FILE), name.to_owned());
        return Err(AdapterError::OtherConfiguration { path, name, differences: differ.map(told).collect() });
    }
    let outline = model.outline();
    let passed_over = carry_embeddings(model, &outline, name, &saved.tensors)?;
    // An embedding of its own may not go with what is active beside it.
    check_combination(&model.adapters().list().iter().filter(|entry| entry.is_active()).collect::<Vec<_>>())?;
    fill(model, name, &saved.tensors, &passed_over)
}

/// Whether the adapter called `name` has the network that it is trained with: what it saves is made of its tensors, and none of
/// them is in a file.
fn has_network(model: &dyn AdaptedModel, name: &str) -> bool {
    let slots = slots_of(model, name);
    !slots.is_empty() && slots.into_iter().flat_map(Slot::tensors).all(|(spec, _)| !spec.stored)
}

/// Fills the tensors of an attached adapter from a file, but for those of the file that are `passed_over`.
fn fill(
    model: &mut dyn AdaptedModel,
    name: &str,
    file: &dyn TensorSource,
    passed_over: &BTreeSet<String>,
) -> Result<(), AdapterError> {
    let mut unexpected: BTreeSet<String> = file.names().map(str::to_owned).collect();
    unexpected.retain(|tensor| !passed_over.contains(tensor));
    let (mut missing, mut misshapen) = (BTreeSet::new(), Vec::new());
    let mut read = HashMap::new();
    try_each_slot(model, name, |slot| {
        let names: Vec<String> = slot.keyed().map(|(key, _)| name_in_file(key)).collect();
        for ((spec, param), tensor) in slot.tensors_mut().zip(names).filter(|((spec, _), _)| spec.stored) {
            unexpected.remove(&tensor);
            let Some(info) = file.info(&tensor) else {
                missing.insert(tensor);
                continue;
            };
            if info.shape != spec.shape {
                misshapen.push(Misshapen { tensor, found: info.shape.to_vec(), expected: spec.shape.clone() });
                continue;
            }
            if !read.contains_key(&tensor) {
                let values = file.read_f32(&tensor)?;
                if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                    let path = file.path().to_owned();
                    return Err(AdapterError::NotFinite { path, tensor, index, value: values[index] });
                }
                read.insert(tensor.clone(), param_like(param, values, &spec.dims()));
            }
            *param = read[&tensor].clone();
            for copy in spec.copies.iter().map(|site| name_at(site, &spec.part)) {
                if file.info(&copy).is_some() && file.read(&copy)? != file.read(&tensor)? {
                    return Err(AdapterError::NotACopy { path: file.path().to_owned(), tensor: copy, of: tensor });
                }
                unexpected.remove(&copy);
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

/// The fields of the `adapter_config.json` in `directory`, whatever they ask for and whether or not there are tensors.
///
/// # Errors
/// If the file cannot be read or is not JSON; the file is named.
pub fn read_adapter_json(directory: impl AsRef<Path>) -> Result<Value, AdapterError> {
    check_holds_adapter(directory.as_ref())?;
    Ok(read_json(&directory.as_ref().join(CONFIG_FILE))?.1)
}

/// Refuses a folder without an adapter, and says where one is.
fn check_holds_adapter(directory: &Path) -> Result<(), AdapterError> {
    let no_adapter = |reason: String| Err(AdapterError::NoAdapter { path: directory.to_owned(), reason });
    if directory.join(CONFIG_FILE).symlink_metadata().is_ok() {
        return Ok(());
    }
    if directory.is_file() {
        return no_adapter(format!("this is a file; name the folder that holds {CONFIG_FILE}"));
    }
    if !directory.is_dir() {
        let name = directory.to_string_lossy();
        let is_hub_id = directory.is_relative() && name.split('/').filter(|part| !part.is_empty()).count() == 2;
        return no_adapter(match is_hub_id && !name.starts_with('.') {
            true => format!(
                "there is no such folder with an {CONFIG_FILE}; if this is a repository of the hub, download it first: \
                 hf download {name} --local-dir FOLDER"
            ),
            false => format!("there is no such folder with an {CONFIG_FILE}"),
        });
    }
    // Training runs put adapters into folders of their own; a few hundred entries are looked at.
    let inside = std::fs::read_dir(directory).into_iter().flatten().take(1000).flatten();
    let mut deeper: Vec<_> = inside.map(|entry| entry.path()).filter(|path| path.join(CONFIG_FILE).is_file()).collect();
    deeper.sort();
    match deeper.first() {
        Some(deeper) => no_adapter(format!("no {CONFIG_FILE} is here, but there is one in {}", deeper.display())),
        None if directory.join("config.json").is_file() => {
            no_adapter(format!("no {CONFIG_FILE} is here, but a config.json: this is a model and no adapter"))
        }
        None => Ok(()), // Whoever reads the configuration says that there is none.
    }
}

/// [`Adapters::adapter_tensors`](crate::Adapters::adapter_tensors).
pub(crate) fn adapter_tensors<'a>(
    model: &'a dyn AdaptedModel,
    name: &str,
) -> Result<BTreeMap<String, &'a Param<burn::tensor::Tensor<2>>>, AdapterError> {
    model.adapters().get(name)?;
    Ok(tensors_of(model, name).map(|(key, param)| (name_in_file(key), param)).collect())
}

/// [`Adapters::set_adapter_tensors`](crate::Adapters::set_adapter_tensors), on a copy of the model.
pub(crate) fn set_adapter_tensors(
    model: &mut dyn AdaptedModel,
    name: &str,
    values: &dyn Fn(&str) -> Option<Vec<f32>>,
) -> Result<(), AdapterError> {
    model.adapters().get(name)?;
    // What stands in several places is one tensor.
    let mut set: HashMap<String, Param<burn::tensor::Tensor<2>>> = HashMap::new();
    try_each_slot(model, name, |slot| {
        let names: Vec<String> = slot.keyed().map(|(key, _)| name_in_file(key)).collect();
        for ((spec, param), tensor) in slot.tensors_mut().zip(names) {
            if let Some(set) = set.get(&tensor) {
                *param = set.clone();
                continue;
            }
            let Some(values) = values(&tensor) else { continue };
            let dims = spec.dims();
            if values.len() != dims[0] * dims[1] {
                return Err(AdapterError::WrongLength { tensor, found: values.len(), shape: spec.shape.clone() });
            }
            *param = param_like(param, values, &dims);
            set.insert(tensor, param.clone());
        }
        Ok(())
    })
}
