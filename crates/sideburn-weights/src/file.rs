//! One safetensors file, read tensor by tensor.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::WeightsError;
use crate::header::{Header, LENGTH_BYTES, MAX_HEADER, TensorInfo};
use crate::tensor::Tensor;

/// An open safetensors file of which only the header is in memory.
///
/// Reading takes `&self` and is safe from several threads at once.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: PositionedFile,
    header: Header,
    /// Where the first tensor begins, in bytes from the start of the file.
    data_start: u64,
}

impl SafetensorsFile {
    /// Opens the file at `path`, reads its header and checks it against the size of the file.
    ///
    /// # Errors
    /// [`NotFound`](WeightsError::NotFound), [`NotAFile`](WeightsError::NotAFile) or [`Io`](WeightsError::Io) if it
    /// cannot be opened; [`Truncated`](WeightsError::Truncated) or [`TrailingBytes`](WeightsError::TrailingBytes) if
    /// its size is not exactly that of header and tensors;
    /// [`HeaderTooLarge`](WeightsError::HeaderTooLarge), [`BadHeader`](WeightsError::BadHeader),
    /// [`DuplicateKeys`](WeightsError::DuplicateKeys), [`TensorLayout`](WeightsError::TensorLayout) or
    /// [`GitLfsPointer`](WeightsError::GitLfsPointer) if the content is not valid.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        Self::open_at(path, path)
    }

    /// Opens `real` and calls it `path` in messages: a checked shard is opened by the name it was resolved to.
    pub(crate) fn open_at(path: &Path, real: &Path) -> Result<Self, WeightsError> {
        let io = |action| move |source| io_error(action, path, source);
        let (mut file, found) = open_regular(path, real)?;
        let check = |part, expected| {
            if found < expected {
                Err(WeightsError::Truncated { path: path.to_owned(), part, expected, found })
            } else {
                Ok(())
            }
        };

        check("the length of the header", LENGTH_BYTES)?;
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(io("reading the header of"))?;
        if &length == b"version " {
            return Err(WeightsError::GitLfsPointer { path: path.to_owned() });
        }
        let header_len = u64::from_le_bytes(length);
        if header_len > MAX_HEADER {
            return Err(WeightsError::HeaderTooLarge { path: path.to_owned(), found: header_len, limit: MAX_HEADER });
        }
        let data_start = LENGTH_BYTES + header_len;
        check("the header", data_start)?;
        let mut json = vec![0; header_len as usize];
        file.read_exact(&mut json).map_err(io("reading the header of"))?;

        let header = Header::parse(&json, path)?;
        let expected = data_start.saturating_add(header.data_len as u64);
        check("header and tensors", expected)?;
        if found > expected {
            return Err(WeightsError::TrailingBytes { path: path.to_owned(), expected, found });
        }
        Ok(Self { path: path.to_owned(), file: PositionedFile::new(file), header, data_start })
    }

    /// The path that the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Dtype and shape of a tensor, or `None` if there is none of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name).map(|entry| &entry.info)
    }

    /// The free-form `__metadata__` of the header; empty if there is none.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.header.metadata
    }

    /// Reads one tensor: its bytes and no others.
    ///
    /// # Errors
    /// [`TensorNotFound`](WeightsError::TensorNotFound) if there is none of that name, [`Io`](WeightsError::Io) if
    /// the bytes cannot be read (a file that was cut after it was opened included).
    pub fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        let Some(entry) = self.header.tensors.get(name) else {
            return Err(not_found(&self.path, name, self.names()));
        };
        let mut bytes = vec![0; entry.range.len()];
        self.file
            .read_exact_at(&mut bytes, self.data_start + entry.range.start as u64)
            .map_err(|source| io_error("reading a tensor of", &self.path, source))?;
        Tensor::new(entry.info.dtype, entry.info.shape.clone(), bytes)
    }

    /// Reads one tensor of floating-point numbers as `f32`; see [`Tensor::to_f32`] for the rounding.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`NotFloat`](WeightsError::NotFloat) if the dtype is none of F32, F16, BF16
    /// and F64.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.read(name)?.to_f32_named(&self.path, name)
    }
}

/// Opens `real`, called `path` in messages, if it is a regular file. Returns its size as well.
pub(crate) fn open_regular(path: &Path, real: &Path) -> Result<(File, u64), WeightsError> {
    let io = |source| io_error("opening", path, source);
    // Before opening: to open a pipe would block.
    if !std::fs::metadata(real).map_err(io)?.is_file() {
        return Err(WeightsError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(real).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok((file, len))
}

/// An error for `path` by what the operating system said about it.
pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> WeightsError {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => WeightsError::NotFound { path: path.to_owned() },
        _ => WeightsError::Io { action, path: path.to_owned(), source },
    }
}

/// The error for a name that is not there, with the name that shares the longest ending or beginning: a wrong prefix
/// (`model.`, `base_model.`) and a wrong suffix are the two usual mistakes.
pub(crate) fn not_found<'a>(path: &Path, tensor: &str, names: impl ExactSizeIterator<Item = &'a str>) -> WeightsError {
    let shared = |name: &str| {
        let head = name.bytes().zip(tensor.bytes()).take_while(|(a, b)| a == b).count();
        let tail = name.bytes().rev().zip(tensor.bytes().rev()).take_while(|(a, b)| a == b).count();
        head.max(tail)
    };
    let count = names.len();
    let nearest = names.max_by_key(|name| shared(name)).filter(|name| shared(name) * 2 >= tensor.len());
    WeightsError::TensorNotFound {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        count,
        nearest: nearest.map(str::to_owned),
    }
}

/// A file read at given offsets. Unix can do that without moving a cursor; elsewhere a lock guards the cursor.
#[derive(Debug)]
struct PositionedFile {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
}

#[cfg(unix)]
impl PositionedFile {
    fn new(file: File) -> Self {
        Self { file }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }
}

#[cfg(not(unix))]
impl PositionedFile {
    fn new(file: File) -> Self {
        Self { file: std::sync::Mutex::new(file) }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Seek, SeekFrom};
        // A panic while the lock was held leaves at worst a cursor somewhere, and it is moved before every read.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}
