//! Logits, and how far they are from others.

use anyhow::Context;
use sideburn::prelude::*;

/// The logits of every token of `input`, row after row, `[tokens, vocabulary]` in row-major order.
pub(crate) fn logits(model: &T5, source: &TokenRows, input: &TokenRows) -> anyhow::Result<Vec<f32>> {
    let mut pass = Pass::evaluate();
    let encoded = model.encode(source, &mut pass)?;
    let hidden = model.decode(&encoded, input, &mut pass)?;
    values(model.head(hidden, &mut pass))
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> anyhow::Result<Vec<f32>> {
    tensor.into_data().try_into_vec().ok().context("the device does not compute in f32")
}

/// The largest absolute difference; not a number if any is.
pub(crate) fn max_difference(found: &[f32], expected: &[f32]) -> f32 {
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, x| if max.is_nan() || max > x { max } else { x })
}
