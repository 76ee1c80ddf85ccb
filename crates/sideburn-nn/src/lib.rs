//! Blocks that language models share, with an adapter slot in every weight: attention with its cache, norms, feed-forward
//! layers, output heads, tokens in front of rows, and the files of a model directory.
//!
//! A family of models is its configuration, the names of its weights, and the wiring of these blocks, and its model is a
//! [`LanguageModel`]. `sideburn-t5` is an encoder with a decoder. A decoder alone, such as `sideburn-falcon`, says what
//! stands around its blocks and how they run ([`DecoderOnly`]); losses, logits, packed batches and decoding with a cache
//! follow. `tests/nn/tiny.rs` of this crate is one, built from outside in one file.
//!
//! All blocks see a matrix of tokens, `[tokens, width]`, as a [`RowLayout`](sideburn_kernels::RowLayout) lays out the rows
//! of a batch; attention alone knows where a row begins and ends. Weights are drawn by whoever builds a block, since the
//! deviations belong to the family:
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use sideburn_adapters::{AdaptedLinear, AdapterSet, Key, Pass};
//! use sideburn_nn::{Attention, AttentionConfig, Position};
//! use sideburn_kernels::{RowLayout, Visibility};
//!
//! let (device, key) = (Device::flex(), Key::from_seed(0));
//! // Four heads that look through one head of keys and values: multi-query attention.
//! let config = AttentionConfig { width: 16, heads: 4, kv_heads: 1, head_width: 4, scale: 0.5, dropout: 0.0 };
//! let linear = |name: &str, out, input| AdaptedLinear::random(out, input, 0.25, key.fold_in_name(name), &device);
//! let attention = Attention::new(config, linear);
//!
//! // Two rows, of three tokens and of two, one behind the other.
//! let layout = RowLayout::packed(&[3, 2], &device);
//! let x = Tensor::<2>::ones([5, 16], &device);
//! let visibility = Visibility::causal(4, &layout, &layout, 0);
//! let mut pass = Pass::evaluate();
//! let mut tokens = AdapterSet::default().enter(&mut pass, &layout)?;
//! let projections = attention.projections(x, &mut tokens);
//! let mixed = attention.among_themselves(projections, &Position::None, &visibility, &mut tokens);
//! assert_eq!(mixed.dims(), [5, 16]);
//! # Ok::<(), sideburn_adapters::AdapterError>(())
//! ```

#![forbid(unsafe_code)]

mod activation;
mod attention;
mod cache;
mod decoder_only;
mod error;
mod feed_forward;
mod fields;
mod generation_config;
mod head;
mod language_model;
mod model_dir;
mod norm;
mod one_embedding;
mod position;
mod tokens;

pub use activation::Activation;
pub use attention::{Attention, AttentionConfig, KeysValues};
pub use cache::Cache;
pub use decoder_only::{CausalDecoding, CausalTokens, DecoderOnly, Frame};
pub use error::NnError;
pub use feed_forward::FeedForward;
pub use fields::{
    Architecture, ConfigFields, check_epsilon, check_probability, check_sizes, check_tokens, tokens_to_json,
};
pub use generation_config::{generation_config_fields, read_generation_config};
pub use head::Head;
pub use language_model::LanguageModel;
pub use model_dir::{ModelDir, Task, read_json, stored_dtype};
pub use norm::{LayerNorm, RmsNorm};
pub use one_embedding::OneEmbedding;
pub use position::{Alibi, Position, Positions, Rotary, Rotation};
pub use sideburn_quant::{QuantType, Quantization, QuantizationConfig};
pub use tokens::{add_noise, behind, check_ids, embed, places_behind, shift_right};
