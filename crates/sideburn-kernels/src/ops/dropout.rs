//! Dropout whose mask is a function of a key.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};
use sideburn_batch::Dropout;

use super::fused;
use super::tape::record;

/// Drops elements of `x`, if there is dropout. Which ones is a function of its key and their places alone, on any
/// device, and is worked out again in the backward pass.
pub fn dropout<const D: usize>(x: Tensor<D>, dropout: Option<Dropout>) -> Tensor<D> {
    let Some(dropout) = dropout else { return x };
    Tensor::from_dispatch(Dispatch::keyed_dropout(x.into_dispatch(), dropout))
}

/// `residual + dropout(x)`: what goes past a layer, and what comes out of it.
///
/// # Panics
/// If the shapes differ.
pub fn add_dropout<const D: usize>(residual: Tensor<D>, x: Tensor<D>, dropout: Option<Dropout>) -> Tensor<D> {
    assert_eq!(residual.dims(), x.dims(), "what is added must have one shape");
    let Some(dropout) = dropout else { return residual + x };
    Tensor::from_dispatch(Dispatch::add_dropout(residual.into_dispatch(), x.into_dispatch(), dropout))
}

/// Dropout on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait DropoutOps: Backend {
    /// See [`dropout`]. Its own adjoint.
    #[fusion(dtype = x, shape = x)]
    fn keyed_dropout(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        composed::<Self>(x, dropout)
    }

    /// See [`add_dropout`].
    #[fusion(dtype = x, shape = x)]
    fn add_dropout(residual: FloatTensor<Self>, x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        composed_sum::<Self>([residual, x], dropout)
    }
}

/// [`DropoutOps`] by kernels: of `x`; of the residual and `x`.
pub(crate) trait DropoutKernels: Backend {
    fn try_dropout(x: FloatTensor<Self>, _: Dropout) -> Result<FloatTensor<Self>, FloatTensor<Self>> {
        Err(x)
    }

    fn try_add_dropout(
        inputs: [FloatTensor<Self>; 2],
        _: Dropout,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }
}

impl<B: DropoutKernels> DropoutOps for B {
    fn keyed_dropout(x: FloatTensor<B>, dropout: Dropout) -> FloatTensor<B> {
        fused("keyed_dropout", x, |x| B::try_dropout(x, dropout), |x| composed::<B>(x, dropout))
    }

    fn add_dropout(residual: FloatTensor<B>, x: FloatTensor<B>, dropout: Dropout) -> FloatTensor<B> {
        let inputs = [residual, x];
        fused("add_dropout", inputs, |x| B::try_add_dropout(x, dropout), |x| composed_sum::<B>(x, dropout))
    }
}

/// [`DropoutOps::keyed_dropout`], if there is dropout.
pub(crate) fn drop<B: DropoutOps>(x: FloatTensor<B>, dropout: Option<Dropout>) -> FloatTensor<B> {
    match dropout {
        Some(dropout) => B::keyed_dropout(x, dropout),
        None => x,
    }
}

/// The mask is made by the host. The backend's generator is not used: all threads share it.
fn composed<B: Backend>(x: FloatTensor<B>, dropout: Dropout) -> FloatTensor<B> {
    let mut factors = vec![0f32; x.shape().num_elements()];
    dropout.factors(0, &mut factors);
    let factors = B::float_from_data(TensorData::new(factors, x.shape()), &x.device());
    let kept = B::float_sign(B::float_cast(factors, x.dtype().into()));
    B::float_mul_scalar(B::float_mul(x, kept), dropout.scale().into())
}

fn composed_sum<B: DropoutOps>([residual, x]: [FloatTensor<B>; 2], dropout: Dropout) -> FloatTensor<B> {
    B::float_add(residual, B::keyed_dropout(x, dropout))
}

impl<B: DropoutOps, C: CheckpointStrategy> DropoutOps for Autodiff<B, C> {
    fn keyed_dropout(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [x],
            |[x]| (B::keyed_dropout(x, dropout), dropout),
            |dropout, gradient, _| [Some(B::keyed_dropout(gradient, dropout))],
        )
    }

    fn add_dropout(residual: FloatTensor<Self>, x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        record::<B, C, _, 2>(
            [residual, x],
            |[residual, x]| (B::add_dropout(residual, x, dropout), dropout),
            |dropout, gradient, [_, of_x]| {
                let of_x = of_x.then(|| B::keyed_dropout(gradient.clone(), dropout));
                [Some(gradient), of_x]
            },
        )
    }
}
