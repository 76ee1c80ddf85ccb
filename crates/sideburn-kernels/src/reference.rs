//! Each operation composed of a backend's primitives: what backends without a kernel run, and what kernels are tested
//! against.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Distribution, FloatDType, Shape};
use sideburn_batch::Key;

use crate::ops::FusedOps;

/// `sqrt(2 / pi)`, of the tanh approximation of GELU (Hendrycks and Gimpel, 2016, section 2).
pub(crate) const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
/// The cubic coefficient of the same approximation.
pub(crate) const GELU_CUBIC: f64 = 0.044_715;

fn float_dtype<B: Backend>(x: &FloatTensor<B>) -> FloatDType {
    FloatDType::from(x.dtype())
}

/// The mask is drawn on the device from a generator seeded with the key, so that it is the same whenever it is drawn.
pub(crate) fn dropout<B: Backend>(x: FloatTensor<B>, probability: f64, key: Key) -> FloatTensor<B> {
    let device = x.device();
    B::seed(&device, key.bits(0));
    let keep = B::float_random(x.shape(), Distribution::Bernoulli(1.0 - probability), &device, float_dtype::<B>(&x));
    B::float_mul_scalar(B::float_mul(x, keep), (1.0 / (1.0 - probability)).into())
}

pub(crate) fn low_rank<B: FusedOps>(
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f64,
    probability: f64,
    key: Key,
) -> FloatTensor<B> {
    let x = if probability > 0.0 { B::keyed_dropout(x, probability, key) } else { x };
    let narrow = B::float_mul_scalar(B::float_matmul(x, B::float_transpose(a)), scale.into());
    B::float_matmul(narrow, B::float_transpose(b))
}

/// `1 / sqrt(mean(x^2) + epsilon)`, with the last dimension kept at size 1.
fn inverse_rms<B: Backend>(x: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
    let last = x.rank() - 1;
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x), last);
    B::float_recip(B::float_sqrt(B::float_add_scalar(mean, epsilon.into())))
}

/// `weight [d]` as a tensor of `rank` dimensions that broadcasts over all but the last.
fn broadcast_last<B: Backend>(weight: FloatTensor<B>, rank: usize) -> FloatTensor<B> {
    let mut shape = vec![1; rank];
    shape[rank - 1] = weight.shape()[0];
    B::float_reshape(weight, Shape::from(shape))
}

pub(crate) fn rms_norm<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
    let rank = x.rank();
    let inverse = inverse_rms::<B>(x.clone(), epsilon);
    B::float_mul(B::float_mul(x, inverse), broadcast_last::<B>(weight, rank))
}

/// With `r = 1 / rms(x)` and `g = gradient * weight`: `r g - r^3 x mean(g x)`.
pub(crate) fn rms_norm_backward_x<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let rank = x.rank();
    let inverse = inverse_rms::<B>(x.clone(), epsilon);
    let g = B::float_mul(gradient, broadcast_last::<B>(weight, rank));
    let normalised = B::float_mul(x, inverse.clone());
    let mean = B::float_mean_dim(B::float_mul(g.clone(), normalised.clone()), rank - 1);
    B::float_mul(B::float_sub(g, B::float_mul(normalised, mean)), inverse)
}

pub(crate) fn rms_norm_backward_weight<B: Backend>(
    x: FloatTensor<B>,
    gradient: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let width = x.shape()[x.rank() - 1];
    let rows = x.shape().num_elements() / width;
    let inverse = inverse_rms::<B>(x.clone(), epsilon);
    let product = B::float_reshape(B::float_mul(B::float_mul(x, inverse), gradient), Shape::from([rows, width]));
    B::float_reshape(B::float_sum_dim(product, 0), Shape::from([width]))
}

/// `tanh(sqrt(2 / pi) (x + 0.044715 x^3))`.
fn gelu_tanh_term<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let square = B::float_mul(x.clone(), x.clone());
    let inner = B::float_add_scalar(B::float_mul_scalar(square, GELU_CUBIC.into()), 1.0.into());
    B::float_tanh(B::float_mul_scalar(B::float_mul(inner, x), SQRT_2_OVER_PI.into()))
}

