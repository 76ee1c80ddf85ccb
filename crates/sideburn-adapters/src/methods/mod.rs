//! The methods, one in each file.

mod adalora;
mod adalora_config;
mod adalora_training;
mod checks;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod lora_init;
mod lora_rules;
mod lycoris;
mod oft;
mod prefix;
mod prompt;
mod registry;
mod replace;
#[cfg(test)]
mod testing;
mod torch_random;
mod trainable_tokens;
mod vera;

pub use adalora_config::AdaLoraConfig;
pub use ia3::Ia3Config;
pub use loha::LoHaConfig;
pub use lokr::LoKrConfig;
pub use lora::{LoraBias, LoraConfig};
pub use lora_init::LoraInit;
pub use lycoris::Lycoris;
pub use oft::OftConfig;
pub use prefix::PrefixTuningConfig;
pub use prompt::{PTuningConfig, PromptInit, PromptTuningConfig};
pub use registry::{MethodRegistry, ReadMethod};
pub use replace::{FullConfig, LnTuningConfig};
pub use trainable_tokens::TrainableTokensConfig;
pub use vera::VeraConfig;

pub(crate) use checks::check_rank;
pub(crate) use replace::Replace;
