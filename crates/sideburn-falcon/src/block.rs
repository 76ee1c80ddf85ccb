//! A block of a Falcon.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sideburn_adapters::{AdaptedLinear, Key, TokenPass};
use sideburn_kernels::add_dropout;
use sideburn_nn::{Attention, CausalTokens, FeedForward, LayerNorm};

use crate::config::FalconConfig;

/// `FalconDecoderLayer`.
#[derive(Module, Debug)]
pub(crate) struct Block {
    /// `input_layernorm`, or of two for parallel layers `ln_attn`.
    pub(crate) norm: LayerNorm,
    /// The norm before the feed-forward layer, where that has one of its own: `post_attention_layernorm`, or `ln_mlp`.
    pub(crate) feed_forward_norm: Option<LayerNorm>,
    pub(crate) attention: Attention,
    pub(crate) feed_forward: FeedForward,
    parallel: bool,
    hidden_dropout: f64,
    attention_dropout: f64,
}

impl Block {
    /// A block with weights drawn as `transformers` draws them.
    pub(crate) fn new(config: &FalconConfig, key: Key, device: &Device) -> Self {
        let linear = |name: &str, out, input| {
            let layer = AdaptedLinear::random(out, input, config.initializer_range, key.fold_in_name(name), device);
            if config.bias { layer.with_bias(Tensor::zeros([out], device)) } else { layer }
        };
        let norm = || LayerNorm::new(config.hidden_size, config.layer_norm_epsilon, device);
        let (width, wide, shape) = (config.hidden_size, config.feed_forward_width(), config.attention());
        let of_all_heads = (shape.heads + 2 * shape.kv_heads) * shape.head_width;
        Self {
            norm: norm(),
            feed_forward_norm: config.has_two_norms().then(norm),
            attention: Attention::fused(
                shape,
                linear("query_key_value", of_all_heads, width),
                linear("dense", width, width),
            ),
            feed_forward: FeedForward::new(
                vec![linear("dense_h_to_4h", wide, width)],
                linear("dense_4h_to_h", width, wide),
                config.activation,
                0.0,
            ),
            parallel: config.parallel_attn,
            hidden_dropout: config.hidden_dropout,
            attention_dropout: config.attention_dropout,
        }
    }

    /// What the block with this number makes of the hidden states `x [tokens, hidden_size]`.
    pub(crate) fn forward(
        &self,
        index: usize,
        x: Tensor<2>,
        tokens: &mut CausalTokens<'_>,
        pass: &mut TokenPass<'_>,
    ) -> Tensor<2> {
        let normed = self.norm.forward(x.clone(), pass);
        let attended = tokens.attend(index, &self.attention, normed.clone(), pass);
        let own_norm = |x: &Tensor<2>, pass: &TokenPass<'_>| {
            self.feed_forward_norm.as_ref().map(|norm| norm.forward(x.clone(), pass))
        };
        if !self.parallel {
            let x = add_dropout(x, attended, pass.next_dropout(self.attention_dropout));
            let normed = own_norm(&x, pass).unwrap_or(normed);
            let output = self.feed_forward.forward(normed, pass);
            return add_dropout(x, output, pass.next_dropout(self.hidden_dropout));
        }
        let normed = own_norm(&x, pass).unwrap_or(normed);
        let output = self.feed_forward.forward(normed, pass) + attended;
        add_dropout(x, output, pass.next_dropout(self.hidden_dropout))
    }
}
