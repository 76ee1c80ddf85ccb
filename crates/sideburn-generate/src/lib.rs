//! Text generation over any [`Decoder`]: a thing that, given the last token of each row, says what may come next.
//!
//! This crate knows no model. A model implements [`Decoder`] for its state in the middle of writing, cache included, and a
//! [`Generation`] drives it, one [`Step`] after the other. Three parts can be replaced or added, from any crate:
//!
//! * a [`Strategy`] decides which rows go on and with which tokens; [`Greedy`] takes the most likely;
//! * a [`LogitsProcessor`] changes the logits before, as [`NoRepeatNgram`] does;
//! * a [`StoppingCriterion`] ends a row: [`EosToken`], [`MaxNewTokens`].
//!
//! [`GenerationConfig`] names the usual ones as `transformers.GenerationConfig` does, and [`greedy`] needs nothing else.

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
