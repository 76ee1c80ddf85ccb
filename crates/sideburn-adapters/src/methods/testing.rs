//! What the tests of several methods do.

use burn::tensor::{Device, Tensor};

use crate::rule::{Call, Rule};
use crate::tensors::random_weight;
use crate::{AdaptedLinear, Key, Pass};

pub(super) fn random(dims: [usize; 2], deviation: f64, seed: u64) -> Tensor<2> {
    random_weight(dims, deviation, Key::from_seed(seed), &Device::flex()).val()
}

/// What `rule` computes at a layer of this shape is what a layer computes that it is merged into.
pub(super) fn assert_merged_as_computed(rule: &impl Rule, [out, input]: [usize; 2]) {
    let own: Vec<_> = rule.tensors().iter().zip(2..).map(|(spec, seed)| random(spec.dims(), 0.5, seed)).collect();
    let (layer, x) = (AdaptedLinear::from_weights(random([out, input], 0.5, 0), None), random([4, input], 1.0, 1));
    let y = rule.input(x.clone(), &own).matmul(layer.weight().val().transpose());
    let y = rule.output(y, &Call { x: &x, weights: &layer.base() }, &own, &mut Pass::evaluate());
    let merged = x.clone().matmul(rule.merge(layer.base(), &own).unwrap().weight.transpose());
    let base = x.matmul(layer.weight().val().transpose());
    let [drift, change] = [merged.clone() - y, merged - base].map(|x| x.abs().max().into_scalar::<f32>());
    assert!(drift <= 1e-5 * (1.0 + change), "{rule:?}: merging changes the output by {drift:e}");
    assert!(change >= 1e-3 || own.iter().all(|own| own.shape().num_elements() == 0), "{rule:?} does nothing");
}
