//! What one training step is a function of: rows of token ids with their lengths ([`TokenRows`],
//! [`PromptBatch`]), and the random numbers drawn inside it ([`Key`], [`Dropout`]).
//!
//! None of the types knows Burn, a tokenizer or a model: data loaders make batches, models consume them, and both agree
//! on this crate alone. Two rules of the project live here:
//!
//! * **Padding comes from lengths, never from token values.** A [`TokenRows`] holds real tokens only, end to end;
//!   whoever needs a rectangle asks for one and says what to fill it with.
//! * **Every random draw is a pure function of a key.** Nothing depends on how many draws came before, so training
//!   resumes at any step without saved generator state.

#![forbid(unsafe_code)]

mod dropout;
mod key;
mod rows;

pub use dropout::Dropout;
pub use key::{GOLDEN, Key, MIX};
pub use rows::{Batch, BatchError, PromptBatch, TokenRows};
