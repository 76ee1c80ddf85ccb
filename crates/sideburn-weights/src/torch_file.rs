//! One PyTorch file (`.bin`, `.pt`, `.pth`) of a state dict, read tensor by tensor.
//!
//! Both formats are those of PyTorch's `torch/serialization.py`:
//!
//! * Since torch 1.6, a zip archive whose entries are stored, not compressed. `NAME/data.pkl` is a pickle in which each
//!   storage is a persistent id with a key, `NAME/data/KEY` has the bytes of that storage, `NAME/version` the version
//!   of the format and `NAME/byteorder` the word `little` or `big`; files of older releases lack the last and are
//!   little-endian.
//! * Before, and on request today: five pickles end to end (a magic number, the version 1001, a description of the
//!   system, the state dict, the keys of the storages), then for each key the number of elements, as eight bytes, and
//!   the elements. All of that is little-endian.
//!
//! A key is looked up among the names of the entries and is never a path. Checksums are not compared: torch does not
//! compare them either, and can be told to write none.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rawzip::{CompressionMethod, ReaderAt, ZipLocator};

use sideburn_files::FileError;

use crate::error::WeightsError;
use crate::header::{TensorInfo, byte_len};
use crate::pickle::{MAX_PICKLE, Pickle, View};
use crate::read_at::ReadAt;
#[cfg(feature = "fs")]
use crate::regular_file::RegularFile;
use crate::source::TensorSource;
use crate::tensor::Tensor;

/// The cap on the number of entries of an archive. A pickle as large as its own cap cannot name more storages.
const MAX_ENTRIES: usize = 1 << 17;
/// The cap on the name of an entry, in bytes: a file's name, `/data/` and a number.
const MAX_ENTRY_NAME: usize = 1 << 10;
/// The cap on the elements of a tensor that has more of them than its storage (`expand`, strides of 0).
const MAX_EXPANDED: usize = 1 << 16;
/// The newest version of the archive format that PyTorch defines.
const MAX_VERSION: u64 = 10;
/// What the first two pickles of the format before torch 1.6 hold.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const PROTOCOL: i128 = 1001;

/// An open file of `torch.save` that holds a state dict: a dict from names to tensors, and nothing else.
///
/// Only the description of the tensors is in memory. Reading takes `&self` and is safe from several threads at once.
///
/// The description is a pickle, and a pickle is a program that Python would run. Here it is interpreted by a machine
/// that can build numbers, strings, tuples, lists, dicts and tensors, and nothing else: there is no global to call and
/// no class to make. A pickle that asks for more is refused with the name of what it asks for. So are storages of
/// complex, quantised and 8-bit floating-point numbers, and training checkpoints that hold more than tensors.
///
/// Tensors may be views into a storage that they share; what is read is contiguous.
///
/// ```no_run
/// use sideburn_weights::{TensorSource, TorchFile};
///
/// # fn main() -> Result<(), sideburn_weights::WeightsError> {
/// let file = TorchFile::open("adapter_model.bin")?;
/// for name in file.names() {
///     println!("{name}: {:?}", file.info(name).expect("a name of this file").shape);
/// }
/// # Ok(())
/// # }
/// ```
pub struct TorchFile {
    path: PathBuf,
    bytes: Box<dyn ReadAt>,
    big_endian: bool,
    tensors: BTreeMap<String, Entry>,
}

/// Where the elements of a tensor lie in the file.
#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    /// The position of the first element, in bytes.
    start: u64,
    /// The size of all from the first element to the last, in bytes.
    span: usize,
    /// For each dimension the distance to the next index, in elements. `None` if the tensor is contiguous.
    strides: Option<Vec<usize>>,
}

