//! The backward passes.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata};
use sideburn_batch::Key;

use crate::ops::FusedOps;
use crate::reference;

impl<B: FusedOps, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn keyed_dropout(x: FloatTensor<Self>, probability: f64, key: Key) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Dropout;
        impl<B: FusedOps> Backward<B, 1> for Dropout {
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

    fn low_rank(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LowRank;
        #[derive(Clone, Debug)]
        struct Kept<B: Backend> {
            x: FloatTensor<B>,
            a: FloatTensor<B>,
            b: FloatTensor<B>,
            scale: f64,
            probability: f64,
            key: Key,
        }
        impl<B: FusedOps> Backward<B, 3> for LowRank {
            type State = Kept<B>;
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_x, node_a, node_b] = ops.parents;
                let Kept { x, a, b, scale, probability, key } = ops.state;
                let drop = |x| if probability > 0.0 { B::keyed_dropout(x, probability, key) } else { x };

                // dropout(x) is needed for both factors; it is drawn again, once.
                let dropped = (node_a.is_some() || node_b.is_some()).then(|| drop(x));
                if let Some(node) = node_b {
                    // dB = scale * dY^T (dropout(x) A^T), with the narrow factor scaled.
                    let narrow = B::float_matmul(dropped.clone().expect("made above"), B::float_transpose(a.clone()));
                    let narrow = B::float_mul_scalar(narrow, scale.into());
                    grads.register::<B>(node.id, B::float_matmul(B::float_transpose(gradient.clone()), narrow));
                }
                if node_a.is_none() && node_x.is_none() {
                    return;
                }
                let narrow = B::float_mul_scalar(B::float_matmul(gradient, b), scale.into());
                if let Some(node) = node_a {
                    let dropped = dropped.expect("made above");
                    grads.register::<B>(node.id, B::float_matmul(B::float_transpose(narrow.clone()), dropped));
                }
                if let Some(node) = node_x {
                    grads.register::<B>(node.id, drop(B::float_matmul(narrow, a)));
                }
            }
        }

        let ((x, node_x), (a, node_a), (b, node_b)) = (x.into_parts(), a.into_parts(), b.into_parts());
        match Backward::<B, 3>::prepare::<C>(LowRank, [node_x, node_a, node_b]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let kept = Kept { x: x.clone(), a: a.clone(), b: b.clone(), scale, probability, key };
                prep.finish(kept, B::low_rank(x, a, b, scale, probability, key))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::low_rank(x, a, b, scale, probability, key)),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RmsNorm;
        impl<B: FusedOps> Backward<B, 2> for RmsNorm {
            type State = (FloatTensor<B>, FloatTensor<B>, f64);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_x, node_weight] = ops.parents;
                let (x, weight, epsilon) = ops.state;
                if let Some(node) = node_weight {
                    let value = B::rms_norm_backward_weight(x.clone(), gradient.clone(), epsilon);
                    grads.register::<B>(node.id, value);
                }
                if let Some(node) = node_x {
                    grads.register::<B>(node.id, B::rms_norm_backward_x(x, weight, gradient, epsilon));
                }
            }
        }

        let ((x, node_x), (weight, node_weight)) = (x.into_parts(), weight.into_parts());
        match Backward::<B, 2>::prepare::<C>(RmsNorm, [node_x, node_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish((x.clone(), weight.clone(), epsilon), B::rms_norm(x, weight, epsilon))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rms_norm(x, weight, epsilon)),
        }
    }

    fn gelu_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GeluGate;
        impl<B: FusedOps> Backward<B, 2> for GeluGate {
            type State = (FloatTensor<B>, FloatTensor<B>);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_gate, node_up] = ops.parents;
                let (gate, up) = ops.state;
                if let Some(node) = node_up {
                    grads.register::<B>(node.id, B::gelu_gate(gate.clone(), gradient.clone()));
                }
                if let Some(node) = node_gate {
                    grads.register::<B>(node.id, B::gelu_gate_backward_gate(gate, up, gradient));
                }
            }
        }

        let ((gate, node_gate), (up, node_up)) = (gate.into_parts(), up.into_parts());
        match Backward::<B, 2>::prepare::<C>(GeluGate, [node_gate, node_up]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((gate.clone(), up.clone()), B::gelu_gate(gate, up)),
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_gate(gate, up)),
        }
    }

    fn biased_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Attention;
        #[derive(Clone, Debug)]
        struct Kept<B: Backend> {
            q: FloatTensor<B>,
            k: FloatTensor<B>,
            v: FloatTensor<B>,
            bias_shape: Vec<usize>,
            weights: FloatTensor<B>,
            probability: f64,
            key: Key,
        }
        impl<B: FusedOps> Backward<B, 4> for Attention {
            type State = Kept<B>;
            fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let [node_q, node_k, node_v, node_bias] = ops.parents;
                let Kept { q, k, v, bias_shape, weights, probability, key } = ops.state;
                let drop = |x| if probability > 0.0 { B::keyed_dropout(x, probability, key) } else { x };

                if let Some(node) = node_v {
                    let dropped = B::float_swap_dims(drop(weights.clone()), 2, 3);
                    grads.register::<B>(node.id, B::float_matmul(dropped, gradient.clone()));
                }
                if node_q.is_none() && node_k.is_none() && node_bias.is_none() {
                    return;
                }
                let scores = drop(B::float_matmul(gradient, B::float_swap_dims(v, 2, 3)));
                let scores = B::softmax_backward(weights, scores);
                if let Some(node) = node_bias {
                    let broadcast: Vec<usize> = (0..4).filter(|dim| bias_shape[*dim] == 1).collect();
                    grads.register::<B>(node.id, B::float_sum_dims(scores.clone(), &broadcast));
                }
                if let Some(node) = node_k {
                    grads.register::<B>(node.id, B::float_matmul(B::float_swap_dims(scores.clone(), 2, 3), q));
                }
                if let Some(node) = node_q {
                    grads.register::<B>(node.id, B::float_matmul(scores, k));
                }
            }
        }

        let ((q, node_q), (k, node_k)) = (q.into_parts(), k.into_parts());
        let ((v, node_v), (bias, node_bias)) = (v.into_parts(), bias.into_parts());
        let nodes = [node_q, node_k, node_v, node_bias];
        match Backward::<B, 4>::prepare::<C>(Attention, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let bias_shape = bias.shape().as_slice().to_vec();
                let (output, weights) =
                    reference::attention::<B>(q.clone(), k.clone(), v.clone(), bias, mask, probability, key);
                prep.finish(Kept { q, k, v, bias_shape, weights, probability, key }, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::biased_attention(q, k, v, bias, mask, probability, key)),
        }
    }

    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct CrossEntropy;
        impl<B: FusedOps> Backward<B, 1> for CrossEntropy {
            type State = (FloatTensor<B>, IntTensor<B>);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (logits, labels) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |gradient| {
                    B::cross_entropy_backward(logits, labels, gradient)
                });
            }
        }

        let (logits, node) = logits.into_parts();
        match Backward::<B, 1>::prepare::<C>(CrossEntropy, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((logits.clone(), labels.clone()), B::cross_entropy(logits, labels)),
            OpsKind::UnTracked(prep) => prep.finish(B::cross_entropy(logits, labels)),
        }
    }
}
