//! Files that appear under their name complete or not at all: temporary file in the same directory, fsync, rename,
//! fsync of the directory.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::FileError;

/// Writes `bytes` to `path`, replacing what is there; after a crash the file is the old one or the new one. A symbolic
/// link at `path` is replaced, not followed. What is no regular file (a pipe, `/dev/null`) is written to and stays.
///
/// # Errors
/// [`FileError::Unwritable`] if the directory does not exist, is not writable or is full; the old file is intact.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), FileError> {
    write_atomic_with(path, |out| out.write_all(bytes))
}

/// As [`write_atomic`], of what `fill` writes.
///
/// # Errors
/// [`FileError::Unwritable`] with the error of `fill`, or as [`write_atomic`].
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FileError> {
    let path = path.as_ref();
    let written = if takes_no_other_file(path) { write_through(path, fill) } else { replace(path, fill) };
    written.map_err(|source| FileError::writing(path, source))
}

/// Whether `path` is a pipe, a socket or a device, or a name of an open file (`/dev/stdout`), which must not be
/// replaced by a file.
fn takes_no_other_file(path: &Path) -> bool {
    let is_special = || std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    cfg!(unix) && (path.starts_with("/dev") || path.starts_with("/proc") || is_special())
}

fn write_through(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(OpenOptions::new().append(true).open(path)?);
    fill(&mut out)?;
    out.flush()
}

fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tmp-");
    // A temporary file is private by default; this one is to become an ordinary file. The umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(dir)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
    fill(&mut out)?;
    out.flush()?;
    drop(out);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// Makes renames inside `dir` durable; the parent of a bare name is the empty path. Only Unix can, and only there it is
/// needed.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
