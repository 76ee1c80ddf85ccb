//! The layers of a T5 block.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Tensor, activation};
use sideburn_adapters::{AdaptedLinear, AdaptedVector, Key, Pass, Prefix};
use sideburn_kernels::{RowLayout, attention, gelu_gate, rms_norm};

use crate::config::{FeedForward, T5Config};

/// `T5LayerNorm`: scaling by the root mean square, without mean and bias.
#[derive(Module, Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: AdaptedVector,
    epsilon: f64,
}

impl RmsNorm {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            weight: AdaptedVector::new(Param::from_tensor(Tensor::full(
                [config.d_model],
                config.initializer_factor,
                device,
            ))),
            epsilon: config.layer_norm_epsilon,
        }
    }

    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.weight.value(), self.epsilon)
    }
}

/// `T5Attention`, without the relative position bias, which the stack owns and all its blocks share.
#[derive(Module, Debug)]
pub(crate) struct Attention {
    pub(crate) q: AdaptedLinear,
    pub(crate) k: AdaptedLinear,
    pub(crate) v: AdaptedLinear,
    pub(crate) o: AdaptedLinear,
    heads: usize,
    dropout: f64,
}

/// What attention looks at: keys and values `[rows, heads, keys, d_kv]`.
#[derive(Clone, Debug)]
pub(crate) struct KeysValues {
    pub(crate) keys: Tensor<4>,
    pub(crate) values: Tensor<4>,
}

impl KeysValues {
    /// What a prefix gives each layer to look at, for each of `rows` rows.
    pub(crate) fn of_prefix(layers: Vec<Prefix>, rows: usize) -> Vec<Self> {
        let repeated = |part: Tensor<3>| part.unsqueeze_dim::<4>(0).repeat_dim(0, rows);
        let of = |Prefix { keys, values }| Self { keys: repeated(keys), values: repeated(values) };
        layers.into_iter().map(of).collect()
    }

    /// The number of tokens in each row.
    pub(crate) fn tokens(&self) -> usize {
        self.keys.dims()[2]
    }

    /// These, and `later` ones.
    pub(crate) fn then(self, later: Self) -> Self {
        Self {
            keys: Tensor::cat(vec![self.keys, later.keys], 2),
            values: Tensor::cat(vec![self.values, later.values], 2),
        }
    }
}

/// What is added to the scores, and where they are masked; see [`attention`].
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    pub(crate) bias: Tensor<4>,
    pub(crate) mask: Tensor<4, Bool>,
}

impl Attention {
    pub(crate) fn new(config: &T5Config, key: Key, device: &Device) -> Self {
        // The deviations of `T5PreTrainedModel._init_weights`.
        let (outer, inner, factor) = (config.d_model, config.inner_dim(), config.initializer_factor);
        let linear = |name: &str, out: usize, input: usize, variance: usize| {
            AdaptedLinear::random(out, input, factor / (variance as f64).sqrt(), key.fold_in_name(name), device)
        };
        Self {
            q: linear("q", inner, outer, outer * config.d_kv),
            k: linear("k", inner, outer, outer),
            v: linear("v", inner, outer, outer),
            o: linear("o", outer, inner, inner),
            heads: config.num_heads,
            dropout: config.dropout_rate,
        }
    }

    /// Keys and values of the tokens `x`.
    pub(crate) fn keys_values(&self, x: &Tensor<2>, layout: &RowLayout, pass: &mut Pass) -> KeysValues {
        KeysValues {
            keys: self.split_heads(self.k.forward(x.clone(), pass), layout),
            values: self.split_heads(self.v.forward(x.clone(), pass), layout),
        }
    }

    /// Lets the tokens `x` look at `seen`.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        layout: &RowLayout,
        seen: KeysValues,
        scores: &Scores,
        pass: &mut Pass,
    ) -> Tensor<2> {
        let q = self.split_heads(self.q.forward(x, pass), layout);
        let dropout = pass.next_dropout(self.dropout);
        let mixed = attention(q, seen.keys, seen.values, scores.bias.clone(), scores.mask.clone(), dropout);
        let [rows, heads, queries, width] = mixed.dims();
        let mixed = layout.to_tokens(mixed.swap_dims(1, 2).reshape([rows, queries, heads * width]));
        self.o.forward(mixed, pass)
    }

    /// `[tokens, heads * d_kv]` to `[rows, heads, columns, d_kv]`.
    fn split_heads(&self, x: Tensor<2>, layout: &RowLayout) -> Tensor<4> {
        let x = layout.to_rows(x);
        let [rows, columns, inner] = x.dims();
        x.reshape([rows, columns, self.heads, inner / self.heads]).swap_dims(1, 2)
    }
}

/// `T5DenseActDense` (relu) or `T5DenseGatedActDense` (gated GELU).
#[derive(Module, Debug)]
pub(crate) struct FeedForwardLayer {
    /// `wi`, or `wi_0` and `wi_1`.
    pub(crate) wi: Vec<AdaptedLinear>,
    pub(crate) wo: AdaptedLinear,
    dropout: f64,
}

impl FeedForwardLayer {
    pub(crate) fn new(config: &T5Config, key: Key, device: &Device) -> Self {
        let (d_model, d_ff, factor) = (config.d_model, config.d_ff, config.initializer_factor);
        let projections = match config.feed_forward_proj {
            FeedForward::Relu => 1,
            FeedForward::GatedGelu => 2,
        };
        let wi = |index| {
            let deviation = factor / (d_model as f64).sqrt();
            AdaptedLinear::random(d_ff, d_model, deviation, key.fold_in_name("wi").fold_in(index), device)
        };
        Self {
            wi: (0..projections).map(wi).collect(),
            wo: AdaptedLinear::random(d_model, d_ff, factor / (d_ff as f64).sqrt(), key.fold_in_name("wo"), device),
            dropout: config.dropout_rate,
        }
    }

    pub(crate) fn forward(&self, x: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let hidden = match self.wi.as_slice() {
            [gate, up] => {
                let gate = gate.forward(x.clone(), pass);
                gelu_gate(gate, up.forward(x, pass))
            }
            wi => activation::relu(wi[0].forward(x, pass)),
        };
        let hidden = pass.dropout(hidden, self.dropout);
        self.wo.forward(hidden, pass)
    }
}
