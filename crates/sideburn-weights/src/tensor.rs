//! A tensor outside any framework, and the conversions between floating-point types.

use std::ops::Range;
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::WeightsError;
use crate::header::{TensorInfo, byte_len};

/// A dtype, a shape, and the elements as little-endian bytes in row-major order.
///
/// The three always fit each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of little-endian `bytes` in row-major order.
    ///
    /// # Errors
    /// [`WeightsError::ShapeMismatch`] if `bytes` is not as long as `dtype` and `shape` say.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        match byte_len(dtype, &shape) {
            Ok(len) if len == bytes.len() => Ok(Self { dtype, shape, bytes }),
            wanted => {
                let expected =
                    wanted.map_or_else(|why| format!("no number of bytes ({why})"), |n| format!("{n} bytes"));
                Err(WeightsError::ShapeMismatch { dtype, shape, expected, found: format!("{} bytes", bytes.len()) })
            }
        }
    }

    /// An F32 tensor of `values` in row-major order.
    ///
    /// # Errors
    /// [`WeightsError::ShapeMismatch`] if `values` does not have as many elements as `shape` says.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, WeightsError> {
        Self::from_elements(Dtype::F32, shape, values, |v| v.to_le_bytes())
    }

    /// A BF16 tensor of `values` in row-major order.
    ///
    /// # Errors
    /// [`WeightsError::ShapeMismatch`] if `values` does not have as many elements as `shape` says.
    pub fn from_bf16(shape: Vec<usize>, values: &[bf16]) -> Result<Self, WeightsError> {
        Self::from_elements(Dtype::BF16, shape, values, |v| v.to_le_bytes())
    }

    fn from_elements<T: Copy, const N: usize>(
        dtype: Dtype,
        shape: Vec<usize>,
        values: &[T],
        to_bytes: impl Fn(T) -> [u8; N],
    ) -> Result<Self, WeightsError> {
        Self::new(dtype, shape, encode(values.iter().copied(), to_bytes)).map_err(|error| match error {
            // Whoever gives elements thinks in elements.
            WeightsError::ShapeMismatch { dtype, shape, .. } => {
                let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                let expected =
                    count.map_or("more elements than can be counted".to_owned(), |n| format!("{n} elements"));
                WeightsError::ShapeMismatch { dtype, shape, expected, found: format!("{} elements", values.len()) }
            }
            other => other,
        })
    }

    /// The type of one element.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The size of each dimension, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Dtype and shape.
    pub fn info(&self) -> TensorInfo {
        TensorInfo { dtype: self.dtype, shape: self.shape.clone() }
    }

    /// The elements, little-endian, in row-major order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives up the elements without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The elements as `f32`, in row-major order. Exact for F32, F16 and BF16; F64 is rounded to the nearest value,
    /// ties to even, and becomes infinite beyond the range of `f32`, as in PyTorch.
    ///
    /// # Errors
    /// [`WeightsError::NotFloat`] for any other dtype. The message names the tensor by its shape; use
    /// [`TensorSource::read_f32`](crate::TensorSource::read_f32) for one that names file and tensor.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        let mut values = Vec::with_capacity(self.shape.iter().product());
        match extend_f32(&mut values, self.dtype, &self.bytes) {
            true => Ok(values),
            false => Err(WeightsError::NotFloat { what: self.describe(), found: self.dtype }),
        }
    }

    /// The same tensor as BF16, rounded to the nearest value, ties to even. Shorthand for [`cast`](Self::cast).
    ///
    /// # Errors
    /// [`WeightsError::NotFloat`] unless the tensor is F32, F16, BF16 or F64.
    pub fn to_bf16(&self) -> Result<Self, WeightsError> {
        self.cast(Dtype::BF16)
    }

    /// The same tensor in another floating-point type, rounded to the nearest value, ties to even. Finite values beyond
    /// the range of `dtype` become infinite. F64 goes to the 16-bit types by way of F32. All of that is as in PyTorch.
    ///
    /// # Errors
    /// [`WeightsError::NotFloat`] unless the tensor and `dtype` are F32, F16, BF16 or F64.
    pub fn cast(&self, dtype: Dtype) -> Result<Self, WeightsError> {
        if !is_float(self.dtype) {
            return Err(WeightsError::NotFloat { what: self.describe(), found: self.dtype });
        }
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        let bytes = match dtype {
            Dtype::F32 => encode(self.to_f32()?, f32::to_le_bytes),
            Dtype::BF16 => encode(self.to_f32()?, |v| bf16::from_f32(v).to_le_bytes()),
            Dtype::F16 => encode(self.to_f32()?, |v| f16::from_f32(v).to_le_bytes()),
            Dtype::F64 => encode(self.to_f32()?, |v| f64::from(v).to_le_bytes()),
            found => return Err(WeightsError::NotFloat { what: "the tensor asked for".to_owned(), found }),
        };
        Self::new(dtype, self.shape.clone(), bytes)
    }

    /// Adds some of the elements to `values` as `f32`, as [`to_f32`](Self::to_f32) has them.
    ///
    /// # Errors
    /// Those of [`to_f32`](Self::to_f32).
    ///
    /// # Panics
    /// If there are no such elements.
    pub fn extend_f32(&self, elements: Range<usize>, values: &mut Vec<f32>) -> Result<(), WeightsError> {
        let size = self.bytes.len() / self.shape.iter().product::<usize>().max(1);
        match extend_f32(values, self.dtype, &self.bytes[elements.start * size..elements.end * size]) {
            true => Ok(()),
            false => Err(WeightsError::NotFloat { what: self.describe(), found: self.dtype }),
        }
    }

    fn describe(&self) -> String {
        format!("a tensor of shape {:?}", self.shape)
    }

    /// [`to_f32`](Self::to_f32) with an error that says which tensor of which file.
    ///
    /// # Errors
    /// As there.
    pub fn to_f32_named(&self, path: &Path, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.to_f32().map_err(|error| match error {
            WeightsError::NotFloat { found, .. } => {
                WeightsError::NotFloat { what: format!("tensor {name:?} of {path:?}"), found }
            }
            other => other,
        })
    }
}

