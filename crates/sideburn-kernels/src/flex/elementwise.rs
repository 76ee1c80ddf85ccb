//! Dropout, the norm and the gate on the CPU: one pass over memory each, shared out by rows.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::FloatDType;
use rayon::prelude::*;
use sideburn_batch::Key;

use super::memory::Buffer;
use super::simd::{exp, sum, vector_fn, vectorized};
use super::{Primitive, TASK, contiguous, is_fused, overwritable, rows_per_task, values};
use crate::dropout::{self, DropoutOps};
use crate::gate::{self, GELU_CUBIC, GateOps, SQRT_2_OVER_PI};
use crate::norm::{self, NormOps};
use crate::profile::Span;

/// The mask of a dropout: for each element of a tensor, zero or the scale of what is kept.
///
/// A draw of 64 bits decides four neighbours, by 16 bits each: how many are dropped is exact to 1 / 131,072.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    key: Key,
    threshold: u16,
    scale: f32,
}

/// Elements that one draw decides.
const TOGETHER: usize = 4;

impl Mask {
    /// The mask, if anything is dropped.
    pub(super) fn new(probability: f64, key: Key) -> Option<Self> {
        let threshold = (probability * 2f64.powi(16)).round() as u16;
        let scale = (1.0 / (1.0 - probability)) as f32;
        (probability > 0.0).then_some(Self { key, threshold, scale })
    }

    /// The factors of the elements from `first` on.
    #[inline(always)]
    pub(super) fn factors(&self, first: usize, out: &mut [f32]) {
        let factors = |draw: u64| {
            let factor = |bits: u16| if bits >= self.threshold { self.scale } else { 0.0 };
            [factor(draw as u16), factor((draw >> 16) as u16), factor((draw >> 32) as u16), factor((draw >> 48) as u16)]
        };
        let (draw, skipped) = ((first / TOGETHER) as u64, first % TOGETHER);
        let (head, out) = out.split_at_mut(((TOGETHER - skipped) % TOGETHER).min(out.len()));
        head.iter_mut().zip(&factors(self.key.bits(draw))[skipped..]).for_each(|(out, factor)| *out = *factor);
        let mut draw = draw + u64::from(skipped > 0);
        let (whole, rest) = out.as_chunks_mut::<TOGETHER>();
        for out in &mut *whole {
            *out = factors(self.key.bits(draw));
            draw += 1;
        }
        rest.iter_mut().zip(factors(self.key.bits(draw))).for_each(|(out, factor)| *out = factor);
    }

    /// Hands the factors of the elements from `first` on to `apply`, a few at a time, each with where it begins.
    #[inline(always)]
    fn in_blocks(&self, first: usize, len: usize, mut apply: impl FnMut(usize, &[f32])) {
        let mut factors = [0f32; 256];
        for start in (0..len).step_by(factors.len()) {
            let count = factors.len().min(len - start);
            self.factors(first + start, &mut factors[..count]);
            apply(start, &factors[..count]);
        }
    }
}

impl DropoutOps for Flex {
    fn keyed_dropout(x: Primitive, probability: f64, key: Key) -> Primitive {
        let _span = Span::new("keyed_dropout");
        let Some(mask) = Mask::new(probability, key) else { return x };
        if !is_fused(&[&x]) {
            // The same elements as in the fused form, and no use of the backend's generator, which threads share.
            let mut factors = vec![0f32; x.shape().num_elements()];
            mask.factors(0, &mut factors);
            let factors = Primitive::from_data(burn::tensor::TensorData::new(factors, x.shape()));
            let kept = Flex::float_sign(Flex::float_cast(factors, FloatDType::from(x.dtype())));
            return Flex::float_mul_scalar(Flex::float_mul(x, kept), (1.0 / (1.0 - probability)).into());
        }
        let x = contiguous(x);
        let mut out = Buffer::new(values(&x).len());
        out.par_chunks_mut(TASK).zip(values(&x).par_chunks(TASK)).enumerate().for_each(|(task, (out, x))| {
            masked(out, x, mask, task * TASK);
        });
        out.into_tensor(x.shape())
    }

    fn add_dropout(residual: Primitive, x: Primitive, probability: f64, key: Key) -> Primitive {
        let _span = Span::new("add_dropout");
        let mask = Mask::new(probability, key);
        let Some(mask) = mask.filter(|_| is_fused(&[&residual, &x])) else {
            return Flex::float_add(residual, dropout::drop::<Flex>(x, probability, key));
        };
        let (residual, mut x) = (contiguous(residual), overwritable(x));
        let tasks = x.storage_mut::<f32>().par_chunks_mut(TASK).zip(values(&residual).par_chunks(TASK)).enumerate();
        tasks.for_each(|(task, (x, residual))| {
            vectorized(|| {
                mask.in_blocks(task * TASK, residual.len(), |start, factors| {
                    let (x, residual) = (&mut x[start..], &residual[start..]);
                    x.iter_mut().zip(residual).zip(factors).for_each(|((x, y), factor)| *x = y + *x * factor);
                });
            });
        });
        x
    }
}

