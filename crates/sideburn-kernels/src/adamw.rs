//! The optimiser's arithmetic: one pass over memory for an update, and one for a norm.
//!
//! It works on tensors outside of autodiff, so that it stands beside [`FusedOps`](crate::ops::FusedOps) and not in it.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Shape, Tensor};

/// The numbers of one update by AdamW (Loshchilov and Hutter, 2019, algorithm 2, with the learning rate inside the decay
/// as `torch.optim.AdamW` has it).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// The learning rate of this update.
    pub learning_rate: f64,
    /// Decoupled weight decay; the weights lose `learning_rate * weight_decay` of themselves.
    pub weight_decay: f64,
    /// The decay of the first moment.
    pub beta1: f64,
    /// The decay of the second moment.
    pub beta2: f64,
    /// What is added to the root of the second moment.
    pub epsilon: f64,
    /// Which update of the parameter it is, from 1: the moments are biased towards zero by `1 - beta^time`.
    pub time: u32,
    /// What the gradient is multiplied by, which leaves the gradient itself as it is: clipping needs no pass of its own.
    pub gradient_scale: f64,
}

/// What an update multiplies and adds, in `f32`.
#[derive(Clone, Copy)]
struct Coefficients {
    scale: f32,
    keep: f32,
    rate: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    /// `1 / (1 - beta1^time)`
    unbias1: f32,
    /// `1 / sqrt(1 - beta2^time)`
    unbias2: f32,
    epsilon: f32,
}

impl AdamWStep {
    fn coefficients(&self) -> Coefficients {
        let time = f64::from(self.time);
        Coefficients {
            scale: self.gradient_scale as f32,
            keep: self.keep() as f32,
            rate: self.learning_rate as f32,
            beta1: self.beta1 as f32,
            rest1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            rest2: (1.0 - self.beta2) as f32,
            unbias1: (1.0 / (1.0 - self.beta1.powf(time))) as f32,
            unbias2: (1.0 / (1.0 - self.beta2.powf(time)).sqrt()) as f32,
            epsilon: self.epsilon as f32,
        }
    }

    /// What decay leaves of a weight.
    fn keep(&self) -> f64 {
        1.0 - self.learning_rate * self.weight_decay
    }
}

/// Updates a parameter and its moments by AdamW:
///
/// ```text
/// g = gradient_scale * gradient
/// m = beta1 * m + (1 - beta1) * g
/// v = beta2 * v + (1 - beta2) * g^2
/// p = (1 - learning_rate * weight_decay) * p - learning_rate * m' / (sqrt(v') + epsilon)
///     with m' = m / (1 - beta1^time), v' = v / (1 - beta2^time)
/// ```
///
/// Returns `[p, m, v]`. On [`Device::flex`](burn::tensor::Device::flex), in `f32`, it is one pass over memory, and what
/// nothing else holds is overwritten in place.
///
/// # Panics
/// If the shapes differ, or a tensor is tracked by autodiff: take its `inner`.
pub fn adamw_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: [Tensor<D>; 2],
    step: &AdamWStep,
) -> [Tensor<D>; 3] {
    let [first, second] = moments;
    for other in [&gradient, &first, &second] {
        assert_eq!(other.dims(), parameter.dims(), "a parameter, its gradient and its moments must have one shape");
    }
    let (parameter, first, second) = Dispatch::adamw_step(
        parameter.into_dispatch(),
        gradient.into_dispatch(),
        first.into_dispatch(),
        second.into_dispatch(),
        *step,
    );
    [parameter, first, second].map(Tensor::from_dispatch)
}

/// The parameter before the last [`adamw_step`], worked out from the one after it and the moments that it left:
/// `(p + learning_rate * m' / (sqrt(v') + epsilon)) / (1 - learning_rate * weight_decay)`.
///
/// It is exact but for rounding: an element is off by a few units in the last place of itself or of its update, whichever
/// is larger. What an update has made infinite stays so.
pub fn adamw_undo<const D: usize>(parameter: Tensor<D>, moments: [Tensor<D>; 2], step: &AdamWStep) -> Tensor<D> {
    let ([first, second], k) = (moments, step.coefficients());
    let root = second.sqrt().mul_scalar(k.unbias2).add_scalar(k.epsilon);
    let update = first.mul_scalar(k.unbias1).div(root).mul_scalar(k.rate);
    (parameter + update).div_scalar(k.keep)
}

