//! AdamW and the sum of squares on the CPU: one pass over memory each.

use burn::backend::Flex;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::simd::vector_fn;
use super::{Primitive, TASK, contiguous, is_f32, overwritable, values};
use crate::adamw::{AdamWStep, Coefficients, OptimizerOps, composed_square_sum, composed_step};

/// Accumulators of a sum in `f64`: a fixed order whatever the machine, and vectorised.
const LANES: usize = 8;

impl OptimizerOps for Flex {
    fn adamw_step(
        parameter: Primitive,
        gradient: Primitive,
        first: Primitive,
        second: Primitive,
        step: AdamWStep,
    ) -> (Primitive, Primitive, Primitive) {
        if !is_f32(&[&parameter, &gradient, &first, &second]) {
            return composed_step::<Flex>(parameter, gradient, [first, second], &step);
        }
        let [mut parameter, mut first, mut second] = [parameter, first, second].map(overwritable);
        let (gradient, k) = (contiguous(gradient), step.coefficients());
        let [p, m, v] =
            [&mut parameter, &mut first, &mut second].map(|tensor| tensor.storage_mut::<f32>().par_chunks_mut(TASK));
        p.zip(m).zip(v).zip(values(&gradient).par_chunks(TASK)).for_each(|(((p, m), v), gradient)| {
            update(p, m, v, gradient, k);
        });
        (parameter, first, second)
    }

    fn square_sum(x: Primitive) -> Primitive {
        if !is_f32(&[&x]) {
            return composed_square_sum::<Flex>(x);
        }
        let x = contiguous(x);
        let of_tasks: Vec<f64> = values(&x).par_chunks(TASK).map(squares).collect();
        Primitive::from_data(TensorData::new(vec![of_tasks.into_iter().sum::<f64>() as f32], [1]))
    }
}

vector_fn! {
    /// One task of an update.
    fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], k: Coefficients) {
        for (((p, m), v), gradient) in p.iter_mut().zip(m).zip(v).zip(gradient) {
            let g = gradient * k.scale;
            *m = *m * k.beta1 + g * k.rest1;
            *v = *v * k.beta2 + g * g * k.rest2;
            *p = *p * k.keep - k.rate * (*m * k.unbias1 / (v.sqrt() * k.unbias2 + k.epsilon));
        }
    }
}

fn squares(values: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane += f64::from(*value) * f64::from(*value));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, value)| *lane += f64::from(*value) * f64::from(*value));
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_else_holds_is_overwritten() {
        let tensor = |value: f32| Primitive::from_data(TensorData::new(vec![value; 40_000], [200, 200]));
        let place = |x: &Primitive| x.storage::<f32>().as_ptr();
        let step = AdamWStep {
            learning_rate: 0.1,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            time: 1,
            gradient_scale: 1.0,
        };
        let [parameter, first, second] = [1.0, 0.0, 0.0].map(tensor);
        let (held, before) = (second.clone(), [&parameter, &first, &second].map(place));
        let gradient = tensor(2.0);
        let kept = gradient.clone();
        let (parameter, first, second) = Flex::adamw_step(parameter, gradient, first, second, step);
        assert_eq!([&parameter, &first].map(place), before[..2]);
        assert_ne!(place(&second), before[2], "somebody else has the old moments");
        assert!(held.storage::<f32>().iter().all(|value| *value == 0.0));
        assert!(kept.storage::<f32>().iter().all(|value| *value == 2.0));
        assert!((parameter.storage::<f32>()[39_999] - 0.9).abs() < 1e-6);
    }
}