impl NormOps for Flex {
    fn rms_norm(x: Primitive, weight: Primitive, epsilon: f64) -> Primitive {
        let _span = Span::new("rms_norm");
        if !is_fused(&[&x, &weight]) {
            return norm::composed::<Flex>(x, weight, epsilon);
        }
        let (x, weight) = (contiguous(x), contiguous(weight));
        let (width, weight) = (values(&weight).len(), values(&weight));
        let mut out = Buffer::new(values(&x).len());
        let chunk = rows_per_task(width) * width;
        out.par_chunks_mut(chunk).zip(values(&x).par_chunks(chunk)).for_each(|(out, x)| {
            normalise(out, x, weight, epsilon);
        });
        out.into_tensor(x.shape())
    }

    fn rms_norm_backward_x(x: Primitive, weight: Primitive, gradient: Primitive, epsilon: f64) -> Primitive {
        let _span = Span::new("rms_norm_backward_x");
        if !is_fused(&[&x, &weight, &gradient]) {
            return norm::composed_backward_x::<Flex>(x, weight, gradient, epsilon);
        }
        let (x, weight, mut gradient) = (contiguous(x), contiguous(weight), overwritable(gradient));
        let (width, weight) = (values(&weight).len(), values(&weight));
        let chunk = rows_per_task(width) * width;
        let tasks = gradient.storage_mut::<f32>().par_chunks_mut(chunk).zip(values(&x).par_chunks(chunk));
        tasks.for_each(|(gradient, x)| {
            normalise_backward(gradient, x, weight, epsilon);
        });
        gradient
    }

    fn rms_norm_backward_weight(x: Primitive, gradient: Primitive, epsilon: f64) -> Primitive {
        let _span = Span::new("rms_norm_backward_weight");
        if !is_fused(&[&x, &gradient]) {
            return norm::composed_backward_weight::<Flex>(x, gradient, epsilon);
        }
        let (x, gradient) = (contiguous(x), contiguous(gradient));
        let width = x.shape()[1];
        let chunk = rows_per_task(width) * width;
        // One sum for each task, and these in order: the same whatever the number of threads.
        let sums = values(&x).par_chunks(chunk).zip(values(&gradient).par_chunks(chunk)).map(|(x, gradient)| {
            let mut sums = vec![0f32; width];
            add_weight_gradients(&mut sums, x, gradient, epsilon);
            sums
        });
        let sums: Vec<Vec<f32>> = sums.collect();
        let mut total = Buffer::zeros(width);
        for sums in sums {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        total.into_tensor([width])
    }
}

vector_fn! {
    /// Rows of `x`, normalised.
    fn normalise(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f64) {
        for (out, x) in out.chunks_exact_mut(weight.len()).zip(x.chunks_exact(weight.len())) {
            let inverse = inverse_rms(x, epsilon);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * inverse * weight;
            }
        }
    }
}

vector_fn! {
    /// The gradients of rows, in the place of those of the normalised rows.
    fn normalise_backward(gradient: &mut [f32], x: &[f32], weight: &[f32], epsilon: f64) {
        let width = weight.len();
        for (gradient, x) in gradient.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = inverse_rms(x, epsilon);
            let product = sum([x, gradient, weight], |[x, g, w]| x * g * w);
            let pull = product / width as f32 * inverse * inverse;
            for ((gradient, x), weight) in gradient.iter_mut().zip(x).zip(weight) {
                *gradient = inverse * (*gradient * weight - x * pull);
            }
        }
    }
}

