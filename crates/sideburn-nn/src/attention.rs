//! Attention, and the keys and values that it looks at.

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};
use sideburn_adapters::author::Prefix;
use sideburn_adapters::{AdaptedLinear, TokenPass, forward_together};
use sideburn_kernels::{Projections, Visibility, attention, self_attention};

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
/// `q [heads * head_width, width]`, `k` and `v [kv_heads * head_width, width]`, `o [width, heads * head_width]`. Where one
/// layer makes all, it is `[(heads + 2 * kv_heads) * head_width, width]`, and its outputs go by heads of keys: the queries
/// that look through the first of them, that head's key and its value, then the queries of the second.
#[derive(Module, Debug)]
pub struct Attention {
    /// Makes queries, keys and values: a layer for each, in this order, or one for all.
    pub qkv: Vec<AdaptedLinear>,
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
        let [of_queries, of_keys] = [heads, kv_heads].map(|heads| heads * head_width);
        let qkv = [("q", of_queries), ("k", of_keys), ("v", of_keys)].map(|(name, out)| linear(name, out, width));
        Self::of_layers(config, qkv.into(), linear("o", width, of_queries))
    }

    /// A layer in which `qkv` makes queries, keys and values.
    ///
    /// # Panics
    /// If `kv_heads` does not divide `heads`, or a layer has another shape.
    pub fn fused(config: AttentionConfig, qkv: AdaptedLinear, o: AdaptedLinear) -> Self {
        let AttentionConfig { width, heads, kv_heads, head_width, .. } = config;
        assert_eq!(qkv.shape(), [(heads + 2 * kv_heads) * head_width, width], "queries, keys and values of all heads");
        assert_eq!(o.shape(), [width, heads * head_width], "hidden states of all heads");
        Self::of_layers(config, vec![qkv], o)
    }

    fn of_layers(config: AttentionConfig, qkv: Vec<AdaptedLinear>, o: AdaptedLinear) -> Self {
        let AttentionConfig { heads, kv_heads, .. } = config;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{kv_heads} heads of keys do not divide {heads} heads");
        Self { qkv, o, config }
    }

    /// The shape of the layer.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// Queries, keys and values of the tokens `x [tokens, width]`, as the layers give them side by side.
    pub fn projections(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        match &self.qkv[..] {
            [q, k, v] => forward_together([q, k, v], x, pass),
            layers => layers[0].forward(x, pass),
        }
    }

    /// The queries, and the keys and values, of [`projections`](Self::projections), of tokens at these positions.
    pub fn split(&self, projections: Tensor<2>, position: &Position) -> (Tensor<2>, KeysValues) {
        let [queries, keys, values] = self.parts(projections);
        let [queries, keys] = [queries, keys].map(|part| position.turn(part));
        (queries, KeysValues { keys, values })
    }

    /// Queries, keys and values, as the layers give them.
    fn parts(&self, projections: Tensor<2>) -> [Tensor<2>; 3] {
        let AttentionConfig { heads, kv_heads, head_width, .. } = self.config;
        if self.qkv.len() == 3 {
            let (own, seen) = (heads * head_width, kv_heads * head_width);
            return [(0, own), (own, seen), (own + seen, seen)]
                .map(|(start, width)| projections.clone().narrow(1, start, width));
        }
        let (tokens, together) = (projections.dims()[0], heads / kv_heads);
        let groups = projections.reshape([tokens, kv_heads, together + 2, head_width]);
        [(0, together), (together, 1), (together + 1, 1)].map(|(start, heads)| {
            groups.clone().narrow(2, start, heads).reshape([tokens, kv_heads * heads * head_width])
        })
    }

    /// Queries of the tokens `x [tokens, width]` that look at others.
    pub fn queries(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        match &self.qkv[..] {
            [q, _, _] => q.forward(x, pass),
            _ => self.split(self.projections(x, pass), &Position::None).0,
        }
    }

    /// Keys and values of the tokens `x [tokens, width]` that others look at.
    pub fn keys_values(&self, x: &Tensor<2>, pass: &mut TokenPass<'_>) -> KeysValues {
        match &self.qkv[..] {
            [_, k, v] => KeysValues { keys: k.forward(x.clone(), pass), values: v.forward(x.clone(), pass) },
            _ => self.split(self.projections(x.clone(), pass), &Position::None).1,
        }
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
        let AttentionConfig { kv_heads, scale, dropout, .. } = self.config;
        let layers = Projections { kv_heads, scale, grouped: self.qkv.len() == 1 };
        let (bias, angles, dropout) = (position.bias(), position.angles(), pass.next_dropout(dropout));
        let mixed = self_attention(projections, layers, bias, angles, visibility, dropout);
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
        let KeysValues { keys, values } = seen;
        let mixed = attention(queries, keys, values, position.bias(), visibility, pass.next_dropout(dropout));
        self.o.forward(mixed, pass)
    }
}
