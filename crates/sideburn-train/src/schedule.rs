//! Learning rate schedules.

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// How the learning rate goes: `lr_scheduler_type` of `transformers`. [`ScheduleOptions`] has what some of them take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// After the warm-up straight down to zero at the end.
    #[default]
    Linear,
    /// After the warm-up along `num_cycles` cosine waves; half a one, the default, goes down to zero at the end.
    Cosine,
    /// After the warm-up `num_cycles` times down to zero along half a cosine wave.
    CosineWithRestarts,
    /// Unchanged from the first step on.
    Constant,
    /// Unchanged after the warm-up.
    ConstantWithWarmup,
    /// After the warm-up down to `lr_end` at the end, as the `power` of what is left of the run.
    Polynomial,
    /// After the warm-up as the inverse square root of the step, in units of `timescale`.
    InverseSqrt,
    /// After the warm-up unchanged for `num_stable_steps`, then for `num_decay_steps` down to `min_lr_ratio`.
    WarmupStableDecay,
}

/// What a [`Schedule`] takes beside the warm-up: `lr_scheduler_kwargs` of `transformers`, whose names and defaults these are. One
/// that is set must be one that the schedule knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleOptions {
    /// Waves of `cosine` and of the decay of `warmup_stable_decay`, 0.5 by default; falls of `cosine_with_restarts`, 1 by
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_cycles: Option<f64>,
    /// The learning rate at the end of `polynomial`; 1e-7 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_end: Option<f64>,
    /// The exponent of `polynomial`; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// Steps that count as one of `inverse_sqrt`; by default those of the warm-up, or 10,000 if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timescale: Option<u64>,
    /// Steps of `warmup_stable_decay` without a change; by default all that warm-up and decay leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_stable_steps: Option<u64>,
    /// Steps of the decay of `warmup_stable_decay`, which must be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_decay_steps: Option<u64>,
    /// How `warmup_stable_decay` rises; linearly by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_type: Option<Ramp>,
    /// How `warmup_stable_decay` falls; along a cosine wave by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_type: Option<Ramp>,
    /// What `warmup_stable_decay` begins and ends with, as a part of the learning rate; 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
}

/// How a learning rate rises or falls in [`Schedule::WarmupStableDecay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ramp {
    /// In a straight line.
    #[serde(rename = "linear")]
    Linear,
    /// Along a cosine wave.
    #[serde(rename = "cosine")]
    Cosine,
    /// As one minus the square root of what is done of a decay, or is left of a warm-up (Hägele et al., 2024).
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// A schedule with all that the learning rate follows from.
pub(crate) struct Course<'a> {
    pub(crate) schedule: Schedule,
    pub(crate) options: &'a ScheduleOptions,
    pub(crate) learning_rate: f64,
    /// Steps over which it rises.
    pub(crate) warmup: u64,
    pub(crate) max_steps: u64,
}

impl Schedule {
    /// What the learning rate is multiplied by at a step, counted from 0.
    fn factor(self, options: &ScheduleOptions, [step, warmup, steps]: [u64; 3], learning_rate: f64) -> f64 {
        let part = |of: u64, whole: u64| of as f64 / whole.max(1) as f64;
        if step < warmup {
            let risen = part(step, warmup);
            return match self {
                Self::WarmupStableDecay => options.above_least(match options.warmup_type.unwrap_or(Ramp::Linear) {
                    Ramp::Linear => risen,
                    Ramp::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * risen).cos()),
                    Ramp::OneMinusSqrt => 1.0 - (1.0 - risen).sqrt(),
                }),
                _ => risen,
            };
        }
        let (done, all) = (step - warmup, steps.saturating_sub(warmup));
        let progress = part(done, all);
        match self {
            Self::Linear => part(steps.saturating_sub(step), all),
            Self::Cosine => waves(options.num_cycles.unwrap_or(0.5), progress),
            Self::CosineWithRestarts if progress >= 1.0 => 0.0,
            Self::CosineWithRestarts => waves(0.5, (options.num_cycles.unwrap_or(1.0) * progress) % 1.0),
            Self::Constant | Self::ConstantWithWarmup => 1.0,
            Self::Polynomial => {
                let end = options.lr_end();
                let left = (1.0 - progress).max(0.0).powf(options.power.unwrap_or(1.0));
                ((learning_rate - end) * left + end) / learning_rate
            }
            Self::InverseSqrt => {
                let timescale = options.timescale.unwrap_or(if warmup > 0 { warmup } else { 10_000 });
                1.0 / ((done + timescale) as f64 / timescale as f64).sqrt()
            }
            Self::WarmupStableDecay => {
                let decay = options.num_decay_steps.unwrap_or(0);
                let stable = options.num_stable_steps.unwrap_or(all.saturating_sub(decay));
                if done < stable {
                    return 1.0;
                }
                if done >= stable + decay {
                    return options.min_lr_ratio.unwrap_or(0.0);
                }
                let fallen = part(done - stable, decay);
                options.above_least(match options.decay_type.unwrap_or(Ramp::Cosine) {
                    Ramp::Linear => 1.0 - fallen,
                    Ramp::Cosine => 0.5 * (1.0 + turn(options.num_cycles.unwrap_or(0.5), fallen)),
                    Ramp::OneMinusSqrt => 1.0 - fallen.sqrt(),
                })
            }
        }
    }
}

