//! A run on the terminal.

use std::collections::BTreeSet;
use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sideburn_kernels::refused_kernels;

use crate::{Control, Observer, Run, RunInfo, StepRecord, TrainError};

/// A progress bar on standard error with loss, learning rate, tokens per second and the time left.
#[derive(Debug)]
pub struct ProgressLine {
    bar: ProgressBar,
    /// The loss, and the tokens per second, averaged over about the last ten steps.
    smoothed: Option<(f64, f64)>,
    /// What the first step took, until the next one has shown what a step takes.
    first_seconds: Option<f64>,
    /// Whether no step has been made.
    begins: bool,
    /// Kernels that a GPU has refused, and that there has been a line about.
    refused: BTreeSet<String>,
}

/// What the first step must take beyond the next to be worth a line, in seconds.
const SLOW_START: f64 = 2.0;

impl ProgressLine {
    /// A bar; where standard error is not a terminal, about twenty plain lines instead. If the first step takes some seconds
    /// longer than the next, as on a GPU that compiles its kernels, a line says how long; and each kernel that the GPU refuses
    /// has a line, too.
    pub fn new() -> Self {
        let style =
            ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}, {eta} left").expect("a template without errors");
        Self {
            bar: ProgressBar::hidden().with_style(style),
            smoothed: None,
            first_seconds: None,
            begins: true,
            refused: BTreeSet::new(),
        }
    }
}

impl ProgressLine {
    /// A line of its own.
    fn say(&self, line: &str) {
        // A lost line is no reason to stop training.
        let _ = self.bar.suspend(|| writeln!(std::io::stderr(), "{line}"));
    }
}

impl Default for ProgressLine {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Observer<M> for ProgressLine {
    fn begin(&mut self, info: &RunInfo) -> Result<Control, TrainError> {
        self.bar.set_length(info.max_steps);
        self.bar.set_position(info.first_step);
        self.bar.reset_eta();
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        Ok(Control::GoOn)
    }

    fn step(&mut self, record: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        let speed = record.tokens as f64 / record.seconds;
        let (loss, speed) = match self.smoothed {
            Some((old_loss, old_speed)) => (0.9 * old_loss + 0.1 * record.loss, 0.9 * old_speed + 0.1 * speed),
            None => (record.loss, speed),
        };
        self.smoothed = Some((loss, speed));
        let message = format!("loss {loss:.3}, lr {:.2e}, {speed:.0} tokens/s", record.learning_rate);
        let (done, steps) = (record.step + 1, self.bar.length().unwrap_or(0));
        if self.bar.is_hidden() && (done == steps || done.is_multiple_of(steps.div_ceil(20).max(1))) {
            self.say(&format!("step {done}/{steps}: {message}"));
        }
        self.bar.set_message(message);
        self.bar.set_position(done);
        for (name, reason) in refused_kernels() {
            if !self.refused.contains(&name) {
                self.say(&format!("the GPU refuses the kernel of {name}, so that it is slower: {reason}"));
                self.refused.insert(name);
            }
        }
        match self.first_seconds.take() {
            None if self.begins => self.first_seconds = Some(record.seconds),
            Some(first) if first - record.seconds > SLOW_START => self.say(&format!(
                "the first step took {first:.1} s, and this one {:.1} s: a GPU compiles kernels when they are first needed",
                record.seconds
            )),
            _ => {}
        }
        self.begins = false;
        Ok(Control::GoOn)
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}
