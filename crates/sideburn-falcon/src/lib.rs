//! Falcon on [Burn](burn), with an adapter slot in every linear layer: Falcon-7B, -40B and -180B (Almazrouei et al., 2023),
//! Falcon2-11B, Falcon-RW (Penedo et al., 2023), and what else a `config.json` can say of the family: heads of keys that are
//! shared by all heads, by some or by none, one norm or two, parallel or sequential attention, biases, rotary positions or
//! ALiBi.
//!
//! The reference is `transformers`, `models/falcon/modeling_falcon.py`: given the same weights, logits agree to float
//! rounding, dropout stands in the same places, and generation writes the same tokens.
//!
//! * [`Falcon::from_dir`] reads a Hugging Face model directory, [`Falcon::save_dir`] writes one.
//! * It is a decoder alone ([`DecoderOnly`](sideburn_nn::DecoderOnly)), and so a [`LanguageModel`]:
//!   [`token_losses`](LanguageModel::token_losses) is what training minimises, over the answer and not the prompt, and
//!   [`start_decoding`](LanguageModel::start_decoding) makes a [`sideburn_generate::Decoder`].
//!
//! Batches carry their lengths ([`TokenRows`](sideburn_batch::TokenRows)). There is no attention mask to forget, and no
//! padding on either side: the rows of a batch are packed, each sees itself alone.
//!
//! ```
//! use burn::tensor::Device;
//! use sideburn_adapters::{Key, Pass};
//! use sideburn_batch::{PromptBatch, TokenRows};
//! use sideburn_falcon::{Falcon, FalconConfig, LanguageModel};
//!
//! let config = FalconConfig {
//!     vocab_size: 50,
//!     hidden_size: 16,
//!     num_hidden_layers: 1,
//!     num_attention_heads: 4,
//!     ..FalconConfig::default()
//! };
//! let model = Falcon::random(&config, Key::from_seed(0), &Device::flex());
//! let prompts = TokenRows::from_rows([[7, 8, 9].as_slice(), &[7]])?;
//! let answers = TokenRows::from_rows([[5, 11].as_slice(), &[6, 6, 11]])?;
//! let losses = model.token_losses(&PromptBatch::new(prompts, answers)?, &mut Pass::evaluate())?;
//! assert_eq!(losses.dims(), [5], "one for each token of an answer");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod block;
mod config;
mod error;
mod load;
mod model;
mod names;

pub use config::FalconConfig;
pub use error::FalconError;
pub use model::Falcon;
pub use sideburn_nn::{Activation, LanguageModel, QuantType, Quantization, QuantizationConfig};
