//! Text generation over any [`Decoder`]: a thing that, given the last token of each row, says what may come next.
//!
//! This crate knows no model. A model implements [`Decoder`] for its state in the middle of writing, cache included;
//! [`greedy`] drives it.

#![forbid(unsafe_code)]

mod decoder;
mod greedy;

pub use decoder::Decoder;
pub use greedy::{GreedyConfig, greedy};
