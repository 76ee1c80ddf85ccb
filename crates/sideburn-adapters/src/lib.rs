//! Parameter-efficient fine-tuning for [Burn](burn): a linear layer with adapter slots, LoRA, and adapters in the
//! directory format of Hugging Face `peft`.
//!
//! A model is built from [`AdaptedLinear`] layers, [`AdaptedTable`]s and [`AdaptedVector`]s and lists them by implementing
//! [`AdaptedModel`]; all else are methods of any such model ([`Adapters`]):
//!
//! * [`attach`](Adapters::attach) freezes the base and adds the trainable tensors of a [`Method`], such as [`LoraConfig`](methods::LoraConfig);
//! * [`set_active`](Adapters::set_active), [`set_trainable`](Adapters::set_trainable), [`without_adapters`](Adapters::without_adapters) and [`delete`](Adapters::delete) choose among named adapters over one base, and
//!   [`Pass::with_adapters`] one for each row of a batch;
//! * [`save_adapter`](Adapters::save_adapter), [`load_adapter`](Adapters::load_adapter) and [`swap_adapter`](Adapters::swap_adapter) exchange adapters with `peft`, and [`AdapterDir`](peft::AdapterDir)
//!   opens one without a model;
//! * [`peft::save_burn_lora`] and [`peft::load_burn_lora`] do the same for Burn modules that are not made for this crate;
//! * [`combine`](Adapters::combine) makes one adapter of several, and [`to_plain_lora`](Adapters::to_plain_lora) plain LoRA of PiSSA and OLoRA;
//! * [`merge`](Adapters::merge), [`unmerge`](Adapters::unmerge) and [`merge_and_unload`](Adapters::merge_and_unload) work adapters into the base weights, and [`merge_drift`](Adapters::merge_drift) measures
//!   what that costs;
//! * [`load_base`](Adapters::load_base) and [`save_base`](Adapters::save_base) exchange base weights with `transformers`;
//! * [`load_base_quantized`](Adapters::load_base_quantized) and [`quantize_base`](Adapters::quantize_base) pack the base in 4 or 8 bits, and [`init_loftq`](Adapters::init_loftq) lets LoRA begin
//!   as what that has lost;
//! * [`ParameterReport`] counts, and [`fingerprint`](Adapters::fingerprint) tells bases apart.
//!
//! A method is one file: a configuration, which is a [`Method`], and what it does at a site of a model, which is a
//! rule for that kind of site ([`author::LinearRule`], [`author::TableRule`], ...).
//!
//! What a method does in training beside having its tensors trained is its [`TrainingHook`](author::TrainingHook); [`TrainingHooks`] are those
//! of a model.
//!
//! A forward pass is given a [`Pass`]: evaluation, or training with the key of its random draws. Layers take a
//! [`TokenPass`], the pass over the tokens that they see, which [`AdapterSet::enter`] makes of it.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use sideburn_adapters::{AdaptedLinear, AdapterSet, Key, Pass};
//! use sideburn_kernels::RowLayout;
//!
//! let device = Device::flex();
//! let layer = AdaptedLinear::random(3, 4, 0.1, Key::from_seed(0), &device);
//! // A model has its adapters in a field. This one has none.
//! let adapters = AdapterSet::default();
//! let (mut pass, one_row_of_two_tokens) = (Pass::evaluate(), RowLayout::packed(&[2], &device));
//! let mut tokens = adapters.enter(&mut pass, &one_row_of_two_tokens)?;
//! let y = layer.forward(Tensor::ones([2, 4], &device), &mut tokens);
//! assert_eq!(y.dims(), [2, 3]);
//! # Ok::<(), sideburn_adapters::AdapterError>(())
//! ```

#![forbid(unsafe_code)]

mod adapters;
mod attach;
mod base;
mod base_weight;
mod burn_modules;
mod carried;
mod checkpoint;
mod choose;
mod combine;
mod cuts;
mod embedding;
mod error;
mod fields;
mod fingerprint;
mod finite;
mod footprint;
mod in_peft;
mod linalg;
mod linear;
mod loftq;
mod memory;
mod merge;
mod method;
pub mod methods;
mod model;
mod model_card;
mod model_slots;
mod outline;
mod parameters;
mod pass;
mod pattern;
mod peft_dir;
mod peft_names;
mod report;
mod rule;
mod set;
mod slot;
mod targets;
mod tensors;
mod training;
mod watch;

pub use adapters::Adapters;
pub use base_weight::{BaseWeight, Precision};
pub use combine::Combination;
pub use cuts::Boundary;
pub use embedding::{AdaptedTable, AdaptedVector};
pub use error::{AdapterError, Misshapen};
pub use finite::{NotFinite, first_not_finite};
pub use footprint::BaseBytes;
pub use linear::{AdaptedLinear, forward_together};
pub use loftq::LoftqConfig;
pub use memory::available_memory;
pub use method::{AdapterMeta, Method};
pub use model::{AdaptedModel, Weight, WeightMut};
pub use outline::{ModelShape, Usual};
pub use parameters::{Parameter, for_each_parameter, parameters};
pub use pass::{Pass, TokenPass};
pub use report::ParameterReport;
pub use set::{AdapterSet, Entry};
pub use sideburn_kernels::Key;
pub use slot::Slot;
pub use targets::{TargetModules, Targets};
pub use tensors::random_weight;
pub use training::TrainingHooks;

/// Adapters in the directory format of `peft`, without a model or for Burn modules that are not made for this crate.
pub mod peft {
    pub use crate::burn_modules::{load_burn_lora, save_burn_lora};
    pub use crate::in_peft::PeftDifference;
    pub use crate::peft_dir::{AdapterDir, read_adapter_json};
}

/// What the author of a method works with: what a model is made of, plans, rules, and hooks for the training.
pub mod author {
    pub use crate::fields::Fields;
    pub use crate::method::{About, CanCombineWith, Finished, Plan, TrainingHook, Updated};
    pub use crate::outline::{ModelOutline, Site, SiteKind};
    pub use crate::rule::{
        AtLinear, BoundLinear, BoundTable, Branch, Call, Init, InputRule, LinearRule, LowRankRule, Prefix, Replacement,
        Rule, RuleTensors, TableRule, TensorKey, TensorSpec, VectorRule, Weights,
    };
}
