//! A quantised matrix, of whichever type.

use crate::code::QuantType;
use crate::error::QuantError;
use crate::four_bit::FourBit;
use crate::int8::Int8;
use crate::values::Values;

/// What to quantise weights to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantization {
    /// 4 bits a value, and a scale for each block: `load_in_4bit`.
    FourBit {
        /// `bnb_4bit_quant_type`.
        quant_type: QuantType,
        /// Values in a block, one of [`BLOCK_SIZES`](crate::BLOCK_SIZES); 64 where `transformers` quantises.
        block_size: usize,
        /// `bnb_4bit_use_double_quant`: whether the scales are quantised, too.
        double_quant: bool,
    },
    /// 8 bits a value, and a scale for each row: `load_in_8bit`.
    Int8 {
        /// `llm_int8_threshold`: what is at least so large in the input of a layer is computed in higher precision.
        threshold: f32,
    },
}

impl Quantization {
    /// NF4 in blocks of 64 with double quantisation, as QLoRA has it.
    pub const NF4: Self = Self::FourBit { quant_type: QuantType::Nf4, block_size: 64, double_quant: true };
    /// FP4 in blocks of 64 with double quantisation.
    pub const FP4: Self = Self::FourBit { quant_type: QuantType::Fp4, block_size: 64, double_quant: true };
    /// LLM.int8() with the threshold of the paper, 6.
    pub const INT8: Self = Self::Int8 { threshold: 6.0 };

    /// How many bytes a matrix `[rows, columns]` takes in memory that is packed so.
    ///
    /// ```
    /// use sideburn_quant::Quantization;
    ///
    /// assert_eq!(Quantization::NF4.bytes([64, 256]), 64 * 256 / 2 + 256 + 4 + 4);
    /// assert_eq!(Quantization::INT8.bytes([64, 256]), 64 * 256 + 64 * 4);
    /// ```
    pub fn bytes(self, [rows, columns]: [usize; 2]) -> usize {
        const FLOAT: usize = size_of::<f32>();
        let count = rows * columns;
        match self {
            Self::FourBit { block_size, double_quant, .. } => {
                let blocks = count.div_ceil(block_size);
                let scales = match double_quant {
                    true => blocks + (blocks.div_ceil(FourBit::NESTED_BLOCK_SIZE) + 1) * FLOAT,
                    false => blocks * FLOAT,
                };
                count.div_ceil(2) + scales
            }
            Self::Int8 { .. } => count + rows * FLOAT,
        }
    }
}

/// A quantised matrix `[rows, columns]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Packed {
    /// Of 4-bit numbers.
    FourBit(FourBit),
    /// Of 8-bit integers.
    Int8(Int8),
}

impl Packed {
    /// Quantises the `values` of a matrix of this `shape`, row after row. Messages call it `name`.
    ///
    /// # Errors
    /// Those of [`FourBit::quantize`] and [`Int8::quantize`].
    ///
    /// # Panics
    /// If there are not as many values as the shape says, or a stored tensor is none of floats.
    pub fn quantize<'a>(
        name: &str,
        values: impl Into<Values<'a>>,
        shape: [usize; 2],
        quantization: Quantization,
    ) -> Result<Self, QuantError> {
        match quantization {
            Quantization::FourBit { quant_type, block_size, double_quant } => {
                FourBit::quantize(name, values, shape, quant_type, block_size, double_quant).map(Self::FourBit)
            }
            Quantization::Int8 { .. } => Int8::quantize(name, values, shape).map(Self::Int8),
        }
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::FourBit(matrix) => matrix.shape(),
            Self::Int8(matrix) => matrix.shape(),
        }
    }

    /// The values that it stands for, row after row.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::FourBit(matrix) => matrix.dequantize(),
            Self::Int8(matrix) => matrix.dequantize(),
        }
    }

    /// The value at one place, counted row after row.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn value(&self, place: usize) -> f32 {
        match self {
            Self::FourBit(matrix) => matrix.value(place),
            Self::Int8(matrix) => {
                f32::from(matrix.codes()[place]) * matrix.scb()[place / matrix.shape()[1]] * (1.0 / 127.0)
            }
        }
    }

    /// How many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::FourBit(matrix) => matrix.bytes(),
            Self::Int8(matrix) => matrix.bytes(),
        }
    }
}
