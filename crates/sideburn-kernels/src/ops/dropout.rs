//! Dropout whose mask is a function of a key.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
use sideburn_batch::Key;

/// Zeroes each element of `x` with `probability` and scales the others by `1 / (1 - probability)` (Srivastava et al.,
/// 2014). Which elements is a function of `key` alone, on any device, and is worked out again in the backward pass.
///
/// # Panics
/// If `probability` is not in `[0, 1)`.
pub fn dropout<const D: usize>(x: Tensor<D>, probability: f64, key: Key) -> Tensor<D> {
    assert_probability(probability);
    if probability == 0.0 {
        return x;
    }
    Tensor::from_dispatch(Dispatch::keyed_dropout(x.into_dispatch(), probability, key))
}

/// `residual + dropout(x)`: what goes past a layer, and what comes out of it.
///
/// # Panics
/// If the shapes differ, or `dropout` holds a probability outside `[0, 1)`.
pub fn add_dropout<const D: usize>(residual: Tensor<D>, x: Tensor<D>, dropout: Option<(f64, Key)>) -> Tensor<D> {
    assert_eq!(residual.dims(), x.dims(), "what is added must have one shape");
    let Some((probability, key)) = dropout else { return residual + x };
    assert_probability(probability);
    Tensor::from_dispatch(Dispatch::add_dropout(residual.into_dispatch(), x.into_dispatch(), probability, key))
}

/// What an operation with dropout inside works with: a probability of zero, and any key, where there is none.
pub(crate) fn probability_and_key(dropout: Option<(f64, Key)>) -> (f64, Key) {
    let (probability, key) = dropout.unwrap_or((0.0, Key::from_seed(0)));
    assert_probability(probability);
    (probability, key)
}

fn assert_probability(probability: f64) {
    assert!((0.0..1.0).contains(&probability), "a dropout probability lies in [0, 1), not at {probability}");
}

/// Dropout on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait DropoutOps: Backend {
    /// See [`dropout`]. Its own adjoint.
    #[fusion(dtype = x, shape = x)]
    fn keyed_dropout(x: FloatTensor<Self>, probability: f64, key: Key) -> FloatTensor<Self>;

    /// See [`add_dropout`].
    #[fusion(dtype = x, shape = x)]
    fn add_dropout(residual: FloatTensor<Self>, x: FloatTensor<Self>, probability: f64, key: Key) -> FloatTensor<Self> {
        Self::float_add(residual, drop::<Self>(x, probability, key))
    }
}

/// [`DropoutOps::keyed_dropout`], or nothing at a probability of zero.
pub(crate) fn drop<B: DropoutOps>(x: FloatTensor<B>, probability: f64, key: Key) -> FloatTensor<B> {
    if probability > 0.0 { B::keyed_dropout(x, probability, key) } else { x }
}

impl<B: DropoutOps, C: CheckpointStrategy> DropoutOps for Autodiff<B, C> {
    fn keyed_dropout(x: FloatTensor<Self>, probability: f64, key: Key) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Dropout;
        impl<B: DropoutOps> Backward<B, 1> for Dropout {
            type State = (f64, Key);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (probability, key) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |gradient| B::keyed_dropout(gradient, probability, key));
            }
        }

        let (x, node) = x.into_parts();
        let output = B::keyed_dropout(x, probability, key);
        match Backward::<B, 1>::prepare::<C>(Dropout, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((probability, key), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn add_dropout(residual: FloatTensor<Self>, x: FloatTensor<Self>, probability: f64, key: Key) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct AddDropout;
        impl<B: DropoutOps> Backward<B, 2> for AddDropout {
            type State = (f64, Key);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_residual, node_x] = ops.parents;
                let (probability, key) = ops.state;
                if let Some(node) = node_x {
                    grads.register::<B>(node.id, drop::<B>(gradient.clone(), probability, key));
                }
                if let Some(node) = node_residual {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }

        let ((residual, node_residual), (x, node_x)) = (residual.into_parts(), x.into_parts());
        let output = B::add_dropout(residual, x, probability, key);
        match Backward::<B, 2>::prepare::<C>(AddDropout, [node_residual, node_x]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((probability, key), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}
