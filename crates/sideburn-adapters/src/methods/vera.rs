//! VeRA: vectors between two random matrices that all layers share (Kopiczko et al., 2023).

use std::sync::Arc;

use burn::tensor::Tensor;
use serde_json::{Map, Value};
use sideburn_kernels::matmul;

use super::checks::{check_finite, check_probability, check_rank};
use super::torch_random::TorchGenerator;
use crate::fields::{Fields, fields};
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site};
use crate::rule::{BoundLinear, Call, Init, LinearRule, Rule, RuleTensors, TensorSpec, Weights};
use crate::targets::Targets;
use crate::tensors::in_dtype;
use crate::{AdapterError, Pass};

/// What to adapt and how; the fields are named as in `peft.VeraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct VeraConfig {
    /// The rank of the shared matrices.
    pub r: usize,
    /// The seed that the shared matrices are drawn with, by PyTorch's generator.
    pub projection_prng_key: u64,
    /// Whether the shared matrices are in the file. Where they are not, they are drawn again from their seed.
    pub save_projection: bool,
    /// The probability with which an element of the branch's input is dropped in training.
    pub vera_dropout: f64,
    /// What the vector between the matrices begins as.
    pub d_initial: f64,
    /// Which layers are adapted; `peft` cannot exclude any.
    pub targets: Targets,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl VeraConfig {
    /// `peft`'s defaults.
    pub fn new(targets: impl Into<Targets>) -> Self {
        Self {
            r: 256,
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: 0.1,
            targets: targets.into(),
            meta: AdapterMeta::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        fields.only("bias", "none")?;
        fields.ignore("fan_in_fan_out"); // Says how other kinds of layers store their weights.
        fields.ignore("init_weights"); // How the vectors begin is past.
        Ok(Self {
            r: fields.required("r", "a rank of at least 1")?,
            projection_prng_key: fields.optional("projection_prng_key", "a seed")?.unwrap_or(0),
            save_projection: fields.optional("save_projection", "true or false")?.unwrap_or(true),
            vera_dropout: fields.optional("vera_dropout", "a probability in [0, 1)")?.unwrap_or(0.0),
            d_initial: fields.optional("d_initial", "a number")?.unwrap_or(0.1),
            targets: Targets::read(fields)?,
            meta: AdapterMeta::read(fields)?,
        })
    }
}

impl Method for VeraConfig {
    fn about(&self) -> About<'_> {
        About {
            peft_type: "VERA",
            meta: &self.meta,
            targets: Some(&self.targets),
            combines_with: CanCombineWith::Additive,
        }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        check_rank("r", self.r)?;
        check_probability("vera_dropout", self.vera_dropout)?;
        check_finite("d_initial", self.d_initial)?;
        match &self.targets.exclude_modules {
            None => Ok(()),
            Some(excluded) => Err(AdapterError::InvalidField {
                field: "exclude_modules",
                found: format!("{excluded:?}"),
                expected: "nothing, as VeRA in `peft` has no such field",
            }),
        }
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = fields! {
            "r": self.r,
            "projection_prng_key": self.projection_prng_key,
            "save_projection": self.save_projection,
            "vera_dropout": self.vera_dropout,
            "d_initial": self.d_initial,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_weights": true,
        };
        self.targets.write(&mut fields);
        fields.remove("exclude_modules"); // `peft` warns of fields that it does not know.
        fields
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, Site::is_linear, model.shape.usual.lora)?;
        let largest = sites
            .iter()
            .map(|site| site.linear())
            .fold([0, 0], |[out, input], site| [out.max(site[0]), input.max(site[1])]);
        Plan::of_linears(sites, |site| {
            let projection = Projection { largest, seed: self.projection_prng_key, saved: self.save_projection };
            let (shape, r, dropout, d_initial) = (site.linear(), self.r, self.vera_dropout, self.d_initial);
            Ok(VeraRule { shape, projection, r, dropout, d_initial })
        })
    }
}

