//! One-pass CPU kernels for the Flex backend, in `f32`, parallel over rows; other dtypes take the composed form.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, TensorData};
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
            return reference::dropout::<Flex>(x, probability, key);
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
        let (x, weight, gradient) = (contiguous(x), contiguous(weight), contiguous(gradient));
        let (width, weight) = (values(&weight).len(), values(&weight));
        let mut out = vec![0f32; values(&x).len()];
        let chunk = rows_per_task(width) * width;
        out.par_chunks_mut(chunk)
            .zip(values(&x).par_chunks(chunk))
            .zip(values(&gradient).par_chunks(chunk))
            .for_each(|((out, x), gradient)| {
                let rows = x.chunks_exact(width).zip(gradient.chunks_exact(width));
                for (out, (x, gradient)) in out.chunks_exact_mut(width).zip(rows) {
                    let inverse = inverse_rms(x, epsilon);
                    let product = sum(x.iter().zip(gradient).zip(weight).map(|((x, g), w)| x * g * w));
                    let pull = product / width as f32 * inverse * inverse;
                    for (((out, x), gradient), weight) in out.iter_mut().zip(x).zip(gradient).zip(weight) {
                        *out = inverse * (gradient * weight - x * pull);
                    }
                }
            });
        from_values(out, &x)
    }

    fn gelu_gate(gate: Primitive, up: Primitive) -> Primitive {
        if !is_f32(&[&gate, &up]) {
            return reference::gelu_gate::<Flex>(gate, up);
        }
        let (gate, up) = (contiguous(gate), contiguous(up));
        let mut out = vec![0f32; values(&gate).len()];
        out.par_chunks_mut(TASK)
            .zip(values(&gate).par_chunks(TASK))
            .zip(values(&up).par_chunks(TASK))
            .for_each(|((out, gate), up)| {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = 0.5 * gate * (1.0 + gelu_tanh_term(*gate)) * up;
                }
            });
        from_values(out, &gate)
    }

    fn gelu_gate_backward_gate(gate: Primitive, up: Primitive, gradient: Primitive) -> Primitive {
        if !is_f32(&[&gate, &up, &gradient]) {
            return reference::gelu_gate_backward_gate::<Flex>(gate, up, gradient);
        }
        let (gate, up, gradient) = (contiguous(gate), contiguous(up), contiguous(gradient));
        let mut out = vec![0f32; values(&gate).len()];
        out.par_chunks_mut(TASK)
            .zip(values(&gate).par_chunks(TASK))
            .zip(values(&up).par_chunks(TASK))
            .zip(values(&gradient).par_chunks(TASK))
            .for_each(|(((out, gate), up), gradient)| {
                const LINEAR: f32 = SQRT_2_OVER_PI as f32;
                const SQUARE: f32 = (3.0 * GELU_CUBIC * SQRT_2_OVER_PI) as f32;
                for (((out, x), up), gradient) in out.iter_mut().zip(gate).zip(up).zip(gradient) {
                    let tanh = gelu_tanh_term(*x);
                    let slope = 0.5 * (1.0 + tanh + x * (1.0 - tanh * tanh) * (LINEAR + SQUARE * x * x));
                    *out = slope * up * gradient;
                }
            });
        from_values(out, &gate)
    }

    fn masked_softmax(scores: Primitive, bias: Primitive, mask: BoolTensor<Flex>) -> Primitive {
        if !is_f32(&[&scores, &bias]) {
            return reference::masked_softmax::<Flex>(scores, bias, mask);
        }
        let (scores, bias) = (contiguous(scores), contiguous(bias));
        let dims = |x: &Primitive| -> [usize; 4] { x.shape().as_slice().try_into().expect("four dimensions") };
        let [_, heads, queries, keys] = dims(&scores);
        // Row-major strides of the bias and the mask, zero where they are broadcast.
        let strides = |[_, heads, queries, keys]: [usize; 4]| {
            let stride = |dim: usize, stride: usize| if dim == 1 { 0 } else { stride };
            [stride(heads, queries * keys), stride(queries, keys), stride(keys, 1)]
        };
        let bias_strides = strides(dims(&bias));
        let [_, _, mask_queries, _] = dims(&mask);
        let mask: Vec<bool> = mask.into_data().iter::<bool>().collect();
        let (bias, rows_per_task) = (values(&bias), rows_per_task(keys));
        let mut out = vec![0f32; values(&scores).len()];
        out.par_chunks_mut(rows_per_task * keys)
            .zip(values(&scores).par_chunks(rows_per_task * keys))
            .enumerate()
            .for_each(|(task, (out, scores))| {
                for (index, (out, scores)) in out.chunks_exact_mut(keys).zip(scores.chunks_exact(keys)).enumerate() {
                    let index = task * rows_per_task + index;
                    let (query, head, row) = (index % queries, index / queries % heads, index / queries / heads);
                    let bias = &bias[head * bias_strides[0] + query * bias_strides[1]..];
                    let mask_row = if mask_queries == 1 { row } else { row * queries + query };
                    let mask = &mask[mask_row * keys..(mask_row + 1) * keys];
                    masked_softmax_row(out, scores, bias, bias_strides[2], mask);
                }
            });
        from_values(out, &scores)
    }

    fn softmax_backward(output: Primitive, gradient: Primitive) -> Primitive {
        if !is_f32(&[&output, &gradient]) {
            return reference::softmax_backward::<Flex>(output, gradient);
        }
        let (output, gradient) = (contiguous(output), contiguous(gradient));
        let width = output.shape()[output.shape().num_dims() - 1];
        let chunk = rows_per_task(width) * width;
        let mut out = vec![0f32; values(&output).len()];
        out.par_chunks_mut(chunk)
            .zip(values(&output).par_chunks(chunk))
            .zip(values(&gradient).par_chunks(chunk))
            .for_each(|((out, y), gradient)| {
                let rows = y.chunks_exact(width).zip(gradient.chunks_exact(width));
                for (out, (y, gradient)) in out.chunks_exact_mut(width).zip(rows) {
                    let product = sum(y.iter().zip(gradient).map(|(y, g)| y * g));
                    for ((out, y), gradient) in out.iter_mut().zip(y).zip(gradient) {
                        *out = y * (gradient - product);
                    }
                }
            });
        from_values(out, &output)
    }

    fn cross_entropy(logits: Primitive, labels: IntTensor<Flex>) -> Primitive {
        if !is_f32(&[&logits]) {
            return reference::cross_entropy::<Flex>(logits, labels);
        }
        let logits = contiguous(logits);
        let (classes, labels) = (logits.shape()[1], label_values(labels));
        let out: Vec<f32> = values(&logits)
            .par_chunks(classes)
            .zip(&labels)
            .map(|(row, label)| {
                let (max, sum) = softmax_normaliser(row);
                max + sum.ln() - row[*label]
            })
            .collect();
        Primitive::from_data(TensorData::new(out, [labels.len()]))
    }

    fn cross_entropy_backward(logits: Primitive, labels: IntTensor<Flex>, gradient: Primitive) -> Primitive {
        if !is_f32(&[&logits, &gradient]) {
            return reference::cross_entropy_backward::<Flex>(logits, labels, gradient);
        }
        let (logits, gradient) = (contiguous(logits), contiguous(gradient));
        let (classes, labels) = (logits.shape()[1], label_values(labels));
        let mut out = vec![0f32; values(&logits).len()];
        out.par_chunks_mut(classes)
            .zip(values(&logits).par_chunks(classes))
            .zip(labels.par_iter().zip(values(&gradient)))
            .for_each(|((out, row), (label, gradient))| {
                let (max, sum) = softmax_normaliser(row);
                let scale = gradient / sum;
                for (out, logit) in out.iter_mut().zip(row) {
                    *out = exp(logit - max) * scale;
                }
                out[*label] -= gradient;
            });
        from_values(out, &logits)
    }
}

