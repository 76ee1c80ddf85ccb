//! AdamW whose moments are kept in 8 bits.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_quant::DynamicMap;

use super::adamw::AdamWStep;
use crate::runtime::profile::Span;
use crate::runtime::row_layout::is_cpu;

/// A moment of [`adamw_8bit_step`] on a device: for each element a code of the [`DynamicMap`], and for each block of 256
/// elements the largest absolute value, by which codes are multiplied. `state1` and `absmax1` of bitsandbytes, or `state2`
/// and `absmax2`. It is 1.016 bytes an element.
#[derive(Clone, Debug)]
pub struct Moment8Bit {
    /// Bytes on the CPU; elsewhere words of 32 bits, of whole blocks, the first code in the lowest bits.
    codes: Tensor<1, Int>,
    absmax: Tensor<1>,
    len: usize,
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

    fn packed(mut codes: Vec<u8>, absmax: Vec<f32>, map: &'static DynamicMap, in_words: bool, device: &Device) -> Self {
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
    fn values(&self) -> Tensor<2> {
        let map = TensorData::new(self.map.values().to_vec(), [256]);
        let map = Tensor::<1>::from_data(map, (&self.absmax.device(), DType::F32));
        let [blocks] = self.absmax.dims();
        map.select(0, self.indices()).reshape([blocks, Self::BLOCK_SIZE]) * self.absmax.clone().unsqueeze_dim::<2>(1)
    }

    /// The same moment with these values, `[blocks, 256]`: [`DynamicMap::quantize`] by primitives.
    fn with_values(&self, values: Tensor<2>) -> Self {
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

    fn kept_where(self, stays: &Tensor<1, burn::tensor::Bool>, old: &Self) -> Self {
        let codes = self.codes.mask_where(stays.clone().expand(old.codes.dims()), old.codes.clone());
        let absmax = self.absmax.mask_where(stays.clone().expand(old.absmax.dims()), old.absmax.clone());
        Self { codes, absmax, ..self }
    }
}

/// Updates a parameter by AdamW, as [`adamw_steps`](crate::adamw_steps), and its moments in 8 bits (Dettmers et al., 2022,
/// "8-bit Optimizers via Block-wise Quantization"): they are unpacked, changed, used, and rounded again. As
/// `_optimizer_update_8bit_blockwise_cpu` of bitsandbytes, code for code; **at a scale of zero or less nothing is changed**.
///
/// On [`Device::flex`](burn::tensor::Device::flex), in `f32`, it is one pass over the memory of all of them. Elsewhere it is
/// composed of Burn's primitives, which round a product and a sum apart where PyTorch rounds them together: of codes that lie
/// at the border of two, some are the neighbours of bitsandbytes'.
///
/// # Panics
/// If the shapes of parameter, gradient and moments differ, or a tensor is tracked by autodiff: take its `inner`.
pub fn adamw_8bit_step(
    parameter: Tensor<2>,
    gradient: Tensor<2>,
    moments: [Moment8Bit; 2],
    scale: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<2>, [Moment8Bit; 2]) {
    let _span = Span::new("adamw_8bit_step");
    assert_eq!(parameter.dims(), gradient.dims(), "a parameter and its gradient must have one shape");
    let [rows, columns] = parameter.dims();
    assert!(
        moments.iter().all(|moment| moment.len == rows * columns),
        "a parameter and its moments must have one size"
    );
    #[cfg(feature = "flex")]
    if is_cpu(&parameter.device()) {
        let dtype = parameter.dtype();
        let [parameter, gradient] = [parameter, gradient].map(|x| x.cast(DType::F32));
        let (parameter, moments) = crate::flex::adamw_8bit::step(parameter, gradient, moments, scale, step);
        return (parameter.cast(dtype), moments);
    }
    composed_step(parameter, gradient, moments, scale, step)
}

fn composed_step(
    parameter: Tensor<2>,
    gradient: Tensor<2>,
    moments: [Moment8Bit; 2],
    scale: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<2>, [Moment8Bit; 2]) {
    let ([rows, columns], dtype, time) = (parameter.dims(), parameter.dtype(), f64::from(step.time));
    let ([blocks], size) = (moments[0].absmax.dims(), Moment8Bit::BLOCK_SIZE);
    let scale = scale.cast(DType::F32);
    let stays = scale.clone().greater_elem(0.0).bool_not();
    let gradient = gradient.cast(DType::F32) * scale.unsqueeze();
    let filler = Tensor::zeros([blocks * size - rows * columns], (&gradient.device(), DType::F32));
    let gradient = Tensor::cat(vec![gradient.reshape([rows * columns]), filler], 0).reshape([blocks, size]);
    let [first, second] = moments.each_ref().map(Moment8Bit::values);
    let first = first.mul_scalar(step.beta1) + gradient.clone().mul_scalar(1.0 - step.beta1);
    let second = second.mul_scalar(step.beta2) + gradient.clone() * gradient.mul_scalar(1.0 - step.beta2);
    let root = second.clone().sqrt().mul_scalar(1.0 / (1.0 - step.beta2.powf(time)).sqrt()).add_scalar(step.epsilon);
    let rate = step.learning_rate / (1.0 - step.beta1.powf(time));
    let update = (first.clone() / root).mul_scalar(rate).reshape([blocks * size]);
    let update = update.narrow(0, 0, rows * columns).reshape([rows, columns]);
    let decayed = parameter.clone().cast(DType::F32).mul_scalar(1.0 - step.learning_rate * step.weight_decay);
    let new = (decayed - update).cast(dtype);
    let new = new.mask_where(stays.clone().unsqueeze::<2>().expand([rows, columns]), parameter);
    let [old_first, old_second] = moments;
    let first = old_first.with_values(first).kept_where(&stays, &old_first);
    let second = old_second.with_values(second).kept_where(&stays, &old_second);
    (new, [first, second])
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::Key;

    fn tensor(shape: [usize; 2], key: Key) -> Tensor<2> {
        // Of magnitudes from 1e-4 to 1.
        let value = |index: u64| (key.normal(index) * 10f64.powi(-(index as i32 % 5))) as f32;
        let values: Vec<f32> = (0..(shape[0] * shape[1]) as u64).map(value).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
        x.to_data().try_into_vec().unwrap()
    }

    fn zeros(len: usize, in_words: bool) -> [Moment8Bit; 2] {
        let blocks = vec![0.0; len.div_ceil(Moment8Bit::BLOCK_SIZE)];
        [DynamicMap::signed(), DynamicMap::unsigned()]
            .map(|map| Moment8Bit::packed(vec![0; len], blocks.clone(), map, in_words, &Device::flex()))
    }

    fn number(scale: f32) -> Tensor<1> {
        Tensor::from_data(TensorData::new(vec![scale], [1]), &Device::flex())
    }

    /// A GPU computes with words and primitives.
    #[test]
    fn words_are_updated_as_bytes_are() {
        for shape in [[70, 67], [1, 256], [3, 1]] {
            let len = shape[0] * shape[1];
            let (mut kernel, mut composed) = (tensor(shape, Key::from_seed(0)), tensor(shape, Key::from_seed(0)));
            let (mut bytes, mut words) = (zeros(len, false), zeros(len, true));
            for time in 1..=5 {
                let step =
                    AdamWStep { learning_rate: 1e-2, weight_decay: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, time };
                let gradient = tensor(shape, Key::from_seed(u64::from(time)));
                (kernel, bytes) = crate::flex::adamw_8bit::step(kernel, gradient.clone(), bytes, number(0.5), &step);
                (composed, words) = composed_step(composed, gradient.clone(), words, number(0.5), &step);
                let (before, of_words) = (values(&composed), words.each_ref().map(Moment8Bit::to_parts));
                (composed, words) = composed_step(composed, gradient, words, number(0.0), &step);
                assert_eq!(values(&composed), before, "a scale of 0 changes nothing");
                assert_eq!(words.each_ref().map(Moment8Bit::to_parts), of_words, "nor what is remembered");
                // Sums are rounded at other places, and so a code may be the neighbour; but its update is not.
                for ((codes, absmax), (others, others_absmax)) in
                    bytes.each_ref().map(Moment8Bit::to_parts).iter().zip(&of_words)
                {
                    assert!(codes.iter().zip(others).all(|(a, b)| a.abs_diff(*b) <= 1), "{shape:?}");
                    assert!(absmax.iter().zip(others_absmax).all(|(a, b)| (a - b).abs() <= 1e-5 * a), "{shape:?}");
                }
                let unequal = bytes[0].to_parts().0.iter().zip(&of_words[0].0).filter(|(a, b)| a != b).count();
                assert!(unequal <= len / 500, "{shape:?}: {unequal} of {len} codes");
                let far = values(&kernel).iter().zip(&before).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
                assert!(far <= len / 100, "{shape:?}: {far} of {len} elements");
            }
        }
    }
}