/// Adds the elements of `bytes` as `f32`, and returns whether they are floats.
pub(crate) fn extend_f32(values: &mut Vec<f32>, dtype: Dtype, bytes: &[u8]) -> bool {
    const FEW: usize = 256;
    match dtype {
        Dtype::F32 => values.extend(decode(bytes, f32::from_le_bytes)),
        Dtype::F16 => {
            // Many at a time, for which a machine may have instructions.
            let (mut halves, mut floats) = (Vec::with_capacity(FEW), [0f32; FEW]);
            for bytes in bytes.chunks(2 * FEW) {
                halves.clear();
                halves.extend(decode(bytes, f16::from_le_bytes));
                halves.convert_to_f32_slice(&mut floats[..halves.len()]);
                values.extend_from_slice(&floats[..halves.len()]);
            }
        }
        Dtype::BF16 => values.extend(decode(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => values.extend(decode(bytes, |b| f64::from_le_bytes(b) as f32)),
        _ => return false,
    }
    true
}

pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// The elements of `bytes`, whose length is a multiple of `N` because every tensor is checked when it is made.
fn decode<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |&chunk| convert(chunk))
}

fn encode<T, const N: usize>(values: impl IntoIterator<Item = T>, to_bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let chunks: Vec<[u8; N]> = values.into_iter().map(to_bytes).collect();
    chunks.into_flattened()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        // Between two BF16 values near 1 lie 2^-7. In units of half of that: 1 and 3 are ties, a bit above 1 is not.
        let unit = 2f32.powi(-8);
        let values = [1.0 + unit, 1.0 + 3.0 * unit, 1.0 + unit + f32::EPSILON, f32::NAN];
        let tie = Tensor::from_f32(vec![4], &values).unwrap();
        let rounded = tie.to_bf16().unwrap().to_f32().unwrap();
        assert_eq!(rounded[..3], [1.0, 1.015625, 1.0078125]);
        assert!(rounded[3].is_nan());
    }

    #[test]
    fn f64_is_rounded_as_pytorch_does() {
        // A hair above the tie: F32 has no room for it, and the tie goes down to even.
        let hair = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let bytes = [hair, 1e300].map(f64::to_le_bytes).concat();
        let tensor = Tensor::new(Dtype::F64, vec![2], bytes).unwrap();
        assert_eq!(tensor.to_bf16().unwrap().to_f32().unwrap(), [1.0, f32::INFINITY]);
    }

    #[test]
    fn shapes_and_data_must_fit() {
        let error = Tensor::from_f32(vec![2, 3], &[0.0; 5]).unwrap_err().to_string();
        assert!(error.contains("shape [2, 3] takes 6 elements, found 5 elements"), "{error}");
        let error = Tensor::new(Dtype::F16, vec![3], vec![0; 5]).unwrap_err().to_string();
        assert!(error.contains("takes 6 bytes, found 5 bytes"), "{error}");
        let error = Tensor::new(Dtype::F32, vec![usize::MAX, 2], vec![]).unwrap_err().to_string();
        assert!(error.contains("overflows"), "{error}");
        let scalar = Tensor::from_f32(vec![], &[7.0]).unwrap();
        assert_eq!(scalar.to_f32().unwrap(), [7.0]);
    }

    #[test]
    fn integers_are_not_floats() {
        let tensor = Tensor::new(Dtype::I8, vec![2], vec![1, 2]).unwrap();
        for error in [tensor.to_f32().unwrap_err(), tensor.cast(Dtype::I8).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("shape [2] has dtype I8, expected F32, F16, BF16 or F64"), "{error}");
        }
        let error = Tensor::from_f32(vec![1], &[0.0]).unwrap().cast(Dtype::I8).unwrap_err().to_string();
        assert!(error.contains("I8"), "{error}");
    }
}
