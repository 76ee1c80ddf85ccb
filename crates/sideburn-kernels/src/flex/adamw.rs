//! AdamW and the norm on the CPU: one pass over the memory of all tensors each.

use burn::backend::Flex;
use burn::tensor::{DType, TensorData};
use rayon::prelude::*;

use super::simd::vector_fn;
use super::{Primitive, TASK, are_f32, contiguous, overwritable, values};
use crate::ops::adamw::{AdamWStep, Coefficients, OptimizerKernels, composed_step, in_dtype};
use crate::ops::many::Many;

/// Accumulators of a sum in `f64`: a fixed order whatever the machine, and vectorised.
const LANES: usize = 8;

/// An update on its way.
struct Update {
    parameter: Primitive,
    gradient: Primitive,
    moments: [Primitive; 2],
    step: AdamWStep,
}

impl Update {
    /// With everything in row-major order, and what is to be overwritten held by nothing else.
    fn prepared(self) -> Self {
        let Self { parameter, gradient, moments, step } = self;
        let (parameter, moments) = (overwritable(parameter), moments.map(overwritable));
        Self { parameter, gradient: contiguous(gradient), moments, step }
    }

    /// Composed of Burn's operations, for other dtypes than `f32`.
    fn composed(self, scale: Primitive) -> Self {
        let Self { parameter, gradient, moments, step } = self;
        let [first, second] = moments;
        let inputs = [parameter, gradient.clone(), first, second];
        let [parameter, first, second] = composed_step::<Flex>(inputs, scale, &step);
        Self { parameter, gradient, moments: [first, second], step }
    }

    fn is_f32(&self) -> bool {
        are_f32([&self.parameter, &self.gradient].into_iter().chain(&self.moments))
    }

    /// The parts that tasks update: parameter, moments and gradient.
    fn tasks(&mut self) -> impl Iterator<Item = ([&mut [f32]; 3], &[f32], Coefficients)> {
        let (k, [first, second]) = (self.step.coefficients(), &mut self.moments);
        let [p, m, v] = [&mut self.parameter, first, second].map(|x| x.storage_mut::<f32>().chunks_mut(TASK));
        p.zip(m).zip(v).zip(values(&self.gradient).chunks(TASK)).map(move |(((p, m), v), g)| ([p, m, v], g, k))
    }
}

impl OptimizerKernels for Flex {
    fn try_steps(
        [parameters, gradients, firsts, seconds]: [Many<Flex>; 4],
        scale: &Primitive,
        steps: &[AdamWStep],
    ) -> Result<[Many<Flex>; 3], [Many<Flex>; 4]> {
        let moments = firsts.0.into_iter().zip(seconds.0).map(<[Primitive; 2]>::from);
        let parameters = parameters.0.into_iter().zip(gradients.0);
        let mut updates: Vec<Update> = parameters
            .zip(moments)
            .zip(steps)
            .map(|(((parameter, gradient), moments), step)| Update { parameter, gradient, moments, step: *step })
            .map(|update| if update.is_f32() { update.prepared() } else { update.composed(scale.clone()) })
            .collect();
        let scale = values(&in_dtype::<Flex>(scale.clone(), DType::F32))[0];
        if scale > 0.0 {
            // Many small tensors and a few large ones: the parts of all of them are shared out together.
            let tasks: Vec<_> = updates.iter_mut().filter(|update| update.is_f32()).flat_map(Update::tasks).collect();
            tasks.into_par_iter().for_each(|([p, m, v], gradient, k)| update(p, m, v, gradient, scale, k));
        }
        let updated = updates.into_iter().map(|Update { parameter, moments, .. }| {
            let [first, second] = moments;
            (parameter, (first, second))
        });
        let (parameters, (firsts, seconds)) = updated.unzip();
        Ok([parameters, firsts, seconds].map(Many))
    }

    fn try_norm(tensors: Many<Flex>) -> Result<Primitive, Many<Flex>> {
        if !are_f32(&tensors.0) {
            return Err(tensors);
        }
        let tensors: Vec<Primitive> = tensors.0.into_iter().map(contiguous).collect();
        let tasks: Vec<&[f32]> = tensors.iter().flat_map(|tensor| values(tensor).chunks(TASK)).collect();
        let squares: Vec<f64> = tasks.into_par_iter().map(squares).collect();
        let norm = squares.into_iter().sum::<f64>().sqrt() as f32;
        Ok(Primitive::from_data(TensorData::new(vec![norm], [1])))
    }
}

vector_fn! {
    /// One task of an update.
    fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], scale: f32, k: Coefficients) {
        for (((p, m), v), gradient) in p.iter_mut().zip(m).zip(v).zip(gradient) {
            let g = gradient * scale;
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
        let step =
            AdamWStep { learning_rate: 0.1, weight_decay: 0.0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, time: 1 };
        let [parameter, first, second] = [1.0, 0.0, 0.0].map(tensor);
        let (held, before) = (second.clone(), [&parameter, &first, &second].map(place));
        let gradient = tensor(2.0);
        let kept = gradient.clone();
        let inputs = [parameter, gradient, first, second].map(|tensor| Many(vec![tensor]));
        let scale = Primitive::from_data(TensorData::new(vec![1f32], [1]));
        let [Many(p), Many(m), Many(v)] = Flex::try_steps(inputs, &scale, &[step]).unwrap();
        let [parameter, first, second] = [&p[0], &m[0], &v[0]];
        assert_eq!([parameter, first].map(place), before[..2]);
        assert_ne!(place(second), before[2], "somebody else has the old moments");
        assert!(held.storage::<f32>().iter().all(|value| *value == 0.0));
        assert!(kept.storage::<f32>().iter().all(|value| *value == 2.0));
        assert!((parameter.storage::<f32>()[39_999] - 0.9).abs() < 1e-6);
    }
}