/// The sum of the squares of all elements, `[1]`.
///
/// On [`Device::flex`](burn::tensor::Device::flex), in `f32`, it is summed in `f64` in an order that does not depend on
/// the number of threads.
///
/// # Panics
/// If the tensor is tracked by autodiff: take its `inner`.
pub fn square_sum<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::square_sum(x.into_dispatch()))
}

/// The operations on backend primitives; a default body is composed of the backend's own.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub(crate) trait OptimizerOps: Backend {
    /// Parameter and moments after the update.
    #[fusion(default)]
    fn adamw_step(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed_step::<Self>(parameter, gradient, [first, second], &step)
    }

    /// The sum of squares, `[1]`.
    #[fusion(default)]
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed_square_sum::<Self>(x)
    }
}

#[cfg(feature = "gpu")]
impl OptimizerOps for burn_cubecl::CubeBackend {}

fn composed_step<B: Backend>(
    parameter: FloatTensor<B>,
    gradient: FloatTensor<B>,
    [first, second]: [FloatTensor<B>; 2],
    step: &AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let time = f64::from(step.time);
    let scaled = |x: FloatTensor<B>, factor: f64| B::float_mul_scalar(x, factor.into());
    let gradient = scaled(gradient, step.gradient_scale);
    let first = B::float_add(scaled(first, step.beta1), scaled(gradient.clone(), 1.0 - step.beta1));
    let square = B::float_mul(gradient.clone(), gradient);
    let second = B::float_add(scaled(second, step.beta2), scaled(square, 1.0 - step.beta2));
    let unbiased = scaled(first.clone(), 1.0 / (1.0 - step.beta1.powf(time)));
    let root = scaled(B::float_sqrt(second.clone()), 1.0 / (1.0 - step.beta2.powf(time)).sqrt());
    let update = B::float_div(unbiased, B::float_add_scalar(root, step.epsilon.into()));
    let parameter = B::float_sub(scaled(parameter, step.keep()), scaled(update, step.learning_rate));
    (parameter, first, second)
}

fn composed_square_sum<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let narrow = matches!(FloatDType::from(x.dtype()), FloatDType::F16 | FloatDType::BF16);
    let x = if narrow { B::float_cast(x, FloatDType::F32) } else { x };
    B::float_reshape(B::float_sum(B::float_mul(x.clone(), x)), Shape::new([1]))
}

