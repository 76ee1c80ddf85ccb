//! Watching a run: what a step has to tell, on the terminal and in a log.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
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
    /// The run is about to begin. Told to stop, it makes no step.
    ///
    /// # Errors
    /// Whatever keeps it from beginning.
    fn begin(&mut self, _info: &RunInfo) -> Result<Control, TrainError> {
        Ok(Control::GoOn)
    }

    /// A step is finished. `run` and `model` are as the step left them: what is saved of them now can be
    /// [resumed](Run::resume).
    ///
    /// # Errors
    /// If the observer cannot do its work; training stops.
    fn step(&mut self, record: &StepRecord, run: &Run<M>, model: &M) -> Result<Control, TrainError>;

    /// The last step is made, or someone has stopped the run. Not called after an error. An observer may put another model
    /// of the run in the place of the last, with the run as it was then.
    ///
    /// # Errors
    /// If the observer cannot do its work.
    fn end(&mut self, _run: &mut Run<M>, _model: &mut M) -> Result<(), TrainError> {
        Ok(())
    }
}

/// A log with a JSON object a line, one for each step, without what the step took: it is the same in every run of the same
/// settings.
#[derive(Debug)]
pub struct JsonLinesLog(StepLines);

impl JsonLinesLog {
    /// Opens a log; missing directories are made. A run that begins takes the place of what is there, one that is resumed
    /// goes on behind the steps that it has made.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        StepLines::open(path.as_ref(), "").map(Self)
    }

    /// Writes a line of something else about a step.
    pub(crate) fn write(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        self.0.write(serde_json::to_string(line).expect("plain fields, and maps with text as keys"))
    }

    /// Cuts the log behind the lines about the steps before `first_step`.
    pub(crate) fn keep_steps(&mut self, first_step: u64) -> Result<(), TrainError> {
        #[derive(Deserialize)]
        struct Step {
            step: u64,
        }
        self.0.keep_steps(first_step, |line| serde_json::from_slice(line).ok().map(|Step { step }| step))
    }

    /// Makes what is written durable.
    pub(crate) fn sync(&mut self) -> Result<(), TrainError> {
        self.0.sync()
    }
}

impl<M> Observer<M> for JsonLinesLog {
    fn begin(&mut self, info: &RunInfo) -> Result<Control, TrainError> {
        self.keep_steps(info.first_step)?;
        Ok(Control::GoOn)
    }

    fn step(&mut self, record: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        self.write(record)?;
        Ok(Control::GoOn)
    }
}

/// A file of lines that are each about a step, in order, perhaps behind a heading.
#[derive(Debug)]
pub(crate) struct StepLines {
    path: PathBuf,
    heading: &'static str,
    writer: BufWriter<File>,
}

impl StepLines {
    /// Opens a file; missing directories are made.
    pub(crate) fn open(path: &Path, heading: &'static str) -> Result<Self, TrainError> {
        let path = path.to_owned();
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let open = |()| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        match made.and_then(open) {
            Ok(file) => Ok(Self { path, heading, writer: BufWriter::new(file) }),
            Err(source) => Err(TrainError::Log { path, source }),
        }
    }

    fn failed(&self) -> impl Fn(io::Error) -> TrainError + use<> {
        let path = self.path.clone();
        move |source| TrainError::Log { path: path.clone(), source }
    }

    /// Cuts the file behind the lines about the steps before `first_step`. A line whose end is missing is that of a step that
    /// is made again.
    pub(crate) fn keep_steps(
        &mut self,
        first_step: u64,
        step_of: impl Fn(&[u8]) -> Option<u64>,
    ) -> Result<(), TrainError> {
        let (failed, heading) = (self.failed(), self.heading);
        let cut = |file: &mut File| -> io::Result<u64> {
            file.seek(SeekFrom::Start(0))?;
            let (mut kept, mut lines) = (0, BufReader::new(&mut *file));
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line)? > 0 {
                let is_heading = kept == 0 && !heading.is_empty() && line == heading.as_bytes();
                if !is_heading && (step_of(&line).is_none_or(|step| step >= first_step) || line.last() != Some(&b'\n'))
                {
                    break;
                }
                kept += line.len() as u64;
                line.clear();
            }
            file.set_len(kept)?;
            file.seek(SeekFrom::Start(kept))
        };
        let kept = cut(self.writer.get_mut()).map_err(&failed)?;
        if kept == 0 && !heading.is_empty() {
            self.writer.write_all(heading.as_bytes()).and_then(|()| self.writer.flush()).map_err(failed)?;
        }
        Ok(())
    }

    /// Writes a line. Flushed at once, so that the file of a run that dies ends with its last whole step.
    pub(crate) fn write(&mut self, mut line: String) -> Result<(), TrainError> {
        line.push('\n');
        self.writer.write_all(line.as_bytes()).and_then(|()| self.writer.flush()).map_err(self.failed())
    }

    pub(crate) fn sync(&mut self) -> Result<(), TrainError> {
        self.writer.get_ref().sync_data().map_err(self.failed())
    }
}

/// Observes nothing where there is nobody.
impl<M, O: Observer<M>> Observer<M> for Option<O> {
    fn begin(&mut self, info: &RunInfo) -> Result<Control, TrainError> {
        self.as_mut().map_or(Ok(Control::GoOn), |observer| observer.begin(info))
    }

    fn step(&mut self, record: &StepRecord, run: &Run<M>, model: &M) -> Result<Control, TrainError> {
        self.as_mut().map_or(Ok(Control::GoOn), |observer| observer.step(record, run, model))
    }

    fn end(&mut self, run: &mut Run<M>, model: &mut M) -> Result<(), TrainError> {
        self.as_mut().map_or(Ok(()), |observer| observer.end(run, model))
    }
}

/// Leaves what the observer has noted with its owner.
impl<M, O: Observer<M>> Observer<M> for &mut O {
    fn begin(&mut self, info: &RunInfo) -> Result<Control, TrainError> {
        (**self).begin(info)
    }

    fn step(&mut self, record: &StepRecord, run: &Run<M>, model: &M) -> Result<Control, TrainError> {
        (**self).step(record, run, model)
    }

    fn end(&mut self, run: &mut Run<M>, model: &mut M) -> Result<(), TrainError> {
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
