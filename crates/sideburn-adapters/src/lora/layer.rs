//! The trainable factors of LoRA at one site.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use sideburn_kernels::{Key, low_rank};

use super::LoraConfig;
use crate::linear::lazy_weight;
use crate::{AdapterError, Pass};

/// One adapter at one site: `x -> s dropout(x) A^T B^T` with `s = lora_alpha / r`.
///
/// # Shapes
/// `lora_A [r, in]` and `lora_B [out, r]`, as `peft` stores them.
#[derive(Module, Debug)]
pub struct LoraLayer {
    name: String,
    lora_a: Param<Tensor<2>>,
    lora_b: Param<Tensor<2>>,
    scaling: f64,
    dropout: f64,
}

impl LoraLayer {
    /// The factors at the start of training: A uniform in `±1 / sqrt(in)`, which is PyTorch's
    /// `kaiming_uniform_(a=sqrt(5))`, and B zero, so that the adapted layer starts as the base layer.
    pub(crate) fn init(name: &str, [out, input]: [usize; 2], config: &LoraConfig, key: Key, device: &Device) -> Self {
        let bound = 1.0 / (input as f64).sqrt();
        Self {
            name: name.to_owned(),
            lora_a: lazy_weight([config.r, input], device, move |index| {
                ((2.0 * key.uniform(index) - 1.0) * bound) as f32
            }),
            lora_b: lazy_weight([out, config.r], device, |_| 0.0),
            scaling: config.scaling(),
            dropout: config.lora_dropout,
        }
    }

    /// The branch's output for `x [n, in]`: `[n, out]` in the dtype of `x`. The factors compute in their own.
    pub(crate) fn forward(&self, x: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let (a, b) = (self.lora_a.val(), self.lora_b.val());
        let (outer, inner) = (x.dtype(), a.dtype());
        let x = if outer == inner { x } else { x.cast(inner) };
        let delta = low_rank(x, a, b, self.scaling, pass.next_dropout(self.dropout));
        if outer == inner { delta } else { delta.cast(outer) }
    }

    /// The name of the adapter that these factors belong to.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `lora_A [r, in]`.
    pub fn lora_a(&self) -> &Param<Tensor<2>> {
        &self.lora_a
    }

    /// `lora_B [out, r]`.
    pub fn lora_b(&self) -> &Param<Tensor<2>> {
        &self.lora_b
    }

    /// Both factors, `lora_A` first, to be replaced.
    pub(crate) fn factors_mut(&mut self) -> [&mut Param<Tensor<2>>; 2] {
        [&mut self.lora_a, &mut self.lora_b]
    }

    /// What the product of the factors is multiplied by.
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// Refuses a configuration that these factors were not made with.
    pub(crate) fn check(&self, config: &LoraConfig) -> Result<(), AdapterError> {
        let invalid = |field, found: String, expected| Err(AdapterError::InvalidField { field, found, expected });
        if self.lora_a.lazy_shape()[0] != config.r {
            return invalid("r", config.r.to_string(), "the rank of the adapter's factors");
        }
        if self.scaling != config.scaling() {
            return invalid("lora_alpha", config.lora_alpha.to_string(), "what the adapter was made with");
        }
        if self.dropout != config.lora_dropout {
            return invalid("lora_dropout", config.lora_dropout.to_string(), "what the adapter was made with");
        }
        Ok(())
    }
}
