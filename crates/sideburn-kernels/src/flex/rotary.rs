//! Rotary positions on the CPU: one pass over memory, shared out by rows.

use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;

use super::simd::vector_fn;
use super::{Primitive, row_major, rows_per_task, values};
use crate::ops::rotary::RotaryKernels;
use crate::runtime::memory::Buffer;

impl RotaryKernels for Flex {
    fn try_rotary(inputs: [Primitive; 2], back: bool) -> Result<Primitive, [Primitive; 2]> {
        let [x, cos_sin] = row_major(inputs)?;
        let ([tokens, columns], width) = ([x.shape()[0], x.shape()[1]], cos_sin.shape()[1]);
        let mut out = Buffer::new(tokens * columns);
        out.copy_from_slice(values(&x));
        let rows = rows_per_task(columns);
        let tasks = out.par_chunks_mut((rows * columns).max(1)).zip(values(&cos_sin).par_chunks(rows * width));
        tasks.for_each(|(out, cos_sin)| {
            for (row, cos_sin) in out.chunks_exact_mut(columns.max(1)).zip(cos_sin.chunks_exact(width)) {
                row.chunks_exact_mut(width).for_each(|head| turn(head, cos_sin, 1.0, back));
            }
        });
        Ok(out.into_tensor([tokens, columns]))
    }
}

vector_fn! {
    /// Turns one head of a token, forth or back, and multiplies it by `scale`.
    pub(super) fn turn(head: &mut [f32], cos_sin: &[f32], scale: f32, back: bool) {
        let half = head.len() / 2;
        let ((first, second), (cos, sin)) = (head.split_at_mut(half), cos_sin.split_at(half));
        let sign = if back { -scale } else { scale };
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let (cos, sin) = (scale * cos, sign * sin);
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
