//! The methods, one in each file.

mod ia3;
mod lora;
mod prefix;
mod prompt;
mod replace;
mod trainable_tokens;

use std::sync::Arc;

pub use ia3::Ia3Config;
pub use lora::{LoraBias, LoraConfig, LoraInit};
pub use prefix::PrefixTuningConfig;
pub use prompt::{PTuningConfig, PromptInit, PromptTuningConfig};
pub use replace::{FullConfig, LnTuningConfig};
pub(crate) use replace::{OwnHead, Replace};
pub use trainable_tokens::TrainableTokensConfig;

use crate::AdapterError;
use crate::fields::Fields;
use crate::method::Method;

type Read = fn(&Fields<'_>) -> Result<Arc<dyn Method>, AdapterError>;

/// Every method that this crate has, by its `peft_type`.
pub(crate) const ALL: [(&str, Read); 8] = [
    ("FULL", |fields| Ok(Arc::new(FullConfig::read(fields)?))),
    ("IA3", |fields| Ok(Arc::new(Ia3Config::read(fields)?))),
    ("LN_TUNING", |fields| Ok(Arc::new(LnTuningConfig::read(fields)?))),
    ("LORA", |fields| Ok(Arc::new(LoraConfig::read(fields)?))),
    ("P_TUNING", |fields| Ok(Arc::new(PTuningConfig::read(fields)?))),
    ("PREFIX_TUNING", |fields| Ok(Arc::new(PrefixTuningConfig::read(fields)?))),
    ("PROMPT_TUNING", |fields| Ok(Arc::new(PromptTuningConfig::read(fields)?))),
    ("TRAINABLE_TOKENS", |fields| Ok(Arc::new(TrainableTokensConfig::read(fields)?))),
];
