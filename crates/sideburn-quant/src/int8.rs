//! LLM.int8(): rows of 8-bit integers.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::error::QuantError;
use crate::four_bit::not_finite;
use crate::values::Values;

/// A matrix `[rows, columns]` of 8-bit integers, each row with its largest absolute value, for which 127 stands (Dettmers et
/// al., 2022, "LLM.int8()", section 2).
///
/// ```
/// use sideburn_quant::Int8;
///
/// let packed = Int8::quantize("q.weight", &[0.5, -1.0, 0.25, 0.125], [2, 2])?;
/// assert_eq!((packed.codes(), packed.scb()), (&[64, -127, 127, 64][..], &[1.0, 0.25][..]));
/// # Ok::<(), sideburn_quant::QuantError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Int8 {
    pub(crate) shape: [usize; 2],
    pub(crate) codes: Vec<i8>,
    pub(crate) scb: Vec<f32>,
}

/// What the sums of integers of an LLM.int8() layer are multiplied by beside the largest absolute values of both rows:
/// `1 / 127^2` as bitsandbytes has it on the CPU, a digit of which is missing (`int8_mm_dequant` in its
/// `backends/default/ops.py`): 1.8e-5 more than it should be.
pub const INT8_PRODUCT_SCALE: f32 = 6.200_124e-5;

/// Values that a task quantises.
const TASK: usize = 1 << 16;

/// Rows of what an LLM.int8() layer is applied to, as the integers that it multiplies.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Rows {
    /// The integers; zero in columns with outliers.
    pub codes: Vec<i8>,
    /// The largest absolute value of each row, outliers left out.
    pub absmax: Vec<f32>,
    /// The columns in which a row has an outlier, in ascending order.
    pub outlier_columns: Vec<usize>,
}

impl Int8 {
    /// A matrix of these integers and largest absolute values.
    ///
    /// # Panics
    /// If there are not as many as the shape says.
    pub fn from_parts(shape: [usize; 2], codes: Vec<i8>, scb: Vec<f32>) -> Self {
        assert_eq!((codes.len(), scb.len()), (shape[0] * shape[1], shape[0]), "as many as {shape:?} has");
        Self { shape, codes, scb }
    }

    /// Quantises the `values` of a matrix of this `shape` as `Linear8bitLt` of bitsandbytes does: rounded to `f16` first.
    /// Messages call it `name`.
    ///
    /// # Errors
    /// [`NotFinite`](QuantError::NotFinite) if a value is not finite, [`OutOfRange`](QuantError::OutOfRange) if one is above
    /// the range of `f16`.
    ///
    /// # Panics
    /// If there are not as many values as the shape says.
    pub fn quantize<'a>(name: &str, values: impl Into<Values<'a>>, shape: [usize; 2]) -> Result<Self, QuantError> {
        let (values, [rows, columns]) = (values.into(), shape);
        assert_eq!(values.len(), rows * columns, "as many values as the shape {shape:?} says");
        let (mut codes, mut scb) = (vec![0i8; rows * columns], vec![0f32; rows]);
        let many = (TASK / columns.max(1)).max(1);
        let tasks = codes.par_chunks_mut((many * columns).max(1)).zip(scb.par_chunks_mut(many)).enumerate();
        tasks.for_each(|(task, (codes, scb))| {
            let (mut store, start) = (Vec::new(), task * many * columns);
            let part = Int8Rows::quantize(values.part(start..start + codes.len(), &mut store), columns, 0.0);
            codes.copy_from_slice(&part.codes);
            scb.copy_from_slice(&part.absmax);
        });
        if scb.iter().any(|absmax| !absmax.is_finite()) {
            let mut store = Vec::new();
            let floats = values.part(0..rows * columns, &mut store);
            if floats.iter().any(|x| !x.is_finite()) {
                return Err(not_finite(name, values, columns));
            }
            let largest = floats.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let detail = format!("its largest absolute value is {largest}, above the range of f16, 65504");
            return Err(QuantError::OutOfRange { tensor: name.to_owned(), detail });
        }
        Ok(Self { shape, codes, scb })
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The integers, row after row.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The largest absolute value of each row; `SCB` in files.
    pub fn scb(&self) -> &[f32] {
        &self.scb
    }

    /// Gives up the integers and the largest absolute values without a copy.
    pub fn into_parts(self) -> (Vec<i8>, Vec<f32>) {
        (self.codes, self.scb)
    }

    /// How many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scb.len() * size_of::<f32>()
    }

    /// The values that the integers stand for, row after row.
    pub fn dequantize(&self) -> Vec<f32> {
        let rows = self.codes.chunks(self.shape[1].max(1)).zip(&self.scb);
        rows.flat_map(|(codes, scb)| codes.iter().map(move |code| f32::from(*code) * scb * (1.0 / 127.0))).collect()
    }
}

impl Int8Rows {
    /// Quantises rows of `columns` values, rounded to `f16` first, as `int8_vectorwise_quant` of bitsandbytes. Values of at
    /// least `threshold` are outliers: they do not count for the scale of their row, and their columns are left to be
    /// computed in higher precision. At a threshold of 0 there are none.
    pub fn quantize(values: &[f32], columns: usize, threshold: f32) -> Self {
        let (mut codes, mut absmax) = (vec![0i8; values.len()], vec![0f32; values.len() / columns.max(1)]);
        let is_outlier = |x: f32| threshold > 0.0 && x.abs() >= threshold;
        let rows = codes.par_chunks_mut(columns.max(1)).zip(&mut absmax).zip(values.par_chunks(columns.max(1)));
        let outliers = rows.with_min_len((16 * 1024 / columns.max(1)).max(1)).map(|((codes, absmax), row)| {
            let mut halves = vec![f16::ZERO; columns];
            halves.convert_from_f32_slice(row);
            let mut row = vec![0f32; columns];
            halves.convert_to_f32_slice(&mut row);
            // A NaN stays one, and is found in the result.
            let larger = |absmax: f32, x: f32| if x > absmax || x.is_nan() { x } else { absmax };
            *absmax = row.iter().fold(0f32, |absmax, x| if is_outlier(*x) { absmax } else { larger(absmax, x.abs()) });
            // In this order, as PyTorch divides a number by a tensor.
            let factor = if *absmax == 0.0 { 0.0 } else { (1.0 / *absmax) * 127.0 };
            for (code, x) in codes.iter_mut().zip(&row) {
                *code = if is_outlier(*x) { 0 } else { rounded(x * factor) };
            }
            row.iter().enumerate().filter(|(_, x)| is_outlier(**x)).map(|(column, _)| column).collect::<Vec<_>>()
        });
        let mut outlier_columns: Vec<usize> = outliers.flatten_iter().collect();
        outlier_columns.sort_unstable();
        outlier_columns.dedup();
        if !outlier_columns.is_empty() {
            for row in codes.chunks_mut(columns) {
                outlier_columns.iter().for_each(|column| row[*column] = 0);
            }
        }
        Self { codes, absmax, outlier_columns }
    }
}

/// The nearest integer, of two the even one, of at most 127 in absolute value.
fn rounded(x: f32) -> i8 {
    // Rounding by adding and taking away 1.5 * 2^23, which the compiler turns into vector instructions.
    const ROUND: f32 = 12_582_912.0;
    ((x + ROUND) - ROUND) as i8
}
