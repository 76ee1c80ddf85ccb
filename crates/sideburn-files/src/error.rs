//! Everything that can go wrong with a file or a directory, whatever it holds.
//!
//! Paths are shown quoted and escaped, so that a hostile name cannot write control characters to a terminal.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be read, or a file or directory not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The path does not exist.
    #[error("{path:?} does not exist; check the spelling, or fetch it first")]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },

    /// The path exists and is a directory, a pipe or a device where a file is needed.
    #[error("{path:?} is not a regular file; give the path of a file")]
    NotAFile {
        /// The path as it was given.
        path: PathBuf,
    },

    /// The operating system refused to read.
    #[error("{action} {path:?} failed: {source}")]
    Io {
        /// What was being done, as a gerund: "opening", "reading the header of".
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// The file is longer than a file of its kind can be.
    #[error("{path:?} has {found} bytes, more than the limit of {limit}; it is not the file it should be")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, or as much of it as was read, in bytes.
        found: u64,
        /// The cap, in bytes.
        limit: u64,
    },

    /// The file is the text stub that git leaves in place of a large file.
    #[error("{path:?} is a Git LFS pointer and not the file itself; run `git lfs pull` in its directory")]
    GitLfsPointer {
        /// The file.
        path: PathBuf,
    },

    /// The file is not text.
    #[error("{path:?} is not text: byte {at} is not UTF-8; save it again as UTF-8")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The position of the first byte that is not UTF-8, from 0.
        at: usize,
    },

    /// The operating system refused to write. Whatever had the final name before still has it.
    #[error(
        "cannot write {path:?}: {source}; check that there is room on the disk and that this user may create files \
         there, or choose another output path"
    )]
    Unwritable {
        /// The file or directory that was to be written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// Another process is changing names in the directory, and does not come to an end.
    #[error("another process has been writing beside {path:?} for 10 s; wait for it, or choose another output path")]
    Busy {
        /// The file or directory that was to be written.
        path: PathBuf,
    },

    /// A name in the staged directory is a file where the target has a directory, or the other way round.
    #[error(
        "{path:?} is in the way: it is a {found} and a {expected} of that name is to be written; nothing was replaced, \
         move it aside or choose another output path"
    )]
    InTheWay {
        /// What stands at the final place.
        path: PathBuf,
        /// What it is: "file", "directory" or "broken symbolic link".
        found: &'static str,
        /// What was to be written there: "file" or "directory".
        expected: &'static str,
    },
}

impl FileError {
    /// The error for `path` by what the operating system said while it was being read; `action` is a gerund, "reading".
    pub fn reading(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { path: path.to_owned() },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// The error for `path`, which could not be written.
    pub fn writing(path: &Path, source: io::Error) -> Self {
        Self::Unwritable { path: path.to_owned(), source }
    }
}
