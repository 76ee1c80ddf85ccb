//! Watching a run: what a step has to tell, on the terminal and in a log.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sideburn_adapters::ParameterReport;
use sideburn_kernels::{ChromeEvents, record_profile, take_profile};

use crate::{Run, StepRecord, TrainError};

/// What is known of a run before its first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// The first step, from 0; another where a run is resumed.
    pub first_step: u64,
    /// The number of steps of the whole run.
    pub max_steps: u64,
    /// How much of the model is trained.
    pub parameters: ParameterReport,
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// It does.
    GoOn,
    /// It ends after this step, as if that had been the last.
    Stop,
}

/// Someone who watches a run: told of each step, shown the model, and able to stop it.
pub trait Observer<M> {
    /// The run is about to begin.
    ///
    /// # Errors
    /// Whatever keeps it from beginning.
    fn begin(&mut self, _info: &RunInfo) -> Result<(), TrainError> {
        Ok(())
    }

    /// A step is finished. `run` and `model` are as the step left them: what is saved of them now can be
    /// [resumed](Run::resume).
    ///
    /// # Errors
    /// If the observer cannot do its work; training stops.
    fn step(&mut self, record: &StepRecord, run: &Run<M>, model: &M) -> Result<Control, TrainError>;

    /// The last step is made, or someone has stopped the run. Not called after an error.
    ///
    /// # Errors
    /// If the observer cannot do its work.
    fn end(&mut self, _run: &Run<M>, _model: &M) -> Result<(), TrainError> {
        Ok(())
    }
}

/// A log with a JSON object a line, one for each step.
#[derive(Debug)]
pub struct JsonLinesLog {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl JsonLinesLog {
    /// Opens a log; missing directories are made. A run that begins takes the place of what is there, one that is resumed
    /// goes on behind the steps that it has made.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref().to_owned();
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let open = |()| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        match made.and_then(open) {
            Ok(file) => Ok(Self { path, writer: BufWriter::new(file) }),
            Err(source) => Err(TrainError::Log { path, source }),
        }
    }
}

/// Cuts a log behind the records of the steps before `first_step`.
fn keep_steps(file: &mut File, first_step: u64) -> io::Result<()> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let (mut kept, mut lines) = (0, BufReader::new(&mut *file));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let is_before = serde_json::from_slice(&line).is_ok_and(|Step { step }| step < first_step);
        // A record whose end is missing is that of a step that is made again.
        if !is_before || line.last() != Some(&b'\n') {
            break;
        }
        kept += line.len() as u64;
        line.clear();
    }
    file.set_len(kept)?;
    file.seek(SeekFrom::Start(kept)).map(drop)
}

impl<M> Observer<M> for JsonLinesLog {
    fn begin(&mut self, info: &RunInfo) -> Result<(), TrainError> {
        let kept = keep_steps(self.writer.get_mut(), info.first_step);
        kept.map_err(|source| TrainError::Log { path: self.path.clone(), source })
    }

    fn step(&mut self, record: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        let mut line = serde_json::to_string(record).expect("a record of plain numbers");
        line.push('\n');
        // Flushed at once, so that the log of a run that dies ends with its last whole step.
        let written = self.writer.write_all(line.as_bytes()).and_then(|()| self.writer.flush());
        written.map_err(|source| TrainError::Log { path: self.path.clone(), source })?;
        Ok(Control::GoOn)
    }
}

/// Observes nothing where there is nobody.
impl<M, O: Observer<M>> Observer<M> for Option<O> {
    fn begin(&mut self, info: &RunInfo) -> Result<(), TrainError> {
        self.as_mut().map_or(Ok(()), |observer| observer.begin(info))
    }

    fn step(&mut self, record: &StepRecord, run: &Run<M>, model: &M) -> Result<Control, TrainError> {
        self.as_mut().map_or(Ok(Control::GoOn), |observer| observer.step(record, run, model))
    }

    fn end(&mut self, run: &Run<M>, model: &M) -> Result<(), TrainError> {
        self.as_mut().map_or(Ok(()), |observer| observer.end(run, model))
    }
}

/// Leaves what the observer has noted with its owner.
impl<M, O: Observer<M>> Observer<M> for &mut O {
    fn begin(&mut self, info: &RunInfo) -> Result<(), TrainError> {
        (**self).begin(info)
    }

    fn step(&mut self, record: &StepRecord, run: &Run<M>, model: &M) -> Result<Control, TrainError> {
        (**self).step(record, run, model)
    }

    fn end(&mut self, run: &Run<M>, model: &M) -> Result<(), TrainError> {
        (**self).end(run, model)
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

impl<M> Observer<M> for ChromeTrace {
    fn step(&mut self, _: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        let written = self.events.write(&take_profile());
        written.map_err(|source| TrainError::Log { path: self.path.clone(), source })?;
        Ok(Control::GoOn)
    }
}

impl Drop for ChromeTrace {
    fn drop(&mut self) {
        record_profile(false);
    }
}