/// Vectors `b [out]` and `d [r]`, and what all layers share and nothing trains: `A [r, in]` and `B [out, r]`, as large as
/// the largest layer needs and cut to this one: `y + b * ((d * (dropout(x) A^T)) B^T)`, element by element.
#[derive(Clone, Debug)]
struct VeraRule {
    shape: [usize; 2],
    projection: Projection,
    r: usize,
    dropout: f64,
    d_initial: f64,
}

/// What all layers share.
#[derive(Clone, Copy, Debug)]
struct Projection {
    /// `[out, in]`, each of the layer in which it is largest.
    largest: [usize; 2],
    seed: u64,
    saved: bool,
}

impl Projection {
    /// `A [r, in]` and then `B [out, r]`, from one generator; only the last of them.
    fn draw(self, shapes: &[[usize; 2]]) -> Vec<f32> {
        let mut generator = TorchGenerator::from_seed(self.seed);
        shapes.iter().map(|shape| generator.kaiming_uniform(*shape)).last().expect("at least one")
    }

    fn specs(self, r: usize) -> [TensorSpec; 2] {
        let [out, input] = self.largest;
        let shapes = [[r, input], [out, r]];
        [("vera_A", &shapes[..1]), ("vera_B", &shapes[..])].map(|(name, shapes)| {
            let shape = *shapes.last().expect("one or two");
            let shapes = shapes.to_vec();
            let init = Init::Values(Arc::new(move || self.draw(&shapes)));
            let spec = TensorSpec::new(name, shape, init).of_site("").frozen();
            if self.saved { spec } else { spec.not_stored() }
        })
    }
}

impl Rule for VeraRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let [a, b] = self.projection.specs(self.r);
        vec![
            TensorSpec::new("vera_lambda_b", [self.shape[0]], Init::Zeros),
            TensorSpec::new("vera_lambda_d", [self.r], Init::Constant(self.d_initial)),
            a,
            b,
        ]
    }
}

/// VeRA is a low-rank branch, with the factors `d * A` and `b * B`; but as such it would have gradients of `A` and `B`,
/// which are large and not trained.
impl LinearRule for VeraRule {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        let [out, input] = self.shape;
        Box::new(BoundVera {
            b: own.get("vera_lambda_b"),
            d: own.get("vera_lambda_d"),
            shared_a: own.get("vera_A").narrow(1, 0, input),
            shared_b: own.get("vera_B").narrow(0, 0, out),
            dropout: self.dropout,
        })
    }
}

struct BoundVera {
    b: Tensor<2>,
    d: Tensor<2>,
    /// The part of `A` that this layer uses.
    shared_a: Tensor<2>,
    shared_b: Tensor<2>,
    dropout: f64,
}

impl BoundLinear for BoundVera {
    fn output(&self, y: Tensor<2>, call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        let (outer, d) = (y.dtype(), self.d.clone());
        let x = pass.dropout(in_dtype(call.x.clone(), d.dtype()), self.dropout);
        let inner = matmul(x, self.shared_a.clone().transpose()) * d;
        y + in_dtype(matmul(inner, self.shared_b.clone().transpose()) * self.b.clone(), outer)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let scaled = self.shared_b.clone() * self.d.clone();
        let delta = matmul(scaled, self.shared_a.clone()) * self.b.clone().transpose();
        Ok(Weights { weight: in_dtype(base.weight, delta.dtype()) + delta, ..base })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_merged_as_computed;
    use super::*;

    #[test]
    fn a_layer_smaller_than_the_largest() {
        let (r, dropout, d_initial) = (3, 0.0, 0.1);
        for largest in [[4, 6], [9, 6], [4, 8]] {
            let projection = Projection { largest, seed: 0, saved: true };
            assert_merged_as_computed(VeraRule { shape: [4, 6], projection, r, dropout, d_initial }, [4, 6]);
        }
    }
}
