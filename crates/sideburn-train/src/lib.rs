//! A training loop for fine-tuning on [Burn](burn) whose every step is a pure function of the model, the optimiser's
//! state and the step's number.
//!
//! # Overview
//!
//! * A [`Run`] is a run between two steps: [`Run::step`] makes one, [`Run::state`] says what is needed to go on.
//! * [`Trainer::train`] is the loop over it: micro-batches, backward pass, global-norm clipping, optimiser, schedule.
//! * [`TrainConfig`] says how, in the words of `transformers.TrainingArguments`.
//! * An [`Observer`] sees each finished step and the model, and can stop: [`ProgressLine`] draws it, [`JsonLinesLog`]
//!   writes it down.
//! * A [`RunDir`] is where a run is kept, and a [`RunRecorder`] keeps it there: an observer that logs, evaluates and writes
//!   checkpoints, from which the run goes on to the same bits.
//! * [`Differentiate`] is where gradients come from: a function from a batch to losses, or something of your own.
//! * [`Ranks`] are processes, threads or devices that train one model together ([`Trainer::over`]); `sideburn-mpi` has those of
//!   MPI.
//!
//! The loss of a step is the sum over its target tokens divided by their number, over all micro-batches together, so
//! that accumulating gradients is the same as a larger batch. The batch of micro-step `i` and the random draws inside
//! it are functions of the seed and `i`, and of nothing that happened before.
//!
//! # A complete program
//!
//! ```
//! use std::convert::Infallible;
//! use std::error::Error;
//!
//! use sideburn_adapters::{Adapters, Key};
//! use sideburn_adapters::methods::LoraConfig;
//! use sideburn_batch::{PromptBatch, TokenRows};
//! use sideburn_t5::{LanguageModel, T5};
//! use sideburn_train::{ProgressLine, TrainConfig, Trainer};
//!
//! /// Teaches a model to answer three tokens with two, and returns the losses on the way.
//! fn teach(model: &mut T5) -> Result<Vec<f64>, Box<dyn Error>> {
//!     model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(1))?;
//!     let (prompts, targets) = (TokenRows::from_rows([[7, 8, 1]])?, TokenRows::from_rows([[9, 1]])?);
//!     let batch = PromptBatch::new(prompts, targets)?;
//!     // Every step sees the same batch here; with data it is that of `sampler.batch(step)`.
//!     let batches = |_step| Ok::<_, Infallible>(batch.clone());
//!     let config = TrainConfig { learning_rate: 1e-2, ..TrainConfig::new(20) };
//!     let trainer = Trainer::new(config)?.observe(ProgressLine::new());
//!     Ok(trainer.train(model, batches, T5::token_losses)?.losses())
//! }
//! # use burn::tensor::Device;
//! # use sideburn_t5::T5Config;
//! # let config = T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, ..T5Config::default() };
//! # let mut model = T5::random(&config, Key::from_seed(0), &Device::flex().autodiff());
//! # let losses = teach(&mut model).unwrap();
//! # assert!(losses[19] < losses[0], "{losses:?}");
//! ```
//!
//! # Features
//!
//! * `progress` (default): [`ProgressLine`].

#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod decay;
mod differentiate;
mod error;
mod evaluate;
mod gradients;
mod observe;
mod optim;
mod optimizer;
#[cfg(feature = "progress")]
mod progress;
mod ranks;
mod record;
mod recorder;
mod run;
mod run_dir;
mod schedule;
mod settings;
mod tensorboard;
mod trainer;

pub use config::{Strategy, TrainConfig};
pub use differentiate::{Differentiate, Differentiated, StepInfo};
pub use error::TrainError;
pub use evaluate::{Evaluated, Sample, evaluate_loss};
pub use observe::{ChromeTrace, Control, JsonLinesLog, Observer, RunInfo};
pub use optim::{Optim, OptimArgs};
#[cfg(feature = "progress")]
pub use progress::ProgressLine;
pub use ranks::{
    Alone, DeviceRanks, OverRanks, RankError, Ranks, ThreadRanks, check_same, first_failure, micro_batches_of,
    share_state,
};
pub use record::StepRecord;
pub use recorder::{Restored, RunRecorder};
pub use run::{Run, RunState};
pub use run_dir::RunDir;
pub use schedule::{Ramp, Schedule, ScheduleOptions};
pub use settings::with_settings;
pub use trainer::{TrainReport, Trainer};
