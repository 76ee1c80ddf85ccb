//! What the tests of several methods do.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use crate::rule::{AtLinear, Call, LinearRule, LowRankRule, RuleTensors, Weights};
use crate::tensors::random_weight;
use crate::{AdaptedLinear, Key, Pass};

pub(super) fn random(dims: [usize; 2], deviation: f64, seed: u64) -> Tensor<2> {
    random_weight(dims, deviation, Key::from_seed(seed), &Device::flex()).val()
}

/// What `rule` computes at a layer of this shape is what a layer computes that it is merged into.
pub(super) fn assert_merged_as_computed(rule: impl LinearRule + 'static, shape: [usize; 2]) {
    check(&AtLinear::General(Arc::new(rule)), shape);
}

/// The same for a low-rank branch.
pub(super) fn assert_branch_merged_as_computed(rule: impl LowRankRule + 'static, shape: [usize; 2]) {
    check(&AtLinear::Branch(Arc::new(rule)), shape);
}

/// The tensors of a rule, drawn at random.
pub(super) fn drawn(rule: &AtLinear) -> RuleTensors {
    let specs = rule.rule().tensors();
    let tensors = specs.iter().zip(2..).map(|(spec, seed)| random(spec.dims(), 0.5, seed)).collect();
    RuleTensors::new(specs.into(), tensors)
}

fn check(rule: &AtLinear, [out, input]: [usize; 2]) {
    let own = drawn(rule);
    let (bound, is_empty) = (rule.bind(&own), rule.rule().tensors().iter().all(|spec| spec.shape.contains(&0)));
    let bound = bound.steps();
    let (layer, x) = (AdaptedLinear::from_weights(random([out, input], 0.5, 0), None), random([4, input], 1.0, 1));
    let weight = layer.weight().dense();
    let y = bound.input(x.clone()).matmul(weight.clone().transpose());
    let call = Call { x: &x, weight: &layer.weight().operand(), bias: None };
    let y = bound.output(y, &call, &mut Pass::evaluate());
    let merged = bound.merge(Weights { weight: weight.clone(), bias: None }).unwrap();
    let merged = x.clone().matmul(merged.weight.transpose());
    let base = x.matmul(weight.transpose());
    let [drift, change] = [merged.clone() - y, merged - base].map(|x| x.abs().max().into_scalar::<f32>());
    assert!(drift <= 1e-5 * (1.0 + change), "{rule:?}: merging changes the output by {drift:e}");
    assert!(change >= 1e-3 || is_empty, "{rule:?} does nothing");
}
