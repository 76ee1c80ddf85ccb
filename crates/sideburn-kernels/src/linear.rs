//! Linear layers, and the low-rank branch that LoRA adds to them.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
use sideburn_batch::Key;

use crate::dropout::{DropoutOps, drop, probability_and_key};

/// A linear layer without bias, `x W^T`.
///
/// # Shapes
/// `x [n, in]`, `weight [out, in]` (as PyTorch stores it) give `[n, out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[1], "x [n, in] and weight [out, in] must fit");
    Tensor::from_dispatch(Dispatch::linear_forward(x.into_dispatch(), weight.into_dispatch()))
}

/// The factors of a low-rank branch, `scale * dropout(x) A^T B^T`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `A [r, in]`.
    pub a: Tensor<2>,
    /// `B [out, r]`.
    pub b: Tensor<2>,
    /// What the branch is multiplied by.
    pub scale: f64,
    /// The probability of dropping an element of its input, and the key of the mask.
    pub dropout: Option<(f64, Key)>,
}

/// The low-rank branch of LoRA (Hu et al., 2021, section 4.1), `scale * dropout(x) A^T B^T`, without ever forming the
/// product of the factors, nor a gradient of its shape:
///
/// `dX = scale * dropout'(dY B A)`, `dA = scale * (dY B)^T dropout(x)`, `dB = scale * dY^T (dropout(x) A^T)`.
///
/// # Shapes
/// `x [n, in]`, `a [r, in]`, `b [out, r]` (as `peft` stores them) give `[n, out]`.
///
/// # Panics
/// If `dropout` holds a probability outside `[0, 1)`, or the shapes do not fit.
pub fn low_rank(x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f64, dropout: Option<(f64, Key)>) -> Tensor<2> {
    let (probability, key) = probability_and_key(dropout);
    assert_eq!((x.dims()[1], b.dims()[1]), (a.dims()[1], a.dims()[0]), "x [n, in], a [r, in] and b [out, r] must fit");
    let [x, a, b] = [x, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::low_rank(x, a, b, scale, probability, key))
}

/// A linear layer with a low-rank branch, `x W^T + scale * dropout(x) A^T B^T`, in one operation: the branch is added
/// where the layer's output lies, and its gradients come of one pass over `x` that draws each mask once.
///
/// # Shapes
/// `x [n, in]`, `weight [out, in]`, `a [r, in]`, `b [out, r]` give `[n, out]`.
///
/// # Panics
/// If `dropout` holds a probability outside `[0, 1)`, or the shapes do not fit.
pub fn adapted_linear(x: Tensor<2>, weight: Tensor<2>, branch: LowRank) -> Tensor<2> {
    let LowRank { a, b, scale, dropout } = branch;
    let (probability, key) = probability_and_key(dropout);
    let ([_, input], [out, _]) = (x.dims(), weight.dims());
    let fit = weight.dims()[1] == input && a.dims()[1] == input && b.dims() == [out, a.dims()[0]];
    assert!(fit, "x [n, in], weight [out, in], a [r, in] and b [out, r] must fit");
    let [x, weight, a, b] = [x, weight, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::adapted_linear(x, weight, a, b, scale, probability, key))
}

/// Linear layers on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait LinearOps: DropoutOps {
    /// See [`linear`].
    #[fusion(default)]
    fn linear_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(x, Self::float_transpose(weight))
    }

    /// Its gradient with respect to `x`.
    #[fusion(default)]
    fn linear_backward_x(weight: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(gradient, weight)
    }

    /// Its gradient with respect to `weight`.
    #[fusion(default)]
    fn linear_backward_weight(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(Self::float_transpose(gradient), x)
    }

    /// See [`low_rank`].
    #[fusion(default)]
    fn low_rank(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        composed_low_rank::<Self>(x, a, b, scale, probability, key)
    }

    /// Its gradient with respect to `x`.
    #[fusion(default)]
    fn low_rank_backward_x(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        composed_low_rank_backward_x::<Self>(a, b, gradient, scale, probability, key)
    }

    /// Its gradients with respect to `a` and `b`.
    #[fusion(default)]
    fn low_rank_backward_factors(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_low_rank_backward_factors::<Self>(x, a, b, gradient, scale, probability, key)
    }

    /// See [`adapted_linear`].
    #[fusion(default)]
    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        composed_adapted_linear::<Self>(x, weight, a, b, scale, probability, key)
    }

    /// Its gradients with respect to `x`, `a` and `b`.
    #[fusion(default)]
    #[allow(clippy::too_many_arguments, reason = "backend extensions take tensors one by one")]
    fn adapted_linear_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed_adapted_linear_backward::<Self>([x, weight, a, b], gradient, scale, probability, key)
    }
}