pub(crate) fn gelu_gate<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let tanh = gelu_tanh_term::<B>(gate.clone());
    let half = B::float_mul_scalar(B::float_mul(gate, B::float_add_scalar(tanh, 1.0.into())), 0.5.into());
    B::float_mul(half, up)
}

/// `gelu'(x) = (1 + t) / 2 + x (1 - t^2) / 2 * sqrt(2 / pi) (1 + 3 * 0.044715 x^2)` with the tanh term `t`.
pub(crate) fn gelu_gate_backward_gate<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    gradient: FloatTensor<B>,
) -> FloatTensor<B> {
    let tanh = gelu_tanh_term::<B>(gate.clone());
    let square = B::float_mul(gate.clone(), gate.clone());
    let inner = B::float_add_scalar(
        B::float_mul_scalar(square, (3.0 * GELU_CUBIC * SQRT_2_OVER_PI).into()),
        SQRT_2_OVER_PI.into(),
    );
    let sech_square = B::float_add_scalar(B::float_neg(B::float_mul(tanh.clone(), tanh.clone())), 1.0.into());
    let curved = B::float_mul(B::float_mul(gate, sech_square), inner);
    let slope = B::float_mul_scalar(B::float_add(B::float_add_scalar(tanh, 1.0.into()), curved), 0.5.into());
    B::float_mul(B::float_mul(slope, up), gradient)
}

pub(crate) fn cross_entropy<B: Backend>(logits: FloatTensor<B>, labels: IntTensor<B>) -> FloatTensor<B> {
    let rows = logits.shape()[0];
    let index = B::int_reshape(labels, Shape::from([rows, 1]));
    let picked = B::float_gather(1, B::log_softmax(logits, 1), index);
    B::float_neg(B::float_reshape(picked, Shape::from([rows])))
}

/// `gradient * (softmax(logits) - one_hot(labels))`.
pub(crate) fn cross_entropy_backward<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    gradient: FloatTensor<B>,
) -> FloatTensor<B> {
    let rows = logits.shape()[0];
    let column = B::float_reshape(gradient, Shape::from([rows, 1]));
    let index = B::int_reshape(labels, Shape::from([rows, 1]));
    let softmax = B::float_mul(B::softmax(logits, 1), column.clone());
    B::float_scatter(1, softmax, index, B::float_neg(column), burn::tensor::IndexingUpdateOp::Add)
}

/// What a masked score is set to: small enough that its softmax is zero, and finite, so that no NaN can come of it.
const MASKED: f64 = -1e30;

pub(crate) fn masked_softmax<B: Backend>(
    scores: FloatTensor<B>,
    bias: FloatTensor<B>,
    mask: BoolTensor<B>,
) -> FloatTensor<B> {
    let mask = B::bool_expand(mask, scores.shape());
    B::softmax(B::float_mask_fill(B::float_add(scores, bias), mask, MASKED.into()), 3)
}

/// `output * (gradient - sum(output * gradient))`.
pub(crate) fn softmax_backward<B: Backend>(output: FloatTensor<B>, gradient: FloatTensor<B>) -> FloatTensor<B> {
    let last = output.rank() - 1;
    let sum = B::float_sum_dim(B::float_mul(output.clone(), gradient.clone()), last);
    B::float_mul(output, B::float_sub(gradient, sum))
}

/// The output of attention, and the weights before dropout.
pub(crate) fn attention<B: FusedOps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    bias: FloatTensor<B>,
    mask: BoolTensor<B>,
    probability: f64,
    key: Key,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let scores = B::float_matmul(q, B::float_swap_dims(k, 2, 3));
    let weights = B::masked_softmax(scores, bias, mask);
    let dropped = if probability > 0.0 { B::keyed_dropout(weights.clone(), probability, key) } else { weights.clone() };
    (B::float_matmul(dropped, v), weights)
}
