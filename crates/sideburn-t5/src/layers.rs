//! The layers of a T5 block.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, activation};
use sideburn_adapters::{AdaptedLinear, AdaptedVector, Key, Pass, Prefix, forward_together};
use sideburn_kernels::{Sight, attention, gelu_gate, rms_norm, self_attention};

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
    dropout: f64,
}

/// What attention looks at: keys and values of tokens, `[tokens, heads * d_kv]`.
#[derive(Clone, Debug)]
pub(crate) struct KeysValues {
    pub(crate) keys: Tensor<2>,
    pub(crate) values: Tensor<2>,
}

impl KeysValues {
    /// What a prefix gives each layer to look at.
    pub(crate) fn of_prefix(layers: Vec<Prefix>) -> Vec<Self> {
        let tokens = |part: Tensor<3>| {
            let [heads, tokens, width] = part.dims();
            part.swap_dims(0, 1).reshape([tokens, heads * width])
        };
        layers.into_iter().map(|Prefix { keys, values }| Self { keys: tokens(keys), values: tokens(values) }).collect()
    }

    /// The number of tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.keys.dims()[0]
    }

    /// The tokens of these and, behind them, those of `later`, from which `places` picks.
    pub(crate) fn pick_with(self, later: Self, places: &Tensor<1, Int>) -> Self {
        let pick = |first, later| Tensor::cat(vec![first, later], 0).select(0, places.clone());
        Self { keys: pick(self.keys, later.keys), values: pick(self.values, later.values) }
    }
}

/// What is added to the scores, and which keys a query sees; see [`attention`].
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    /// `[heads, distances]`, or `[1, 1]`.
    pub(crate) bias: Tensor<2>,
    pub(crate) sight: Sight,
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
            dropout: config.dropout_rate,
        }
    }

    /// Queries, keys and values of the tokens `x`, side by side.
    pub(crate) fn projections(&self, x: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        forward_together([&self.q, &self.k, &self.v], x, pass)
    }

    /// Keys and values of the tokens `x`.
    pub(crate) fn keys_values(&self, x: &Tensor<2>, pass: &mut Pass) -> KeysValues {
        KeysValues { keys: self.k.forward(x.clone(), pass), values: self.v.forward(x.clone(), pass) }
    }

    /// Lets the tokens with these projections look at each other.
    pub(crate) fn among_themselves(&self, projections: Tensor<2>, scores: &Scores, pass: &mut Pass) -> Tensor<2> {
        let dropout = pass.next_dropout(self.dropout);
        let mixed = self_attention(projections, scores.bias.clone(), &scores.sight, dropout);
        self.o.forward(mixed, pass)
    }

    /// Lets the tokens with these queries look at `seen`.
    pub(crate) fn look_at(&self, queries: Tensor<2>, seen: KeysValues, scores: &Scores, pass: &mut Pass) -> Tensor<2> {
        let dropout = pass.next_dropout(self.dropout);
        let mixed = attention(queries, seen.keys, seen.values, scores.bias.clone(), &scores.sight, dropout);
        self.o.forward(mixed, pass)
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
                let gate_up = forward_together([gate, up], x, pass);
                gelu_gate(gate_up, pass.next_dropout(self.dropout))
            }
            wi => {
                let hidden = activation::relu(wi[0].forward(x, pass));
                pass.dropout(hidden, self.dropout)
            }
        };
        self.wo.forward(hidden, pass)
    }
}