pub(crate) fn composed_low_rank<B: DropoutOps>(
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f64,
    probability: f64,
    key: Key,
) -> FloatTensor<B> {
    let x = drop::<B>(x, probability, key);
    let narrow = B::float_mul_scalar(B::float_matmul(x, B::float_transpose(a)), scale.into());
    B::float_matmul(narrow, B::float_transpose(b))
}

pub(crate) fn composed_low_rank_backward_x<B: DropoutOps>(
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    gradient: FloatTensor<B>,
    scale: f64,
    probability: f64,
    key: Key,
) -> FloatTensor<B> {
    let narrow = B::float_mul_scalar(B::float_matmul(gradient, b), scale.into());
    drop::<B>(B::float_matmul(narrow, a), probability, key)
}

pub(crate) fn composed_low_rank_backward_factors<B: DropoutOps>(
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    gradient: FloatTensor<B>,
    scale: f64,
    probability: f64,
    key: Key,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = drop::<B>(x, probability, key);
    let inner = B::float_mul_scalar(B::float_matmul(x.clone(), B::float_transpose(a)), scale.into());
    let outer = B::float_mul_scalar(B::float_matmul(gradient.clone(), b), scale.into());
    (B::float_matmul(B::float_transpose(outer), x), B::float_matmul(B::float_transpose(gradient), inner))
}

pub(crate) fn composed_adapted_linear<B: LinearOps>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f64,
    probability: f64,
    key: Key,
) -> FloatTensor<B> {
    let y = B::linear_forward(x.clone(), weight);
    B::float_add(y, B::low_rank(x, a, b, scale, probability, key))
}

pub(crate) fn composed_adapted_linear_backward<B: LinearOps>(
    [x, weight, a, b]: [FloatTensor<B>; 4],
    gradient: FloatTensor<B>,
    scale: f64,
    probability: f64,
    key: Key,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let of_x = B::low_rank_backward_x(a.clone(), b.clone(), gradient.clone(), scale, probability, key);
    let of_x = B::float_add(B::linear_backward_x(weight, gradient.clone()), of_x);
    let (of_a, of_b) = B::low_rank_backward_factors(x, a, b, gradient, scale, probability, key);
    (of_x, of_a, of_b)
}

/// What a low-rank branch keeps for its backward pass.
#[derive(Clone, Debug)]
struct Branch<B: Backend> {
    x: FloatTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f64,
    probability: f64,
    key: Key,
}

impl<B: LinearOps> Branch<B> {
    fn backward_x(&self, gradient: FloatTensor<B>) -> FloatTensor<B> {
        B::low_rank_backward_x(self.a.clone(), self.b.clone(), gradient, self.scale, self.probability, self.key)
    }

    fn backward_factors(self, gradient: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
        let Self { x, a, b, scale, probability, key } = self;
        B::low_rank_backward_factors(x, a, b, gradient, scale, probability, key)
    }
}

