//! One-pass CPU kernels for the Flex backend, in `f32`, parallel over rows; other dtypes take the composed form.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, FloatDType, TensorData};
use rayon::prelude::*;
use sideburn_batch::Key;

use crate::ops::FusedOps;
use crate::reference::{self, GELU_CUBIC, SQRT_2_OVER_PI};

type Primitive = FloatTensor<Flex>;

/// Elements that one task works on: large enough to hide the scheduling, small enough to share out.
const TASK: usize = 16 * 1024;

fn is_f32(tensors: &[&Primitive]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// The tensor in row-major order, so that [`values`] can borrow it.
fn contiguous(x: Primitive) -> Primitive {
    if x.as_slice::<f32>().is_some() { x } else { x.to_contiguous() }
}

fn values(x: &Primitive) -> &[f32] {
    x.as_slice().expect("a contiguous f32 tensor")
}

/// The tensor in row-major order, to be overwritten through `storage_mut`: in place if nothing else holds it. Fresh
/// memory costs more than most of these kernels.
fn overwritable(x: Primitive) -> Primitive {
    let x = contiguous(x);
    let own = x.is_unique() && x.storage::<f32>().len() == values(&x).len();
    if own { x } else { from_values(values(&x).to_vec(), &x) }
}

fn from_values(values: Vec<f32>, like: &Primitive) -> Primitive {
    Primitive::from_data(TensorData::new(values, like.shape()))
}

/// Rows of `width` elements that make about one task.
fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

impl FusedOps for Flex {
    fn keyed_dropout(x: Primitive, probability: f64, key: Key) -> Primitive {
        if !is_f32(&[&x]) {
            // The same elements as in `f32`, and no use of the backend's generator, which threads share.
            let ones = Flex::float_ones(x.shape(), &x.device(), FloatDType::F32);
            let kept = Flex::float_cast(Flex::keyed_dropout(ones, probability, key), x.dtype().into());
            let kept = Flex::float_sign(kept);
            return Flex::float_mul_scalar(Flex::float_mul(x, kept), (1.0 / (1.0 - probability)).into());
        }
        let x = contiguous(x);
        let scale = (1.0 / (1.0 - probability)) as f32;
        let threshold = (probability * 2f64.powi(32)) as u32;
        let mut out = vec![0f32; values(&x).len()];
        out.par_chunks_mut(TASK).zip(values(&x).par_chunks(TASK)).enumerate().for_each(|(task, (out, x))| {
            // Each 64-bit draw decides two neighbours. TASK is even, so that pairs do not depend on the task size.
            let first = (task * TASK / 2) as u64;
            for (pair, (out, x)) in out.chunks_mut(2).zip(x.chunks(2)).enumerate() {
                let bits = key.bits(first + pair as u64);
                let keep = [(bits as u32) >= threshold, ((bits >> 32) as u32) >= threshold];
                for ((out, x), keep) in out.iter_mut().zip(x).zip(keep) {
                    *out = if keep { x * scale } else { 0.0 };
                }
            }
        });
        from_values(out, &x)
    }

    fn rms_norm(x: Primitive, weight: Primitive, epsilon: f64) -> Primitive {
        if !is_f32(&[&x, &weight]) {
            return reference::rms_norm::<Flex>(x, weight, epsilon);
        }
        let (x, weight) = (contiguous(x), contiguous(weight));
        let (width, weight) = (values(&weight).len(), values(&weight));
        let mut out = vec![0f32; values(&x).len()];
        let chunk = rows_per_task(width) * width;
        out.par_chunks_mut(chunk).zip(values(&x).par_chunks(chunk)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let inverse = inverse_rms(x, epsilon);
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * inverse * weight;
                }
            }
        });
        from_values(out, &x)
    }

    fn rms_norm_backward_x(x: Primitive, weight: Primitive, gradient: Primitive, epsilon: f64) -> Primitive {
        if !is_f32(&[&x, &weight, &gradient]) {
            return reference::rms_norm_backward_x::<Flex>(x, weight, gradient, epsilon);
        }
        let (x, weight, mut gradient) = (contiguous(x), contiguous(weight), overwritable(gradient));
        let (width, weight) = (values(&weight).len(), values(&weight));
        let chunk = rows_per_task(width) * width;
        let tasks = gradient.storage_mut::<f32>().par_chunks_mut(chunk).zip(values(&x).par_chunks(chunk));
        tasks.for_each(|(gradient, x)| {
            for (gradient, x) in gradient.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let inverse = inverse_rms(x, epsilon);
                let product = sum([x, gradient, weight], |[x, g, w]| x * g * w);
                let pull = product / width as f32 * inverse * inverse;
                for ((gradient, x), weight) in gradient.iter_mut().zip(x).zip(weight) {
                    *gradient = inverse * (*gradient * weight - x * pull);
                }
            }
        });
        gradient
    }

    fn gelu_gate(gate: Primitive, up: Primitive) -> Primitive {
        if !is_f32(&[&gate, &up]) {
            return reference::gelu_gate::<Flex>(gate, up);
        }
        let (gate, up) = (contiguous(gate), contiguous(up));
        let mut out = vec![0f32; values(&gate).len()];
        out.par_chunks_mut(TASK).zip(values(&gate).par_chunks(TASK)).zip(values(&up).par_chunks(TASK)).for_each(
            |((out, gate), up)| {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate * gelu_sigmoid(*gate) * up;
                }
            },
        );
        from_values(out, &gate)
    }

    fn gelu_gate_backward_gate(gate: Primitive, up: Primitive, gradient: Primitive) -> Primitive {
        if !is_f32(&[&gate, &up, &gradient]) {
            return reference::gelu_gate_backward_gate::<Flex>(gate, up, gradient);
        }
        let (gate, up, mut gradient) = (contiguous(gate), contiguous(up), overwritable(gradient));
        let tasks = gradient.storage_mut::<f32>().par_chunks_mut(TASK);
        tasks.zip(values(&gate).par_chunks(TASK)).zip(values(&up).par_chunks(TASK)).for_each(
            |((gradient, gate), up)| {
                const LINEAR: f32 = 2.0 * SQRT_2_OVER_PI as f32;
                const SQUARE: f32 = (6.0 * GELU_CUBIC * SQRT_2_OVER_PI) as f32;
                for ((gradient, x), up) in gradient.iter_mut().zip(gate).zip(up) {
                    let sigmoid = gelu_sigmoid(*x);
                    let slope = sigmoid + x * sigmoid * (1.0 - sigmoid) * (LINEAR + SQUARE * x * x);
                    *gradient *= slope * up;
                }
            },
        );
        gradient
    }

    fn masked_softmax(scores: Primitive, bias: Primitive, mask: BoolTensor<Flex>) -> Primitive {
        if !is_f32(&[&scores, &bias]) {
            return reference::masked_softmax::<Flex>(scores, bias, mask);
        }
        let (mut scores, bias) = (overwritable(scores), contiguous(bias));
        let dims = |x: &Primitive| -> [usize; 4] { x.shape().as_slice().try_into().expect("four dimensions") };
        let [_, heads, queries, keys] = dims(&scores);
        // Row-major strides of the bias, zero where it is broadcast.
        let [_, bias_heads, bias_queries, bias_keys] = dims(&bias);
        let stride = |dim: usize, stride: usize| if dim == 1 { 0 } else { stride };
        let bias_strides = [stride(bias_heads, bias_queries * bias_keys), stride(bias_queries, bias_keys)];
        let [_, _, mask_queries, _] = dims(&mask);
        let mask: Vec<bool> = mask.into_data().iter::<bool>().collect();
        let (bias, rows_per_task) = (values(&bias), rows_per_task(keys));
        let tasks = scores.storage_mut::<f32>().par_chunks_mut(rows_per_task * keys).enumerate();
        tasks.for_each(|(task, scores)| {
            for (index, scores) in scores.chunks_exact_mut(keys).enumerate() {
                let index = task * rows_per_task + index;
                let (query, head, row) = (index % queries, index / queries % heads, index / queries / heads);
                let bias = &bias[head * bias_strides[0] + query * bias_strides[1]..][..bias_keys];
                let mask_row = if mask_queries == 1 { row } else { row * queries + query };
                masked_softmax_row(scores, bias, &mask[mask_row * keys..(mask_row + 1) * keys]);
            }
        });
        scores
    }

    fn softmax_backward(output: Primitive, gradient: Primitive) -> Primitive {
        if !is_f32(&[&output, &gradient]) {
            return reference::softmax_backward::<Flex>(output, gradient);
        }
        let (output, mut gradient) = (contiguous(output), overwritable(gradient));
        let width = output.shape()[output.shape().num_dims() - 1];
        let chunk = rows_per_task(width) * width;
        let tasks = gradient.storage_mut::<f32>().par_chunks_mut(chunk).zip(values(&output).par_chunks(chunk));
        tasks.for_each(|(gradient, y)| {
            for (gradient, y) in gradient.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                let product = sum([y, gradient], |[y, g]| y * g);
                gradient.iter_mut().zip(y).for_each(|(gradient, y)| *gradient = y * (*gradient - product));
            }
        });
        gradient
    }

    fn cross_entropy(logits: Primitive, labels: IntTensor<Flex>) -> Primitive {
        let classes = logits.shape()[1];
        let indices = class_indices(labels.clone(), classes);
        if !is_f32(&[&logits]) {
            return reference::cross_entropy::<Flex>(logits, labels);
        }
        let logits = contiguous(logits);
        let out: Vec<f32> = values(&logits)
            .par_chunks(classes)
            .zip(&indices)
            .map(|(row, label)| {
                let (max, sum) = softmax_normaliser(row);
                max + sum.ln() - row[*label]
            })
            .collect();
        Primitive::from_data(TensorData::new(out, [indices.len()]))
    }

    fn cross_entropy_backward(logits: Primitive, labels: IntTensor<Flex>, gradient: Primitive) -> Primitive {
        if !is_f32(&[&logits, &gradient]) {
            return reference::cross_entropy_backward::<Flex>(logits, labels, gradient);
        }
        let (mut logits, gradient) = (overwritable(logits), contiguous(gradient));
        let classes = logits.shape()[1];
        let labels = class_indices(labels, classes);
        let rows = logits.storage_mut::<f32>().par_chunks_mut(classes);
        rows.zip(labels.par_iter().zip(values(&gradient))).for_each(|(row, (label, gradient))| {
            let (max, sum) = softmax_normaliser(row);
            let scale = gradient / sum;
            row.iter_mut().for_each(|logit| *logit = exp(*logit - max) * scale);
            row[*label] -= gradient;
        });
        logits
    }
}

