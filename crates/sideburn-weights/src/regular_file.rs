//! Regular files, and nothing else that has a path.

use std::fs::File;
use std::io;
use std::path::Path;

use sideburn_files::open_regular;

use crate::error::WeightsError;
use crate::read_at::ReadAt;

/// An open regular file, read at given offsets. Unix can do that without moving a cursor; elsewhere a lock guards the
/// cursor.
#[derive(Debug)]
pub(crate) struct RegularFile {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
    /// The size when the file was opened, in bytes.
    size: u64,
}

impl RegularFile {
    /// Opens the file at `path` if it is a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let (file, size) = open_regular(path)?;
        #[cfg(not(unix))]
        let file = std::sync::Mutex::new(file);
        Ok(Self { file, size })
    }
}

impl ReadAt for RegularFile {
    fn size(&self) -> u64 {
        self.size
    }

    #[cfg(unix)]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(not(unix))]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        // A panic while the lock was held leaves at worst a cursor somewhere, and it is moved before every read.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}
