//! The directory of a run, and the lock on it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sideburn_files::{AtomicDir, FileError, MAX_CONFIG, read_text, write_atomic};

use crate::TrainError;

const SETTINGS: &str = "config.toml";
const LOCK: &str = ".lock";

/// The directory of a run, which no other process can write to while this is there.
///
/// ```text
/// config.toml          the settings, as they were given to `create`
/// training.jsonl       a line for each logged step and each evaluation; the same in every run of these settings
/// metrics.csv          step, metric, value: the same numbers, and what steps took
/// events.out.tfevents  the same for TensorBoard, if it is asked for
/// checkpoint-N/        the run after N steps, to go on from
/// best/                what is trained, where it was evaluated best: an adapter as peft reads it, or the base's weights
/// final/               the same at the end of the run
/// ```
///
/// A [`RunRecorder`](crate::RunRecorder) writes all but the first. `docs/training.md` says what is in each.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    settings: String,
    lock: File,
}

impl RunDir {
    /// Makes a directory for a run with these settings, in any form: its parents as well, if they are missing.
    ///
    /// # Errors
    /// If there is a run in it already, another process has it, or it cannot be written.
    pub fn create(path: impl AsRef<Path>, settings: &str) -> Result<Self, TrainError> {
        let path = path.as_ref();
        fs::create_dir_all(path).map_err(|source| FileError::writing(path, source))?;
        let lock = take_lock(path)?;
        let file = path.join(SETTINGS);
        if file.exists() {
            let message = "there is a run in it already; go on with that, or choose another directory".to_owned();
            return Err(TrainError::RunDirectory { path: path.to_owned(), message });
        }
        write_atomic(&file, settings.as_bytes())?;
        Ok(Self { path: path.to_owned(), settings: settings.to_owned(), lock })
    }

    /// Opens the directory of a run that is to go on, and clears away what a process that was killed has left half-written.
    ///
    /// # Errors
    /// If there is no run in it, another process has it, or it cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref();
        let settings = match read_text(path.join(SETTINGS), MAX_CONFIG) {
            Err(FileError::NotFound { .. }) => {
                let message = format!("there is no run in it, which would have a {SETTINGS}");
                return Err(TrainError::RunDirectory { path: path.to_owned(), message });
            }
            settings => settings?,
        };
        let lock = take_lock(path)?;
        clear(path)?;
        Ok(Self { path: path.to_owned(), settings, lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings that it was created with.
    pub fn settings(&self) -> &str {
        &self.settings
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // Whoever finds it empty knows that nobody was killed. The lock goes with the file.
        let _ = self.lock.set_len(0);
    }
}

/// Locks a run directory for this process. The system unlocks it when the process ends, however it does; what stands in the
/// file is for people, and for file systems that know no locks.
fn take_lock(path: &Path) -> Result<File, TrainError> {
    let name = path.join(LOCK);
    let failed = |source| FileError::writing(&name, source);
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name).map_err(failed)?;
    let mut holder = String::new();
    // What cannot be read names nobody.
    let _ = (&file).take(64).read_to_string(&mut holder);
    let holder = holder.trim();
    let is_held = match try_lock(&file) {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => is_running(holder),
    };
    if is_held {
        let who = if holder.is_empty() { String::new() } else { format!(", {holder}") };
        let message = format!("another process has it{who}; wait for its end, or choose another directory");
        return Err(TrainError::RunDirectory { path: path.to_owned(), message });
    }
    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(failed)?;
    writeln!(file, "process {}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Locks a file. A child that another thread starts has its lock, too, until it has become another program: a moment, for which
/// is waited.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    for _ in 0..20 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(25)),
            locked => return locked,
        }
    }
    file.try_lock()
}

/// Whether the process that a lock names is there, and is not this one. Where the system does not say, it is not.
fn is_running(holder: &str) -> bool {
    let process = holder.strip_prefix("process ").and_then(|number| number.parse::<u32>().ok());
    process.is_some_and(|process| process != std::process::id() && Path::new(&format!("/proc/{process}")).exists())
}

/// Removes what processes that were killed have left; directories that they had moved aside go back. The lock is held.
fn clear(path: &Path) -> Result<(), TrainError> {
    let reading = |source| FileError::reading("listing", path, source);
    for entry in fs::read_dir(path).map_err(reading)? {
        let name = entry.map_err(reading)?.file_name();
        let Some((target, _)) = name.to_str().and_then(|name| name.strip_prefix('.')?.split_once(".tmp-")) else {
            if name.to_str().is_some_and(|name| name.starts_with(".tmp-")) {
                fs::remove_file(path.join(&name)).map_err(|source| FileError::writing(path, source))?;
            }
            continue;
        };
        // Whoever begins to write there clears away first.
        drop(AtomicDir::create(path.join(target))?);
    }
    Ok(())
}

/// Removes a directory such that nobody ever sees a part of it under its name.
pub(crate) fn remove(path: &Path) -> Result<(), TrainError> {
    let failed = |source| FileError::writing(path, source);
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let aside = path.with_file_name(format!(".{name}.tmp-removed"));
    fs::rename(path, &aside).map_err(failed)?;
    Ok(fs::remove_dir_all(&aside).map_err(failed)?)
}
