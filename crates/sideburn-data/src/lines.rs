//! Physical lines of a text file: numbered, checked to be UTF-8, never longer than a limit.

use std::{
    io::{BufRead, Read},
    path::{Path, PathBuf},
};

use sideburn_files::{FileError, is_lfs_pointer};

use crate::error::{DataError, Place};

/// The longest record accepted. The longest of DialogSum has 6 KB; a file without line ends must not fill the memory.
pub(crate) const RECORD_LIMIT: usize = 16 << 20;

pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

pub(crate) struct Lines<R> {
    reader: R,
    path: PathBuf,
    number: u64,
    buffer: Vec<u8>,
    limit: usize,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R, path: &Path) -> Self {
        Self::with_limit(reader, path, RECORD_LIMIT)
    }

    pub(crate) fn with_limit(reader: R, path: &Path, limit: usize) -> Self {
        Self { reader, path: path.to_path_buf(), number: 0, buffer: Vec::new(), limit }
    }

    /// The number of the line last read, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// The next line without its end (`\n` or `\r\n`), or `None` behind the last.
    pub(crate) fn read(&mut self) -> Result<Option<&str>, DataError> {
        self.buffer.clear();
        let most = self.limit as u64 + 1;
        let read = (&mut self.reader).take(most).read_until(b'\n', &mut self.buffer);
        if read.map_err(|source| DataError::from_io(&self.path, source))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.buffer.len() > self.limit {
            return Err(DataError::RecordTooLong { at: Place::new(&self.path, self.number), limit: self.limit });
        }
        let mut line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        line = line.strip_suffix(b"\r").unwrap_or(line);
        if self.number == 1 {
            // The byte order mark that spreadsheets write would otherwise become part of the first column's name.
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
            if is_lfs_pointer(line) {
                return Err(FileError::GitLfsPointer { path: self.path.clone() }.into());
            }
        }
        match std::str::from_utf8(line) {
            Ok(line) => Ok(Some(line)),
            Err(error) => {
                Err(DataError::NotUtf8 { at: Place::new(&self.path, self.number), byte: error.valid_up_to() + 1 })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], limit: usize) -> Lines<&[u8]> {
        Lines::with_limit(text, Path::new("f"), limit)
    }

    #[test]
    fn byte_order_mark_and_line_ends_are_taken_off() {
        let mut lines = lines("\u{feff}a\r\n\nb\u{feff}".as_bytes(), 100);
        assert_eq!(lines.read().unwrap(), Some("a"));
        assert_eq!(lines.read().unwrap(), Some(""));
        assert_eq!(lines.read().unwrap(), Some("b\u{feff}"));
        assert_eq!(lines.number(), 3);
        assert_eq!(lines.read().unwrap(), None);
    }

    #[test]
    fn a_line_above_the_limit_is_refused_before_it_is_read_whole() {
        let mut endless = Lines::with_limit(std::io::BufReader::new(std::io::repeat(b'x')), Path::new("f"), 1000);
        let error = endless.read().unwrap_err();
        assert!(matches!(error, DataError::RecordTooLong { limit: 1000, .. }), "{error}");
        assert_eq!(lines(b"1234567\n", 8).read().unwrap(), Some("1234567"));
    }

    #[test]
    fn invalid_utf8_is_placed() {
        let mut lines = lines(b"good\nab\xFFc\n", 100);
        lines.read().unwrap();
        let message = lines.read().unwrap_err().to_string();
        assert_eq!(message, "f, line 2: byte 3 of the line is not UTF-8; convert the file to UTF-8");
    }
}
