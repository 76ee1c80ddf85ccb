//! Weights of integers whose input is rounded to integers, too: products of integers with integers, and with LLM.int8() those of
//! outliers in floats.

use std::ops::Range;

use rayon::prelude::*;
use sideburn_quant::{INT8_PRODUCT_SCALE, Int8Rows};

use super::{Codes, Packed};
use crate::flex::integers::Instructions;
use crate::flex::products::{Before, Mat, MatMut, Parts, Workers, product};
use crate::flex::simd::{vector_fn, vectorized};
use crate::ops::packed::Inputs;
use crate::runtime::memory::Buffer;

/// What becomes of `x`: integers, and the columns with outliers as they are.
struct Rounded {
    rows: Int8Rows,
    /// Of each row's integers.
    sums: Vec<i32>,
    /// `[n, outliers]`.
    outliers: Vec<f32>,
}

/// Some rows of a weight of integers, and where its products go.
struct Task<'a> {
    columns: Range<usize>,
    integers: &'a [i8],
    scb: &'a [f32],
    instructions: Instructions,
}

/// The tasks of one operation.
const MOST_TASKS: usize = 32;

/// Writes `x W^T` at each of these weights of integers to its columns of `y`, which are the caller's alone. The weights see the
/// same integers of `x`.
pub(super) fn forward(y: Parts<'_>, x: Mat<'_>, inputs: Inputs, weights: &[(Range<usize>, Packed<'_>)]) {
    let [n, input] = x.shape();
    let all: usize = weights.iter().map(|(columns, _)| columns.len()).sum();
    if n == 0 || all == 0 {
        return;
    }
    let rounded = Rounded::new(x, inputs);
    // Fewer products take no longer than finding somebody to share them with. How many threads there are does not matter: sums
    // over outliers are sums of floats.
    let tasks = (n * all * input / (1 << 16)).clamp(1, MOST_TASKS);
    let count = all.div_ceil(tasks).next_multiple_of(32);
    let tasks: Vec<Task<'_>> = weights.iter().flat_map(|(columns, weight)| tasks_of(columns, weight, count)).collect();
    let run = |task: &Task<'_>| {
        // SAFETY: each task has its own columns.
        let mut y = unsafe { y.part(0..n, task.columns.clone()) };
        rounded.multiply(&mut y, input, task);
    };
    match tasks.len() {
        1 => tasks.iter().for_each(run),
        _ => tasks.par_iter().with_max_len(1).for_each(run),
    }
}

/// Tasks of `count` rows of a weight.
fn tasks_of<'a>(columns: &Range<usize>, weight: &Packed<'a>, count: usize) -> impl Iterator<Item = Task<'a>> + use<'a> {
    let Codes::Int8 { integers, scb } = weight.codes else { unreachable!("4-bit weights take floats") };
    let ([out, input], start, instructions) = (weight.shape, columns.start, weight.of_integers);
    (0..out).step_by(count).map(move |first| {
        let end = (first + count).min(out);
        let integers = &integers[first * input..end * input];
        Task { columns: start + first..start + end, integers, scb: &scb[first..end], instructions }
    })
}

/// Rows of `columns` values as integers: 127 stands for the largest absolute value of a row.
fn rounded_rows(values: &[f32], columns: usize) -> Int8Rows {
    let (mut codes, mut absmax) = (vec![0; values.len()], vec![0.0; values.len() / columns.max(1)]);
    let rows = codes.par_chunks_mut(columns.max(1)).zip(&mut absmax).zip(values.par_chunks(columns.max(1)));
    let several = ((1 << 14) / columns.max(1)).max(1);
    rows.with_min_len(several).for_each(|((codes, absmax), row)| round_row(codes, absmax, row));
    Int8Rows { codes, absmax, outlier_columns: Vec::new() }
}

vector_fn! {
    fn round_row(codes: &mut [i8], absmax: &mut f32, row: &[f32]) {
        // Without their signs, floats are in the order of their bits, and a NaN is above all others: it is found in the result.
        *absmax = f32::from_bits(row.iter().fold(0, |largest, x| largest.max(x.abs().to_bits())));
        let factor = if *absmax == 0.0 { 0.0 } else { (1.0 / *absmax) * 127.0 };
        // Added to a number of at most 127, it leaves the nearest integer, of two the even one, in the last bits.
        const ROUND: f32 = 12_582_912.0;
        codes.iter_mut().zip(row).for_each(|(code, x)| *code = (x * factor + ROUND).to_bits() as i8);
    }
}

fn sum_of_row(codes: &[i8]) -> i32 {
    vectorized(|| codes.iter().map(|code| i32::from(*code)).sum())
}

impl Rounded {
    fn new(x: Mat<'_>, inputs: Inputs) -> Self {
        let [n, input] = x.shape();
        let rows = match inputs {
            Inputs::LlmInt8 { threshold } => Int8Rows::quantize(x.row_major(), input, threshold),
            _ => rounded_rows(x.row_major(), input),
        };
        let outliers = (0..n).flat_map(|row| rows.outlier_columns.iter().map(move |column| x.row(row)[*column]));
        let outliers = outliers.collect();
        let row = |row: usize| sum_of_row(&rows.codes[row * input..(row + 1) * input]);
        let sums = (0..n).map(row).collect();
        Self { rows, sums, outliers }
    }

    fn multiply(&self, y: &mut MatMut<'_>, input: usize, task: &Task<'_>) {
        let Task { integers, scb, instructions, .. } = task;
        let (n, out) = (self.rows.absmax.len(), scb.len());
        instructions.dots([n, out, input], &self.rows.codes, &self.sums, integers, |i, j, products| {
            let (y, scb, absmax) =
                (&mut y.row(i)[j..j + products.len()], &scb[j..j + products.len()], self.rows.absmax[i]);
            for ((y, product), scb) in y.iter_mut().zip(products).zip(scb) {
                *y = product * (absmax * scb) * INT8_PRODUCT_SCALE;
            }
        });
        let outliers = &self.rows.outlier_columns;
        if outliers.is_empty() {
            return;
        }
        let count = outliers.len();
        let mut dense = Buffer::new(out * count);
        for (row, to) in dense.chunks_exact_mut(count).enumerate() {
            let (integers, scale) = (&integers[row * input..(row + 1) * input], scb[row] * (1.0 / 127.0));
            for (to, column) in to.iter_mut().zip(outliers) {
                *to = f32::from(integers[*column]) * scale;
            }
        }
        let dense = Mat::new(&dense, out, count);
        product(y.by_ref(), Mat::new(&self.outliers, n, count), dense.t(), 1.0, Before::Kept, Workers::One);
    }
}
