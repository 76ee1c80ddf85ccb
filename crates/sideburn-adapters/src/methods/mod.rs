//! The methods, one in each file.

mod adalora;
mod adalora_training;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod lora_init;
mod lycoris;
mod oft;
mod prefix;
mod prompt;
mod replace;
mod torch_random;
mod trainable_tokens;
mod vera;

use std::sync::Arc;

pub use adalora::AdaLoraConfig;
pub use ia3::Ia3Config;
pub use loha::LoHaConfig;
pub use lokr::LoKrConfig;
pub use lora::{LoraBias, LoraConfig};
pub use lora_init::LoraInit;
pub use lycoris::Lycoris;
pub use oft::OftConfig;
pub use prefix::PrefixTuningConfig;
pub use prompt::{PTuningConfig, PromptInit, PromptTuningConfig};
pub use replace::{FullConfig, LnTuningConfig};
pub(crate) use replace::{OwnHead, Replace};
pub use trainable_tokens::TrainableTokensConfig;
pub use vera::VeraConfig;

use crate::AdapterError;
use crate::fields::Fields;
use crate::method::{Method, Outline};
use crate::rule::Init;

type Read = fn(&Fields<'_>) -> Result<Arc<dyn Method>, AdapterError>;

/// Every method that this crate has, by its `peft_type`.
pub(crate) const ALL: [(&str, Read); 13] = [
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

/// The `peft_type` of every method that this crate has.
pub fn peft_types() -> impl Iterator<Item = &'static str> {
    ALL.into_iter().map(|(peft_type, _)| peft_type)
}

/// The layers that LoRA and most of its kin adapt where none are named.
fn usual_targets(model: &Outline) -> Option<&'static [&'static str]> {
    match model.shape.model_type {
        "t5" | "mt5" => Some(&["q", "v"]),
        "falcon" => Some(&["query_key_value"]),
        _ => None,
    }
}

/// As PyTorch's `kaiming_uniform_(a=sqrt(5))`.
fn kaiming(fan_in: usize) -> Init {
    Init::Uniform(1.0 / (fan_in as f64).sqrt())
}

pub(crate) fn check_rank(field: &'static str, r: usize) -> Result<(), AdapterError> {
    check(field, r, (1..=1_000_000).contains(&r), "a rank of at least 1, and at most 1000000")
}

fn check_probability(field: &'static str, probability: f64) -> Result<(), AdapterError> {
    check(field, probability, (0.0..1.0).contains(&probability), "a probability in [0, 1)")
}

fn check_finite(field: &'static str, number: f64) -> Result<(), AdapterError> {
    check(field, number, number.is_finite(), "a finite number")
}

fn check(
    field: &'static str,
    found: impl ToString,
    is_right: bool,
    expected: &'static str,
) -> Result<(), AdapterError> {
    if is_right { Ok(()) } else { Err(AdapterError::InvalidField { field, found: found.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use crate::rule::{Call, Rule};
    use crate::tensors::random_weight;
    use crate::{AdaptedLinear, Key, Pass};

    pub(super) fn random(dims: [usize; 2], deviation: f64, seed: u64) -> Tensor<2> {
        random_weight(dims, deviation, Key::from_seed(seed), &Device::flex()).val()
    }

    /// What `rule` computes at a layer of this shape is what a layer computes that it is merged into.
    pub(super) fn assert_merged_as_computed(rule: &impl Rule, [out, input]: [usize; 2]) {
        let own: Vec<_> = rule.tensors().iter().zip(2..).map(|(spec, seed)| random(spec.dims(), 0.5, seed)).collect();
        let (layer, x) = (AdaptedLinear::from_weights(random([out, input], 0.5, 0), None), random([4, input], 1.0, 1));
        let y = rule.input(x.clone(), &own).matmul(layer.weight().val().transpose());
        let y = rule.output(y, &Call { x: &x, weights: &layer.base() }, &own, &mut Pass::evaluate());
        let merged = x.clone().matmul(rule.merge(layer.base(), &own).unwrap().weight.transpose());
        let base = x.matmul(layer.weight().val().transpose());
        let [drift, change] = [merged.clone() - y, merged - base].map(|x| x.abs().max().into_scalar::<f32>());
        assert!(drift <= 1e-5 * (1.0 + change), "{rule:?}: merging changes the output by {drift:e}");
        assert!(change >= 1e-3 || own.iter().all(|own| own.shape().num_elements() == 0), "{rule:?} does nothing");
    }
}
