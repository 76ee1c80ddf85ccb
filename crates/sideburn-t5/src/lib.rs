//! The T5 family on [Burn](burn), with an adapter slot in every linear layer: T5 (Raffel et al., 2020), T5 1.1, FLAN-T5
//! (Chung et al., 2022), UL2 and FLAN-UL2, ByT5, MADLAD-400, mT5, mT0 and uMT5.
//!
//! The reference is `transformers`, `models/{t5,mt5,umt5}/modeling_*.py`: given the same weights, logits agree to float
//! rounding, dropout stands in the same places, and generation writes the same tokens.
//!
//! * [`T5::from_dir`] reads a Hugging Face model directory, [`T5::save_dir`] writes one.
//! * It is a [`LanguageModel`]: [`token_losses`](LanguageModel::token_losses) is what training minimises, and
//!   [`start_decoding`](LanguageModel::start_decoding) makes a [`sideburn_generate::Decoder`].
//!
//! Batches carry their lengths ([`TokenRows`](sideburn_batch::TokenRows)); there is no attention mask to forget.
//!
//! ```
//! use burn::tensor::Device;
//! use sideburn_adapters::{Key, Pass};
//! use sideburn_batch::{PromptBatch, TokenRows};
//! use sideburn_t5::{LanguageModel, T5, T5Config};
//!
//! let config = T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, ..T5Config::default() };
//! let model = T5::random(&config, Key::from_seed(0), &Device::flex());
//! let source = TokenRows::from_rows([[7, 8, 9, 1].as_slice(), &[7, 1]])?;
//! let target = TokenRows::from_rows([[5, 1].as_slice(), &[6, 6, 1]])?;
//! let losses = model.token_losses(&PromptBatch::new(source, target)?, &mut Pass::evaluate())?;
//! assert_eq!(losses.dims(), [5], "one for each target token");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod config;
mod decoding;
mod error;
mod feed_forward;
mod language_model;
mod layers;
mod load;
mod model;
mod names;
mod position;
mod stack;

pub use config::{Family, T5Config};
pub use decoding::Decoding;
pub use error::T5Error;
pub use feed_forward::FeedForward;
pub use model::{Encoded, T5};
pub use position::relative_position_bucket;
pub use sideburn_nn::{Activation, LanguageModel, QuantType, Quantization, QuantizationConfig};
