//! AdamW with moments in 8 bits on the CPU: one pass over the memory of all.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;
use sideburn_quant::DynamicMap;

use super::TASK;
use super::simd::vector_fn;
use crate::ops::adamw::AdamWStep;
use crate::ops::moment_8bit::Moment8Bit;

const BLOCK: usize = Moment8Bit::BLOCK_SIZE;

/// What an update multiplies and adds.
#[derive(Clone, Copy)]
struct Numbers {
    scale: f32,
    keep: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    /// `sqrt(1 - beta2^time)`
    correction2: f32,
    epsilon: f32,
    /// `-learning_rate / (1 - beta1^time)`
    rate: f32,
}

/// An update of parameter and moments, all in `f32`.
pub(crate) fn step(
    parameter: Tensor<2>,
    gradient: Tensor<2>,
    moments: [Moment8Bit; 2],
    scale: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<2>, [Moment8Bit; 2]) {
    let scale: f32 = scale.cast(DType::F32).into_scalar();
    // NaN is not above zero.
    if scale.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
        return (parameter, moments);
    }
    let time = f64::from(step.time);
    let numbers = Numbers {
        scale,
        keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
        beta1: step.beta1 as f32,
        rest1: (1.0 - step.beta1) as f32,
        beta2: step.beta2 as f32,
        rest2: (1.0 - step.beta2) as f32,
        correction2: (1.0 - step.beta2.powf(time)).sqrt() as f32,
        epsilon: step.epsilon as f32,
        rate: (-step.learning_rate / (1.0 - step.beta1.powf(time))) as f32,
    };
    let device = parameter.device();
    let (mut parameter, gradient) = (parameter.into_data(), gradient.into_data());
    let [mut first, mut second] = moments.map(Moment8Bit::into_bytes);
    let [m, v] = [&mut first, &mut second].map(|(codes, absmax, map)| {
        let codes = codes.as_mut_slice::<u8>().expect("codes are bytes").par_chunks_mut(TASK);
        let absmax = absmax.as_mut_slice::<f32>().expect("largest values are f32").par_chunks_mut(TASK / BLOCK);
        codes.zip(absmax).map(|(codes, absmax)| (codes, absmax, *map))
    });
    let p = parameter.as_mut_slice::<f32>().expect("a parameter in f32").par_chunks_mut(TASK);
    let g = gradient.as_slice::<f32>().expect("a gradient in f32").par_chunks(TASK);
    p.zip(g).zip(m.zip(v)).for_each(|((p, g), (m, v))| update(p, g, m, v, numbers));
    let of_parts = |(codes, absmax, map)| Moment8Bit::from_bytes(codes, absmax, map, &device);
    (Tensor::from_data(parameter, (&device, DType::F32)), [of_parts(first), of_parts(second)])
}

/// Codes and largest values of the blocks of one task.
type Blocks<'a> = (&'a mut [u8], &'a mut [f32], &'static DynamicMap);

vector_fn! {
    /// One task of an update; multiplications and additions are fused where PyTorch fuses them.
    fn update(p: &mut [f32], gradient: &[f32], first: Blocks<'_>, second: Blocks<'_>, k: Numbers) {
        let ([m_codes, v_codes], [m_map, v_map]) = ([first.0, second.0], [first.2, second.2]);
        let codes = m_codes.chunks_mut(BLOCK).zip(v_codes.chunks_mut(BLOCK));
        let absmax = first.1.iter_mut().zip(second.1);
        let blocks = p.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK)).zip(codes.zip(absmax));
        for ((p, gradient), ((m_codes, v_codes), (m_absmax, v_absmax))) in blocks {
            let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
            let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
            for (m, code) in m.iter_mut().zip(&*m_codes) {
                *m = m_map.values()[usize::from(*code)] * *m_absmax;
            }
            for (v, code) in v.iter_mut().zip(&*v_codes) {
                *v = v_map.values()[usize::from(*code)] * *v_absmax;
            }
            for (((p, m), v), g) in p.iter_mut().zip(&mut *m).zip(&mut *v).zip(gradient) {
                let g = g * k.scale;
                *m = k.rest1.mul_add(g, *m * k.beta1);
                *v = (k.rest2 * g).mul_add(g, *v * k.beta2);
                let root = v.sqrt() / k.correction2 + k.epsilon;
                *p = *p * k.keep + k.rate * *m / root;
            }
            *m_absmax = m_map.quantize(m, m_codes);
            *v_absmax = v_map.quantize(v, v_codes);
        }
    }
}