impl TorchFile {
    /// Opens the file at `path`, reads its pickle and checks every tensor against the size of the file.
    ///
    /// # Errors
    /// [`File`](WeightsError::File) if it
    /// cannot be opened, and those of [`from_reader`](Self::from_reader).
    #[cfg(feature = "fs")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        Self::open_at(path, path)
    }

    /// Opens the file `real`, and calls it `path` in messages.
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

    /// Reads the pickle of a file that is called `name` in messages, and checks every tensor against the number of bytes.
    ///
    /// # Errors
    /// [`BadTorchFile`](WeightsError::BadTorchFile) or
    /// [`File`](WeightsError::File) if it is not a file of `torch.save`, or a damaged one;
    /// [`UnsafePickle`](WeightsError::UnsafePickle) if its pickle asks for anything but tensors;
    /// [`NotAStateDict`](WeightsError::NotAStateDict) if it holds anything but named tensors, or
    /// [`RunState`](WeightsError::RunState) if its name says what it is then;
    /// [`TensorLayout`](WeightsError::TensorLayout) if a tensor does not fit its storage.
    pub fn from_reader(name: impl AsRef<Path>, bytes: impl ReadAt + 'static) -> Result<Self, WeightsError> {
        let (path, bytes) = (name.as_ref(), Box::new(bytes));
        let mut head = [0; 8];
        let head = &mut head[..bytes.size().min(8) as usize];
        read_at(path, &*bytes, head, 0)?;
        match &*head {
            b"version " => Err(FileError::GitLfsPointer { path: path.to_owned() }.into()),
            [b'P', b'K', 3, 4, ..] => Self::open_archive(path, bytes).map_err(|error| or_run_state(path, error)),
            [0x80, 2..=5, ..] => Self::open_legacy(path, bytes).map_err(|error| or_run_state(path, error)),
            _ => Err(bad(path, "it begins neither as a zip archive nor as a pickle of protocol 2 to 5")),
        }
    }

    fn open_archive(path: &Path, bytes: Box<dyn ReadAt>) -> Result<Self, WeightsError> {
        let entries = read_directory(path, &*bytes)?;
        let mut roots = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
        let (Some(root), None) = (roots.next(), roots.next()) else {
            return Err(bad(path, "its archive must have exactly one NAME/data.pkl"));
        };
        let find = |name: &str| entries.get(&format!("{root}/{name}")).cloned();
        let read = |name: &str, limit: usize| match find(name) {
            Some(range) => read_entry(path, &*bytes, name, range, limit).map(Some),
            None => Ok(None),
        };

        let version = read("version", 16)?.unwrap_or_default();
        let version = std::str::from_utf8(&version).ok().and_then(|text| text.trim_end().parse().ok());
        if !version.is_some_and(|version: u64| (1..=MAX_VERSION).contains(&version)) {
            return Err(bad(path, format!("its version is not a number from 1 to {MAX_VERSION}")));
        }
        let big_endian = match read("byteorder", 16)?.as_deref() {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(_) => return Err(bad(path, "its byteorder is neither little nor big")),
        };
        let data = read("data.pkl", MAX_PICKLE)?.unwrap_or_default();
        let pickle = Pickle::read(&data, 0, path)?;
        if pickle.end != data.len() {
            return Err(bad(path, format!("its pickle ends at byte {} of {}", pickle.end, data.len())));
        }
        let tensors = place_all(path, &pickle, |key| find(&format!("data/{key}")))?;
        Ok(Self { path: path.to_owned(), bytes, big_endian, tensors })
    }

    fn open_legacy(path: &Path, bytes: Box<dyn ReadAt>) -> Result<Self, WeightsError> {
        let len = bytes.size();
        let mut head = vec![0; len.min(MAX_PICKLE as u64) as usize];
        read_at(path, &*bytes, &mut head, 0)?;
        let magic = Pickle::read(&head, 0, path)?;
        if magic.int() != Some(MAGIC) {
            return Err(bad(path, "it is a pickle, and the first value is not PyTorch's magic number"));
        }
        let version = Pickle::read(&head, magic.end, path)?;
        if version.int() != Some(PROTOCOL) {
            return Err(bad(path, format!("its version is not {PROTOCOL}")));
        }
        let system = Pickle::read(&head, version.end, path)?;
        let object = Pickle::read(&head, system.end, path)?;
        let keys = Pickle::read(&head, object.end, path)?;
        let (mut at, Some(keys)) = (keys.end as u64, keys.strings()) else {
            return Err(bad(path, "the keys of its storages are not a list of strings"));
        };

        let dtypes: BTreeMap<_, _> = object.storages().map(|storage| (storage.key, storage.dtype)).collect();
        let mut ranges = BTreeMap::new();
        for key in keys {
            let Some(dtype) = dtypes.get(key) else {
                return Err(bad(path, format!("it has a storage {key:?} that nothing refers to")));
            };
            let mut numel = [0; 8];
            read_at(path, &*bytes, &mut numel, at)?;
            let start = at + numel.len() as u64;
            let size = u64::from_le_bytes(numel).checked_mul(dtype.bitsize() as u64 / 8);
            at = match size.and_then(|size| size.checked_add(start)) {
                Some(end) if end <= len => end,
                _ => return Err(bad(path, format!("its storage {key:?} goes on after the end of the file"))),
            };
            if ranges.insert(key, start..at).is_some() {
                return Err(bad(path, format!("it has the storage {key:?} twice")));
            }
        }
        if at != len {
            return Err(bad(path, format!("its storages end at byte {at}, the file has {len}")));
        }
        let tensors = place_all(path, &object, |key| ranges.get(key).cloned())?;
        Ok(Self { path: path.to_owned(), bytes, big_endian: false, tensors })
    }
}

