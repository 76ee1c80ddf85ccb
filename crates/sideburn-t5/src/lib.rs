//! T5, T5 1.1 and FLAN-T5 (Raffel et al., 2020; Chung et al., 2022) on [Burn](burn), with an adapter slot in every
//! linear layer.
//!
//! The reference is `transformers`, `models/t5/modeling_t5.py`: given the same weights, logits agree to float
//! rounding, dropout stands in the same places, and generation writes the same tokens.
//!
//! * [`T5::from_dir`] reads a Hugging Face model directory, [`T5::save_dir`] writes one.
//! * [`T5::token_losses`] is what training minimises.
//! * [`T5::start_decoding`] makes a [`sideburn_generate::Decoder`].
//!
//! Batches carry their lengths ([`TokenRows`](sideburn_batch::TokenRows)); there is no attention mask to forget.
//!
//! ```
//! use burn::tensor::Device;
//! use sideburn_adapters::{Key, Pass};
//! use sideburn_batch::{Seq2SeqBatch, TokenRows};
//! use sideburn_t5::{T5, T5Config};
//!
//! let config = T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, ..T5Config::default() };
//! let model = T5::random(&config, Key::from_seed(0), &Device::flex());
//! let source = TokenRows::from_rows([[7, 8, 9, 1].as_slice(), &[7, 1]])?;
//! let target = TokenRows::from_rows([[5, 1].as_slice(), &[6, 6, 1]])?;
//! let losses = model.token_losses(&Seq2SeqBatch::new(source, target)?, &mut Pass::evaluate())?;
//! assert_eq!(losses.dims(), [5], "one for each target token");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod config;
mod decoding;
mod error;
mod layers;
mod load;
mod model;
mod names;
mod position;
mod stack;

pub use config::{FeedForward, T5Config};
pub use decoding::Decoding;
pub use error::T5Error;
pub use model::{Encoded, T5};