/// One row of scores to `softmax(scores + bias)`, zero where the mask is true. Each loop is simple enough to be vectorised.
fn masked_softmax_row(out: &mut [f32], bias: &[f32], mask: &[bool]) {
    match bias {
        [bias] => out.iter_mut().for_each(|out| *out += bias),
        _ => out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias),
    }
    out.iter_mut().zip(mask).for_each(|(out, masked)| *out = if *masked { f32::NEG_INFINITY } else { *out });
    let max = largest(out);
    out.iter_mut().for_each(|out| *out = exp(*out - max));
    out.iter_mut().zip(mask).for_each(|(out, masked)| *out = if *masked { 0.0 } else { *out });
    let scale = 1.0 / sum([out], |[weight]| weight);
    out.iter_mut().for_each(|out| *out *= scale);
}

fn class_indices(labels: IntTensor<Flex>, classes: usize) -> Vec<usize> {
    let index = |label: i64| {
        let index = usize::try_from(label).ok().filter(|index| *index < classes);
        index.unwrap_or_else(|| panic!("label {label} is none of {classes} classes"))
    };
    labels.into_data().iter::<i64>().map(index).collect()
}

/// The largest logit, and the sum of `exp(logit - largest)`.
fn softmax_normaliser(row: &[f32]) -> (f32, f32) {
    let max = largest(row);
    (max, sum([row], |[logit]| exp(logit - max)))
}

