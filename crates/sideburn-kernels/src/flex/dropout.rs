//! Dropout on the CPU: one pass over memory.

use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;
use sideburn_batch::Dropout;

use super::simd::{vector_fn, vectorized};
use super::{Primitive, TASK, contiguous, is_fused, overwritable, values};
use crate::ops::dropout::{self, DropoutOps, drop};
use crate::runtime::memory::Buffer;
use crate::runtime::profile::Span;

impl DropoutOps for Flex {
    fn keyed_dropout(x: Primitive, dropout: Dropout) -> Primitive {
        let _span = Span::new("keyed_dropout");
        if !is_fused(&[&x]) {
            return dropout::composed::<Flex>(x, dropout);
        }
        let x = contiguous(x);
        let mut out = Buffer::new(values(&x).len());
        out.par_chunks_mut(TASK).zip(values(&x).par_chunks(TASK)).enumerate().for_each(|(task, (out, x))| {
            masked(out, x, dropout, task * TASK);
        });
        out.into_tensor(x.shape())
    }

    fn add_dropout(residual: Primitive, x: Primitive, dropout: Dropout) -> Primitive {
        let _span = Span::new("add_dropout");
        if !is_fused(&[&residual, &x]) {
            return Flex::float_add(residual, drop::<Flex>(x, Some(dropout)));
        }
        let (residual, mut x) = (contiguous(residual), overwritable(x));
        let tasks = x.storage_mut::<f32>().par_chunks_mut(TASK).zip(values(&residual).par_chunks(TASK)).enumerate();
        tasks.for_each(|(task, (x, residual))| {
            vectorized(|| {
                in_blocks(dropout, task * TASK, residual.len(), |start, factors| {
                    let (x, residual) = (&mut x[start..], &residual[start..]);
                    x.iter_mut().zip(residual).zip(factors).for_each(|((x, y), factor)| *x = y + *x * factor);
                });
            });
        });
        x
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
