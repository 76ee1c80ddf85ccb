//! AdaLoRA: low-rank adaptation that spends its ranks where they matter most (Zhang et al., 2023).

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use serde_json::{Map, Value, json};
use sideburn_kernels::low_rank;

use super::adalora_training::RankAllocator;
use super::lora::number;
use super::{check, check_finite, check_probability, check_rank};
use crate::fields::Fields;
use crate::method::{Common, Company, Method, Outline, Place, Plan};
use crate::rule::{Call, Init, Rule, TensorSpec, Weights};
use crate::targets::Targets;
use crate::tensors::in_dtype;
use crate::training::Regimen;
use crate::{AdapterError, Pass};

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
    pub common: Common,
}

/// What follows the name of a layer in `rank_pattern`.
const RANKS: &str = ".lora_E";

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
            common: Common::default(),
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
            common: Common::read(fields)?,
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

impl Method for AdaLoraConfig {
    fn peft_type(&self) -> &'static str {
        "ADALORA"
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn targets(&self) -> Option<&Targets> {
        Some(&self.targets)
    }

    fn validate(&self) -> Result<(), AdapterError> {
        check_rank("init_r", self.init_r)?;
        check_rank("target_r", self.target_r)?;
        check_probability("lora_dropout", self.lora_dropout)?;
        check("lora_alpha", self.lora_alpha, self.lora_alpha > 0.0 && self.lora_alpha.is_finite(), "a number above 0")?;
        check("deltaT", self.delta_t, self.delta_t > 0, "a number of steps of at least 1")?;
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            check(field, beta, beta > 0.0 && beta < 1.0, "a number between 0 and 1")?;
        }
        check_finite("orth_reg_weight", self.orth_reg_weight)?;
        check("orth_reg_weight", self.orth_reg_weight, self.orth_reg_weight >= 0.0, "a number of at least 0")?;
        let rest = self.total_step.checked_sub(self.tfinal).and_then(|last| last.checked_sub(self.tinit));
        check(
            "total_step",
            self.total_step,
            rest.is_some_and(|rest| rest > 0),
            "more than `tinit` and `tfinal` together",
        )?;
        let is_whole = self.rank_pattern.values().all(|kept| kept.len() == self.init_r);
        check(
            "rank_pattern",
            format!("{:?}", self.rank_pattern),
            is_whole,
            "as many booleans for each layer as `init_r`",
        )
    }

    fn fields(&self) -> Map<String, Value> {
        let ranks: Map<String, Value> =
            self.rank_pattern.iter().map(|(layer, kept)| (format!("{layer}{RANKS}"), json!(kept))).collect();
        let Value::Object(mut fields) = json!({
            "r": 8,
            "init_r": self.init_r,
            "target_r": self.target_r,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "tinit": self.tinit,
            "tfinal": self.tfinal,
            "deltaT": self.delta_t,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "orth_reg_weight": self.orth_reg_weight,
            "total_step": self.total_step,
            "rank_pattern": (!ranks.is_empty()).then_some(ranks),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
        }) else {
            unreachable!("an object")
        };
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &Outline) -> Result<Plan, AdapterError> {
        let usual: Option<&[&str]> = match model.shape.model_type {
            "t5" => Some(&["q", "k", "v", "o", "wi", "wo"]),
            "mt5" => Some(&["q", "k", "v", "o", "wi_0", "wi_1", "wo"]),
            _ => None,
        };
        let places = self.targets.select(model, Place::is_linear, usual)?;
        let is_adapted = |layer: &&String| places.iter().any(|place| place.name == **layer);
        if let Some(stranger) = self.rank_pattern.keys().find(|layer| !is_adapted(layer)) {
            let (field, found) = ("rank_pattern", format!("such that it names {stranger:?}"));
            return Err(AdapterError::InvalidField { field, found, expected: "names of layers that are adapted" });
        }
        Plan::of(places, |place| {
            let kept = |kept: &Vec<bool>| kept.iter().filter(|kept| **kept).count();
            let r = self.rank_pattern.get(&place.name).map_or(self.init_r, kept);
            let scaling = self.lora_alpha / (self.init_r as f64 + 1e-5);
            Ok(AdaLoraRule { shape: place.linear(), r, scaling, dropout: self.lora_dropout })
        })
    }

    fn company(&self) -> Company {
        Company::Additive
    }

    fn regimen(&self, steps: u64) -> Result<Option<Box<dyn Regimen>>, AdapterError> {
        let ends = u64::try_from(self.total_step).is_ok_and(|total| total <= steps);
        check(
            "total_step",
            self.total_step,
            ends,
            "at most as many steps as the run has, or ranks would be left over",
        )?;
        Ok(Some(Box::new(RankAllocator::new(self))))
    }
}

/// An update in the form of a singular value decomposition, with the vectors `lora_A [r, in]` and `lora_B [out, r]` and the
/// values `lora_E [r, 1]`: `y + s ((dropout(x) A^T) * E^T) B^T`, where `s = lora_alpha / (init_r + 1e-5)`.
///
/// The vectors are orthogonal as far as training makes them so. A layer can lose ranks, even all of them; the scaling
/// stays.
#[derive(Clone, Debug)]
struct AdaLoraRule {
    shape: [usize; 2],
    r: usize,
    scaling: f64,
    dropout: f64,
}

impl Rule for AdaLoraRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let ([out, input], r) = (self.shape, self.r);
        vec![
            TensorSpec::new("lora_A", [r, input], Init::Normal(0.02)),
            TensorSpec::new("lora_B", [out, r], Init::Normal(0.02)),
            TensorSpec::new("lora_E", [r, 1], Init::Zeros),
        ]
    }

    fn output(&self, y: Tensor<2>, call: &Call<'_>, own: &[Tensor<2>], pass: &mut Pass) -> Tensor<2> {
        let dropout = pass.next_dropout(self.dropout);
        if self.r == 0 {
            return y;
        }
        let (outer, [a, b, e]) = (y.dtype(), [0, 1, 2].map(|index| own[index].clone()));
        let x = in_dtype(call.x.clone(), a.dtype());
        y + in_dtype(low_rank(x, a * e, b, self.scaling, dropout), outer)
    }

    fn merge(&self, base: Weights, own: &[Tensor<2>]) -> Result<Weights, &'static str> {
        if self.r == 0 {
            return Ok(base);
        }
        let [a, b, e] = [0, 1, 2].map(|index| own[index].clone());
        let delta = b.matmul(a * e).mul_scalar(self.scaling);
        Ok(Weights { weight: in_dtype(base.weight, delta.dtype()) + delta, ..base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::tests::assert_merged_as_computed;

    fn config() -> AdaLoraConfig {
        AdaLoraConfig { init_r: 4, target_r: 2, tinit: 2, tfinal: 5, ..AdaLoraConfig::new(["q"], 20) }
    }

    #[test]
    fn with_and_without_ranks() {
        for r in [0, 1, 3] {
            assert_merged_as_computed(&AdaLoraRule { shape: [7, 5], r, scaling: 2.0, dropout: 0.0 }, [7, 5]);
        }
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
