//! The methods, one in each file.

mod lora;
mod replace;
mod trainable_tokens;

use std::sync::Arc;

pub use lora::{LoraBias, LoraConfig, LoraInit};
pub(crate) use replace::Replace;
pub use replace::{FullConfig, LnTuningConfig};
pub use trainable_tokens::TrainableTokensConfig;

use crate::AdapterError;
use crate::fields::Fields;
use crate::method::Method;

type Read = fn(&Fields<'_>) -> Result<Arc<dyn Method>, AdapterError>;

/// Every method that this crate has, by its `peft_type`.
pub(crate) const ALL: [(&str, Read); 4] = [
    ("FULL", |fields| Ok(Arc::new(FullConfig::read(fields)?))),
    ("LN_TUNING", |fields| Ok(Arc::new(LnTuningConfig::read(fields)?))),
    ("LORA", |fields| Ok(Arc::new(LoraConfig::read(fields)?))),
    ("TRAINABLE_TOKENS", |fields| Ok(Arc::new(TrainableTokensConfig::read(fields)?))),
];
