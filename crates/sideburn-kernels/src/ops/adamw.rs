//! The optimiser's arithmetic: one pass over the memory of all parameters for an update, and one for a norm, on tensors
//! outside of autodiff.

#[cfg(feature = "gpu")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension, get_or_init_device_settings};
use burn::tensor::{DType, FloatDType, Shape, Tensor};

use super::fused_always;
use super::many::{AnyRank, Many};

/// The numbers of one update by AdamW (Loshchilov and Hutter, 2019, algorithm 2, with the learning rate inside the
/// decay as `torch.optim.AdamW` has it).
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
}

/// What an update multiplies and adds, in `f32`.
#[derive(Clone, Copy)]
pub(crate) struct Coefficients {
    pub(crate) keep: f32,
    pub(crate) rate: f32,
    pub(crate) beta1: f32,
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
    /// `1 / (1 - beta1^time)`
    pub(crate) unbias1: f32,
    /// `1 / sqrt(1 - beta2^time)`
    pub(crate) unbias2: f32,
    pub(crate) epsilon: f32,
}

impl AdamWStep {
    pub(crate) fn coefficients(&self) -> Coefficients {
        let time = f64::from(self.time);
        Coefficients {
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

/// What an update takes.
#[derive(Clone, Debug)]
pub struct AdamWUpdate {
    /// The parameter.
    pub parameter: AnyRank,
    /// Its gradient, which stays as it is.
    pub gradient: AnyRank,
    /// Its first and second moment.
    pub moments: [AnyRank; 2],
    /// The numbers.
    pub step: AdamWStep,
}

/// Updates parameters and their moments by AdamW:
///
/// ```text
/// g = scale * gradient
/// m = beta1 * m + (1 - beta1) * g
/// v = beta2 * v + (1 - beta2) * g^2
/// p = (1 - learning_rate * weight_decay) * p - learning_rate * m' / (sqrt(v') + epsilon)
///     with m' = m / (1 - beta1^time), v' = v / (1 - beta2^time)
/// ```
///
/// `scale`, `[1]`, lies on the device, so that clipping needs neither a pass over the gradients nor the host. **At a
/// scale of zero or less nothing is changed**: set it to 0, on the device, where a gradient is not finite. Gradients
/// stay as they are.
///
/// Returns `[p, m, v]` of each. On [`Device::flex`](burn::tensor::Device::flex), in `f32`, it is one pass over the
/// memory of all of them, shared out to all threads at once. A tensor that nothing else holds is overwritten in place.
///
/// # Panics
/// If the shapes of an update differ, or a tensor is tracked by autodiff: take its `inner`.
pub fn adamw_steps(updates: Vec<AdamWUpdate>, scale: Tensor<1>) -> Vec<[AnyRank; 3]> {
    assert_eq!(scale.dims(), [1], "all gradients have one scale");
    if updates.is_empty() {
        return Vec::new();
    }
    let parts = updates.into_iter().map(|AdamWUpdate { parameter, gradient, moments: [first, second], step }| {
        for other in [&gradient, &first, &second] {
            let (shape, other) = (parameter.shape(), other.shape());
            assert_eq!(other, shape, "a parameter, its gradient and its moments must have one shape");
        }
        ([parameter, gradient, first, second], step)
    });
    let (tensors, steps): (Vec<_>, _) = parts.unzip();
    let [parameters, gradients, firsts, seconds] = Many::columns(tensors);
    let scale = scale.into_dispatch();
    let (parameters, firsts, seconds) = Dispatch::adamw_steps(parameters, gradients, firsts, seconds, scale, steps);
    parameters.into_iter().zip(firsts).zip(seconds).map(|((p, m), v)| [p, m, v]).collect()
}

/// [`adamw_steps`] of one parameter.
///
/// # Panics
/// As `adamw_steps`.
pub fn adamw_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: [Tensor<D>; 2],
    scale: Tensor<1>,
    step: &AdamWStep,
) -> [Tensor<D>; 3] {
    let moments = moments.map(AnyRank::from);
    let update = AdamWUpdate { parameter: parameter.into(), gradient: gradient.into(), moments, step: *step };
    adamw_steps(vec![update], scale).remove(0).map(AnyRank::into_tensor)
}

/// The parameter before the last [`adamw_step`], worked out from the one after it and the moments that it left:
/// `(p + learning_rate * m' / (sqrt(v') + epsilon)) / (1 - learning_rate * weight_decay)`.
///
/// It is exact but for rounding: an element is off by a few units in the last place of itself or of its update,
/// whichever is larger. An element that the update made infinite stays infinite.
pub fn adamw_undo<const D: usize>(parameter: Tensor<D>, moments: [Tensor<D>; 2], step: &AdamWStep) -> Tensor<D> {
    let ([first, second], k) = (moments, step.coefficients());
    let root = second.sqrt().mul_scalar(k.unbias2).add_scalar(k.epsilon);
    let update = first.mul_scalar(k.unbias1).div(root).mul_scalar(k.rate);
    (parameter + update).div_scalar(k.keep)
}

/// The Euclidean norm of all elements of all tensors together, `[1]`: `torch.nn.utils.get_total_norm`. It is on the
/// device, which is not waited for.
///
/// On [`Device::flex`](burn::tensor::Device::flex), in `f32`, it is one pass over all of them, summed in `f64` in an
/// order that does not depend on the number of threads.
///
/// # Panics
/// If there is no tensor, or one is tracked by autodiff: take its `inner`.
pub fn norm(tensors: impl IntoIterator<Item = AnyRank>) -> Tensor<1> {
    let tensors: Many<Dispatch> = tensors.into_iter().collect();
    assert!(!tensors.0.is_empty(), "a norm of no tensors has no device to be on");
    Tensor::from_dispatch(Dispatch::norm(tensors))
}

/// The operations on backend primitives; a default body is composed of the backend's own.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub(crate) trait OptimizerOps: Backend {
    /// Parameters and moments after their updates.
    #[fusion(meta = |p, _gradients, m, v, _scale, _steps| (p.clone(), m.clone(), v.clone()))]
    fn adamw_steps(
        #[extension_type] parameters: Many<Self>,
        #[extension_type] gradients: Many<Self>,
        #[extension_type] firsts: Many<Self>,
        #[extension_type] seconds: Many<Self>,
        scale: FloatTensor<Self>,
        steps: Vec<AdamWStep>,
    ) -> (Many<Self>, Many<Self>, Many<Self>) {
        one_by_one::<Self>([parameters, gradients, firsts, seconds], &scale, &steps).into()
    }

    /// See [`norm`].
    #[fusion(meta = |tensors| TensorSpec::new(Shape::new([1]), sum_dtype(tensors[0].dtype)))]
    fn norm(#[extension_type] tensors: Many<Self>) -> FloatTensor<Self> {
        composed_norm::<Self>(tensors)
    }
}

/// [`OptimizerOps`] by kernels, which run in both modes: a norm must not depend on the number of threads, as Burn's sum
/// does.
pub(crate) trait OptimizerKernels: Backend {
    /// Of parameters, gradients, first and second moments: all but the gradients after their updates.
    fn try_steps(
        inputs: [Many<Self>; 4],
        _scale: &FloatTensor<Self>,
        _steps: &[AdamWStep],
    ) -> Result<[Many<Self>; 3], [Many<Self>; 4]> {
        Err(inputs)
    }