vector_fn! {
    /// Adds what each row contributes to the gradient of the weight.
    fn add_weight_gradients(sums: &mut [f32], x: &[f32], gradient: &[f32], epsilon: f64) {
        for (x, gradient) in x.chunks_exact(sums.len()).zip(gradient.chunks_exact(sums.len())) {
            let inverse = inverse_rms(x, epsilon);
            sums.iter_mut().zip(x).zip(gradient).for_each(|((sum, x), g)| *sum += x * inverse * g);
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f64) -> f32 {
    let square = sum([x], |[x]| x * x);
    1.0 / (square / x.len() as f32 + epsilon as f32).sqrt()
}

impl GateOps for Flex {
    fn gelu_gate(gate_up: Primitive, probability: f64, key: Key) -> Primitive {
        let _span = Span::new("gelu_gate");
        if !is_fused(&[&gate_up]) {
            return dropout::drop::<Flex>(gate::composed::<Flex>(gate_up), probability, key);
        }
        let (gate_up, mask) = (contiguous(gate_up), Mask::new(probability, key));
        let [n, width] = [gate_up.shape()[0], gate_up.shape()[1] / 2];
        let mut out = Buffer::new(n * width);
        let rows = rows_per_task(width);
        let tasks =
            out.par_chunks_mut((rows * width).max(1)).zip(values(&gate_up).par_chunks((2 * rows * width).max(1)));
        tasks.enumerate().for_each(|(task, (out, gate_up))| {
            for (out, gate_up) in out.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
                let (gate, up) = gate_up.split_at(width);
                gate_row(out, gate, up);
            }
            if let Some(mask) = mask {
                mask_in_place(out, mask, task * rows * width);
            }
        });
        out.into_tensor([n, width])
    }

    fn gelu_gate_backward(gate_up: Primitive, gradient: Primitive, probability: f64, key: Key) -> Primitive {
        let _span = Span::new("gelu_gate_backward");
        if !is_fused(&[&gate_up, &gradient]) {
            let gradient = dropout::drop::<Flex>(gradient, probability, key);
            return gate::composed_backward::<Flex>(gate_up, gradient);
        }
        let (gate_up, gradient) = (contiguous(gate_up), contiguous(gradient));
        let (shape, width, mask) = (gate_up.shape(), gate_up.shape()[1] / 2, Mask::new(probability, key));
        let mut out = Buffer::new(values(&gate_up).len());
        let rows = rows_per_task(width);
        let wide = (2 * rows * width).max(1);
        let tasks = out.par_chunks_mut(wide).zip(values(&gate_up).par_chunks(wide));
        let tasks = tasks.zip(values(&gradient).par_chunks((rows * width).max(1)));
        tasks.enumerate().for_each(|(task, ((out, gate_up), gradient))| {
            let each = out.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
            for (row, ((out, gate_up), gradient)) in each.zip(gradient.chunks_exact(width)).enumerate() {
                let ((gate, up), (of_gate, of_up)) = (gate_up.split_at(width), out.split_at_mut(width));
                match mask {
                    None => of_up.copy_from_slice(gradient),
                    Some(mask) => masked(of_up, gradient, mask, (task * rows + row) * width),
                }
                gate_backward_of_row(of_gate, of_up, gate, up);
            }
        });
        out.into_tensor(shape)
    }
}

// A row at a time, as slices that are arguments are known not to overlap: else these loops are not vectorised.

vector_fn! {
    /// A row of the gate.
    fn gate_row(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * gelu_sigmoid(*gate) * up;
        }
    }
}

vector_fn! {
    /// The gradients of a row of the gate; that of its output stands in `of_up`.
    fn gate_backward_of_row(of_gate: &mut [f32], of_up: &mut [f32], gate: &[f32], up: &[f32]) {
        const LINEAR: f32 = 2.0 * SQRT_2_OVER_PI as f32;
        const SQUARE: f32 = (6.0 * GELU_CUBIC * SQRT_2_OVER_PI) as f32;
        for (((of_gate, of_up), x), up) in of_gate.iter_mut().zip(of_up).zip(gate).zip(up) {
            let (gradient, sigmoid) = (*of_up, gelu_sigmoid(*x));
            let slope = sigmoid + x * sigmoid * (1.0 - sigmoid) * (LINEAR + SQUARE * x * x);
            *of_up = gradient * x * sigmoid;
            *of_gate = gradient * slope * up;
        }
    }
}

vector_fn! {
    /// `x` times the factors of `mask` from `first` on.
    pub(super) fn masked(out: &mut [f32], x: &[f32], mask: Mask, first: usize) {
        mask.factors(first, out);
        out.iter_mut().zip(x).for_each(|(out, x)| *out *= x);
    }
}

vector_fn! {
    /// `x` times the factors of `mask` from `first` on, in its place.
    fn mask_in_place(x: &mut [f32], mask: Mask, first: usize) {
        let len = x.len();
        mask.in_blocks(first, len, |start, factors| {
            x[start..].iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        });
    }
}

/// `(1 + tanh(u)) / 2` with the `u` of the tanh approximation, as `1 / (1 + exp(-2 u))`: nothing cancels where the tanh
/// is near -1.
#[inline(always)]
fn gelu_sigmoid(x: f32) -> f32 {
    const LINEAR: f32 = -2.0 * SQRT_2_OVER_PI as f32;
    const CUBIC: f32 = (-2.0 * SQRT_2_OVER_PI * GELU_CUBIC) as f32;
    1.0 / (1.0 + exp(x * (LINEAR + CUBIC * x * x)))
}
