//! Watching a run: what a step has to tell, on the terminal and in a log.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sideburn_kernels::{ChromeEvents, record_profile, take_profile};

use crate::TrainError;

/// What a finished step has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, from 0.
    pub step: u64,
    /// The mean negative log-likelihood of the step's target tokens, before the update, in nats.
    pub loss: f64,
    /// What the method of fine-tuning adds to the loss to be minimised; 0 for most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub penalty: f64,
    /// The learning rate that was used.
    pub learning_rate: f64,
    /// The norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Source and target tokens of the step, without padding.
    pub tokens: usize,
    /// How long the step took.
    pub seconds: f64,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// Someone who is told of each step when it is finished.
pub trait Observer {
    /// Takes note of a step.
    ///
    /// # Errors
    /// If the note cannot be kept; training stops.
    fn step(&mut self, record: &StepRecord) -> Result<(), TrainError>;
}

/// A progress bar on standard error with loss, learning rate, tokens per second and the time left.
#[derive(Debug)]
pub struct ProgressLine {
    bar: ProgressBar,
    /// The loss, and the tokens per second, averaged over about the last ten steps.
    smoothed: Option<(f64, f64)>,
}

impl ProgressLine {
    /// A bar for `steps` steps; where standard error is not a terminal, about twenty plain lines instead.
    pub fn new(steps: u64) -> Self {
        let style =
            ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}, {eta} left").expect("a template without errors");
        Self { bar: ProgressBar::new(steps).with_style(style), smoothed: None }
    }
}

impl Observer for ProgressLine {
    fn step(&mut self, record: &StepRecord) -> Result<(), TrainError> {
        let speed = record.tokens as f64 / record.seconds;
        let (loss, speed) = match self.smoothed {
            Some((old_loss, old_speed)) => (0.9 * old_loss + 0.1 * record.loss, 0.9 * old_speed + 0.1 * speed),
            None => (record.loss, speed),
        };
        self.smoothed = Some((loss, speed));
        let message = format!("loss {loss:.3}, lr {:.2e}, {speed:.0} tokens/s", record.learning_rate);
        let (done, steps) = (record.step + 1, self.bar.length().unwrap_or(0));
        if self.bar.is_hidden() && (done == steps || done.is_multiple_of(steps.div_ceil(20).max(1))) {
            // A lost line is no reason to stop training.
            let _ = writeln!(std::io::stderr(), "step {done}/{steps}: {message}");
        }
        self.bar.set_message(message);
        self.bar.set_position(done);
        Ok(())
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

/// A log with a JSON object a line, one for each step.
#[derive(Debug)]
pub struct JsonLinesLog {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl JsonLinesLog {
    /// Begins a new log, in place of one that may be there; missing directories are made.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref().to_owned();
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        match made.and_then(|()| File::create(&path)) {
            Ok(file) => Ok(Self { path, writer: BufWriter::new(file) }),
            Err(source) => Err(TrainError::Log { path, source }),
        }
    }
}

impl Observer for JsonLinesLog {
    fn step(&mut self, record: &StepRecord) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(record).expect("a record of plain numbers");
        line.push('\n');
        // Flushed at once, so that the log of a run that dies ends with its last whole step.
        let written = self.writer.write_all(line.as_bytes()).and_then(|()| self.writer.flush());
        written.map_err(|source| TrainError::Log { path: self.path.clone(), source })
    }
}

/// Observes nothing where there is nobody.
impl<O: Observer> Observer for Option<O> {
    fn step(&mut self, record: &StepRecord) -> Result<(), TrainError> {
        self.as_mut().map_or(Ok(()), |observer| observer.step(record))
    }
}

/// A profile of the run in Chrome's trace format: what each operation of each step took. Open the file in
/// <https://ui.perfetto.dev> or `chrome://tracing`.
///
/// On a GPU, where operations run behind the program's back, it shows what handing them over took.
#[derive(Debug)]
pub struct ChromeTrace {
    path: PathBuf,
    events: ChromeEvents<BufWriter<File>>,
}

impl ChromeTrace {
    /// Begins a profile, in place of one that may be there; missing directories are made. Whatever the process computes
    /// from now on is in it, until this is dropped.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref().to_owned();
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let begun = made.and_then(|()| File::create(&path)).and_then(|file| ChromeEvents::begin(BufWriter::new(file)));
        match begun {
            Ok(events) => {
                take_profile();
                record_profile(true);
                Ok(Self { path, events })
            }
            Err(source) => Err(TrainError::Log { path, source }),
        }
    }
}

impl Observer for ChromeTrace {
    fn step(&mut self, _: &StepRecord) -> Result<(), TrainError> {
        let written = self.events.write(&take_profile());
        written.map_err(|source| TrainError::Log { path: self.path.clone(), source })
    }
}

impl Drop for ChromeTrace {
    fn drop(&mut self) {
        record_profile(false);
    }
}
