//! The operations on [`Tensor`]s.

use burn::backend::Dispatch;
use burn::tensor::{Bool, Int, Tensor};
use sideburn_batch::Key;

use crate::ops::FusedOps;

/// Zeroes each element of `x` with `probability` and scales the others by `1 / (1 - probability)` (Srivastava et al.,
/// 2014). Which elements is a function of `key` and the backend alone, and is worked out again in the backward pass.
///
/// # Panics
/// If `probability` is not in `[0, 1)`.
pub fn dropout<const D: usize>(x: Tensor<D>, probability: f64, key: Key) -> Tensor<D> {
    assert!((0.0..1.0).contains(&probability), "a dropout probability lies in [0, 1), not at {probability}");
    if probability == 0.0 {
        return x;
    }
    Tensor::from_dispatch(Dispatch::keyed_dropout(x.into_dispatch(), probability, key))
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
    let (probability, key) = dropout.unwrap_or((0.0, Key::from_seed(0)));
    assert!((0.0..1.0).contains(&probability), "a dropout probability lies in [0, 1), not at {probability}");
    assert_eq!((x.dims()[1], b.dims()[1]), (a.dims()[1], a.dims()[0]), "x [n, in], a [r, in] and b [out, r] must fit");
    Tensor::from_dispatch(Dispatch::low_rank(
        x.into_dispatch(),
        a.into_dispatch(),
        b.into_dispatch(),
        scale,
        probability,
        key,
    ))
}

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

/// `gelu(gate) * up` with the tanh approximation of GELU (`gelu_new` of `transformers`): the gated feed-forward layer
/// of T5 1.1 (Shazeer, 2020).
///
/// # Shapes
/// `gate` and `up` of equal shape `[n, d]`.
///
/// # Panics
/// If the shapes differ.
pub fn gelu_gate(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up must have one shape");
    Tensor::from_dispatch(Dispatch::gelu_gate(gate.into_dispatch(), up.into_dispatch()))
}

/// Attention with additive bias, `dropout(softmax(q k^T + bias)) v`, unscaled as in T5.
///
/// Where `mask` is true the weight is exactly zero; every query must have a key that is not masked. The scores before
/// dropout are kept for the backward pass; the gradient of the bias is worked out only if it is wanted.
///
/// # Shapes
/// `q [rows, heads, queries, width]`, `k` and `v [rows, heads, keys, width]`,
/// `bias [1, heads or 1, queries or 1, keys or 1]`, `mask [rows, 1, queries or 1, keys]` give
/// `[rows, heads, queries, width]`.
///
/// # Panics
/// If `dropout` holds a probability outside `[0, 1)`, or the shapes do not fit.
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Tensor<4>,
    mask: Tensor<4, Bool>,
    dropout: Option<(f64, Key)>,
) -> Tensor<4> {
    let (probability, key) = dropout.unwrap_or((0.0, Key::from_seed(0)));
    assert!((0.0..1.0).contains(&probability), "a dropout probability lies in [0, 1), not at {probability}");
    let ([rows, heads, queries, width], [_, _, keys, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), v.dims(), "k and v must have one shape");
    assert_eq!(k.dims(), [rows, heads, keys, width], "q [rows, heads, queries, width] and k must fit");
    let or_one = |dim: usize, full: usize| dim == 1 || dim == full;
    let bias_fits = matches!(bias.dims(), [1, h, q, k] if or_one(h, heads) && or_one(q, queries) && or_one(k, keys));
    assert!(bias_fits, "bias {:?} does not broadcast to [1, {heads}, {queries}, {keys}]", bias.dims());
    let mask_fits = matches!(mask.dims(), [r, 1, q, k] if r == rows && or_one(q, queries) && k == keys);
    assert!(mask_fits, "mask {:?} does not broadcast to [{rows}, 1, {queries}, {keys}]", mask.dims());
    Tensor::from_dispatch(Dispatch::biased_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        bias.into_dispatch(),
        mask.into_dispatch(),
        probability,
        key,
    ))
}

/// The negative log-likelihood, in nats, of each row's label under the softmax of its logits.
///
/// There is no label to be ignored: rows without one are not to be passed.
///
/// # Shapes
/// `logits [n, classes]`, `labels [n]` with values in `0..classes`, give `[n]`.
///
/// # Panics
/// If there is not one label for each row, or, on the CPU, a label is no class. A GPU is not asked: it would have to be
/// waited for.
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    assert_eq!(logits.dims()[0], labels.dims()[0], "every row of logits needs one label");
    Tensor::from_dispatch(Dispatch::cross_entropy(logits.into_dispatch(), labels.into_dispatch()))
}