/// The cosine of what is done of so many full turns.
fn turn(cycles: f64, progress: f64) -> f64 {
    (std::f64::consts::PI * cycles * 2.0 * progress).cos()
}

fn waves(cycles: f64, progress: f64) -> f64 {
    (0.5 * (1.0 + turn(cycles, progress))).max(0.0)
}

impl ScheduleOptions {
    fn lr_end(&self) -> f64 {
        self.lr_end.unwrap_or(1e-7)
    }

    /// A factor between 0 and 1, moved between `min_lr_ratio` and 1.
    fn above_least(&self, factor: f64) -> f64 {
        let least = self.min_lr_ratio.unwrap_or(0.0);
        (factor * (1.0 - least) + least).max(0.0)
    }
}

impl Course<'_> {
    /// The learning rate of a step, from 0, as `get_scheduler` of `transformers.optimization` has it.
    pub(crate) fn learning_rate_at(&self, step: u64) -> f64 {
        let warmup = if self.schedule == Schedule::Constant { 0 } else { self.warmup };
        self.learning_rate * self.schedule.factor(self.options, [step, warmup, self.max_steps], self.learning_rate)
    }

    /// Refuses what the schedule does not know, and what means nothing.
    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        use Schedule::{Cosine, CosineWithRestarts, InverseSqrt, Polynomial, WarmupStableDecay};
        const NOT_NEGATIVE: &str = "a number of at least 0";
        let (options, steps) = (self.options, |steps: Option<u64>| steps.map(|steps| steps as f64));
        let refuse = |field, found, expected| Err(TrainError::InvalidSetting { field, found, expected });
        let not_negative = |number: f64| number.is_finite() && number >= 0.0;
        let ramp = |ramp: Option<Ramp>| ramp.map(|_| 0.0);
        let (cycles, least) = (&[Cosine, CosineWithRestarts, WarmupStableDecay][..], "a number in [0, 1]");
        type Valid<'a> = &'a dyn Fn(f64) -> bool;
        let fields: [(_, Option<f64>, &[Schedule], Valid<'_>, _); 9] = [
            ("lr_scheduler_kwargs.num_cycles", options.num_cycles, cycles, &not_negative, NOT_NEGATIVE),
            ("lr_scheduler_kwargs.lr_end", options.lr_end, &[Polynomial], &not_negative, NOT_NEGATIVE),
            ("lr_scheduler_kwargs.power", options.power, &[Polynomial], &not_negative, NOT_NEGATIVE),
            ("lr_scheduler_kwargs.timescale", steps(options.timescale), &[InverseSqrt], &|x| x >= 1.0, "at least 1"),
            (
                "lr_scheduler_kwargs.num_stable_steps",
                steps(options.num_stable_steps),
                &[WarmupStableDecay],
                &|_| true,
                "",
            ),
            (
                "lr_scheduler_kwargs.num_decay_steps",
                steps(options.num_decay_steps),
                &[WarmupStableDecay],
                &|_| true,
                "",
            ),
            ("lr_scheduler_kwargs.warmup_type", ramp(options.warmup_type), &[WarmupStableDecay], &|_| true, ""),
            ("lr_scheduler_kwargs.decay_type", ramp(options.decay_type), &[WarmupStableDecay], &|_| true, ""),
            (
                "lr_scheduler_kwargs.min_lr_ratio",
                options.min_lr_ratio,
                &[WarmupStableDecay],
                &|x| (0.0..=1.0).contains(&x),
                least,
            ),
        ];
        for (field, found, schedules, is_valid, expected) in fields {
            let Some(found) = found else { continue };
            if !schedules.contains(&self.schedule) {
                return refuse(field, found, "nothing, since this `lr_scheduler_type` has no such argument");
            }
            if !is_valid(found) {
                return refuse(field, found, expected);
            }
        }
        let warmup = self.warmup;
        match self.schedule {
            Schedule::Constant if warmup > 0 => {
                refuse("warmup_steps", warmup as f64, "0 with `constant`; `constant_with_warmup` has a warm-up")
            }
            Polynomial if options.lr_end() >= self.learning_rate => {
                refuse("lr_scheduler_kwargs.lr_end", options.lr_end(), "less than `learning_rate`")
            }
            WarmupStableDecay => match options.num_decay_steps {
                None => refuse(
                    "lr_scheduler_kwargs.num_decay_steps",
                    0.0,
                    "a number of steps, as `warmup_stable_decay` must have",
                ),
                Some(decay) if options.num_stable_steps.is_none() && warmup + decay > self.max_steps => refuse(
                    "lr_scheduler_kwargs.num_decay_steps",
                    decay as f64,
                    "at most the steps that the warm-up leaves of `max_steps`",
                ),
                Some(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
