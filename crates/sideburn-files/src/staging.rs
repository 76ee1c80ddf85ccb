//! Hidden directories in which files are made ready, and the locks that keep processes apart.
//!
//! A staging directory is locked as long as the process that fills it lives. One that nobody has locked is left of a
//! process that was killed, and whoever writes to the same target next removes it. Locks are those of `flock`, on the
//! directories themselves; where directories cannot be locked (Windows, some network file systems), nothing is removed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::FileError;

/// What the name of a directory ends with that was moved aside for a moment, with the old files in it.
const MOVED_ASIDE: &str = ".old";

/// How often, and how long after each other, a process tries to have its turn: 10 seconds.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(20);

/// A staging directory of this process. Dropped, it is removed with all that is in it.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: TempDir,
    _lock: Option<File>,
}

impl Staging {
    /// Makes the directory `.NAME.tmp-…` in `home`, and removes those of killed processes.
    pub(crate) fn make(home: &Path, target: &Path) -> Result<Self, FileError> {
        let _turn = Turn::take(home, target)?;
        let prefix = prefix(target);
        remove_leftovers(home, target, &prefix);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        // A temporary directory is private by default; this one is to become an ordinary one. The umask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let dir = builder.tempdir_in(home).map_err(|source| FileError::writing(target, source))?;
        let lock = lockable(dir.path()).filter(|lock| lock.try_lock().is_ok());
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A name beside the staging directory for what was at the target.
    pub(crate) fn aside(&self) -> PathBuf {
        let mut name = self.path().as_os_str().to_owned();
        name.push(MOVED_ASIDE);
        name.into()
    }

    /// Leaves the directory, or whatever has its name by now, where it is.
    pub(crate) fn keep(mut self) {
        self.dir.disable_cleanup(true);
    }
}

fn prefix(target: &Path) -> String {
    let name = target.file_name().map_or("output".into(), |name| name.to_string_lossy());
    format!(".{name}.tmp-")
}

/// The right to change names in a directory, until it is dropped. Taken for moments only.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "holds the lock")] Option<File>);

impl Turn {
    /// Waits until no other process changes names in `home`, so as to write `target` there.
    pub(crate) fn take(home: &Path, target: &Path) -> Result<Self, FileError> {
        let Some(lock) = lockable(home) else { return Ok(Self(None)) };
        for _ in 0..TRIES {
            match lock.try_lock() {
                Ok(()) => return Ok(Self(Some(lock))),
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                // A file system without locks: then there is nothing to wait for.
                Err(fs::TryLockError::Error(_)) => return Ok(Self(None)),
            }
        }
        Err(FileError::Busy { path: target.to_owned() })
    }
}

/// The directory as a file that can be locked, where there is such a thing.
fn lockable(dir: &Path) -> Option<File> {
    if cfg!(unix) { File::open(dir).ok() } else { None }
}

/// Removes staging directories that no process holds. Old files that were moved aside go back if nothing took their place.
fn remove_leftovers(home: &Path, target: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(home) else { return };
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_dir && name.starts_with(prefix)) else { continue };
        let path = entry.path();
        let Some(lock) = lockable(&path).filter(|lock| lock.try_lock().is_ok()) else { continue };
        if name.ends_with(MOVED_ASIDE) && target.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        {
            // Whoever reads in the meantime finds no directory, not a mixture.
            let _ = fs::rename(&path, target);
        } else {
            // What cannot be removed is no reason not to write.
            let _ = fs::remove_dir_all(&path);
        }
        drop(lock);
    }
}
