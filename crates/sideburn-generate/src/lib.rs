//! Text generation over any [`Decoder`]: a thing that, given the last token of each row, says what may come next.
//!
//! # Overview
//!
//! This crate knows no model. A model implements [`Decoder`] for its state in the middle of writing, cache included, and a
//! [`Generation`] drives it, one [`Step`] after the other. Three parts can be replaced or added, from any crate:
//!
//! * a [`Strategy`] decides which rows go on and with which tokens; [`Greedy`] takes the most likely;
//! * a [`LogitsProcessor`] changes the logits before, as [`NoRepeatNgram`] does;
//! * a [`StoppingCriterion`] ends a row: [`EosToken`], [`MaxNewTokens`].
//!
//! [`GenerationConfig`] names the usual ones as `transformers.GenerationConfig` does, and [`greedy`] needs nothing else.
//!
//! # A complete program
//!
//! ```
//! use std::convert::Infallible;
//!
//! use burn::tensor::{Device, Tensor};
//! use sideburn_generate::{Decoder, Generation, GenerationConfig, Greedy, greedy};
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
//! }
//!
//! let config = GenerationConfig { eos_token_id: vec![6], ..GenerationConfig::new(4) };
//! let from = |history: &[[u32; 1]]| Counting { history: history.to_vec() };
//! assert_eq!(greedy(from(&[[2], [4]]), &config)?, [vec![3, 4, 5, 6], vec![5, 6]]);
//! // The same, with each token shown as soon as it is there.
//! for step in Generation::new(from(&[[2]]), Greedy, &config) {
//!     println!("{:?}", step?.tokens); // [(0, 3)], then [(0, 4)], ...
//! }
//! # Ok::<(), Infallible>(())
//! ```

#![forbid(unsafe_code)]

mod config;
mod decoder;
mod generation;
mod processors;
mod sequence;
mod stopping;
mod strategy;

pub use config::GenerationConfig;
pub use decoder::Decoder;
pub use generation::{Generation, Step, greedy};
pub use processors::{LogitsProcessor, NoRepeatNgram, ban};
pub use sequence::Sequence;
pub use stopping::{EosToken, MaxNewTokens, Stopping, StoppingCriterion};
pub use strategy::{Answer, Decision, Greedy, Next, Strategy};