fn inverse_rms(x: &[f32], epsilon: f64) -> f32 {
    let square = sum([x], |[x]| x * x);
    1.0 / (square / x.len() as f32 + epsilon as f32).sqrt()
}

/// Accumulators of a reduction: a fixed order whatever the machine, more exact than one running sum, and vectorised.
const LANES: usize = 8;

/// The sum of `term` over slices of equal length.
#[inline(always)]
fn sum<const N: usize>(slices: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let blocks = slices.map(|slice| slice.as_chunks::<LANES>());
    for block in 0..blocks[0].0.len() {
        let block = blocks.map(|(blocks, _)| blocks[block]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(block.map(|values| values[lane]));
        }
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(blocks[0].1.len()) {
        *sum += term(blocks.map(|(_, rest)| rest[lane]));
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// The largest value that is a number.
fn largest(values: &[f32]) -> f32 {
    let larger = |x: f32, y: f32| if y > x { y } else { x };
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane = larger(*lane, *value));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// `(1 + tanh(u)) / 2` with the `u` of the tanh approximation, as `1 / (1 + exp(-2 u))`: nothing cancels where the tanh
/// is near -1.
#[inline(always)]
fn gelu_sigmoid(x: f32) -> f32 {
    const LINEAR: f32 = -2.0 * SQRT_2_OVER_PI as f32;
    const CUBIC: f32 = (-2.0 * SQRT_2_OVER_PI * GELU_CUBIC) as f32;
    1.0 / (1.0 + exp(x * (LINEAR + CUBIC * x * x)))
}

/// `e^x` within 2 units in the last place, without branches or calls, so that loops over it vectorise (after Cephes
/// `expf`: range reduction by `ln 2`, then a polynomial of degree 6).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    // Rounding to the nearest whole number by adding and taking away 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    // The lowest bits of `shifted` are `n`: with the bias added, the exponent of 2^n.
    value * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        for step in -870_000..880_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}): relative error {error:e}");
        }
        assert!(exp(-1e30) < 2e-38);
        assert!(exp(f32::NAN).is_nan(), "a NaN must not be hidden");
    }
}
