//! Opening and reading files whose content, and whose being a file, is not to be trusted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{FileError, is_lfs_pointer};

/// The cap on the size of a configuration (`config.json`, `adapter_config.json`), in bytes. None comes near it; a larger
/// file is something else.
pub const MAX_CONFIG: u64 = 16 << 20;

/// Opens the file at `path` for reading if it is a regular file, links followed. Returns its size in bytes as well.
///
/// # Errors
/// [`FileError::NotFound`], [`FileError::NotAFile`] for a directory, a pipe, a socket or a device, or [`FileError::Io`].
pub fn open_regular(path: impl AsRef<Path>) -> Result<(File, u64), FileError> {
    let path = path.as_ref();
    let io = |source| FileError::reading("opening", path, source);
    // Before opening: to open a pipe would block.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok((file, len))
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// Those of [`open_regular`], and [`FileError::TooLarge`] before more than `limit` bytes are read: the size that a file
/// system states is not relied on.
pub fn read_capped(path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>, FileError> {
    let path = path.as_ref();
    let (file, stated) = open_regular(path)?;
    let too_large = |found| FileError::TooLarge { path: path.to_owned(), found, limit };
    if stated > limit {
        return Err(too_large(stated));
    }
    let mut bytes = Vec::new();
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|source| FileError::reading("reading", path, source))?;
    if bytes.len() as u64 > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Reads a regular file of at most `limit` bytes as text. A byte order mark is left out.
///
/// # Errors
/// Those of [`read_capped`], [`FileError::GitLfsPointer`] and [`FileError::NotUtf8`].
pub fn read_text(path: impl AsRef<Path>, limit: u64) -> Result<String, FileError> {
    let path = path.as_ref();
    let bytes = read_capped(path, limit)?;
    if is_lfs_pointer(&bytes) {
        return Err(FileError::GitLfsPointer { path: path.to_owned() });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(error) => Err(FileError::NotUtf8 { path: path.to_owned(), at: error.utf8_error().valid_up_to() }),
    }
}
