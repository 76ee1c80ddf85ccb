//! One safetensors file, read tensor by tensor.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sideburn_files::FileError;

use crate::error::WeightsError;
use crate::header::{Header, LENGTH_BYTES, MAX_HEADER, TensorInfo};
use crate::read_at::ReadAt;
#[cfg(feature = "fs")]
use crate::regular_file::RegularFile;
use crate::source::TensorSource;
use crate::tensor::{Tensor, extend_f32, is_float};

static BYTES_READ: AtomicU64 = AtomicU64::new(0);

/// How many bytes of tensors have been read from safetensors files since the process began: while a large model is loaded,
/// another thread can show how far it is.
pub fn bytes_read() -> u64 {
    BYTES_READ.load(Ordering::Relaxed)
}

/// A safetensors file of which only the header is in memory: a file on a disk, bytes, or whatever else can be read at
/// given positions.
///
/// Reading takes `&self` and is safe from several threads at once.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Box<dyn ReadAt>,
    header: Header,
    /// Where the first tensor begins, in bytes from the start of the file.
    data_start: u64,
}

impl SafetensorsFile {
    /// Opens the file at `path`, reads its header and checks it against the size of the file.
    ///
    /// # Errors
    /// [`File`](WeightsError::File) if it
    /// cannot be opened, and those of [`from_reader`](Self::from_reader).
    #[cfg(feature = "fs")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        Self::open_at(path, path)
    }

    /// Opens `real` and calls it `path` in messages: a checked shard is opened by the name it was resolved to.
    #[cfg(feature = "fs")]
    pub(crate) fn open_at(path: &Path, real: &Path) -> Result<Self, WeightsError> {
        Self::from_reader(path, RegularFile::open(real)?)
    }

    /// Takes the bytes of a whole file, and calls it `name` in messages.
    ///
    /// # Errors
    /// Those of [`from_reader`](Self::from_reader).
    pub fn from_bytes(name: impl AsRef<Path>, bytes: impl Into<Vec<u8>>) -> Result<Self, WeightsError> {
        Self::from_reader(name, bytes.into())
    }

    /// Reads the header of a file that is called `name` in messages, and checks it against the number of bytes.
    ///
    /// # Errors
    /// [`Truncated`](WeightsError::Truncated) or [`TrailingBytes`](WeightsError::TrailingBytes) if there are not exactly
    /// the bytes of header and tensors;
    /// [`HeaderTooLarge`](WeightsError::HeaderTooLarge), [`BadHeader`](WeightsError::BadHeader),
    /// [`DuplicateKeys`](WeightsError::DuplicateKeys), [`TensorLayout`](WeightsError::TensorLayout) or
    /// [`File`](WeightsError::File) if the content is not valid; [`File`](WeightsError::File) if it cannot
    /// be read.
    pub fn from_reader(name: impl AsRef<Path>, bytes: impl ReadAt + 'static) -> Result<Self, WeightsError> {
        let path = name.as_ref();
        let found = bytes.size();
        let check = |part, expected| {
            if found < expected {
                Err(WeightsError::Truncated { path: path.to_owned(), part, expected, found })
            } else {
                Ok(())
            }
        };
        let read = |buffer: &mut [u8], at| {
            bytes.read_exact_at(buffer, at).map_err(|source| FileError::reading("reading the header of", path, source))
        };

        check("the length of the header", LENGTH_BYTES)?;
        let mut length = [0; LENGTH_BYTES as usize];
        read(&mut length, 0)?;
        if &length == b"version " {
            return Err(FileError::GitLfsPointer { path: path.to_owned() }.into());
        }
        let header_len = u64::from_le_bytes(length);
        if header_len > MAX_HEADER {
            return Err(WeightsError::HeaderTooLarge { path: path.to_owned(), found: header_len, limit: MAX_HEADER });
        }
        let data_start = LENGTH_BYTES + header_len;
        check("the header", data_start)?;
        let mut json = vec![0; header_len as usize];
        read(&mut json, LENGTH_BYTES)?;

        let header = Header::parse(&json, path)?;
        let expected = data_start.saturating_add(header.data_len as u64);
        check("header and tensors", expected)?;
        if found > expected {
            return Err(WeightsError::TrailingBytes { path: path.to_owned(), expected, found });
        }
        Ok(Self { path: path.to_owned(), bytes: Box::new(bytes), header, data_start })
    }

    /// The free-form `__metadata__` of the header; empty if there is none.
    pub fn all_metadata(&self) -> &HashMap<String, String> {
        &self.header.metadata
    }

    /// Reads bytes of tensors that begin `start` bytes behind the header.
    fn read_exact(&self, bytes: &mut [u8], start: usize) -> Result<(), WeightsError> {
        let read = self.bytes.read_exact_at(bytes, self.data_start + start as u64);
        BYTES_READ.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(read.map_err(|source| FileError::reading("reading a tensor of", &self.path, source))?)
    }
}

impl TensorSource for SafetensorsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        Box::new(self.header.tensors.keys().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name).map(|entry| &entry.info)
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        let Some(entry) = self.header.tensors.get(name) else {
            return Err(WeightsError::tensor_not_found(self, name));
        };
        let mut bytes = vec![0; entry.range.len()];
        self.read_exact(&mut bytes, entry.range.start)?;
        Tensor::new(entry.info.dtype, entry.info.shape.clone(), bytes)
    }

    /// A few MiB of the stored form are in memory at once.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        const CHUNK: usize = 4 << 20;
        let Some(entry) = self.header.tensors.get(name).filter(|entry| is_float(entry.info.dtype)) else {
            return self.read(name)?.to_f32_named(&self.path, name);
        };
        let mut values = Vec::with_capacity(entry.info.num_elements());
        let mut bytes = vec![0; entry.range.len().min(CHUNK)];
        for start in entry.range.clone().step_by(CHUNK) {
            let bytes = &mut bytes[..(entry.range.end - start).min(CHUNK)];
            self.read_exact(bytes, start)?;
            extend_f32(&mut values, entry.info.dtype, bytes);
        }
        Ok(values)
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata.get(key).map(String::as_str)
    }
}

impl fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, bytes, header, .. } = self;
        f.debug_struct("SafetensorsFile")
            .field("path", path)
            .field("size", &bytes.size())
            .field("tensors", &header.tensors.len())
            .finish_non_exhaustive()
    }
}
