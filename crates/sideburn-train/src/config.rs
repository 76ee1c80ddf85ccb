//! How to train.

use serde::{Deserialize, Serialize};

use crate::{Schedule, TrainError};

/// The settings of a run; names and defaults are those of `transformers.TrainingArguments` (PyTorch's AdamW alone would
/// decay by 0.01), but for `max_steps`, which has no default here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Steps of the optimiser.
    pub max_steps: u64,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// Decoupled weight decay; biases, relative position biases among them, and norms are not decayed.
    pub weight_decay: f64,
    /// The decay of AdamW's first moment.
    pub adam_beta1: f64,
    /// The decay of AdamW's second moment.
    pub adam_beta2: f64,
    /// What AdamW adds to the root of the second moment.
    pub adam_epsilon: f64,
    /// The norm to which the gradient of all parameters together is clipped; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// How the learning rate goes after the warm-up.
    pub lr_scheduler_type: Schedule,
    /// Steps over which the learning rate rises from zero.
    pub warmup_steps: u64,
    /// What the learning rate of LoRA's second factor B is multiplied by: LoRA+ (Hayou et al., 2024), which recommends 16
    /// with half the learning rate. 1 is LoRA.
    pub loraplus_lr_ratio: f64,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: u64,
    /// What all random draws follow from.
    pub seed: u64,
}

impl TrainConfig {
    /// The defaults, for `max_steps` steps.
    pub fn new(max_steps: u64) -> Self {
        Self {
            max_steps,
            learning_rate: 5e-5,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: Schedule::Linear,
            warmup_steps: 0,
            loraplus_lr_ratio: 1.0,
            gradient_accumulation_steps: 1,
            seed: 42,
        }
    }

    /// The learning rate of a step, from 0.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        self.learning_rate * self.lr_scheduler_type.factor(step, self.warmup_steps, self.max_steps)
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// If a number is out of its range; the error names the field.
    pub fn validate(&self) -> Result<(), TrainError> {
        let not_negative = |number: f64| number.is_finite() && number >= 0.0;
        let fields = [
            ("learning_rate", self.learning_rate, not_negative(self.learning_rate), "a number of at least 0"),
            ("weight_decay", self.weight_decay, not_negative(self.weight_decay), "a number of at least 0"),
            ("adam_beta1", self.adam_beta1, (0.0..1.0).contains(&self.adam_beta1), "a number in [0, 1)"),
            ("adam_beta2", self.adam_beta2, (0.0..1.0).contains(&self.adam_beta2), "a number in [0, 1)"),
            (
                "adam_epsilon",
                self.adam_epsilon,
                self.adam_epsilon > 0.0 && self.adam_epsilon.is_finite(),
                "a number above 0",
            ),
            (
                "loraplus_lr_ratio",
                self.loraplus_lr_ratio,
                self.loraplus_lr_ratio > 0.0 && self.loraplus_lr_ratio.is_finite(),
                "a number above 0",
            ),
            ("max_grad_norm", self.max_grad_norm, not_negative(self.max_grad_norm), "a number of at least 0"),
            (
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps as f64,
                self.gradient_accumulation_steps > 0,
                "at least 1",
            ),
        ];
        match fields.into_iter().find(|(_, _, valid, _)| !valid) {
            Some((field, found, _, expected)) => Err(TrainError::InvalidSetting { field, found, expected }),
            None => Ok(()),
        }
    }
}
