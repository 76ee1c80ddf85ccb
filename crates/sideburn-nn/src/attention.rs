//! Attention, and the keys and values that it looks at.

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};
use sideburn_adapters::author::Prefix;
use sideburn_adapters::{AdaptedLinear, TokenPass, forward_together};
use sideburn_kernels::{Visibility, attention, self_attention};

use crate::Position;

/// The shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Width of the hidden states.
    pub width: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values, a divisor of `heads`: as many (multi-head attention), one (multi-query; Shazeer,
    /// 2019), or in between (grouped-query; Ainslie et al., 2023). Query head `h` looks through head
    /// `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of each head; `heads * head_width` need not be `width`.
    pub head_width: usize,
    /// What scores are multiplied by: 1 for T5, `head_width^-0.5` for most others.
    pub scale: f64,
    /// The probability that a weight of the mixture is dropped.
    pub dropout: f64,
}

/// Attention with projections of its own: `o(dropout(softmax(scale q k^T + bias)) v)`.
///
/// # Shapes
/// `q [heads * head_width, width]`, `k` and `v [kv_heads * head_width, width]`, `o [width, heads * head_width]`.
#[derive(Module, Debug)]
pub struct Attention {
    /// Makes queries.
    pub q: AdaptedLinear,
    /// Makes keys.
    pub k: AdaptedLinear,
    /// Makes values.
    pub v: AdaptedLinear,
    /// Turns what the heads found into hidden states.
    pub o: AdaptedLinear,
    #[module(skip)]
    config: AttentionConfig,
}

/// What attention looks at: keys and values of tokens, `[tokens, kv_heads * head_width]`.
#[derive(Clone, Debug)]
pub struct KeysValues {
    /// The keys.
    pub keys: Tensor<2>,
    /// The values.
    pub values: Tensor<2>,
}

impl KeysValues {
    /// What a prefix gives each layer to look at, in the dtype that the model computes in.
    pub fn of_prefix(layers: Vec<Prefix>, dtype: DType) -> Vec<Self> {
        let tokens = |part: Tensor<3>| {
            let [heads, tokens, width] = part.dims();
            part.swap_dims(0, 1).reshape([tokens, heads * width]).cast(dtype)
        };
        layers.into_iter().map(|Prefix { keys, values }| Self { keys: tokens(keys), values: tokens(values) }).collect()
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.keys.dims()[0]
    }

    /// Of the tokens of these and, behind them, those of `later`, the ones at `places`, in that order; see
    /// [`places_behind`](crate::places_behind).
    pub fn pick_with(self, later: Self, places: &Tensor<1, Int>) -> Self {
        let pick = |first, later| Tensor::cat(vec![first, later], 0).select(0, places.clone());
        Self { keys: pick(self.keys, later.keys), values: pick(self.values, later.values) }
    }

    /// The tokens with these indices, in that order.
    pub fn select(&self, tokens: &Tensor<1, Int>) -> Self {
        let select = |part: &Tensor<2>| part.clone().select(0, tokens.clone());
        Self { keys: select(&self.keys), values: select(&self.values) }
    }
}

impl Attention {
    /// A layer whose projections are made by `linear(name, outputs, inputs)`, called for `q`, `k`, `v` and `o`.
    ///
    /// # Panics
    /// If `kv_heads` does not divide `heads`.
    pub fn new(config: AttentionConfig, linear: impl Fn(&str, usize, usize) -> AdaptedLinear) -> Self {
        let AttentionConfig { width, heads, kv_heads, head_width, .. } = config;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{kv_heads} heads of keys do not divide {heads} heads");
        Self {
            q: linear("q", heads * head_width, width),
            k: linear("k", kv_heads * head_width, width),
            v: linear("v", kv_heads * head_width, width),
            o: linear("o", width, heads * head_width),
            config,
        }
    }

    /// The shape of the layer.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// Queries, keys and values of the tokens `x [tokens, width]`, side by side.
    pub fn projections(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        forward_together([&self.q, &self.k, &self.v], x, pass)
    }

    /// The queries, and the keys and values, of [`projections`](Self::projections), of tokens at these positions.
    pub fn split(&self, projections: Tensor<2>, position: &Position) -> (Tensor<2>, KeysValues) {
        let AttentionConfig { heads, kv_heads, head_width, .. } = self.config;
        let (own, seen) = (heads * head_width, kv_heads * head_width);
        let part = |start, width| projections.clone().narrow(1, start, width);
        let [queries, keys] = [part(0, own), part(own, seen)].map(|part| position.turn(part));
        (queries, KeysValues { keys, values: part(own + seen, seen) })
    }

    /// Keys and values of the tokens `x [tokens, width]`.
    pub fn keys_values(&self, x: &Tensor<2>, pass: &mut TokenPass<'_>) -> KeysValues {
        KeysValues { keys: self.k.forward(x.clone(), pass), values: self.v.forward(x.clone(), pass) }
    }

    /// Lets the tokens with these [`projections`](Self::projections) look at each other, as far as `visibility` reaches:
    /// `[tokens, width]`.
    pub fn among_themselves(
        &self,
        projections: Tensor<2>,
        position: &Position,
        visibility: &Visibility,
        pass: &mut TokenPass<'_>,
    ) -> Tensor<2> {
        let AttentionConfig { heads, kv_heads, scale, dropout, .. } = self.config;
        if kv_heads != heads || scale != 1.0 || matches!(position, Position::Rotary(_)) {
            let (queries, seen) = self.split(projections, position);
            return self.look_at(queries, seen, position, visibility, pass);
        }
        let bias = position.bias(&projections);
        let mixed = self_attention(projections, bias, visibility, pass.next_dropout(dropout));
        self.o.forward(mixed, pass)
    }

    /// Lets the tokens with these queries `[tokens, heads * head_width]` look at `seen`: `[tokens, width]`. Queries and keys
    /// are those of [`split`](Self::split).
    pub fn look_at(
        &self,
        queries: Tensor<2>,
        seen: KeysValues,
        position: &Position,
        visibility: &Visibility,
        pass: &mut TokenPass<'_>,
    ) -> Tensor<2> {
        let AttentionConfig { scale, dropout, .. } = self.config;
        let queries = if scale == 1.0 { queries } else { queries * scale };
        let bias = position.bias(&queries);
        let [keys, values] = [seen.keys, seen.values].map(|part| self.for_each_head(part));
        let mixed = attention(queries, keys, values, bias, visibility, pass.next_dropout(dropout));
        self.o.forward(mixed, pass)
    }

    /// Keys or values as each head of the queries sees them, `[tokens, heads * head_width]`.
    fn for_each_head(&self, part: Tensor<2>) -> Tensor<2> {
        let AttentionConfig { heads, kv_heads, head_width, .. } = self.config;
        if kv_heads == heads {
            return part;
        }
        let tokens = part.dims()[0];
        let part = part.reshape([tokens, kv_heads, 1, head_width]).repeat_dim(2, heads / kv_heads);
        part.reshape([tokens, heads * head_width])
    }
}