    fn try_norm(tensors: Many<Self>) -> Result<FloatTensor<Self>, Many<Self>> {
        Err(tensors)
    }
}

impl<B: OptimizerKernels> OptimizerOps for B {
    fn adamw_steps(
        parameters: Many<B>,
        gradients: Many<B>,
        firsts: Many<B>,
        seconds: Many<B>,
        scale: FloatTensor<B>,
        steps: Vec<AdamWStep>,
    ) -> (Many<B>, Many<B>, Many<B>) {
        fused_always(
            "adamw_steps",
            [parameters, gradients, firsts, seconds],
            |inputs| B::try_steps(inputs, &scale, &steps),
            |inputs| one_by_one::<B>(inputs, &scale, &steps),
        )
        .into()
    }

    fn norm(tensors: Many<B>) -> FloatTensor<B> {
        fused_always("norm", tensors, B::try_norm, composed_norm::<B>)
    }
}

fn one_by_one<B: Backend>(
    [parameters, gradients, firsts, seconds]: [Many<B>; 4],
    scale: &FloatTensor<B>,
    steps: &[AdamWStep],
) -> [Many<B>; 3] {
    let moments = firsts.0.into_iter().zip(seconds.0);
    let updates = parameters.0.into_iter().zip(gradients.0).zip(moments).zip(steps);
    let updated = updates.map(|(((parameter, gradient), (first, second)), step)| {
        let [p, m, v] = composed_step::<B>([parameter, gradient, first, second], scale.clone(), step);
        (p, (m, v))
    });
    let (parameters, (firsts, seconds)) = updated.unzip();
    [parameters, firsts, seconds].map(Many)
}

/// What sums and losses of numbers in `dtype` are in: not in 16 bits.
pub(crate) fn sum_dtype(dtype: DType) -> DType {
    if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype }
}

