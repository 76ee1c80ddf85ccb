//! The layers of a T5 block.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, activation};
use sideburn_adapters::{AdaptedLinear, AdaptedVector, Key, Pass, Prefix, forward_together};
use sideburn_kernels::{Sight, attention, gelu_gate, rms_norm, self_attention};

use crate::config::T5Config;
use crate::feed_forward::{Activation, FeedForward};

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

/// `T5Attention`, without the relative position bias, which the stack owns.
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
    /// `[heads, distances]`, or `[1, 1]`: one for all blocks, or one for each.
    pub(crate) biases: Vec<Tensor<2>>,
    pub(crate) sight: Sight,
}

impl Scores {
    /// What is added to the scores of a block.
    fn bias(&self, block: usize) -> Tensor<2> {
        self.biases.get(block).unwrap_or(&self.biases[0]).clone()
    }
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

    /// Lets the tokens with these projections look at each other, in block `block`.
    pub(crate) fn among_themselves(
        &self,
        projections: Tensor<2>,
        block: usize,
        scores: &Scores,
        pass: &mut Pass,
    ) -> Tensor<2> {
        let dropout = pass.next_dropout(self.dropout);
        let mixed = self_attention(projections, scores.bias(block), &scores.sight, dropout);
        self.o.forward(mixed, pass)
    }

    /// Lets the tokens with these queries look at `seen`, in block `block`.
    pub(crate) fn look_at(
        &self,
        queries: Tensor<2>,
        seen: KeysValues,
        block: usize,
        scores: &Scores,
        pass: &mut Pass,
    ) -> Tensor<2> {
        let dropout = pass.next_dropout(self.dropout);
        let mixed = attention(queries, seen.keys, seen.values, scores.bias(block), &scores.sight, dropout);
        self.o.forward(mixed, pass)
    }
}

/// `T5DenseActDense`, or gated `T5DenseGatedActDense`.
#[derive(Module, Debug)]
pub(crate) struct FeedForwardLayer {
    /// `wi`, or `wi_0` and `wi_1`.
    pub(crate) wi: Vec<AdaptedLinear>,
    pub(crate) wo: AdaptedLinear,
    #[module(skip)]
    activation: Activation,
    dropout: f64,
}

impl FeedForwardLayer {
    pub(crate) fn new(config: &T5Config, key: Key, device: &Device) -> Self {
        let (d_model, d_ff, factor) = (config.d_model, config.d_ff, config.initializer_factor);
        let FeedForward { activation, gated } = config.feed_forward_proj;
        let projections = if gated { 2 } else { 1 };
        let wi = |index| {
            let deviation = factor / (d_model as f64).sqrt();
            AdaptedLinear::random(d_ff, d_model, deviation, key.fold_in_name("wi").fold_in(index), device)
        };
        Self {
            wi: (0..projections).map(wi).collect(),
            wo: AdaptedLinear::random(d_model, d_ff, factor / (d_ff as f64).sqrt(), key.fold_in_name("wo"), device),
            activation,
            dropout: config.dropout_rate,
        }
    }

    pub(crate) fn forward(&self, x: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let hidden = match (self.wi.as_slice(), self.activation) {
            ([gate, up], Activation::GeluNew) => {
                let gate_up = forward_together([gate, up], x, pass);
                gelu_gate(gate_up, pass.next_dropout(self.dropout))
            }
            ([gate, up], activation) => {
                let [gate, up] = halves(forward_together([gate, up], x, pass));
                pass.dropout(activate(gate, activation) * up, self.dropout)
            }
            (wi, activation) => {
                let hidden = activate(wi[0].forward(x, pass), activation);
                pass.dropout(hidden, self.dropout)
            }
        };
        self.wo.forward(hidden, pass)
    }
}

/// Two matrices that lie side by side.
fn halves(x: Tensor<2>) -> [Tensor<2>; 2] {
    let width = x.dims()[1] / 2;
    [0, 1].map(|part| x.clone().narrow(1, part * width, width))
}

fn activate(x: Tensor<2>, function: Activation) -> Tensor<2> {
    match function {
        Activation::Relu => activation::relu(x),
        Activation::Gelu => activation::gelu(x),
        Activation::GeluNew => gelu_new(x),
        Activation::Silu => activation::silu(x),
    }
}

/// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`; Burn's own raises `x` to the power 3.0, which costs more.
fn gelu_new(x: Tensor<2>) -> Tensor<2> {
    let sqrt_2_over_pi = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    let cubic = x.clone() * x.clone() * x.clone() * 0.044_715;
    let tanh = ((x.clone() + cubic) * sqrt_2_over_pi).tanh();
    x * (tanh + 1.0) * 0.5
}