impl TensorSource for TorchFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|entry| &entry.info)
    }

    /// Reads one tensor and makes it contiguous.
    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        let Some(Entry { info, start, span, strides }) = self.tensors.get(name) else {
            return Err(WeightsError::tensor_not_found(self, name));
        };
        let mut bytes = vec![0; *span];
        self.bytes
            .read_exact_at(&mut bytes, *start)
            .map_err(|source| FileError::reading("reading a tensor of", &self.path, source))?;
        let size = info.dtype.bitsize() / 8;
        if let Some(strides) = strides {
            bytes = gather(&bytes, size, &info.shape, strides);
        }
        if self.big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        Tensor::new(info.dtype, info.shape.clone(), bytes)
    }
}

impl fmt::Debug for TorchFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, bytes, tensors, .. } = self;
        f.debug_struct("TorchFile")
            .field("path", path)
            .field("size", &bytes.size())
            .field("tensors", &tensors.len())
            .finish_non_exhaustive()
    }
}

/// What the parser of archives reads from.
struct Zip<'a>(&'a dyn ReadAt);

impl ReaderAt for Zip<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.0.size().saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        self.0.read_exact_at(&mut buffer[..len], offset)?;
        Ok(len)
    }
}

fn bad(path: &Path, detail: impl Into<String>) -> WeightsError {
    WeightsError::BadTorchFile { path: path.to_owned(), detail: detail.into() }
}

/// Whether this is the name of a file beside the weights in which `transformers.Trainer` keeps what it goes on with:
/// `optimizer.pt`, `scheduler.pt`, `scaler.pt`, `training_args.bin`, and `rng_state.pth`, one for each process.
pub(crate) fn is_run_state(name: &str) -> bool {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let known = matches!(stem, "optimizer" | "scheduler" | "scaler" | "training_args") || stem.starts_with("rng_state");
    known && matches!(extension, "pt" | "pth" | "bin")
}

/// What is wrong with a file that is no state dict, by its name.
fn or_run_state(path: &Path, error: WeightsError) -> WeightsError {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match error {
        WeightsError::UnsafePickle { .. } | WeightsError::NotAStateDict { .. } if is_run_state(&name) => {
            WeightsError::RunState { path: path.to_owned() }
        }
        error => error,
    }
}

/// Reads bytes that the file should have.
fn read_at(path: &Path, bytes: &dyn ReadAt, buffer: &mut [u8], at: u64) -> Result<(), WeightsError> {
    bytes.read_exact_at(buffer, at).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => bad(path, format!("it ends within {} bytes from byte {at}", buffer.len())),
        _ => FileError::reading("reading", path, source).into(),
    })
}

/// Reads a small entry of an archive whole.
fn read_entry(
    path: &Path,
    file: &dyn ReadAt,
    name: &str,
    range: Range<u64>,
    limit: usize,
) -> Result<Vec<u8>, WeightsError> {
    let len = range.end - range.start;
    if len > limit as u64 {
        return Err(bad(path, format!("its {name} has {len} bytes, more than the limit of {limit}")));
    }
    let mut bytes = vec![0; len as usize];
    read_at(path, file, &mut bytes, range.start)?;
    Ok(bytes)
}

/// Reads the names of all entries of an archive, and where their bytes lie.
fn read_directory(path: &Path, bytes: &dyn ReadAt) -> Result<BTreeMap<String, Range<u64>>, WeightsError> {
    let zip = |error: rawzip::Error| bad(path, format!("its zip archive is damaged: {error}"));
    let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
    let len = bytes.size();
    let located = ZipLocator::new().locate_in_reader(Zip(bytes), &mut buffer, len);
    let archive = located.map_err(|(_, error)| zip(error))?;
    if archive.end_offset() != len {
        let end = archive.end_offset();
        return Err(bad(path, format!("its zip archive ends at byte {end}, the file has {len}")));
    }
    let mut found = BTreeMap::new();
    let mut entries = archive.entries(&mut buffer);
    while let Some(entry) = entries.next_entry().map_err(zip)? {
        let name = match std::str::from_utf8(entry.file_path().as_bytes()) {
            Ok(name) if name.len() <= MAX_ENTRY_NAME => name,
            _ => return Err(bad(path, "an entry of its zip archive has a name that is too long or not UTF-8")),
        };
        let refuse = |what| Err(bad(path, format!("the entry {name:?} of its zip archive {what}")));
        if found.len() == MAX_ENTRIES {
            return refuse("is one too many");
        }
        if entry.compression_method() != CompressionMethod::STORE
            || entry.compressed_size_hint() != entry.uncompressed_size_hint()
            || entry.flags().is_encrypted()
        {
            return refuse("is compressed or encrypted, and PyTorch stores entries as they are");
        }
        let (start, end) = archive.get_entry(entry.wayfinder()).map_err(zip)?.compressed_data_range();
        if end > archive.directory_offset() {
            return refuse("reaches into the directory");
        }
        if found.insert(name.to_owned(), start..end).is_some() {
            return refuse("is there twice");
        }
    }
    let (declared, count) = (archive.entries_hint(), found.len());
    if declared != count as u64 {
        return Err(bad(path, format!("its zip archive declares {declared} entries and has {count}")));
    }
    Ok(found)
}