pub(crate) fn composed_step<B: Backend>(
    [parameter, gradient, first, second]: [FloatTensor<B>; 4],
    scale: FloatTensor<B>,
    step: &AdamWStep,
) -> [FloatTensor<B>; 3] {
    let shape = parameter.shape();
    let scale = in_dtype::<B>(scale, parameter.dtype());
    let scale = B::float_reshape(scale, Shape::from(vec![1; shape.num_dims()]));
    let bools = get_or_init_device_settings::<B>(&scale.device()).bool_dtype;
    let stays = B::bool_not(B::float_greater_elem(scale.clone(), 0.0.into(), bools));
    let stays = B::bool_expand(stays, shape);
    let unless_it_stays = |new, old| B::float_mask_where(new, stays.clone(), old);

    let time = f64::from(step.time);
    let scaled = |x: FloatTensor<B>, factor: f64| B::float_mul_scalar(x, factor.into());
    let gradient = B::float_mul(gradient, scale);
    let new_first = B::float_add(scaled(first.clone(), step.beta1), scaled(gradient.clone(), 1.0 - step.beta1));
    let square = B::float_mul(gradient.clone(), gradient);
    let new_second = B::float_add(scaled(second.clone(), step.beta2), scaled(square, 1.0 - step.beta2));
    let unbiased = scaled(new_first.clone(), 1.0 / (1.0 - step.beta1.powf(time)));
    let root = scaled(B::float_sqrt(new_second.clone()), 1.0 / (1.0 - step.beta2.powf(time)).sqrt());
    let update = B::float_div(unbiased, B::float_add_scalar(root, step.epsilon.into()));
    let new = B::float_sub(scaled(parameter.clone(), step.keep()), scaled(update, step.learning_rate));
    [unless_it_stays(new, parameter), unless_it_stays(new_first, first), unless_it_stays(new_second, second)]
}

fn composed_norm<B: Backend>(tensors: Many<B>) -> FloatTensor<B> {
    let squares = B::float_cat(tensors.0.into_iter().map(composed_square_sum::<B>).collect(), 0);
    B::float_sqrt(B::float_reshape(B::float_sum(squares), Shape::new([1])))
}

fn composed_square_sum<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = sum_dtype(x.dtype());
    let x = in_dtype::<B>(x, dtype);
    B::float_reshape(B::float_sum(B::float_mul(x.clone(), x)), Shape::new([1]))
}

pub(crate) fn in_dtype<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if dtype == x.dtype() { x } else { B::float_cast(x, FloatDType::from(dtype)) }
}
