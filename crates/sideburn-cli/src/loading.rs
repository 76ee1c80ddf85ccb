//! A line that shows how far a model is read.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use sideburn::weights::{ModelFiles, TensorSource, bytes_read};

/// Files below this size are read before anybody could look, in bytes.
const WORTH_SHOWING: u64 = 256 << 20;

/// Runs `load`, which reads the model in `directory`, and meanwhile shows on a terminal how much has been read.
pub(crate) fn with_progress<T>(directory: &Path, load: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let total = if io::stderr().is_terminal() { size(directory) } else { 0 };
    if total < WORTH_SHOWING {
        return load();
    }
    let begun = bytes_read();
    thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(250)) {
                // What is compared is read twice.
                let read = (bytes_read() - begun).min(total);
                let width = 32;
                let done = (read * width / total) as usize;
                let bar = "#".repeat(done) + &" ".repeat(width as usize - done);
                // A lost line is no reason to stop.
                let _ = write!(io::stderr(), "\r[{bar}] {:.1} of {:.1} GB read", read as f64 / 1e9, total as f64 / 1e9);
            }
            let _ = write!(io::stderr(), "\r{:70}\r", "");
        });
        let loaded = load();
        drop(running);
        loaded
    })
}

/// Bytes of the weights in a directory; 0 if they cannot be read, of which loading tells.
fn size(directory: &Path) -> u64 {
    let Ok(files) = ModelFiles::open(directory) else { return 0 };
    files.names().filter_map(|name| files.info(name)).map(|info| info.num_bytes() as u64).sum()
}
