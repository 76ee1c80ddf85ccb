//! A training loop for fine-tuning on [Burn](burn) whose every step is a pure function of the model, the optimiser's
//! state and the step's number.
//!
//! * [`Trainer::train`] runs the loop: micro-batches, backward pass, global-norm clipping, AdamW, schedule.
//! * [`TrainConfig`] says how, in the words of `transformers.TrainingArguments`.
//! * An [`Observer`] sees each finished step: [`ProgressLine`] draws it, [`JsonLinesLog`] writes it down.
//!
//! The loss of a step is the sum over its target tokens divided by their number, over all micro-batches together, so
//! that accumulating gradients is the same as a larger batch. The batch of micro-step `i` and the random draws inside
//! it are functions of the seed and `i`, and of nothing that happened before.

#![forbid(unsafe_code)]

mod config;
mod error;
mod gradients;
mod groups;
mod observe;
mod optimizer;
mod schedule;
mod trainer;

pub use config::TrainConfig;
pub use error::TrainError;
pub use observe::{ChromeTrace, JsonLinesLog, Observer, ProgressLine, StepRecord};
pub use schedule::Schedule;
pub use trainer::{TrainReport, Trainer};
