//! Dropout whose mask is a function of a key.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};
use sideburn_batch::Dropout;

/// Drops elements of `x`, if there is dropout. Which ones is a function of its key and their places alone, on any device,
/// and is worked out again in the backward pass.
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
        Self::float_add(residual, drop::<Self>(x, Some(dropout)))
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
pub(crate) fn composed<B: Backend>(x: FloatTensor<B>, dropout: Dropout) -> FloatTensor<B> {
    let mut factors = vec![0f32; x.shape().num_elements()];
    dropout.factors(0, &mut factors);
    let factors = B::float_from_data(TensorData::new(factors, x.shape()), &x.device());
    let kept = B::float_sign(B::float_cast(factors, x.dtype().into()));
    B::float_mul_scalar(B::float_mul(x, kept), dropout.scale().into())
}

impl<B: DropoutOps, C: CheckpointStrategy> DropoutOps for Autodiff<B, C> {
    fn keyed_dropout(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct KeyedDropout;
        impl<B: DropoutOps> Backward<B, 1> for KeyedDropout {
            type State = Dropout;
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let dropout = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |gradient| B::keyed_dropout(gradient, dropout));
            }
        }

        let (x, node) = x.into_parts();
        let output = B::keyed_dropout(x, dropout);
        match Backward::<B, 1>::prepare::<C>(KeyedDropout, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dropout, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn add_dropout(residual: FloatTensor<Self>, x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct AddDropout;
        impl<B: DropoutOps> Backward<B, 2> for AddDropout {
            type State = Dropout;
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_residual, node_x] = ops.parents;
                if let Some(node) = node_x {
                    grads.register::<B>(node.id, B::keyed_dropout(gradient.clone(), ops.state));
                }
                if let Some(node) = node_residual {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }

        let ((residual, node_residual), (x, node_x)) = (residual.into_parts(), x.into_parts());
        let output = B::add_dropout(residual, x, dropout);
        match Backward::<B, 2>::prepare::<C>(AddDropout, [node_residual, node_x]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dropout, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}
