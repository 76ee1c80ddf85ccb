//! Matrix products: Burn's on the CPU, and on a GPU those of this crate, of which none is tried out.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use super::fused_always;
use super::tape::record;

/// `lhs rhs`, as Burn's `matmul` gives it. On a GPU, `f32` is multiplied as [`MatmulPrecision`](crate::MatmulPrecision)
/// says, exactly if nobody has said anything, and floats of 16 bits are summed in `f32`. No kernel is tried out there,
/// and few are compiled; Burn's own `matmul` promises none of that.
///
/// # Shapes
/// `lhs [.., m, k]` and `rhs [.., k, n]`, with the same sizes before, give `[.., m, n]`.
///
/// # Panics
/// If the shapes do not fit.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use sideburn_kernels::matmul;
///
/// let device = Device::flex();
/// let lhs = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device);
/// let rhs = Tensor::<2>::from_data([[10.0], [1.0]], &device);
/// matmul(lhs, rhs).into_data().assert_eq(&[[12.0f32], [34.0]].into(), true);
/// ```
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    let (left, right) = (lhs.dims(), rhs.dims());
    let fit = D >= 2 && left[..D - 2] == right[..D - 2] && left[D - 1] == right[D - 2];
    assert!(fit, "lhs [.., m, k] and rhs [.., k, n] must fit: {left:?} and {right:?} do not");
    Tensor::from_dispatch(Dispatch::product(lhs.into_dispatch(), rhs.into_dispatch(), 1.0))
}

/// Products on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait MatmulOps: Backend {
    /// `scale * lhs rhs`.
    #[fusion(dtype = lhs, shape = product_shape(lhs, rhs))]
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        composed::<Self>([lhs, rhs], scale)
    }

    /// `onto + lhs rhs`, in the place of `onto` if nothing else holds it.
    #[fusion(dtype = onto, shape = onto)]
    fn product_onto(onto: FloatTensor<Self>, lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        composed_onto::<Self>([onto, lhs, rhs])
    }
}

/// Of `lhs [.., m, k]` and `rhs [.., k, n]`.
#[cfg(feature = "gpu")]
fn product_shape(lhs: &burn::tensor::Shape, rhs: &burn::tensor::Shape) -> burn::tensor::Shape {
    let (mut shape, last) = (lhs.clone(), lhs.num_dims() - 1);
    shape[last] = rhs[last];
    shape
}

/// [`MatmulOps`] by kernels.
pub(crate) trait MatmulKernels: Backend {
    fn try_product(inputs: [FloatTensor<Self>; 2], _: f64) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }

    fn try_product_onto(inputs: [FloatTensor<Self>; 3]) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 3]> {
        Err(inputs)
    }
}

/// A product is no less of a primitive than Burn's, and is not composed of anything: the mode does not matter.
impl<B: MatmulKernels> MatmulOps for B {
    fn product(lhs: FloatTensor<B>, rhs: FloatTensor<B>, scale: f64) -> FloatTensor<B> {
        fused_always("product", [lhs, rhs], |x| B::try_product(x, scale), |x| composed::<B>(x, scale))
    }

    fn product_onto(onto: FloatTensor<B>, lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
        fused_always("product_onto", [onto, lhs, rhs], B::try_product_onto, composed_onto::<B>)
    }
}

fn composed<B: Backend>([lhs, rhs]: [FloatTensor<B>; 2], scale: f64) -> FloatTensor<B> {
    let product = B::float_matmul(lhs, rhs);
    if scale == 1.0 { product } else { B::float_mul_scalar(product, scale.into()) }
}

fn composed_onto<B: MatmulOps>([onto, lhs, rhs]: [FloatTensor<B>; 3]) -> FloatTensor<B> {
    B::float_add(onto, B::product(lhs, rhs, 1.0))
}

/// `lhs rhs`.
pub(crate) fn product<B: MatmulOps>(lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
    B::product(lhs, rhs, 1.0)
}

/// `x weight^T`.
pub(crate) fn product_with_transposed<B: MatmulOps>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    product::<B>(x, transposed::<B>(weight))
}

/// The last two dimensions exchanged.
pub(crate) fn transposed<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dims = x.shape().num_dims();
    B::float_swap_dims(x, dims - 2, dims - 1)
}

impl<B: MatmulOps, C: CheckpointStrategy> MatmulOps for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        // Each is kept for the gradient of the other.
        let keeps = [rhs.is_tracked(), lhs.is_tracked()];
        record::<B, C, _, 2>(
            [lhs, rhs],
            |[lhs, rhs]| {
                let kept = [keeps[0].then(|| lhs.clone()), keeps[1].then(|| rhs.clone())];
                (B::product(lhs, rhs, scale), (kept, scale))
            },
            |([lhs, rhs], scale), gradient, _| {
                let of_lhs = rhs.map(|rhs| B::product(gradient.clone(), transposed::<B>(rhs), scale));
                let of_rhs = lhs.map(|lhs| B::product(transposed::<B>(lhs), gradient, scale));
                [of_lhs, of_rhs]
            },
        )
    }
}
