//! AdamW whose moments are kept in 8 bits.

use burn::tensor::{DType, Tensor};

use super::adamw::AdamWStep;
use super::moment_8bit::Moment8Bit;
use crate::runtime::profile::Span;
use crate::runtime::row_layout::is_cpu;

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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Device, TensorData};
    use sideburn_quant::DynamicMap;

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