#[cfg(feature = "flex")]
mod flex {
    use std::ops::Range;

    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Flex, TensorMetadata};
    use burn::tensor::{DType, TensorData};
    use rayon::prelude::*;

    use super::{AdamWStep, Coefficients, OptimizerOps, composed_square_sum, composed_step};

    type Primitive = FloatTensor<Flex>;

    /// Elements that one task works on.
    const TASK: usize = 16 * 1024;
    /// Rows of a transposed gradient that are gathered at once: in a second-level cache there is room for them, and of
    /// each column there are several cache lines.
    const BAND: usize = 64;
    /// Columns of it that are read side by side: as many `f32` as a cache line has.
    const LINE: usize = 16;
    /// Accumulators of a sum: a fixed order whatever the machine, and vectorised.
    const LANES: usize = 8;

    impl OptimizerOps for Flex {
        fn adamw_step(
            parameter: Primitive,
            gradient: Primitive,
            first: Primitive,
            second: Primitive,
            step: AdamWStep,
        ) -> (Primitive, Primitive, Primitive) {
            if [&parameter, &gradient, &first, &second].iter().any(|tensor| tensor.dtype() != DType::F32) {
                return composed_step::<Flex>(parameter, gradient, [first, second], &step);
            }
            let [mut parameter, mut first, mut second] = [parameter, first, second].map(overwritable);
            let (tensors, k) = ([&mut parameter, &mut first, &mut second], step.coefficients());
            let [p, m, v] = tensors.map(|tensor| tensor.storage_mut::<f32>());
            match transposed(&gradient) {
                Some((gradient, rows, columns)) => update_transposed([p, m, v], (gradient, rows, columns), k),
                None => {
                    let gradient = if gradient.is_contiguous() { gradient } else { gradient.to_contiguous() };
                    let gradient = gradient.as_slice::<f32>().expect("a contiguous f32 tensor");
                    let tasks = p.par_chunks_mut(TASK).zip(m.par_chunks_mut(TASK)).zip(v.par_chunks_mut(TASK));
                    let tasks = tasks.zip(gradient.par_chunks(TASK));
                    tasks.for_each(|(((p, m), v), gradient)| update([p, m, v], gradient, k));
                }
            }
            (parameter, first, second)
        }

        fn square_sum(x: Primitive) -> Primitive {
            if x.dtype() != DType::F32 {
                return composed_square_sum::<Flex>(x);
            }
            // In the order of memory, so that a transposed tensor need not be copied.
            let copy = (transposed(&x).is_none() && !x.is_contiguous()).then(|| x.to_contiguous());
            let x = copy.as_ref().unwrap_or(&x);
            let values = transposed(x).map_or_else(|| x.as_slice().expect("contiguous f32"), |(values, ..)| values);
            let of_tasks: Vec<f64> = values.par_chunks(TASK).map(squares).collect();
            Primitive::from_data(TensorData::new(vec![of_tasks.into_iter().sum::<f64>() as f32], [1]))
        }
    }

    /// The tensor in row-major order with storage of its own size. Writing to it copies what others hold too.
    fn overwritable(x: Primitive) -> Primitive {
        if x.as_slice::<f32>().is_some_and(|values| values.len() == x.storage::<f32>().len()) {
            return x;
        }
        let x = x.to_contiguous();
        let values = x.as_slice::<f32>().expect("a contiguous f32 tensor");
        match values.len() == x.storage::<f32>().len() {
            true => x,
            false => Primitive::from_data(TensorData::new(values.to_vec(), x.shape())),
        }
    }

    /// The storage, rows and columns of a matrix whose columns are contiguous, one behind the other: what the product
    /// gives as the gradient of a weight `[out, in]`, since it multiplies by the transpose.
    fn transposed(x: &Primitive) -> Option<(&[f32], usize, usize)> {
        let layout = x.layout();
        let [rows, columns] = *layout.shape().as_slice() else { return None };
        let is_transposed = !x.is_contiguous() && *layout.strides() == [1, rows as isize];
        is_transposed.then(|| (&x.storage()[layout.start_offset()..][..rows * columns], rows, columns))
    }

    fn update_transposed(tensors: [&mut [f32]; 3], (gradient, rows, columns): (&[f32], usize, usize), k: Coefficients) {
        // Longer than a row, so that rows of a power of two do not all go into the same few places of a cache.
        let stride = columns.next_multiple_of(LINE) + LINE;
        let [p, m, v] = tensors.map(|tensor| tensor.par_chunks_mut(BAND * columns));
        p.zip(m).zip(v).enumerate().for_each_init(
            || vec![0f32; BAND * stride],
            |band, (task, ((p, m), v))| {
                let range = task * BAND..task * BAND + p.len() / columns;
                for (block, gradient) in gradient.chunks(LINE * rows).enumerate() {
                    gather(gradient, rows, range.clone(), band[block * LINE..].chunks_mut(stride));
                }
                let tensors =
                    p.chunks_exact_mut(columns).zip(m.chunks_exact_mut(columns)).zip(v.chunks_exact_mut(columns));
                for (((p, m), v), gradient) in tensors.zip(band.chunks_exact(stride)) {
                    update([p, m, v], &gradient[..columns], k);
                }
            },
        );
    }

    /// Puts a range of the rows of at most [`LINE`] columns, each of `rows` elements, into rows.
    fn gather<'a>(columns: &[f32], rows: usize, range: Range<usize>, out: impl Iterator<Item = &'a mut [f32]>) {
        let mut columns = columns.chunks_exact(rows).map(|column| &column[range.clone()]);
        if columns.len() == LINE {
            let columns: [&[f32]; LINE] = std::array::from_fn(|_| columns.next().expect("as many as were counted"));
            for (row, out) in (0..range.len()).zip(out) {
                out[..LINE].copy_from_slice(&columns.map(|column| column[row]));
            }
        } else {
            let columns: Vec<&[f32]> = columns.collect();
            for (row, out) in (0..range.len()).zip(out) {
                columns.iter().zip(out).for_each(|(column, out)| *out = column[row]);
            }
        }
    }

    /// One task: a loop without branches or calls, which vectorises.
    fn update([p, m, v]: [&mut [f32]; 3], gradient: &[f32], k: Coefficients) {
        for (((p, m), v), gradient) in p.iter_mut().zip(m).zip(v).zip(gradient) {
            let g = gradient * k.scale;
            *m = *m * k.beta1 + g * k.rest1;
            *v = *v * k.beta2 + g * g * k.rest2;
            *p = *p * k.keep - k.rate * (*m * k.unbias1 / (v.sqrt() * k.unbias2 + k.epsilon));
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
}
