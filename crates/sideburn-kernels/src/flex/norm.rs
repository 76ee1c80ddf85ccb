//! The norm on the CPU: one pass over memory, shared out by rows.

use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;

use super::simd::{sum, vector_fn};
use super::{Primitive, overwritable, row_major, rows_per_task, values};
use crate::ops::norm::NormKernels;
use crate::runtime::memory::Buffer;

impl NormKernels for Flex {
    fn try_rms_norm(inputs: [Primitive; 2], epsilon: f64) -> Result<Primitive, [Primitive; 2]> {
        let [x, weight] = row_major(inputs)?;
        let (width, weight) = (values(&weight).len(), values(&weight));
        let mut out = Buffer::new(values(&x).len());
        let chunk = rows_per_task(width) * width;
        out.par_chunks_mut(chunk).zip(values(&x).par_chunks(chunk)).for_each(|(out, x)| {
            normalise(out, x, weight, epsilon);
        });
        Ok(out.into_tensor(x.shape()))
    }

    fn try_backward_x(inputs: [Primitive; 3], epsilon: f64) -> Result<Primitive, [Primitive; 3]> {
        let [x, weight, gradient] = row_major(inputs)?;
        let mut gradient = overwritable(gradient);
        let (width, weight) = (values(&weight).len(), values(&weight));
        let chunk = rows_per_task(width) * width;
        let tasks = gradient.storage_mut::<f32>().par_chunks_mut(chunk).zip(values(&x).par_chunks(chunk));
        tasks.for_each(|(gradient, x)| {
            normalise_backward(gradient, x, weight, epsilon);
        });
        Ok(gradient)
    }

    fn try_backward_weight(inputs: [Primitive; 2], epsilon: f64) -> Result<Primitive, [Primitive; 2]> {
        let [x, gradient] = row_major(inputs)?;
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
        Ok(total.into_tensor([width]))
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
