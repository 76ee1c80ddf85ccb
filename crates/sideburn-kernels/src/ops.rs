//! The operations as a Burn backend extension: what each backend may implement in a better way.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use sideburn_batch::Key;

use crate::reference;

/// The fused operations on backend primitives. A default body is composed of the backend's own primitives.
///
/// Float tensors are matrices unless said otherwise; see [`crate::api`] for what they compute.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait FusedOps: Backend {
    /// Zeroes each element with `probability` and scales the others by `1 / (1 - probability)`. Its own adjoint.
    #[fusion(default)]
    fn keyed_dropout(x: FloatTensor<Self>, probability: f64, key: Key) -> FloatTensor<Self> {
        reference::dropout::<Self>(x, probability, key)
    }

    /// `scale * dropout(x) a^T b^T` with `x [n, in]`, `a [r, in]`, `b [out, r]`.
    #[fusion(default)]
    fn low_rank(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        reference::low_rank::<Self>(x, a, b, scale, probability, key)
    }

    /// `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension; `weight [d]`.
    #[fusion(default)]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        reference::rms_norm::<Self>(x, weight, epsilon)
    }

    /// The gradient of `rms_norm` with respect to `x`.
    #[fusion(default)]
    fn rms_norm_backward_x(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        reference::rms_norm_backward_x::<Self>(x, weight, gradient, epsilon)
    }

    /// The gradient of `rms_norm` with respect to `weight`.
    #[fusion(default)]
    fn rms_norm_backward_weight(x: FloatTensor<Self>, gradient: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        reference::rms_norm_backward_weight::<Self>(x, gradient, epsilon)
    }

    /// `gelu_tanh(gate) * up`.
    #[fusion(default)]
    fn gelu_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::gelu_gate::<Self>(gate, up)
    }

    /// The gradient of `gelu_gate` with respect to `gate`.
    #[fusion(default)]
    fn gelu_gate_backward_gate(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference::gelu_gate_backward_gate::<Self>(gate, up, gradient)
    }

    /// `softmax(scores + bias)` over the last dimension, zero where `mask` is true.
    ///
    /// `scores [rows, heads, queries, keys]`, `bias [1, heads or 1, queries or 1, keys or 1]`,
    /// `mask [rows, 1, queries or 1, keys]`.
    #[fusion(default)]
    fn masked_softmax(scores: FloatTensor<Self>, bias: FloatTensor<Self>, mask: BoolTensor<Self>) -> FloatTensor<Self> {
        reference::masked_softmax::<Self>(scores, bias, mask)
    }

    /// The gradient of a softmax with respect to its input, from its output and the gradient of that.
    #[fusion(default)]
    fn softmax_backward(output: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::softmax_backward::<Self>(output, gradient)
    }

    /// `dropout(masked_softmax(q k^T)) v` over `[rows, heads, tokens, width]`.
    #[fusion(default)]
    fn biased_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        reference::attention::<Self>(q, k, v, bias, mask, probability, key).0
    }

    /// The negative log-likelihood of each row's label, `[n]`, from `logits [n, classes]` and `labels [n]`.
    #[fusion(default)]
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> FloatTensor<Self> {
        reference::cross_entropy::<Self>(logits, labels)
    }

    /// The gradient of `cross_entropy` with respect to `logits`, from the gradient `[n]` of its output.
    #[fusion(default)]
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference::cross_entropy_backward::<Self>(logits, labels, gradient)
    }
}
