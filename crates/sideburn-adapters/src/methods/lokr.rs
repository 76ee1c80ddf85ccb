//! LoKr: the Kronecker product of two small matrices (Edalati et al., 2022, "KronA"; Yeh et al., 2023).

use burn::tensor::Tensor;
use serde_json::{Map, Value, json};
use sideburn_kernels::matmul;

use super::lycoris::{Lycoris, Update};
use crate::fields::Fields;
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site};
use crate::rule::{BoundLinear, Call, Init, LinearRule, Rule, RuleTensors, TensorSpec, Weights};
use crate::targets::Targets;
use crate::tensors::in_dtype;
use crate::{AdapterError, Pass};

/// What to adapt and how; the fields are named as in `peft.LoKrConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoKrConfig {
    /// Rank, scaling and dropout.
    pub lycoris: Lycoris,
    /// Whether the first matrix is made of low-rank factors as well, if they are smaller.
    pub decompose_both: bool,
    /// The height and width of the first matrix, where the layer's are multiples of it; otherwise, and if it is `None` (-1
    /// in the file), it is as near to a square root of the layer as can be.
    pub decompose_factor: Option<usize>,
    /// Whether rows that are kept in training make up for those that `rank_dropout` leaves out.
    pub rank_dropout_scale: bool,
    /// Which layers are adapted.
    pub targets: Targets,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl LoKrConfig {
    /// `peft`'s defaults.
    pub fn new(targets: impl Into<Targets>) -> Self {
        Self {
            lycoris: Lycoris::default(),
            decompose_both: false,
            decompose_factor: None,
            rank_dropout_scale: false,
            targets: targets.into(),
            meta: AdapterMeta::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        let decompose_factor = match fields.value("decompose_factor").and_then(Value::as_i64) {
            Some(-1) => None,
            _ => fields.optional("decompose_factor", "-1, or a number of at least 1")?,
        };
        Ok(Self {
            lycoris: Lycoris::read(fields)?,
            decompose_both: fields.flag("decompose_both")?,
            decompose_factor,
            rank_dropout_scale: fields.flag("rank_dropout_scale")?,
            targets: Targets::read(fields)?,
            meta: AdapterMeta::read(fields)?,
        })
    }

    fn rule(&self, site: &Site) -> Result<LoKrRule, AdapterError> {
        let update = self.lycoris.update(site, self.rank_dropout_scale)?;
        let [out, input] = site.linear().map(|width| factorisation(width, self.decompose_factor));
        let is_whole = |matrix: usize| update.r >= out[matrix].max(input[matrix]).div_ceil(2);
        Ok(LoKrRule { out, input, whole: [!self.decompose_both || is_whole(0), is_whole(1)], update })
    }
}

/// Two factors of `width`: `factor` and the rest, if it divides; otherwise those nearest to each other of which the first
/// is not the larger, nor larger than `factor`.
fn factorisation(width: usize, factor: Option<usize>) -> [usize; 2] {
    let largest = factor.unwrap_or(width);
    let is_factor = |first: &usize| width.is_multiple_of(*first);
    let first = Some(largest).filter(|first| factor.is_some() && is_factor(first));
    let first = first.or_else(|| (1..=width.isqrt().min(largest)).rev().find(is_factor)).unwrap_or(1);
    [first, width / first]
}

impl Method for LoKrConfig {
    fn about(&self) -> About<'_> {
        About {
            peft_type: "LOKR",
            meta: &self.meta,
            targets: Some(&self.targets),
            combines_with: CanCombineWith::Additive,
        }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        if self.decompose_factor == Some(0) {
            let (field, expected) = ("decompose_factor", "-1, or a number of at least 1");
            return Err(AdapterError::InvalidField { field, found: "0".into(), expected });
        }
        self.lycoris.validate()
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = self.lycoris.write();
        fields.insert("decompose_both".into(), json!(self.decompose_both));
        fields.insert("decompose_factor".into(), self.decompose_factor.map_or(json!(-1), |factor| json!(factor)));
        fields.insert("rank_dropout_scale".into(), json!(self.rank_dropout_scale));
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, Site::is_linear, model.shape.usual.lora)?;
        Plan::of_linears(sites, |site| self.rule(site))
    }
}

