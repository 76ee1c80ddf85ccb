//! The layers of a T5 block, with the weights that `transformers` gives a new model.

use burn::tensor::Device;
use sideburn_adapters::{AdaptedLinear, Key};
use sideburn_kernels::Visibility;
use sideburn_nn::{Attention, AttentionConfig, FeedForward, Position, RmsNorm};

use crate::config::T5Config;

/// The embedding, as the encoder has it in `transformers`.
pub(crate) const ENCODER: &str = "encoder.embed_tokens";
/// The same of the decoder.
pub(crate) const DECODER: &str = "decoder.embed_tokens";

/// `T5LayerNorm`.
pub(crate) fn norm(config: &T5Config, device: &Device) -> RmsNorm {
    RmsNorm::new(config.d_model, config.initializer_factor, config.layer_norm_epsilon, device)
}

/// `T5Attention`, without the relative position bias, which the stack owns.
pub(crate) fn attention(config: &T5Config, key: Key, device: &Device) -> Attention {
    let T5Config { d_model, d_kv, num_heads, .. } = *config;
    let shape = AttentionConfig {
        width: d_model,
        heads: num_heads,
        kv_heads: num_heads,
        head_width: d_kv,
        scale: 1.0,
        dropout: config.dropout_rate,
    };
    Attention::new(shape, |name, out, input| {
        // The variances of `T5PreTrainedModel._init_weights`.
        let variance = if name == "q" { input * d_kv } else { input };
        let deviation = config.initializer_factor / (variance as f64).sqrt();
        AdaptedLinear::random(out, input, deviation, key.fold_in_name(name), device)
    })
}

/// `T5DenseActDense`, or gated `T5DenseGatedActDense`.
pub(crate) fn feed_forward(config: &T5Config, key: Key, device: &Device) -> FeedForward {
    let (d_model, d_ff, factor) = (config.d_model, config.d_ff, config.initializer_factor);
    let wi = |index| {
        let deviation = factor / (d_model as f64).sqrt();
        AdaptedLinear::random(d_ff, d_model, deviation, key.fold_in_name("wi").fold_in(index), device)
    };
    let crate::FeedForward { activation, gated } = config.feed_forward_proj;
    let deviation = factor / (d_ff as f64).sqrt();
    let wo = AdaptedLinear::random_in_f32(d_model, d_ff, deviation, key.fold_in_name("wo"), device);
    FeedForward::new((0..if gated { 2 } else { 1 }).map(wi).collect(), wo, activation, config.dropout_rate)
}

/// What attention is told of positions, and which keys a query sees.
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    /// One for all blocks, or one for each.
    pub(crate) positions: Vec<Position>,
    pub(crate) visibility: Visibility,
}

impl Scores {
    /// What the attention of a block is told.
    pub(crate) fn position(&self, block: usize) -> &Position {
        self.positions.get(block).unwrap_or(&self.positions[0])
    }
}