/// Finds the place of every tensor of a state dict. `find` says where the storage of a key lies.
fn place_all(
    path: &Path,
    pickle: &Pickle<'_>,
    find: impl Fn(&str) -> Option<Range<u64>>,
) -> Result<BTreeMap<String, Entry>, WeightsError> {
    let place_one = |(name, view): (&str, &View<'_>)| match place(view, find(view.storage.key)) {
        Ok(entry) => Ok((name.to_owned(), entry)),
        Err(detail) => Err(WeightsError::TensorLayout { path: path.to_owned(), tensor: name.to_owned(), detail }),
    };
    pickle.state_dict(path)?.into_iter().map(place_one).collect()
}

/// Finds the place of one tensor, `range` being that of its storage, or says what is wrong with it.
fn place(view: &View<'_>, range: Option<Range<u64>>) -> Result<Entry, String> {
    let View { storage, offset, ref shape, ref strides } = *view;
    let Some(range) = range else {
        return Err(format!("its storage {:?} is not in the file", storage.key));
    };
    let size = storage.dtype.bitsize() / 8;
    let len = range.end - range.start;
    if storage.numel.checked_mul(size).map(|expected| expected as u64) != Some(len) {
        return Err(format!("its storage has {len} bytes, expected {} {:?} elements", storage.numel, storage.dtype));
    }
    let describe =
        |what| format!("{:?} of shape {shape:?}, strides {strides:?}, offset {offset}: {what}", storage.dtype);
    if shape.len() != strides.len() {
        return Err(describe("as many strides as dimensions are needed".to_owned()));
    }
    let numel = byte_len(storage.dtype, shape).map_err(|why| describe(why.to_owned()))? / size;
    if numel > storage.numel.max(MAX_EXPANDED) {
        return Err(describe(format!("{numel} elements are to come from a storage of {}", storage.numel)));
    }

    // A stride that is never taken says nothing and may be anything.
    let strides: Vec<usize> = shape.iter().zip(strides).map(|(&d, &s)| if d > 1 { s } else { 0 }).collect();
    let steps = || shape.iter().map(|&d| d.saturating_sub(1)).zip(&strides);
    let last = steps().try_fold(0usize, |sum, (n, &stride)| sum.checked_add(n.checked_mul(stride)?));
    let span = if numel == 0 { Some(0) } else { last.and_then(|last| last.checked_add(1)) };
    let Some(span) = span.filter(|span| span.checked_add(offset).is_some_and(|end| end <= storage.numel)) else {
        return Err(describe(format!("leaves its storage of {} elements", storage.numel)));
    };

    Ok(Entry {
        info: TensorInfo { dtype: storage.dtype, shape: shape.clone() },
        start: range.start + (offset * size) as u64,
        span: span * size,
        strides: (numel > 0 && !is_contiguous(shape, &strides)).then_some(strides),
    })
}

/// Whether the elements of a tensor that has some lie end to end in row-major order.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut dense = 1;
    shape.iter().zip(strides).rev().all(|(&d, &stride)| {
        let fits = d == 1 || stride == dense;
        dense *= d;
        fits
    })
}

/// The elements of a strided tensor, each of `size` bytes, in row-major order. `source` begins with the first one.
fn gather(source: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let numel = shape.iter().product::<usize>();
    let mut gathered = Vec::with_capacity(numel * size);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    for _ in 0..numel {
        gathered.extend_from_slice(&source[at * size..][..size]);
        // The next index: the last dimension runs fastest.
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            at += strides[d];
            if index[d] < shape[d] {
                break;
            }
            at -= strides[d] * shape[d];
            index[d] = 0;
        }
    }
    gathered
}
