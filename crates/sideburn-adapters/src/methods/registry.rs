//! Which methods can be read from an `adapter_config.json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::adalora_config::AdaLoraConfig;
use super::ia3::Ia3Config;
use super::loha::LoHaConfig;
use super::lokr::LoKrConfig;
use super::lora::LoraConfig;
use super::oft::OftConfig;
use super::prefix::PrefixTuningConfig;
use super::prompt::{PTuningConfig, PromptTuningConfig};
use super::replace::{FullConfig, LnTuningConfig};
use super::trainable_tokens::TrainableTokensConfig;
use super::vera::VeraConfig;
use crate::AdapterError;
use crate::fields::{Fields, read_json};
use crate::method::Method;

/// Reads the configuration of one method from the fields of a file. What it has not asked for is then looked at by
/// [`Fields::finish`], and the configuration by [`Method::validate`].
pub type ReadMethod = fn(&Fields<'_>) -> Result<Arc<dyn Method>, AdapterError>;

/// The methods that can be read from an `adapter_config.json`, each under its `peft_type`.
///
/// A model has [one](crate::AdapterSet::methods), which loading asks; it is that of this crate until a method is added:
///
/// ```
/// # use std::sync::Arc;
/// use sideburn_adapters::methods::{LoraConfig, MethodRegistry};
///
/// let mut methods = MethodRegistry::peft();
/// assert!(methods.peft_types().any(|kind| kind == "LORA"));
/// methods.add("MY_LORA", |fields| Ok(Arc::new(LoraConfig::new([fields.required::<String>("layer", "a name")?]))));
/// let config = serde_json::json!({ "peft_type": "MY_LORA", "layer": "q" });
/// assert!(methods.read(&config).is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct MethodRegistry {
    methods: Arc<BTreeMap<&'static str, ReadMethod>>,
}

impl MethodRegistry {
    /// The methods of this crate: those of `peft`, and `FULL`.
    pub fn peft() -> Self {
        let methods: [(_, ReadMethod); 13] = [
            ("ADALORA", |fields| Ok(Arc::new(AdaLoraConfig::read(fields)?))),
            ("FULL", |fields| Ok(Arc::new(FullConfig::read(fields)?))),
            ("IA3", |fields| Ok(Arc::new(Ia3Config::read(fields)?))),
            ("LN_TUNING", |fields| Ok(Arc::new(LnTuningConfig::read(fields)?))),
            ("LOHA", |fields| Ok(Arc::new(LoHaConfig::read(fields)?))),
            ("LOKR", |fields| Ok(Arc::new(LoKrConfig::read(fields)?))),
            ("LORA", |fields| Ok(Arc::new(LoraConfig::read(fields)?))),
            ("OFT", |fields| Ok(Arc::new(OftConfig::read(fields)?))),
            ("P_TUNING", |fields| Ok(Arc::new(PTuningConfig::read(fields)?))),
            ("PREFIX_TUNING", |fields| Ok(Arc::new(PrefixTuningConfig::read(fields)?))),
            ("PROMPT_TUNING", |fields| Ok(Arc::new(PromptTuningConfig::read(fields)?))),
            ("TRAINABLE_TOKENS", |fields| Ok(Arc::new(TrainableTokensConfig::read(fields)?))),
            ("VERA", |fields| Ok(Arc::new(VeraConfig::read(fields)?))),
        ];
        Self { methods: Arc::new(methods.into_iter().collect()) }
    }

    /// Adds a method, or replaces the one of that `peft_type`.
    pub fn add(&mut self, peft_type: &'static str, read: ReadMethod) {
        Arc::make_mut(&mut self.methods).insert(peft_type, read);
    }

    /// The `peft_type` of every method, sorted.
    pub fn peft_types(&self) -> impl Iterator<Item = &'static str> {
        self.methods.keys().copied()
    }

    /// Reads a configuration of any of the methods.
    ///
    /// # Errors
    /// If the method is unknown, or a field is missing, ill-typed, out of range, or asks for something that would change
    /// the result and is not supported.
    pub fn read(&self, config: &Value) -> Result<Arc<dyn Method>, AdapterError> {
        let fields = Fields::new(config)?;
        let peft_type: String = fields.required("peft_type", "the name of a method")?;
        let Some(read) = self.methods.get(peft_type.as_str()) else {
            return Err(AdapterError::UnknownMethod { peft_type, known: self.peft_types().collect() });
        };
        let method = read(&fields)?;
        fields.finish()?;
        method.validate()?;
        Ok(method)
    }

    /// Reads an `adapter_config.json` of any of the methods.
    ///
    /// # Errors
    /// As for [`read`](Self::read), or if the file cannot be read or is not JSON; the file is named.
    pub fn read_file(&self, path: &Path) -> Result<Arc<dyn Method>, AdapterError> {
        let (_, config) = read_json(path)?;
        self.read(&config).map_err(|error| AdapterError::InFile { path: path.to_owned(), source: Box::new(error) })
    }
}

impl Default for MethodRegistry {
    fn default() -> Self {
        Self::peft()
    }
}
