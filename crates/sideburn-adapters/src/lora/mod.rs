//! LoRA: low-rank adaptation (Hu et al., 2021).

mod attach;
mod config;
mod layer;
mod peft_dir;
mod targets;

pub use attach::attach_lora;
pub use config::{LoraBias, LoraConfig};
pub use layer::LoraLayer;
pub use peft_dir::{load_lora, save_lora};
pub use targets::TargetModules;
