//! The configuration of AdaLoRA, and the budget of ranks that follows from it.

use std::collections::BTreeMap;

use crate::AdapterError;
use crate::fields::Fields;
use crate::method::AdapterMeta;
use crate::targets::Targets;

/// What to adapt and how; the fields are named as in `peft.AdaLoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaLoraConfig {
    /// The rank of every layer to begin with.
    pub init_r: usize,
    /// The mean rank of the layers in the end.
    pub target_r: usize,
    /// The numerator of the scaling `lora_alpha / init_r`.
    pub lora_alpha: f64,
    /// The probability with which an element of the branch's input is dropped in training.
    pub lora_dropout: f64,
    /// The last step of training before ranks are taken away.
    pub tinit: usize,
    /// The steps that are left once the last ranks have been taken away.
    pub tfinal: usize,
    /// `deltaT`: ranks are taken away at multiples of this many steps.
    pub delta_t: usize,
    /// How slowly the mean sensitivity of elements changes.
    pub beta1: f64,
    /// How slowly the mean uncertainty of elements changes.
    pub beta2: f64,
    /// How much the distance of the singular vectors from orthogonal ones counts in the loss.
    pub orth_reg_weight: f64,
    /// The steps of training.
    pub total_step: usize,
    /// For layers that have lost ranks, by their names, which of the first ones they still have.
    pub rank_pattern: BTreeMap<String, Vec<bool>>,
    /// Which layers are adapted.
    pub targets: Targets,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

/// What follows the name of a layer in `rank_pattern`.
pub(super) const RANKS: &str = ".lora_E";

impl AdaLoraConfig {
    /// `peft`'s defaults, for this many steps of training.
    pub fn new(targets: impl Into<Targets>, total_step: usize) -> Self {
        Self {
            init_r: 12,
            target_r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step,
            rank_pattern: BTreeMap::new(),
            targets: targets.into(),
            meta: AdapterMeta::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        fields.only("bias", "none")?;
        // AdaLoRA has these from LoRA, and `peft` does not use them.
        for unused in ["r", "alpha_pattern", "use_rslora", "fan_in_fan_out"] {
            fields.ignore(unused);
        }
        fields.ignore("init_lora_weights"); // How the factors begin is past.
        let defaults = Self::new(Targets::read(fields)?, fields.required("total_step", "a number of steps")?);
        let steps =
            |name, default| Ok::<_, AdapterError>(fields.optional(name, "a number of steps")?.unwrap_or(default));
        let float = |name, default| Ok::<_, AdapterError>(fields.optional(name, "a number")?.unwrap_or(default));
        let pattern: Option<BTreeMap<String, Vec<bool>>> =
            fields.optional("rank_pattern", "lists of booleans by layer")?;
        let layer = |(name, kept): (String, Vec<bool>)| match name.strip_suffix(RANKS) {
            Some(layer) => Ok((layer.to_owned(), kept)),
            None => Err(AdapterError::InvalidField {
                field: "rank_pattern",
                found: format!("such that it names {name:?}"),
                expected: "names of layers, each followed by `.lora_E`",
            }),
        };
        Ok(Self {
            init_r: fields.optional("init_r", "a rank of at least 1")?.unwrap_or(defaults.init_r),
            target_r: fields.optional("target_r", "a rank of at least 1")?.unwrap_or(defaults.target_r),
            lora_alpha: float("lora_alpha", defaults.lora_alpha)?,
            lora_dropout: float("lora_dropout", defaults.lora_dropout)?,
            tinit: steps("tinit", defaults.tinit)?,
            tfinal: steps("tfinal", defaults.tfinal)?,
            delta_t: steps("deltaT", defaults.delta_t)?,
            beta1: float("beta1", defaults.beta1)?,
            beta2: float("beta2", defaults.beta2)?,
            orth_reg_weight: float("orth_reg_weight", defaults.orth_reg_weight)?,
            rank_pattern: pattern.into_iter().flatten().map(layer).collect::<Result<_, _>>()?,
            meta: AdapterMeta::read(fields)?,
            ..defaults
        })
    }

    /// The step at which the last ranks are taken away.
    pub(super) fn last_cut(&self) -> usize {
        self.total_step - self.tfinal
    }

    /// How many of `first` ranks may be left after a step, in the end `target`, if some are taken away then.
    pub(super) fn budget(&self, step: usize, first: usize, target: usize) -> Option<usize> {
        let is_due = step == self.last_cut() || step.is_multiple_of(self.delta_t);
        if !is_due || step <= self.tinit || step > self.last_cut() {
            return None;
        }
        let left = 1.0 - (step - self.tinit) as f64 / (self.last_cut() - self.tinit) as f64;
        Some(((first as f64 - target as f64) * left.powf(3.0) + target as f64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AdaLoraConfig {
        AdaLoraConfig { init_r: 4, target_r: 2, tinit: 2, tfinal: 5, ..AdaLoraConfig::new(["q"], 20) }
    }

    /// The ranks that `peft` leaves of 16, step by step, in the golden trajectory.
    #[test]
    fn the_budget_falls_as_the_cube_of_the_time_left() {
        let budgets = |config: &AdaLoraConfig| (0..20).map(|step| config.budget(step, 16, 8)).collect::<Vec<_>>();
        let expected = [14, 12, 11, 10, 9, 9, 8, 8, 8, 8, 8, 8, 8];
        let expected = [None; 3].into_iter().chain(expected.map(Some)).chain([None; 4]);
        assert_eq!(budgets(&config()), expected.collect::<Vec<_>>());
        let expected =
            (0..20).map(|step| [(5, 11), (10, 8), (15, 8)].into_iter().find(|due| due.0 == step).map(|due| due.1));
        assert_eq!(budgets(&AdaLoraConfig { delta_t: 5, ..config() }), expected.collect::<Vec<_>>());
    }
}
