//! Dropout on the CPU: one pass over memory.

use burn::backend::Flex;
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::FloatDType;
use rayon::prelude::*;
use sideburn_batch::Key;

use super::simd::{vector_fn, vectorized};
use super::{Primitive, TASK, contiguous, is_fused, overwritable, values};
use crate::ops::dropout::{self, DropoutOps};
use crate::runtime::memory::Buffer;
use crate::runtime::profile::Span;

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

vector_fn! {
    /// `x` times the factors of `mask` from `first` on.
    pub(super) fn masked(out: &mut [f32], x: &[f32], mask: Mask, first: usize) {
        mask.factors(first, out);
        out.iter_mut().zip(x).for_each(|(out, x)| *out *= x);
    }
}

vector_fn! {
    /// `x` times the factors of `mask` from `first` on, in its place.
    pub(super) fn mask_in_place(x: &mut [f32], mask: Mask, first: usize) {
        let len = x.len();
        mask.in_blocks(first, len, |start, factors| {
            x[start..].iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        });
    }
}
