//! Matrices of 4-bit numbers.

use rayon::prelude::*;
use sideburn_weights::Dtype;

use crate::blockwise::{Blockwise, torch_mean};
use crate::code::{BLOCK_SIZES, QuantType};
use crate::error::QuantError;
use crate::values::Values;

/// Values that a task quantises: whole blocks of every size, and whole bytes.
const TASK: usize = 1 << 16;

/// A matrix `[rows, columns]` of 4-bit codes, whose values are one behind the other, row after row, in blocks with a largest
/// absolute value each (Dettmers et al., 2023, "QLoRA", section 2).
///
/// ```
/// use sideburn_quant::{FourBit, QuantType};
///
/// let values: Vec<f32> = (0..128).map(|x| (x as f32 / 10.0).sin()).collect();
/// let packed = FourBit::quantize("q.weight", &values, [2, 64], QuantType::Nf4, 64, false)?;
/// // Two codes a byte, and a float for each block of 64.
/// assert_eq!(packed.bytes(), 64 + 2 * 4);
/// let error = packed.dequantize().iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
/// assert!(error < 0.16);
/// # Ok::<(), sideburn_quant::QuantError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct FourBit {
    pub(crate) quant_type: QuantType,
    pub(crate) block_size: usize,
    pub(crate) shape: [usize; 2],
    pub(crate) codes: Vec<u8>,
    pub(crate) absmax: Absmax,
    pub(crate) dtype: Dtype,
}

/// The largest absolute value of each block.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// As floats.
    Floats(Vec<f32>),
    /// Quantised once more, in blocks of 256, after their mean has been taken away: double quantisation (section 3 of
    /// the same).
    Nested {
        /// What is left of them.
        rest: Blockwise,
        /// The mean.
        offset: f32,
    },
}

impl Absmax {
    /// As floats.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Floats(floats) => floats.clone(),
            Self::Nested { rest, offset } => rest.dequantize().into_iter().map(|rest| rest + offset).collect(),
        }
    }

    /// That of one block.
    fn value(&self, block: usize) -> f32 {
        match self {
            Self::Floats(floats) => floats[block],
            Self::Nested { rest: Blockwise { codes, absmax, code, block_size }, offset } => {
                code[usize::from(codes[block])] * absmax[block / block_size] + offset
            }
        }
    }

    /// How many bytes it takes in memory; the map of the codes, which is the same everywhere, is not counted.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Floats(floats) => floats.len() * size_of::<f32>(),
            Self::Nested { rest, .. } => rest.codes.len() + rest.absmax.len() * size_of::<f32>() + size_of::<f32>(),
        }
    }
}

impl FourBit {
    /// Scales in a block of double quantisation.
    pub const NESTED_BLOCK_SIZE: usize = 256;

    /// A matrix of these codes and scales, made from a weight in `f32`.
    ///
    /// # Panics
    /// If there are not as many as the shape says, or the block size is none of [`BLOCK_SIZES`].
    pub fn from_parts(
        shape: [usize; 2],
        quant_type: QuantType,
        block_size: usize,
        codes: Vec<u8>,
        absmax: Absmax,
    ) -> Self {
        assert!(BLOCK_SIZES.contains(&block_size), "a block size of {block_size}");
        let (count, blocks) = (shape[0] * shape[1], (shape[0] * shape[1]).div_ceil(block_size));
        let scales = match &absmax {
            Absmax::Floats(floats) => floats.len(),
            Absmax::Nested { rest, .. } => rest.codes.len(),
        };
        assert_eq!((codes.len(), scales), (count.div_ceil(2), blocks), "as many codes and scales as {shape:?} has");
        Self { quant_type, block_size, shape, codes, absmax, dtype: Dtype::F32 }
    }