/// One row of `softmax(scores + bias)`, zero where the mask is true.
fn masked_softmax_row(out: &mut [f32], scores: &[f32], bias: &[f32], bias_stride: usize, mask: &[bool]) {
    let mut max = f32::NEG_INFINITY;
    for (key, ((out, score), masked)) in out.iter_mut().zip(scores).zip(mask).enumerate() {
        *out = if *masked { f32::NEG_INFINITY } else { score + bias[key * bias_stride] };
        max = max.max(*out);
    }
    for (out, masked) in out.iter_mut().zip(mask) {
        *out = if *masked { 0.0 } else { exp(*out - max) };
    }
    let scale = 1.0 / sum(out.iter().copied());
    out.iter_mut().for_each(|out| *out *= scale);
}

fn label_values(labels: IntTensor<Flex>) -> Vec<usize> {
    labels.into_data().iter::<i64>().map(|label| label as usize).collect()
}

/// The largest logit, and the sum of `exp(logit - largest)`.
fn softmax_normaliser(row: &[f32]) -> (f32, f32) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, sum(row.iter().map(|logit| exp(logit - max))))
}

fn inverse_rms(x: &[f32], epsilon: f64) -> f32 {
    let square = sum(x.iter().map(|x| x * x));
    1.0 / (square / x.len() as f32 + epsilon as f32).sqrt()
}

/// A sum in eight lanes: in a fixed order, more exact than one running sum, and vectorised.
fn sum(terms: impl ExactSizeIterator<Item = f32>) -> f32 {
    let mut lanes = [0f32; 8];
    for (index, term) in terms.enumerate() {
        lanes[index % 8] += term;
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

#[inline(always)]
fn gelu_tanh_term(x: f32) -> f32 {
    let inner = SQRT_2_OVER_PI as f32 * x * (1.0 + GELU_CUBIC as f32 * x * x);
    // tanh(u) = 1 - 2 / (exp(2u) + 1), which saturates correctly at both ends.
    1.0 - 2.0 / (exp(2.0 * inner) + 1.0)
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
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_1e-1;
    let value = p * r * r + r + 1.0;
    value * f32::from_bits(((n as i32 + 127) as u32) << 23)
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
