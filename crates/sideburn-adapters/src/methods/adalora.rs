//! AdaLoRA: low-rank adaptation that spends its ranks where they matter most (Zhang et al., 2023).

use burn::tensor::Tensor;
use serde_json::{Map, Value, json};

use super::adalora_config::{AdaLoraConfig, RANKS};
use super::adalora_training::RankAllocator;
use super::checks::{check, check_finite, check_probability, check_rank};
use super::lora::number;
use crate::fields::fields;
use crate::method::{About, CanCombineWith, Method, Plan, TrainingHook};
use crate::outline::{ModelOutline, Site};
use crate::rule::{BoundLinear, Branch, Call, Init, LinearRule, LowRankRule, Rule, RuleTensors, TensorSpec, Weights};
use crate::{AdapterError, Pass};

impl Method for AdaLoraConfig {
    fn about(&self) -> About<'_> {
        About {
            peft_type: "ADALORA",
            meta: &self.meta,
            targets: Some(&self.targets),
            combines_with: CanCombineWith::Additive,
        }
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
        let mut fields = fields! {
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
        };
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, Site::is_linear, model.shape.usual.adalora)?;
        let is_adapted = |layer: &&String| sites.iter().any(|site| site.name == **layer);
        if let Some(stranger) = self.rank_pattern.keys().find(|layer| !is_adapted(layer)) {
            let (field, found) = ("rank_pattern", format!("such that it names {stranger:?}"));
            return Err(AdapterError::InvalidField { field, found, expected: "names of layers that are adapted" });
        }
        let mut plan = Plan::default();
        for site in sites {
            let kept = |kept: &Vec<bool>| kept.iter().filter(|kept| **kept).count();
            let r = self.rank_pattern.get(&site.name).map_or(self.init_r, kept);
            let scaling = self.lora_alpha / (self.init_r as f64 + 1e-5);
            let rule = AdaLoraRule { shape: site.linear(), r, scaling, dropout: self.lora_dropout };
            if r > 0 { plan.add_branch(site, rule) } else { plan.add_linear(site, rule) }
        }
        Ok(plan)
    }

    fn training_hook(&self, steps: u64) -> Result<Option<Box<dyn TrainingHook>>, AdapterError> {
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
            TensorSpec::new("lora_B", [out, r], Init::Normal(0.02)).second_factor(),
            TensorSpec::new("lora_E", [r, 1], Init::Zeros),
        ]
    }
}

impl LowRankRule for AdaLoraRule {
    fn branch(&self, own: &RuleTensors) -> Branch {
        let a = own.get("lora_A") * own.get("lora_E");
        Branch { a, b: own.get("lora_B"), scale: self.scaling, dropout: self.dropout }
    }
}

/// What is left of a layer that has lost all its ranks: tensors without elements, and a place of dropout, so that those of
/// other layers stay as they are.
impl LinearRule for AdaLoraRule {
    fn bind(&self, _own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        Box::new(WithoutRanks { dropout: self.dropout })
    }
}

struct WithoutRanks {
    dropout: f64,
}

impl BoundLinear for WithoutRanks {
    fn output(&self, y: Tensor<2>, _call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        pass.next_dropout(self.dropout);
        y
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        Ok(base)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_branch_merged_as_computed, assert_merged_as_computed};
    use super::*;

    #[test]
    fn with_and_without_ranks() {
        let rule = |r| AdaLoraRule { shape: [7, 5], r, scaling: 2.0, dropout: 0.0 };
        for r in [1, 3] {
            assert_branch_merged_as_computed(rule(r), [7, 5]);
        }
        assert_merged_as_computed(rule(0), [7, 5]);
    }
}
