//! Names of models and adapters on the command line: directories, or ids on the hub.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sideburn::hub::{Hub, HubEvent};

use crate::report::in_line;

/// The directory of a model, which is fetched if it has to be.
pub(crate) fn model(name: &Path) -> anyhow::Result<PathBuf> {
    if name.exists() { Ok(name.to_owned()) } else { Ok(hub()?.model(name)?) }
}

/// A directory with the configuration of a model, in the same way; of a repository nothing else is fetched.
pub(crate) fn config_of(name: &Path) -> anyhow::Result<PathBuf> {
    if name.exists() { Ok(name.to_owned()) } else { Ok(hub()?.config_of(name)?) }
}

/// The directory of an adapter, in the same way.
pub(crate) fn adapter(name: &Path) -> anyhow::Result<PathBuf> {
    if name.exists() { Ok(name.to_owned()) } else { Ok(hub()?.adapter(name)?) }
}

/// The hub of the environment. What goes on is told on the standard error: how far files are only on a terminal.
pub(crate) fn hub() -> anyhow::Result<Hub> {
    let line = Mutex::new(Line { shows: io::stderr().is_terminal(), drawn: None });
    Ok(Hub::from_env()?.watched_by(move |event| {
        if let Ok(mut line) = line.lock() {
            line.tell(event);
        }
    }))
}

/// The line of a file that is on its way.
struct Line {
    shows: bool,
    /// When it was drawn last, if it is there.
    drawn: Option<Instant>,
}

impl Line {
    fn tell(&mut self, event: &HubEvent<'_>) {
        match event {
            HubEvent::Download { file, done, total } => self.draw(file, *done, *total),
            HubEvent::Upload { file, done, total } => self.draw(file, *done, Some(*total)),
            HubEvent::Waiting { file } => self.note(&format!("another process fetches {file}; waiting for it")),
            HubEvent::Pause { reason, pause } => {
                self.note(&format!("{reason}; trying again in {} s", pause.as_secs()));
            }
            HubEvent::Cached { id, reason } => self.note(&format!("{id} is taken from the cache: {reason}")),
            _ => {}
        }
    }

    fn draw(&mut self, file: &str, done: u64, total: Option<u64>) {
        let is_over = Some(done) == total;
        let is_soon = self.drawn.is_some_and(|drawn| drawn.elapsed() < Duration::from_millis(100));
        if !self.shows || (is_soon && !is_over) {
            return;
        }
        let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        let of = total.map(|total| format!(" of {}", megabytes(total))).unwrap_or_default();
        let end = if is_over { "\n" } else { "" };
        let _ = write!(io::stderr(), "\r{}: {}{of} MB{end}", in_line(file), megabytes(done));
        self.drawn = (!is_over).then(Instant::now);
    }

    fn note(&mut self, text: &str) {
        let begin = if self.drawn.take().is_some() { "\n" } else { "" };
        let _ = writeln!(io::stderr(), "{begin}note: {}", in_line(text));
    }
}
