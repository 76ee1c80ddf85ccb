//! Learning rate schedules.

use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up: `lr_scheduler_type` of `transformers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Straight down to zero at the end.
    #[default]
    Linear,
    /// Down to zero at the end along half a cosine wave.
    Cosine,
    /// Unchanged.
    Constant,
}

impl Schedule {
    /// What the learning rate is multiplied by at `step` of `steps`, counted from 0, after a straight rise over
    /// `warmup` steps. `get_linear_schedule_with_warmup` and its siblings in `transformers.optimization`.
    ///
    /// ```
    /// use sideburn_train::Schedule;
    ///
    /// let factors: Vec<f64> = (0..6).map(|step| Schedule::Linear.factor(step, 2, 6)).collect();
    /// assert_eq!(factors, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    /// ```
    pub fn factor(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let progress = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Linear => (1.0 - progress).max(0.0),
            Self::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
            Self::Constant => 1.0,
        }
    }
}
