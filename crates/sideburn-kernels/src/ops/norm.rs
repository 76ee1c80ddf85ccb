//! Root-mean-square normalisation.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor};

use super::fused;
use super::tape::record;

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension: layer normalisation without mean and bias (Zhang
/// and Sennrich, 2019), `T5LayerNorm` of `transformers`. Sums are taken in `f32` or wider.
///
/// # Shapes
/// `x [n, d]`, `weight [d]` give `[n, d]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[0], "x [n, d] and weight [d] must fit");
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon))
}

/// The norm on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait NormOps: Backend {
    /// See [`rms_norm`].
    #[fusion(dtype = x, shape = x)]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        composed::<Self>([x, weight], epsilon)
    }

    /// Its gradient with respect to `x`.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm_backward_x(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        composed_backward_x::<Self>([x, weight, gradient], epsilon)
    }

    /// Its gradient with respect to `weight`.
    #[fusion(dtype = x, shape = Shape::from([x[1]]))]
    fn rms_norm_backward_weight(x: FloatTensor<Self>, gradient: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        composed_backward_weight::<Self>([x, gradient], epsilon)
    }
}

/// [`NormOps`] by kernels: of `x` and `weight`; of `x`, `weight` and the gradient; of `x` and the gradient.
pub(crate) trait NormKernels: Backend {
    fn try_rms_norm(inputs: [FloatTensor<Self>; 2], _: f64) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }

    fn try_backward_x(inputs: [FloatTensor<Self>; 3], _: f64) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 3]> {
        Err(inputs)
    }

    fn try_backward_weight(
        inputs: [FloatTensor<Self>; 2],
        _: f64,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }
}

impl<B: NormKernels> NormOps for B {
    fn rms_norm(x: FloatTensor<B>, weight: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
        fused("rms_norm", [x, weight], |x| B::try_rms_norm(x, epsilon), |x| composed::<B>(x, epsilon))
    }

    fn rms_norm_backward_x(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        gradient: FloatTensor<B>,
        epsilon: f64,
    ) -> FloatTensor<B> {
        let inputs = [x, weight, gradient];
        fused(
            "rms_norm_backward_x",
            inputs,
            |x| B::try_backward_x(x, epsilon),
            |x| composed_backward_x::<B>(x, epsilon),
        )
    }

    fn rms_norm_backward_weight(x: FloatTensor<B>, gradient: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
        let inputs = [x, gradient];
        fused(
            "rms_norm_backward_weight",
            inputs,
            |x| B::try_backward_weight(x, epsilon),
            |x| composed_backward_weight::<B>(x, epsilon),
        )
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)`, with the last dimension kept at size 1.
fn inverse_rms<B: Backend>(x: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x), 1);
    B::float_recip(B::float_sqrt(B::float_add_scalar(mean, epsilon.into())))
}

fn as_row<B: Backend>(weight: FloatTensor<B>) -> FloatTensor<B> {
    let width = weight.shape()[0];
    B::float_reshape(weight, Shape::from([1, width]))
}

fn composed<B: Backend>([x, weight]: [FloatTensor<B>; 2], epsilon: f64) -> FloatTensor<B> {
    let inverse = inverse_rms::<B>(x.clone(), epsilon);
    B::float_mul(B::float_mul(x, inverse), as_row::<B>(weight))
}

/// With `r = 1 / rms(x)` and `g = gradient * weight`: `r g - r^3 x mean(g x)`.
fn composed_backward_x<B: Backend>([x, weight, gradient]: [FloatTensor<B>; 3], epsilon: f64) -> FloatTensor<B> {
    let inverse = inverse_rms::<B>(x.clone(), epsilon);
    let g = B::float_mul(gradient, as_row::<B>(weight));
    let normalised = B::float_mul(x, inverse.clone());
    let mean = B::float_mean_dim(B::float_mul(g.clone(), normalised.clone()), 1);
    B::float_mul(B::float_sub(g, B::float_mul(normalised, mean)), inverse)
}

fn composed_backward_weight<B: Backend>([x, gradient]: [FloatTensor<B>; 2], epsilon: f64) -> FloatTensor<B> {
    let width = x.shape()[1];
    let inverse = inverse_rms::<B>(x.clone(), epsilon);
    let product = B::float_mul(B::float_mul(x, inverse), gradient);
    B::float_reshape(B::float_sum_dim(product, 0), Shape::from([width]))
}

impl<B: NormOps, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        record::<B, C, _, 2>(
            [x, weight],
            |[x, weight]| (B::rms_norm(x.clone(), weight.clone(), epsilon), (x, weight, epsilon)),
            |(x, weight, epsilon), gradient, [of_x, of_weight]| {
                let backward_weight = || B::rms_norm_backward_weight(x.clone(), gradient.clone(), epsilon);
                let of_weight = of_weight.then(backward_weight);
                [of_x.then(|| B::rms_norm_backward_x(x, weight, gradient, epsilon)), of_weight]
            },
        )
    }
}
