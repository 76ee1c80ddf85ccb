//! Rows of a table on the CPU: copied, and added up, in one pass each.

use burn::backend::tensor::IntTensor;
use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;

use super::simd::vectorized;
use super::{Primitive, are_f32, contiguous, indices, rows_per_task, values};
use crate::ops::embedding::EmbeddingKernels;
use crate::runtime::memory::Buffer;

type Pair = (Primitive, IntTensor<Flex>);

impl EmbeddingKernels for Flex {
    fn try_table_rows((table, ids): Pair) -> Result<Primitive, Pair> {
        if !are_f32([&table]) {
            return Err((table, ids));
        }
        let (width, indices) = (table.shape()[1], indices(ids));
        // The table is read where it lies, also if it is a view: it is larger than what is taken of it.
        let (layout, stored) = (table.layout(), table.storage::<f32>());
        let &[down, across] = layout.strides() else { panic!("a matrix") };
        let mut out = Buffer::new(indices.len() * width);
        let many = rows_per_task(width);
        out.par_chunks_mut((many * width).max(1)).zip(indices.par_chunks(many)).for_each(|(out, indices)| {
            for (out, index) in out.chunks_exact_mut(width).zip(indices) {
                let first = layout.start_offset() as isize + *index as isize * down;
                if across == 1 {
                    out.copy_from_slice(&stored[first as usize..][..width]);
                } else {
                    let at = |column: usize| stored[(first + column as isize * across) as usize];
                    out.iter_mut().enumerate().for_each(|(column, out)| *out = at(column));
                }
            }
        });
        Ok(out.into_tensor([indices.len(), width]))
    }

    fn try_table_rows_backward((gradient, ids): Pair, rows: usize) -> Result<Primitive, Pair> {
        if !are_f32([&gradient]) {
            return Err((gradient, ids));
        }
        let (width, gradient) = (gradient.shape()[1], contiguous(gradient));
        // Tokens by the row that they add to, those of one row in their order.
        let mut tokens: Vec<(usize, usize)> = indices(ids).into_iter().zip(0..).collect();
        tokens.sort_unstable();
        let (values, many) = (values(&gradient), rows_per_task(width));
        let mut out = Buffer::new(rows * width);
        out.par_chunks_mut((many * width).max(1)).enumerate().for_each(|(task, out)| {
            let first = task * many;
            out.fill(0.0);
            let begin = tokens.partition_point(|(row, _)| *row < first);
            let own = tokens[begin..].iter().take_while(|(row, _)| *row < first + many);
            vectorized(|| {
                for (row, token) in own {
                    let sums = &mut out[(row - first) * width..][..width];
                    sums.iter_mut().zip(&values[token * width..][..width]).for_each(|(sum, x)| *sum += x);
                }
            });
        });
        Ok(out.into_tensor([rows, width]))
    }
}
