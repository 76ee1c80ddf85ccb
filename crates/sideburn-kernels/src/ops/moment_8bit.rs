//! Moments of optimisers in 8 bits.

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use sideburn_quant::DynamicMap;

use crate::runtime::row_layout::is_cpu;

/// A moment of [`adamw_8bit_step`](crate::adamw_8bit_step) on a device: for each element a code of the [`DynamicMap`], and for each block of 256
/// elements the largest absolute value, by which codes are multiplied. `state1` and `absmax1` of bitsandbytes, or `state2`
/// and `absmax2`. It is 1.016 bytes an element.
#[derive(Clone, Debug)]
pub struct Moment8Bit {
    /// Bytes on the CPU; elsewhere words of 32 bits, of whole blocks, the first code in the lowest bits.
    codes: Tensor<1, Int>,
    pub(crate) absmax: Tensor<1>,
    pub(crate) len: usize,
    map: &'static DynamicMap,
}

impl Moment8Bit {
    /// Elements of a block.
    pub const BLOCK_SIZE: usize = 256;

    /// Zeros, of both signs or from 0 on as a second moment.
    pub fn zeros(len: usize, map: &'static DynamicMap, device: &Device) -> Self {
        Self::from_parts(vec![0; len], vec![0.0; len.div_ceil(Self::BLOCK_SIZE)], map, device)
    }

    /// A moment with these codes, and the largest absolute value of each block.
    ///
    /// # Panics
    /// If there is not one for each block.
    pub fn from_parts(codes: Vec<u8>, absmax: Vec<f32>, map: &'static DynamicMap, device: &Device) -> Self {
        Self::packed(codes, absmax, map, !is_cpu(device), device)
    }

    pub(crate) fn packed(
        mut codes: Vec<u8>,
        absmax: Vec<f32>,
        map: &'static DynamicMap,
        in_words: bool,
        device: &Device,
    ) -> Self {
        let (len, blocks) = (codes.len(), absmax.len());
        assert_eq!(blocks, len.div_ceil(Self::BLOCK_SIZE), "every block of codes has a largest value");
        let codes = if in_words {
            codes.resize(blocks * Self::BLOCK_SIZE, 0);
            let words: Vec<i32> = codes.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect();
            let count = words.len();
            Tensor::from_data(TensorData::new(words, [count]), (device, DType::I32))
        } else {
            Tensor::from_data(TensorData::new(codes, [len]), (device, DType::U8))
        };
        let absmax = Tensor::from_data(TensorData::new(absmax, [blocks]), (device, DType::F32));
        Self { codes, absmax, len, map }
    }

    /// Codes, and the largest absolute values of the blocks, read back from the device.
    pub fn to_parts(&self) -> (Vec<u8>, Vec<f32>) {
        let mut codes = self.codes.to_data().into_bytes().to_vec();
        codes.truncate(self.len);
        (codes, self.absmax.to_data().try_into_vec().expect("largest values are f32"))
    }

    /// The codes of whole blocks, which are in words.
    fn indices(&self) -> Tensor<1, Int> {
        let byte = |index: i32| {
            self.codes.clone().bitwise_right_shift_scalar(8 * index).bitwise_and_scalar(0xff).unsqueeze_dim::<2>(1)
        };
        Tensor::cat((0..4).map(byte).collect(), 1).reshape([self.absmax.dims()[0] * Self::BLOCK_SIZE])
    }

    /// The same moment with these codes of whole blocks, in words, and largest values.
    fn with_indices(&self, indices: Tensor<1, Int>, absmax: Tensor<1>) -> Self {
        let [whole] = indices.dims();
        let bytes = indices.reshape([whole / 4, 4]);
        let byte = |index: usize| bytes.clone().narrow(1, index, 1).bitwise_left_shift_scalar(8 * index as i32);
        let codes = byte(0).bitwise_or(byte(1)).bitwise_or(byte(2)).bitwise_or(byte(3)).reshape([whole / 4]);
        Self { codes, absmax, ..self.clone() }
    }

    /// The values, in whole blocks: `[blocks, 256]`.
    pub(crate) fn values(&self) -> Tensor<2> {
        let map = TensorData::new(self.map.values().to_vec(), [256]);
        let map = Tensor::<1>::from_data(map, (&self.absmax.device(), DType::F32));
        let [blocks] = self.absmax.dims();
        map.select(0, self.indices()).reshape([blocks, Self::BLOCK_SIZE]) * self.absmax.clone().unsqueeze_dim::<2>(1)
    }

    /// The same moment with these values, `[blocks, 256]`: [`DynamicMap::quantize`] by primitives.
    pub(crate) fn with_values(&self, values: Tensor<2>) -> Self {
        let ([blocks, _], device) = (values.dims(), values.device());
        let absmax = values.clone().abs().max_dim(1);
        let is_zero = absmax.clone().equal_elem(0.0);
        let inverse = absmax.clone().mask_fill(is_zero.clone(), 1.0).recip();
        let step = (values * inverse).clamp(-1.0, 1.0).add_scalar(1.0).mul_scalar(0.5).mul_scalar(65_535.0);
        let rounded = step.add_scalar(0.5).floor().mul_scalar(2.0).div_scalar(65_535.0).sub_scalar(1.0);
        let rounded = rounded.reshape([blocks * Self::BLOCK_SIZE]);
        let map = self.map.values();
        // The number of bounds below, by bisection; a last bound stands above all.
        let bound = |index: usize| 0.5 * (map[index] + map[index + 1]);
        let bounds: Vec<f32> = (0..255).map(bound).chain([2.0]).collect();
        let bounds = Tensor::<1>::from_data(TensorData::new(bounds, [256]), (&device, DType::F32));
        let mut codes = Tensor::<1, Int>::zeros([blocks * Self::BLOCK_SIZE], (&device, DType::I32));
        for half in [128, 64, 32, 16, 8, 4, 2, 1] {
            let is_above = bounds.clone().select(0, codes.clone().add_scalar(half - 1)).lower(rounded.clone());
            codes = codes + is_above.int().cast(DType::I32).mul_scalar(half);
        }
        let is_zero = is_zero.expand([blocks, Self::BLOCK_SIZE]).reshape([blocks * Self::BLOCK_SIZE]);
        self.with_indices(codes.mask_fill(is_zero, 0), absmax.reshape([blocks]))
    }

    pub(crate) fn kept_where(self, stays: &Tensor<1, Bool>, old: &Self) -> Self {
        let codes = self.codes.mask_where(stays.clone().expand(old.codes.dims()), old.codes.clone());
        let absmax = self.absmax.mask_where(stays.clone().expand(old.absmax.dims()), old.absmax.clone());
        Self { codes, absmax, ..self }
    }
}

#[cfg(feature = "flex")]
impl Moment8Bit {
    /// Codes and largest values of a moment on the CPU; if nothing else holds them, where they lie.
    pub(crate) fn into_bytes(self) -> (TensorData, TensorData, &'static DynamicMap) {
        (self.codes.into_data(), self.absmax.into_data(), self.map)
    }

    /// The moment with these.
    pub(crate) fn from_bytes(codes: TensorData, absmax: TensorData, map: &'static DynamicMap, device: &Device) -> Self {
        let len = codes.num_elements();
        let codes = Tensor::from_data(codes, (device, DType::U8));
        Self { codes, absmax: Tensor::from_data(absmax, (device, DType::F32)), len, map }
    }
}