/// Two matrices `w1 [l, m]` and `w2 [k, n]` at a layer `[l k, m n]`, each whole or as a product of two factors of rank r:
/// `dW = s kron(w1, w2)`, that is `dW[i k + a, j n + b] = s w1[i, j] w2[a, b]`.
///
/// It is never formed: a row of `x` is a matrix `X [m, n]`, and its output the matrix `s w1 X w2^T [l, k]`.
#[derive(Clone, Debug)]
struct LoKrRule {
    /// `[l, k]`.
    out: [usize; 2],
    /// `[m, n]`.
    input: [usize; 2],
    /// Which of the two are whole.
    whole: [bool; 2],
    update: Update,
}

/// `x w^T` for the matrix that `parts` make up.
fn times(x: Tensor<2>, parts: &[Tensor<2>]) -> Tensor<2> {
    parts.iter().rev().fold(x, |x, part| matmul(x, part.clone().transpose()))
}

impl Rule for LoKrRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let ([l, k], [m, n], r) = (self.out, self.input, self.update.r);
        let w1 = match self.whole[0] {
            true => vec![TensorSpec::new("lokr_w1", [l, m], Init::Zeros)],
            false => vec![
                TensorSpec::new("lokr_w1_a", [l, r], Init::Zeros),
                TensorSpec::new("lokr_w1_b", [r, m], Init::kaiming(m)),
            ],
        };
        let w2 = match self.whole[1] {
            true => vec![TensorSpec::new("lokr_w2", [k, n], Init::kaiming(n))],
            false => {
                vec![
                    TensorSpec::new("lokr_w2_a", [k, r], Init::kaiming(r)),
                    TensorSpec::new("lokr_w2_b", [r, n], Init::kaiming(n)),
                ]
            }
        };
        [w1, w2].concat()
    }
}

impl LinearRule for LoKrRule {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        let [w1, w2] = [(0, "lokr_w1"), (1, "lokr_w2")].map(|(matrix, name)| match self.whole[matrix] {
            true => vec![own.get(name)],
            false => vec![own.get(&format!("{name}_a")), own.get(&format!("{name}_b"))],
        });
        Box::new(BoundLoKr { rule: self, w1, w2 })
    }
}

struct BoundLoKr<'a> {
    rule: &'a LoKrRule,
    /// What makes up the first matrix: itself, or two factors.
    w1: Vec<Tensor<2>>,
    w2: Vec<Tensor<2>>,
}

impl BoundLinear for BoundLoKr<'_> {
    fn output(&self, y: Tensor<2>, call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        let LoKrRule { out: [l, k], input: [m, n], update, .. } = *self.rule;
        update.add(y, call.x, self.w1[0].dtype(), pass, |x| {
            let tokens = x.dims()[0];
            let xw2 = times(x.reshape([tokens * m, n]), &self.w2).reshape([tokens, m, k]);
            let product = times(xw2.swap_dims(1, 2).reshape([tokens * k, m]), &self.w1).reshape([tokens, k, l]);
            product.swap_dims(1, 2).reshape([tokens, l * k]).mul_scalar(update.scaling)
        })
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let LoKrRule { out: [l, k], input: [m, n], update, .. } = *self.rule;
        let [w1, w2] = [&self.w1, &self.w2].map(|parts| {
            let product = parts.iter().cloned().reduce(Tensor::matmul);
            product.expect("a matrix has one or two parts")
        });
        let product = w1.reshape([l, 1, m, 1]) * w2.reshape([1, k, 1, n]);
        let delta = product.reshape([l * k, m * n]).mul_scalar(update.scaling);
        Ok(Weights { weight: in_dtype(base.weight, delta.dtype()) + delta, ..base })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_merged_as_computed;
    use super::*;

    /// As `peft.tuners.lokr.layer.factorization`.
    #[test]
    fn widths_in_two_factors() {
        for (width, factor, expected) in [
            (64, None, [8, 8]),
            (128, None, [8, 16]),
            (127, None, [1, 127]),
            (12, None, [3, 4]),
            (1, None, [1, 1]),
            (128, Some(4), [4, 32]),
            (128, Some(32), [32, 4]),
            (128, Some(5), [4, 32]),
            (12, Some(100), [3, 4]),
        ] {
            assert_eq!(factorisation(width, factor), expected, "{width} by {factor:?}");
        }
    }

    #[test]
    fn whole_and_in_factors() {
        for (decompose_both, decompose_factor, r) in
            [(false, None, 8), (false, None, 1), (true, None, 1), (true, Some(3), 1)]
        {
            let lycoris = Lycoris { r, alpha: 2.0, ..Lycoris::default() };
            let config = LoKrConfig { lycoris, decompose_both, decompose_factor, ..LoKrConfig::new(["q"]) };
            assert_merged_as_computed(config.rule(&Site::of("q", [12, 30])).unwrap(), [12, 30]);
        }
    }
}
