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
use crate::state_dict::StateDict;
use crate::torch_file::{TorchFile, is_run_state};

/// The files looked for, in the order of `transformers`.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
/// The cap on the size of an index, in bytes. The largest published models stay below a tenth of it.
const MAX_INDEX: u64 = 64 << 20;

impl ModelFiles {
    /// Opens a model directory, a file of weights, or the index (`….index.json`) of a sharded model.
    ///
    /// The order in which files are looked for is that of `transformers`: `model.safetensors`, then
    /// `model.safetensors.index.json` with its shards, then `pytorch_model.bin` and `pytorch_model.bin.index.json`. A file that
    /// ends in `.bin`, `.pt` or `.pth` is read as a [`TorchFile`]: nothing of its pickle is run.
    ///
    /// An index is not trusted. The shards it names must be `.safetensors` files, or `.bin` files if the index is of those,
    /// inside its directory; symbolic links are followed if they stay inside, or if the directory is a snapshot in the
    /// Hugging Face cache and they lead to the blobs of the same cache entry, or to those that entries share. A link that *is*
    /// the file of weights or the index is followed anywhere: no file content chose that name.
    ///
    /// # Errors
    /// [`File`](WeightsError::File) if there is nothing at `path`, or something that is not to be opened;
    /// [`NoWeights`](WeightsError::NoWeights) if the directory has none;
    /// [`ShardOutside`](WeightsError::ShardOutside) if it leads out of its directory;
    /// [`MissingShards`](WeightsError::MissingShards) if shards are not there; and those of
    /// [`from_shards`](Self::from_shards), [`SafetensorsFile::open`] and [`TorchFile::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|e| FileError::reading("opening", path, e))?;
        if !metadata.is_dir() {
            return open_weights(path);
        }
        for name in WEIGHTS {
            let path = path.join(name);
            if present(&path)? {
                return open_weights(&path);
            }
        }
        Err(no_weights(path))
    }
}

impl StateDict {
    /// Opens `STEM.safetensors` in the directory `dir` or, if there is none, `STEM.bin`.
    ///
    /// # Errors
    /// [`NoStateDict`](WeightsError::NoStateDict) if there is neither, and those of [`SafetensorsFile::open`] and
    /// [`TorchFile::open`].
    pub fn open(dir: impl AsRef<Path>, stem: &str) -> Result<Self, WeightsError> {
        let dir = dir.as_ref();
        let names = ["safetensors", "bin"].map(|extension| format!("{stem}.{extension}"));
        let [safetensors, torch] = names.each_ref().map(|name| dir.join(name));
        if present(&safetensors)? {
            SafetensorsFile::open(safetensors).map(Self::Safetensors)
        } else if present(&torch)? {
            TorchFile::open(torch).map(Self::Torch)
        } else {
            Err(WeightsError::NoStateDict { dir: dir.to_owned(), names })
        }
    }
}

/// Opens a file of weights or an index, whichever the name says that it is.
fn open_weights(path: &Path) -> Result<ModelFiles, WeightsError> {
    let is_index = path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"));
    if is_index { open_sharded(path) } else { open_file(path, path).map(ModelFiles::from) }
}

/// Opens the file `real`, which is called `path` in messages, and whose format that name says.
fn open_file(path: &Path, real: &Path) -> Result<StateDict, WeightsError> {
    let is_torch = path.extension().is_some_and(|ending| ["bin", "pt", "pth"].iter().any(|torch| ending == *torch));
    Ok(if is_torch { TorchFile::open_at(path, real)?.into() } else { SafetensorsFile::open_at(path, real)?.into() })
}

fn open_sharded(path: &Path) -> Result<ModelFiles, WeightsError> {
    // The parent of a bare file name is the empty path, which nothing can open.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let index = ShardIndex::parse(&read_index(path)?, path)?;
    let real = resolve(&index, path, dir)?;
    ModelFiles::of_index(path, &index, |name| open_file(&dir.join(name), &real[name]))
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
fn present(path: &Path) -> Result<bool, WeightsError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::reading("looking for", path, e).into()),
    }
}

/// The error for a directory that has none of the files looked for, with what it has instead.
fn no_weights(dir: &Path) -> WeightsError {
    let mut found: Vec<String> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        Err(e) => return FileError::reading("listing", dir, e).into(),
    };
    let endings = [".safetensors", ".bin", ".pt", ".pth"];
    found.retain(|name| endings.iter().any(|ending| name.ends_with(ending)) && !is_run_state(name));
    found.sort_unstable();
    WeightsError::NoWeights { dir: dir.to_owned(), found }
}
