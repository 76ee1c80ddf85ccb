//! Text generation over any [`Decoder`]: a thing that, given the last token of each row, says what may come next.
//!
//! # Overview
//!
//! This crate knows no model. A model implements [`Decoder`] for its state in the middle of writing, cache included, and
//! [`generate`] writes with it as a [`GenerationConfig`] asks for, whose fields are those of `transformers`: greedily, by
//! draws, by a search with beams, in groups that keep away from each other or not, or by contrastive search. A
//! [`Generation`] does the same one [`Step`] after the other, and with a second, smaller model that writes ahead
//! ([`Generation::assisted`]).
//!
//! Three parts can be replaced or added, from any crate:
//!
//! * a [`Strategy`] decides which rows go on and with which tokens; [`Greedy`] takes the most likely, [`Beams`] searches;
//! * a [`LogitsProcessor`] changes the scores before ([`processors`] has those of the configuration);
//! * a [`StoppingCriterion`] ends a row: [`EosToken`], [`MaxNewTokens`], or a closure.
//!
//! # A complete program
//!
//! ```
//! use std::convert::Infallible;
//!
//! use burn::tensor::{Device, Tensor};
//! use sideburn_generate::{Decoder, GenerateError, Generation, GenerationConfig, generate};
//!
//! /// Counts: after token `n` comes `n + 1`, of ten tokens.
//! struct Counting {
//!     history: Vec<[u32; 1]>,
//! }
//!
//! impl Decoder for Counting {
//!     type Error = Infallible;
//!
//!     fn rows(&self) -> usize {
//!         self.history.len()
//!     }
//!
//!     fn history(&self, row: usize) -> &[u32] {
//!         &self.history[row]
//!     }
//!
//!     fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, Infallible> {
//!         let next = |token: u32| (0..10).map(move |other| f32::from(u8::from(other == (token + 1) % 10)));
//!         let logits: Vec<f32> = tokens.iter().copied().flat_map(next).collect();
//!         Ok(Tensor::<1>::from_floats(logits.as_slice(), &Device::flex()).reshape([tokens.len(), 10]))
//!     }
//!
//!     fn select_rows(&mut self, rows: &[usize]) {
//!         self.history = rows.iter().map(|row| self.history[*row]).collect();
//!     }
//!
//!     // Nothing is remembered of what was appended.
//!     fn forget(&mut self, _: usize) {}
//! }
//!
//! let config = GenerationConfig { eos_token_id: vec![6], ..GenerationConfig::new(4) };
//! let from = |history: &[[u32; 1]]| Counting { history: history.to_vec() };
//! let written = generate(from(&[[2], [4]]), &config)?;
//! assert_eq!(written[0].tokens, [3, 4, 5, 6]);
//! assert_eq!(written[1].tokens, [5, 6]);
//! // The same, with each token shown as soon as it is there.
//! for step in Generation::new(from(&[[2]]), &config)? {
//!     println!("{:?}", step?.tokens); // [(0, 3)], then [(0, 4)], ...
//! }
//! # Ok::<(), GenerateError<Infallible>>(())
//! ```

#![forbid(unsafe_code)]

mod config;
mod decoder;
mod error;
mod generation;
pub mod processors;
mod scores;
mod sequence;
mod stopping;
mod strategy;

pub use config::{EarlyStopping, GenerationConfig};
pub use decoder::Decoder;
pub use error::{ConfigError, GenerateError};
pub use generation::{Generation, Step, generate};
pub use processors::LogitsProcessor;
pub use sequence::Sequence;
pub use stopping::{EosToken, MaxLength, MaxNewTokens, MaxTime, StopStrings, Stopping, StoppingCriterion};
pub use strategy::{
    Answer, Assisted, BeamGroups, Beams, Contrastive, Decision, Greedy, Next, Rules, Sampling, Strategy,
};
