//! LoHa: the element-wise product of two low-rank matrices (Hyeon-Woo et al., 2021, "FedPara").

use burn::tensor::Tensor;
use serde_json::{Map, Value};
use sideburn_kernels::{low_rank, matmul};

use super::lycoris::{Lycoris, Update};
use crate::fields::Fields;
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site};
use crate::rule::{BoundLinear, Call, Init, LinearRule, Rule, RuleTensors, TensorSpec, Weights};
use crate::targets::Targets;
use crate::tensors::in_dtype;
use crate::{AdapterError, Pass};

/// What to adapt and how; the fields are named as in `peft.LoHaConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoHaConfig {
    /// Rank, scaling and dropout.
    pub lycoris: Lycoris,
    /// Which layers are adapted.
    pub targets: Targets,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl LoHaConfig {
    /// `peft`'s defaults.
    pub fn new(targets: impl Into<Targets>) -> Self {
        Self { lycoris: Lycoris::default(), targets: targets.into(), meta: AdapterMeta::default() }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        let (lycoris, targets) = (Lycoris::read(fields)?, Targets::read(fields)?);
        Ok(Self { lycoris, targets, meta: AdapterMeta::read(fields)? })
    }
}

impl Method for LoHaConfig {
    fn about(&self) -> About<'_> {
        About {
            peft_type: "LOHA",
            meta: &self.meta,
            targets: Some(&self.targets),
            combines_with: CanCombineWith::Additive,
        }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        self.lycoris.validate()
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = self.lycoris.write();
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, Site::is_linear, model.shape.usual.lora)?;
        Plan::of_linears(sites, |site| Ok(LoHaRule { shape: site.linear(), update: self.lycoris.update(site, true)? }))
    }
}

/// The factors of two matrices, `w1_a [out, r]` and `w1_b [r, in]`, `w2_a` and `w2_b` likewise:
/// `dW = s (w1_a w1_b) * (w2_a w2_b)`, element by element.
///
/// `dW` is itself a product of two factors, of rank `r^2`, with the rows `w1_b[i] * w2_b[j]` and the columns
/// `w1_a[:, i] * w2_a[:, j]`. That way `n` tokens cost `n r^2 (in + out)` multiplications. Forming `dW` first, as `peft`
/// does, costs `(n + 2 r) in out`, and a tensor as large as the weight. The factors are taken up to half that cost: for 512
/// by 512 up to `r` 11.
#[derive(Clone, Debug)]
struct LoHaRule {
    shape: [usize; 2],
    update: Update,
}

impl Rule for LoHaRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let ([out, input], r) = (self.shape, self.update.r);
        vec![
            TensorSpec::new("hada_w1_a", [out, r], Init::kaiming(r)),
            TensorSpec::new("hada_w1_b", [r, input], Init::kaiming(input)),
            TensorSpec::new("hada_w2_a", [out, r], Init::kaiming(r)),
            TensorSpec::new("hada_w2_b", [r, input], Init::Zeros),
        ]
    }
}

impl LinearRule for LoHaRule {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        let factors = |matrix: usize| ["a", "b"].map(|factor| own.get(&format!("hada_w{matrix}_{factor}")));
        Box::new(BoundLoHa { rule: self, w1: factors(1), w2: factors(2) })
    }
}

struct BoundLoHa<'a> {
    rule: &'a LoHaRule,
    w1: [Tensor<2>; 2],
    w2: [Tensor<2>; 2],
}

impl BoundLoHa<'_> {
    fn delta(&self) -> Tensor<2> {
        let [w1, w2] = [&self.w1, &self.w2].map(|[a, b]| matmul(a.clone(), b.clone()));
        (w1 * w2).mul_scalar(self.rule.update.scaling)
    }

    /// `[r^2, in]` and `[out, r^2]`.
    fn factors(&self) -> [Tensor<2>; 2] {
        let ([out, input], rank) = (self.rule.shape, self.rule.update.r * self.rule.update.r);
        let ([w1_a, w1_b], [w2_a, w2_b]) = (self.w1.clone(), self.w2.clone());
        let rows = w1_b.unsqueeze_dim::<3>(1) * w2_b.unsqueeze_dim::<3>(0);
        let columns = w1_a.unsqueeze_dim::<3>(2) * w2_a.unsqueeze_dim::<3>(1);
        [rows.reshape([rank, input]), columns.reshape([out, rank])]
    }
}

impl BoundLinear for BoundLoHa<'_> {
    fn output(&self, y: Tensor<2>, call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        let LoHaRule { shape: [out, input], update } = *self.rule;
        update.add(y, call.x, self.w1[0].dtype(), pass, |x| {
            if 2 * update.r * update.r * (input + out) > input * out {
                return matmul(x, self.delta().transpose());
            }
            let [rows, columns] = self.factors();
            low_rank(x, rows, columns, update.scaling, None)
        })
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let delta = self.delta();
        Ok(Weights { weight: in_dtype(base.weight, delta.dtype()) + delta, ..base })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_merged_as_computed;
    use super::*;

    #[test]
    fn with_and_without_forming_the_update() {
        for (r, shape) in [(1, [7, 5]), (2, [24, 12]), (3, [7, 5])] {
            let update = Lycoris { r, alpha: 2.0, ..Lycoris::default() }.update(&Site::of("q", shape), true).unwrap();
            assert_merged_as_computed(LoHaRule { shape, update }, shape);
        }
    }
}