    /// Quantises the `values` of a matrix of this `shape`, code for code as `quantize_4bit` of bitsandbytes does on the CPU.
    /// Messages call it `name`.
    ///
    /// # Errors
    /// [`NotFinite`](QuantError::NotFinite) if a value is not finite; [`BlockSize`](QuantError::BlockSize) if the block size
    /// is none of [`BLOCK_SIZES`].
    ///
    /// # Panics
    /// If there are not as many values as the shape says, or a stored tensor is none of floats.
    pub fn quantize<'a>(
        name: &str,
        values: impl Into<Values<'a>>,
        shape: [usize; 2],
        quant_type: QuantType,
        block_size: usize,
        double_quant: bool,
    ) -> Result<Self, QuantError> {
        let (values, count) = (values.into(), shape[0] * shape[1]);
        assert_eq!(values.len(), count, "as many values as the shape {shape:?} says");
        check_block_size(name, block_size)?;
        let mut codes = vec![0u8; count.div_ceil(2)];
        let mut absmax = vec![0f32; count.div_ceil(block_size)];
        let (bounds, order) = (quant_type.bounds(), quant_type.order());
        codes
            .par_chunks_mut(TASK / 2)
            .zip(absmax.par_chunks_mut(TASK / block_size))
            .enumerate()
            .try_for_each(|(task, (codes, absmax))| {
                let (mut indices, mut store) = ([0u8; 4096], Vec::new());
                let values = values.part(task * TASK..((task + 1) * TASK).min(count), &mut store);
                for (index, (absmax, block)) in absmax.iter_mut().zip(values.chunks(block_size)).enumerate() {
                    *absmax = bucketize(block, block.len() == block_size, &bounds, &mut indices).ok_or(())?;
                    let codes = &mut codes[index * block_size / 2..];
                    let (pairs, last) = indices[..block.len()].as_chunks::<2>();
                    for (code, [high, low]) in codes.iter_mut().zip(pairs) {
                        *code = order[usize::from(*high)] << 4 | order[usize::from(*low)];
                    }
                    if let [last] = last {
                        // The matrix has an odd number of values; behind the last stands a zero.
                        let zero = bounds.partition_point(|bound| *bound < 0.0);
                        codes[pairs.len()] = order[usize::from(*last)] << 4 | order[zero];
                    }
                }
                Ok(())
            })
            .map_err(|()| not_finite(name, values, shape[1]))?;
        let absmax = if double_quant { nested(absmax).ok_or_else(|| overflow(name))? } else { Absmax::Floats(absmax) };
        Ok(Self { quant_type, block_size, shape, codes, absmax, dtype: Dtype::F32 })
    }

    /// The type of its numbers.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// Values in a block; the last block may be short.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Two codes a byte, the first in the high half. An odd number of values has another half byte at the end.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The largest absolute value of each block.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// Gives up the codes and the largest absolute values without a copy.
    pub fn into_parts(self) -> (Vec<u8>, Absmax) {
        (self.codes, self.absmax)
    }

    /// The value at one place.
    pub(crate) fn value(&self, place: usize) -> f32 {
        let byte = self.codes[place / 2];
        let code = if place.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        self.quant_type.code()[usize::from(code)] * self.absmax.value(place / self.block_size)
    }

    /// How many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.absmax.bytes()
    }

    /// The values that the codes stand for, row after row.
    pub fn dequantize(&self) -> Vec<f32> {
        let (code, absmax) = (self.quant_type.code(), self.absmax.dequantize());
        let mut values = vec![0f32; self.shape[0] * self.shape[1]];
        let blocks = values.par_chunks_mut(self.block_size).zip(self.codes.par_chunks(self.block_size / 2));
        blocks.zip(&absmax).for_each(|((values, codes), absmax)| {
            for (values, byte) in values.chunks_mut(2).zip(codes) {
                let pair = [byte >> 4, byte & 15];
                values.iter_mut().zip(pair).for_each(|(value, index)| *value = code[usize::from(index)] * absmax);
            }
        });
        values
    }
}

pub(crate) fn check_block_size(name: &str, found: usize) -> Result<(), QuantError> {
    match BLOCK_SIZES.contains(&found) {
        true => Ok(()),
        false => Err(QuantError::BlockSize { tensor: name.to_owned(), found }),
    }
}

/// Writes how many bounds each value of a block is above, after division by the largest absolute value, which is returned;
/// `None` if a value is not finite.
fn bucketize(block: &[f32], is_whole: bool, bounds: &[f32; 15], indices: &mut [u8]) -> Option<f32> {
    const SMALLEST: f32 = 1e-38;
    if block.iter().fold(false, |found, x| found | !x.is_finite()) {
        return None;
    }
    let absmax = block.iter().fold(0f32, |absmax, x| absmax.max(x.abs()));
    // bitsandbytes multiplies whole blocks by the inverse, and divides a short one.
    let inverse = 1.0 / absmax.max(SMALLEST);
    let absmax = if is_whole { absmax } else { absmax.max(SMALLEST) };
    let scaled = |x: f32| if is_whole { x * inverse } else { x / absmax };
    for (index, x) in indices.iter_mut().zip(block) {
        let x = scaled(*x).clamp(-1.0, 1.0);
        *index = bounds.iter().map(|bound| u8::from(*bound < x)).sum();
    }
    Some(absmax)
}

/// Double quantisation; `None` if the mean overflows.
fn nested(absmax: Vec<f32>) -> Option<Absmax> {
    if absmax.is_empty() {
        return Some(Absmax::Floats(absmax));
    }
    let offset = torch_mean(&absmax);
    let rest: Vec<f32> = absmax.iter().map(|absmax| absmax - offset).collect();
    offset.is_finite().then(|| Absmax::Nested { rest: Blockwise::quantize(&rest, FourBit::NESTED_BLOCK_SIZE), offset })
}

/// The error for values of rows of `columns` among which there is one that is not finite.
pub(crate) fn not_finite(name: &str, values: Values<'_>, columns: usize) -> QuantError {
    let mut store = Vec::new();
    let values = values.part(0..values.len(), &mut store);
    let found = values.iter().position(|x| !x.is_finite()).expect("a value that is not finite");
    let (tensor, value) = (name.to_owned(), values[found].to_string());
    QuantError::NotFinite { tensor, row: found / columns, column: found % columns, value }
}

fn overflow(name: &str) -> QuantError {
    let detail = "the mean of its absmax is above the range of f32".to_owned();
    QuantError::OutOfRange { tensor: name.to_owned(), detail }
}
