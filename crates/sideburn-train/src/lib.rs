//! A training loop for fine-tuning on [Burn](burn) whose every step is a pure function of the model, the optimiser's
//! state and the step's number.
//!
//! * A [`Run`] is a run between two steps: [`Run::step`] makes one, [`Run::state`] says what is needed to go on.
//! * [`Trainer::train`] is the loop over it: micro-batches, backward pass, global-norm clipping, AdamW, schedule.
//! * [`TrainConfig`] says how, in the words of `transformers.TrainingArguments`.
//! * An [`Observer`] sees each finished step and the model, and can stop: [`ProgressLine`] draws it, [`JsonLinesLog`]
//!   writes it down.
//! * [`Differentiate`] is where gradients come from: a function from a batch to losses, or something of your own.
//!
//! The loss of a step is the sum over its target tokens divided by their number, over all micro-batches together, so
//! that accumulating gradients is the same as a larger batch. The batch of micro-step `i` and the random draws inside
//! it are functions of the seed and `i`, and of nothing that happened before.

#![forbid(unsafe_code)]

mod config;
mod decay;
mod differentiate;
mod error;
mod gradients;
mod observe;
mod optimizer;
#[cfg(feature = "progress")]
mod progress;
mod record;
mod run;
mod schedule;
mod trainer;

pub use config::TrainConfig;
pub use differentiate::{Differentiate, Differentiated, StepInfo};
pub use error::TrainError;
pub use observe::{ChromeTrace, Control, JsonLinesLog, Observer, RunInfo};
pub use optimizer::Moments;
#[cfg(feature = "progress")]
pub use progress::ProgressLine;
pub use record::StepRecord;
pub use run::{Run, RunState};
pub use schedule::Schedule;
pub use trainer::{TrainReport, Trainer};
