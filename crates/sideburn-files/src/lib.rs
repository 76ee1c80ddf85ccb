//! Files from strangers, opened with care, and files and directories that appear whole or not at all.
//!
//! # Reading
//!
//! [`open_regular`], [`read_capped`] and [`read_text`] open regular files only: a pipe would block for ever, and a link
//! to `/dev/zero` never ends. Each reading has a cap on its size. A Git LFS pointer, the stub of three lines that a clone
//! without `git-lfs` has in place of a large file, is told from what it stands for.
//!
//! What a stranger's file is called, and what it says, is shown by [`printable`].
//!
//! # Writing
//!
//! [`write_atomic`] writes a file aside and renames it. [`AtomicDir`] does the same for a directory, which is replaced as
//! one thing, so that a process that is killed at any moment leaves the old files or the new ones, and two processes that
//! write to one place do not mix theirs.
//!
//! ```
//! use sideburn_files::{AtomicDir, read_text};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let parent = tempfile::tempdir()?;
//! let target = parent.path().join("adapter");
//! let staged = AtomicDir::create(&target)?;
//! std::fs::write(staged.path().join("adapter_config.json"), "{}")?;
//! staged.commit()?;
//! assert_eq!(read_text(target.join("adapter_config.json"), 1 << 20)?, "{}");
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "fs")]
mod atomic_dir;
#[cfg(feature = "fs")]
mod atomic_file;
mod error;
#[cfg(feature = "fs")]
mod hub_cache;
mod lfs;
mod printable;
#[cfg(feature = "fs")]
mod read;
#[cfg(feature = "fs")]
mod staging;

#[cfg(feature = "fs")]
pub use atomic_dir::{AtomicDir, check_writable};
#[cfg(feature = "fs")]
pub use atomic_file::{write_atomic, write_atomic_with};
pub use error::FileError;
#[cfg(feature = "fs")]
pub use hub_cache::cache_blobs;
pub use lfs::is_lfs_pointer;
pub use printable::{Printable, count, grouped, printable, printable_lines};
#[cfg(feature = "fs")]
pub use read::{MAX_CONFIG, open_regular, read_capped, read_text};
