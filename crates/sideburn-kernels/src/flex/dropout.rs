//! Dropout on the CPU: one pass over memory.

use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;
use sideburn_batch::Dropout;

use super::simd::{vector_fn, vectorized};
use super::{Primitive, TASK, overwritable, row_major, values};
use crate::ops::dropout::DropoutKernels;
use crate::runtime::memory::Buffer;

impl DropoutKernels for Flex {
    fn try_dropout(x: Primitive, dropout: Dropout) -> Result<Primitive, Primitive> {
        let [x] = row_major([x]).map_err(|[x]| x)?;
        let mut out = Buffer::new(values(&x).len());
        out.par_chunks_mut(TASK).zip(values(&x).par_chunks(TASK)).enumerate().for_each(|(task, (out, x))| {
            masked(out, x, dropout, task * TASK);
        });
        Ok(out.into_tensor(x.shape()))
    }

    fn try_add_dropout(inputs: [Primitive; 2], dropout: Dropout) -> Result<Primitive, [Primitive; 2]> {
        let [residual, x] = row_major(inputs)?;
        let mut x = overwritable(x);
        let tasks = x.storage_mut::<f32>().par_chunks_mut(TASK).zip(values(&residual).par_chunks(TASK)).enumerate();
        tasks.for_each(|(task, (x, residual))| {
            vectorized(|| {
                in_blocks(dropout, task * TASK, residual.len(), |start, factors| {
                    let (x, residual) = (&mut x[start..], &residual[start..]);
                    x.iter_mut().zip(residual).zip(factors).for_each(|((x, y), factor)| *x = y + *x * factor);
                });
            });
        });
        Ok(x)
    }
}

/// Hands the factors of the elements from `first` on to `apply`, a few at a time, each with where it begins.
#[inline(always)]
fn in_blocks(dropout: Dropout, first: usize, len: usize, mut apply: impl FnMut(usize, &[f32])) {
    let mut factors = [0f32; 256];
    for start in (0..len).step_by(factors.len()) {
        let count = factors.len().min(len - start);
        dropout.factors(first + start, &mut factors[..count]);
        apply(start, &factors[..count]);
    }
}

vector_fn! {
    /// `x` after dropout; it begins at element `first` of the mask.
    pub(super) fn masked(out: &mut [f32], x: &[f32], dropout: Dropout, first: usize) {
        dropout.factors(first, out);
        out.iter_mut().zip(x).for_each(|(out, x)| *out *= x);
    }
}

vector_fn! {
    /// The same in the place of `x`.
    pub(super) fn drop_in_place(x: &mut [f32], dropout: Dropout, first: usize) {
        let len = x.len();
        in_blocks(dropout, first, len, |start, factors| {
            x[start..].iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        });
    }
}
