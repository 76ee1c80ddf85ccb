//! The directory of a model: which of its files hold the weights, and which files an index may name.
//!
//! An index comes from outside, and the files it names are opened. Their names have been checked when it was parsed;
//! the file that a name resolves to must also lie inside the directory of the index. One exception: the cache of
//! `huggingface_hub` keeps `models--ORG--NAME/snapshots/REVISION/` full of links into `models--ORG--NAME/blobs/`, and
//! such links, into the blobs of the same entry or those that all entries share, and nowhere else, are followed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use sideburn_files::{FileError, cache_blobs, is_lfs_pointer, read_capped};

use crate::error::WeightsError;
use crate::index::ShardIndex;
use crate::model_files::ModelFiles;
use crate::safetensors_file::SafetensorsFile;
use crate::torch_file::is_run_state;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The cap on the size of an index, in bytes. The largest published models stay below a tenth of it.
const MAX_INDEX: u64 = 64 << 20;

impl ModelFiles {
    /// Opens a model directory, a safetensors file, or the index (`….index.json`) of a sharded model.
    ///
    /// The order in which files are looked for is that of `transformers`: `model.safetensors`, then
    /// `model.safetensors.index.json` with its shards.
    ///
    /// An index is not trusted. The shards it names must be `.safetensors` files inside its directory; symbolic links are
    /// followed if they stay inside, or if the directory is a snapshot in the Hugging Face cache and they lead to the
    /// blobs of the same cache entry, or to those that entries share. A link that *is* `model.safetensors` or the index is followed anywhere: no file
    /// content chose that name.
    ///
    /// # Errors
    /// [`File`](WeightsError::File) if there is nothing at `path`, or something that is not to be opened;
    /// [`NoWeights`](WeightsError::NoWeights) or [`PickleOnly`](WeightsError::PickleOnly) if the directory has none;
    /// [`ShardOutside`](WeightsError::ShardOutside) if it leads out of its directory;
    /// [`MissingShards`](WeightsError::MissingShards) if shards are not there; and those of
    /// [`from_shards`](Self::from_shards) and [`SafetensorsFile::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|e| FileError::reading("opening", path, e))?;
        if !metadata.is_dir() {
            let is_index = path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"));
            return if is_index { open_sharded(path) } else { SafetensorsFile::open(path).map(Self::from) };
        }
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        if present(&single)? {
            SafetensorsFile::open(single).map(Self::from)
        } else if present(&index)? {
            open_sharded(&index)
        } else {
            Err(no_weights(path))
        }
    }
}

fn open_sharded(path: &Path) -> Result<ModelFiles, WeightsError> {
    // The parent of a bare file name is the empty path, which nothing can open.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let index = ShardIndex::parse(&read_index(path)?, path)?;
    let real = resolve(&index, path, dir)?;
    ModelFiles::of_index(path, &index, |name| SafetensorsFile::open_at(&dir.join(name), &real[name]))
}

fn read_index(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let json = read_capped(path, MAX_INDEX)?;
    if is_lfs_pointer(&json) {
        return Err(FileError::GitLfsPointer { path: path.to_owned() }.into());
    }
    Ok(json)
}

/// Resolves each shard to the real file that it is. `path` is that of the index and `dir` the directory that it lies in.
fn resolve<'a>(index: &'a ShardIndex, path: &Path, dir: &Path) -> Result<BTreeMap<&'a str, PathBuf>, WeightsError> {
    let root = dir.canonicalize().map_err(|e| FileError::reading("resolving", dir, e))?;
    let blobs = cache_blobs(&root);
    let (mut resolved, mut missing, mut outside) = (BTreeMap::new(), Vec::new(), Vec::new());
    for name in index.shards() {
        let shard = dir.join(name);
        match shard.canonicalize() {
            Ok(real) if real.starts_with(&root) || blobs.iter().any(|blobs| real.starts_with(blobs)) => {
                resolved.insert(name, real);
            }
            Ok(real) => outside.push((name.to_owned(), real)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                missing.push(name.to_owned());
            }
            Err(e) => return Err(FileError::reading("resolving", &shard, e).into()),
        }
    }
    if !outside.is_empty() {
        return Err(WeightsError::ShardOutside { path: path.to_owned(), shards: outside });
    }
    if !missing.is_empty() {
        return Err(WeightsError::MissingShards { path: path.to_owned(), missing });
    }
    Ok(resolved)
}

/// Whether there is anything of that name, a dangling link included: that one should be reported, not passed over for
/// the next candidate.
pub(crate) fn present(path: &Path) -> Result<bool, WeightsError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::reading("looking for", path, e).into()),
    }
}

/// The error for a directory that has neither of the files looked for, by what it has instead.
fn no_weights(dir: &Path) -> WeightsError {
    let mut names: Vec<String> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        Err(e) => return FileError::reading("listing", dir, e).into(),
    };
    names.sort_unstable();
    let (safe, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(".safetensors"));
    let is_pickle = |name: &String| {
        let name = name.strip_suffix(".index.json").unwrap_or(name);
        [".bin", ".pt", ".pth", ".ckpt"].iter().any(|suffix| name.ends_with(suffix)) && !is_run_state(name)
    };
    let pickles: Vec<_> = rest.into_iter().filter(is_pickle).collect();
    let dir = dir.to_owned();
    if safe.is_empty() && !pickles.is_empty() {
        WeightsError::PickleOnly { dir, found: pickles }
    } else {
        WeightsError::NoWeights { dir, found: safe }
    }
}
