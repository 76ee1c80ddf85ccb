//! What can go wrong in training.

use std::path::PathBuf;

use sideburn_adapters::AdapterError;
use sideburn_files::FileError;
use sideburn_kernels::OutOfMemory;
use sideburn_weights::WeightsError;

use crate::RankError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why training stopped, or could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting that means nothing.
    #[error("`{field}` is {found}, expected {expected}; correct the training settings")]
    InvalidSetting {
        /// The field of [`TrainConfig`](crate::TrainConfig).
        field: &'static str,
        /// Its value.
        found: f64,
        /// What would be right.
        expected: &'static str,
    },
    /// Settings that cannot be together.
    #[error("{message}")]
    Contradiction {
        /// Which, and what to do.
        message: String,
    },
    /// A setting that does not exist.
    #[error("no setting is called `{name}`{}", hint(nearest))]
    UnknownSetting {
        /// What it was called.
        name: String,
        /// The setting that may have been meant.
        nearest: Option<String>,
    },
    /// A setting of another type.
    #[error("`{name}` is {found}: {expected}; without it, it is {before}")]
    IllTyped {
        /// The setting.
        name: String,
        /// What was given.
        found: String,
        /// What it can be.
        expected: String,
        /// What it would be if nothing were given.
        before: String,
    },
    /// A metric that no evaluation finds.
    #[error("`metric_for_best_model` is {metric}, and an evaluation finds {}{}", known.join(", "), hint(nearest))]
    UnknownMetric {
        /// What it was called.
        metric: String,
        /// What an evaluation finds.
        known: Vec<String>,
        /// The one that may have been meant.
        nearest: Option<String>,
    },
    /// An evaluation that failed.
    #[error("the evaluation failed: {source}")]
    Evaluation {
        /// The error of the data or the model.
        source: Source,
    },
    /// A run that is to go on with something else than what it began with.
    #[error("the run cannot go on with what it did not begin with: {}; begin another one", differences.join(", "))]
    OtherRun {
        /// What differs.
        differences: Vec<String>,
    },
    /// A directory that is not one to begin or to go on with.
    #[error("{}: {message}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        message: String,
    },
    /// A checkpoint that is not as it was written.
    #[error("{}: the checkpoint cannot be used: {message}", path.display())]
    Checkpoint {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file or directory that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Tensors that cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model of which nothing trains.
    #[error("no parameter is trainable; attach an adapter, or unfreeze the base, before training")]
    NothingToTrain,
    /// A loss that depends on nothing that trains.
    #[error("nothing that is trainable takes part in the loss; make its adapter active, and do not train a merged one")]
    NothingFlows,
    /// An adapter whose configuration is not for this run.
    #[error("the adapters cannot be trained in this run: {source}")]
    Adapter {
        /// What is wrong with it.
        #[from]
        source: AdapterError,
    },
    /// A model on a device that does not differentiate.
    #[error("the model is on a device without autodiff; load it on `device.autodiff()`, or call `train()` on it")]
    NoAutodiff,
    /// A loss or gradient that is infinite or not a number.
    #[error(
        "step {step}: the {what} is {value}; the model has the last weights that gave a finite one. \
         Lower the learning rate, or look for broken samples in the batch"
    )]
    NotFinite {
        /// The step, from 0.
        step: u64,
        /// `loss`, `penalty` or `gradient norm`.
        what: &'static str,
        /// The value.
        value: f64,
    },
    /// A frozen weight of the base that is infinite or not a number, found when a step gave such a loss.
    #[error(
        "step {step}: the loss is not finite because {name} of the base is not; \
         no learning rate mends that: load the base anew, from another copy if need be"
    )]
    WeightNotFinite {
        /// The step, from 0.
        step: u64,
        /// The first such weight.
        name: String,
    },
    /// A device whose memory is used up. The model is not to be used any more.
    #[error(
        "step {step}: the memory of the device is used up: {memory}; take fewer rows in a batch and more micro-batches \
         (`gradient_accumulation_steps`), shorter rows, or a base in 16 bits"
    )]
    OutOfMemory {
        /// The step, from 0.
        step: u64,
        /// What was asked for, and what there is.
        memory: OutOfMemory,
    },
    /// A device that has failed. The model is not to be used any more.
    #[error("step {step}: the device failed: {source}")]
    Device {
        /// The step, from 0.
        step: u64,
        /// What it says.
        source: Source,
    },
    /// A state that the run cannot go on from.
    #[error("the run cannot be resumed: {message}; give the state and the weights of one run")]
    State {
        /// What does not fit.
        message: String,
    },
    /// An error of the data or the model.
    #[error("step {step}: {source}")]
    Step {
        /// The step, from 0.
        step: u64,
        /// The error.
        source: Source,
    },
    /// Another rank that has failed, is gone, or has something else than this one.
    #[error(transparent)]
    Ranks(#[from] RankError),
    /// A log that cannot be written.
    #[error("{}: the log cannot be written: {source}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; the nearest name is `{name}`"))
}
