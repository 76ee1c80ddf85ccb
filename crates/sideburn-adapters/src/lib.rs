//! Parameter-efficient fine-tuning for [Burn](burn): a linear layer with adapter slots, LoRA, and adapters in the
//! directory format of Hugging Face `peft`.
//!
//! A model is built from [`AdaptedLinear`] layers and lists its weights by implementing [`AdaptedModel`]; all else
//! works on any such model:
//!
//! * [`attach_lora`] freezes the base and adds trainable factors at the sites that a [`LoraConfig`] selects;
//! * [`save_lora`] and [`load_lora`] exchange adapters with `peft`;
//! * [`load_base`] and [`save_base`] exchange base weights with `transformers`;
//! * [`ParameterReport`] counts.
//!
//! A forward pass is given a [`Pass`]: evaluation, or training with the key of its random draws.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use sideburn_adapters::{AdaptedLinear, Key, Pass};
//!
//! let device = Device::flex();
//! let layer = AdaptedLinear::random(3, 4, 0.1, Key::from_seed(0), &device);
//! let y = layer.forward(Tensor::ones([2, 4], &device), &mut Pass::evaluate());
//! assert_eq!(y.dims(), [2, 3]);
//! ```

#![forbid(unsafe_code)]

mod base;
mod error;
mod linear;
mod lora;
mod model;
mod pass;
mod report;
mod tensors;

pub use base::{Precision, freeze, load_base, save_base};
pub use error::{AdapterError, Misshapen};
pub use linear::{AdaptedLinear, random_weight};
pub use lora::{LoraBias, LoraConfig, LoraLayer, TargetModules, attach_lora, load_lora, save_lora};
pub use model::{AdaptedModel, Weight, WeightMut};
pub use pass::Pass;
pub use report::ParameterReport;
pub use sideburn_kernels::Key;
