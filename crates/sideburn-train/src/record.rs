//! What a step has to tell.

use serde::{Deserialize, Serialize};

/// What a finished step has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, from 0.
    pub step: u64,
    /// The mean negative log-likelihood of the step's target tokens, before the update, in nats.
    pub loss: f64,
    /// What the method of fine-tuning adds to the loss to be minimised; 0 for most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub penalty: f64,
    /// The learning rate that was used.
    pub learning_rate: f64,
    /// The norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Source and target tokens of the step, without padding.
    pub tokens: usize,
    /// How long the step took. It is not written down, since it is another one in each run.
    #[serde(skip)]
    pub seconds: f64,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}