impl<B: LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linear_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Linear;
        impl<B: LinearOps> Backward<B, 2> for Linear {
            /// `x` only if the weight is trained, and the weight only if `x` has a gradient.
            type State = (Option<FloatTensor<B>>, Option<FloatTensor<B>>);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_x, node_weight] = ops.parents;
                let (x, weight) = ops.state;
                if let (Some(node), Some(x)) = (node_weight, x) {
                    grads.register::<B>(node.id, B::linear_backward_weight(x, gradient.clone()));
                }
                if let (Some(node), Some(weight)) = (node_x, weight) {
                    grads.register::<B>(node.id, B::linear_backward_x(weight, gradient));
                }
            }
        }

        let (tracked_x, tracked_weight) = (x.is_tracked(), weight.is_tracked());
        let ((x, node_x), (weight, node_weight)) = (x.into_parts(), weight.into_parts());
        match Backward::<B, 2>::prepare::<C>(Linear, [node_x, node_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let kept = (tracked_weight.then(|| x.clone()), tracked_x.then(|| weight.clone()));
                prep.finish(kept, B::linear_forward(x, weight))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::linear_forward(x, weight)),
        }
    }

    fn low_rank(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LowRankBranch;
        impl<B: LinearOps> Backward<B, 3> for LowRankBranch {
            type State = Branch<B>;
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_x, node_a, node_b] = ops.parents;
                let factors = [&node_a, &node_b].map(|node| node.as_ref().map(|node| node.id));
                if let Some(node) = node_x {
                    grads.register::<B>(node.id, ops.state.backward_x(gradient.clone()));
                }
                if node_a.is_some() || node_b.is_some() {
                    register_factors::<B>(grads, factors, ops.state.backward_factors(gradient));
                }
            }
        }

        let ((x, node_x), (a, node_a), (b, node_b)) = (x.into_parts(), a.into_parts(), b.into_parts());
        match Backward::<B, 3>::prepare::<C>(LowRankBranch, [node_x, node_a, node_b]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let kept = Branch { x: x.clone(), a: a.clone(), b: b.clone(), scale, probability, key };
                prep.finish(kept, B::low_rank(x, a, b, scale, probability, key))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::low_rank(x, a, b, scale, probability, key)),
        }
    }

    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct AdaptedLinear;
        impl<B: LinearOps> Backward<B, 4> for AdaptedLinear {
            type State = (FloatTensor<B>, Branch<B>);
            fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_x, node_weight, node_a, node_b] = ops.parents;
                let factors = [&node_a, &node_b].map(|node| node.as_ref().map(|node| node.id));
                let (weight, branch) = ops.state;
                if let Some(node) = node_weight {
                    grads.register::<B>(node.id, B::linear_backward_weight(branch.x.clone(), gradient.clone()));
                }
                match (node_x, node_a.is_some() || node_b.is_some()) {
                    (Some(node), true) => {
                        let Branch { x, a, b, scale, probability, key } = branch;
                        let (of_x, of_a, of_b) =
                            B::adapted_linear_backward(x, weight, a, b, gradient, scale, probability, key);
                        grads.register::<B>(node.id, of_x);
                        register_factors::<B>(grads, factors, (of_a, of_b));
                    }
                    (Some(node), false) => {
                        let of_x = B::linear_backward_x(weight, gradient.clone());
                        grads.register::<B>(node.id, B::float_add(of_x, branch.backward_x(gradient)));
                    }
                    (None, true) => {
                        register_factors::<B>(grads, factors, branch.backward_factors(gradient));
                    }
                    (None, false) => {}
                }
            }
        }

        let ((x, node_x), (weight, node_weight)) = (x.into_parts(), weight.into_parts());
        let ((a, node_a), (b, node_b)) = (a.into_parts(), b.into_parts());
        let nodes = [node_x, node_weight, node_a, node_b];
        match Backward::<B, 4>::prepare::<C>(AdaptedLinear, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let branch = Branch { x: x.clone(), a: a.clone(), b: b.clone(), scale, probability, key };
                let y = B::adapted_linear(x, weight.clone(), a, b, scale, probability, key);
                prep.finish((weight, branch), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::adapted_linear(x, weight, a, b, scale, probability, key)),
        }
    }
}

fn register_factors<B: Backend>(
    grads: &mut Gradients,
    nodes: [Option<NodeId>; 2],
    factors: (FloatTensor<B>, FloatTensor<B>),
) {
    for (node, gradient) in nodes.into_iter().zip([factors.0, factors.1]) {
        if let Some(node) = node {
            grads.register::<B>(node, gradient);
        }
    }
}
