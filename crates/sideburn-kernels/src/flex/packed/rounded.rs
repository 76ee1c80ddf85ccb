//! LLM.int8() on the CPU: products of integers with integers, and of outliers in floats.

use std::ops::Range;

use rayon::prelude::*;
use sideburn_quant::Int8Rows;

use super::{Codes, FEW, Instructions, Packed, scaled};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::flex::products::{Before, Mat, MatMut, Workers, product};
use crate::flex::simd::vectorized;
use crate::runtime::memory::Buffer;

/// What LLM.int8() makes of `x`: integers, and the columns with outliers as they are.
pub(super) struct Rounded<'a> {
    rows: Int8Rows,
    /// The integers of more than a few rows as floats.
    pub(super) floats: Vec<f32>,
    /// `[n, outliers]`.
    outliers: Vec<f32>,
    integers: &'a [i8],
    scb: &'a [f32],
    instructions: Instructions,
}

impl<'a> Rounded<'a> {
    pub(super) fn new(x: Mat<'_>, threshold: f32, weight: &Packed<'a>) -> Self {
        let Codes::Int8 { integers, scb } = weight.codes else { unreachable!("integers alone have a threshold") };
        let [n, input] = x.shape();
        let rows = Int8Rows::quantize(x.row_major(), input, threshold);
        let outliers = (0..n).flat_map(|row| rows.outlier_columns.iter().map(move |column| x.row(row)[*column]));
        let outliers = outliers.collect();
        let floats = if n > FEW { rows.codes.iter().map(|code| f32::from(*code)).collect() } else { Vec::new() };
        Self { rows, floats, outliers, integers, scb, instructions: weight.instructions }
    }

    fn input(&self) -> usize {
        self.integers.len() / self.scb.len().max(1)
    }

    /// The integers of some rows as floats.
    pub(super) fn unpack(&self, rows: Range<usize>, to: &mut [f32]) {
        const TASK: usize = 1 << 16;
        let integers = &self.integers[rows.start * self.input()..rows.end * self.input()];
        to.par_chunks_mut(TASK).zip(integers.par_chunks(TASK)).for_each(|(to, integers)| scaled(to, integers, 1.0));
    }

    /// From sums of integers to products, in these columns of all rows.
    pub(super) fn finish(&self, y: &mut MatMut<'_>, columns: Range<usize>) {
        const SCALE: f32 = 1.0 / (127.0 * 127.0);
        for (row, absmax) in self.rows.absmax.iter().enumerate() {
            let scb = &self.scb[columns.clone()];
            vectorized(|| y.row(row).iter_mut().zip(scb).for_each(|(y, scb)| *y = *y * (absmax * scb) * SCALE));
        }
        let count = self.rows.outlier_columns.len();
        if count == 0 {
            return;
        }
        let input = self.input();
        let mut dense = Buffer::new(columns.len() * count);
        for (row, to) in columns.clone().zip(dense.chunks_exact_mut(count)) {
            let (integers, scale) = (&self.integers[row * input..(row + 1) * input], self.scb[row] * (1.0 / 127.0));
            for (to, column) in to.iter_mut().zip(&self.rows.outlier_columns) {
                *to = f32::from(integers[*column]) * scale;
            }
        }
        let (n, dense) = (self.rows.absmax.len(), Mat::new(&dense, columns.len(), count));
        product(y.by_ref(), Mat::new(&self.outliers, n, count), dense.t(), 1.0, Before::Kept, Workers::One);
    }

    pub(super) fn few_rows(&self, y: &mut MatMut<'_>, rows: Range<usize>) {
        let (n, input) = (self.rows.absmax.len(), self.input());
        for (index, row) in rows.clone().enumerate() {
            let weight = &self.integers[row * input..(row + 1) * input];
            for i in 0..n {
                let x = &self.rows.codes[i * input..(i + 1) * input];
                let sum = match self.instructions {
                    // SAFETY: the machine has what the functions are compiled for.
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => unsafe { avx512::integer_dot(x, weight) },
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => unsafe { avx2::integer_dot(x, weight) },
                    Instructions::Any => integer_dot(x, weight),
                };
                y.row(i)[index] = sum as f32;
            }
        }
        self.finish(y, rows);
    }
}

pub(super) fn integer_dot(x: &[i8], y: &[i8]) -> i64 {
    x.iter().zip(y).map(|(x, y)| i64::from(i32::from(*x) * i32::from(*y))).sum()
}
