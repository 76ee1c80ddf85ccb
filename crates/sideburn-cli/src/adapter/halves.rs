//! The two halves of an adapter's directory, its configuration and its tensors, each as far as it can be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use serde_json::Value;
use sideburn::adapters::methods::MethodRegistry;
use sideburn::adapters::peft::{AdapterDir, read_adapter_json};
use sideburn::adapters::{AdapterError, Method};
use sideburn::weights::{Dtype, StateDict, WeightsError};

/// What the file of tensors is called, without its extension.
const TENSORS: &str = "adapter_model";

/// An adapter's directory, of which one half may be missing or broken.
pub(crate) struct Halves {
    pub(crate) config: Result<Value, AdapterError>,
    pub(crate) tensors: Result<StateDict, WeightsError>,
}

impl Halves {
    /// Reads the configuration, and the header of the tensors' file.
    ///
    /// # Errors
    /// If neither can be read.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let halves = Self { config: read_adapter_json(directory), tensors: StateDict::open(directory, TENSORS) };
        if let (Err(config), Err(tensors)) = (&halves.config, &halves.tensors) {
            bail!("{config}\n{tensors}");
        }
        Ok(halves)
    }

    /// The method that the configuration describes, if it can be read.
    ///
    /// # Errors
    /// If the configuration asks for what is not supported.
    pub(crate) fn method(&self, directory: &Path) -> Option<Result<Arc<dyn Method>, AdapterError>> {
        let config = self.config.as_ref().ok()?;
        let method = MethodRegistry::peft().read(config).and_then(|method| method.check_storable().map(|()| method));
        Some(method.map_err(|source| {
            let path: PathBuf = directory.join("adapter_config.json");
            AdapterError::InFile { path, source: Box::new(source) }
        }))
    }
}

/// The fingerprint of the base that an adapter was saved with, if Sideburn has saved it and both halves are whole.
pub(crate) fn base_fingerprint(directory: &Path) -> Option<String> {
    AdapterDir::open(directory).ok()?.base_fingerprint().map(str::to_owned)
}

/// Whether the elements are floating-point numbers that can be read, of which there is a norm.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}
