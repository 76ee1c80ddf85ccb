//! The weights of a model: one namespace of tensors over one file or many.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::error::WeightsError;
use crate::file::{SafetensorsFile, io_error, not_found};
use crate::header::TensorInfo;
use crate::index::ShardIndex;
use crate::tensor::Tensor;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model directory as Hugging Face writes it, or of a single safetensors file.
///
/// Opening reads headers only; [`read`](Self::read) reads one tensor. The order in which files are looked for is that
/// of `transformers`: `model.safetensors`, then `model.safetensors.index.json` with its shards.
///
/// An index is not trusted. The shards it names must be `.safetensors` files inside its directory; symbolic links are
/// followed if they stay inside, or if the directory is a snapshot in the Hugging Face cache and they lead to the blobs
/// of the same cache entry. A link that *is* `model.safetensors` or the index is followed anywhere: no file content
/// chose that name.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Which of `files` holds a tensor.
    holder: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens a model directory, a safetensors file, or the index (`….index.json`) of a sharded model.
    ///
    /// # Errors
    /// [`NotFound`](WeightsError::NotFound), [`NoWeights`](WeightsError::NoWeights) or
    /// [`PickleOnly`](WeightsError::PickleOnly) if there is nothing to open;
    /// [`BadIndex`](WeightsError::BadIndex), [`IndexTooLarge`](WeightsError::IndexTooLarge) or
    /// [`DuplicateKeys`](WeightsError::DuplicateKeys) if the index is not valid;
    /// [`UnsafeShardNames`](WeightsError::UnsafeShardNames) or [`ShardOutside`](WeightsError::ShardOutside) if it
    /// leads out of its directory; [`MissingShards`](WeightsError::MissingShards),
    /// [`TensorTwice`](WeightsError::TensorTwice) or [`IndexMismatch`](WeightsError::IndexMismatch) if the shards are
    /// not those of the index; and those of [`SafetensorsFile::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|e| io_error("opening", path, e))?;
        if !metadata.is_dir() {
            let is_index = path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"));
            return if is_index { Self::open_sharded(path) } else { Self::open_single(path, path) };
        }
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        if present(&single)? {
            Self::open_single(path, &single)
        } else if present(&index)? {
            Self::open_sharded(&index)
        } else {
            Err(no_weights(path))
        }
    }

    fn open_single(root: &Path, file: &Path) -> Result<Self, WeightsError> {
        let file = SafetensorsFile::open(file)?;
        let holder = file.names().map(|name| (name.to_owned(), 0)).collect();
        Ok(Self { root: root.to_owned(), files: vec![file], holder })
    }

    fn open_sharded(path: &Path) -> Result<Self, WeightsError> {
        // The parent of a bare file name is the empty path, which nothing can open.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let index = ShardIndex::read(path)?;
        let real = index.resolve(path, dir)?;
        let shards: Vec<&str> = index.shards().into_iter().collect();
        let files = shards
            .iter()
            .zip(&real)
            .map(|(name, real)| SafetensorsFile::open_at(&dir.join(name), real))
            .collect::<Result<Vec<_>, _>>()?;

        let mut holder: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                holder.entry(name).or_default().push(i);
            }
        }
        check_holders(path, &index, &shards, &holder)?;
        let holder = holder.into_iter().map(|(name, files)| (name.to_owned(), files[0])).collect();
        Ok(Self { root: dir.to_owned(), files, holder })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.holder.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.holder.contains_key(name)
    }

    /// Dtype and shape of a tensor, or `None` if there is none of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file_of(name)?.info(name)
    }

    /// The file that holds a tensor, or `None` if there is no tensor of that name.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        self.file_of(name).map(SafetensorsFile::path)
    }

    /// The open files, sorted by name.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// Those of [`SafetensorsFile::read`].
    pub fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        self.file_or_error(name)?.read(name)
    }

    /// Reads one tensor of floating-point numbers as `f32`.
    ///
    /// # Errors
    /// Those of [`SafetensorsFile::read_f32`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.file_or_error(name)?.read_f32(name)
    }

    fn file_of(&self, name: &str) -> Option<&SafetensorsFile> {
        self.holder.get(name).map(|&i| &self.files[i])
    }

    fn file_or_error(&self, name: &str) -> Result<&SafetensorsFile, WeightsError> {
        self.file_of(name).ok_or_else(|| not_found(&self.root, name, self.names()))
    }
}

/// Checks that every tensor is in exactly the shard where the index has it. `holder` gives positions in `shards`.
fn check_holders(
    path: &Path,
    index: &ShardIndex,
    shards: &[&str],
    holder: &BTreeMap<&str, Vec<usize>>,
) -> Result<(), WeightsError> {
    let twice: Vec<_> = holder.iter().filter(|(_, files)| files.len() > 1).collect();
    if !twice.is_empty() {
        let names = |files: &Vec<usize>| files.iter().map(|&i| shards[i].to_owned()).collect();
        let tensors = twice.into_iter().map(|(name, files)| ((*name).to_owned(), names(files))).collect();
        return Err(WeightsError::TensorTwice { path: path.to_owned(), tensors });
    }

    let position: HashMap<&str, usize> = shards.iter().enumerate().map(|(i, name)| (*name, i)).collect();
    let mut misplaced = Vec::new();
    for (tensor, shard) in &index.weight_map {
        match holder.get(tensor.as_str()) {
            Some(files) if position.get(shard.as_str()) == Some(&files[0]) => {}
            Some(files) => {
                misplaced.push((tensor.clone(), format!("named {shard:?}, found in {:?}", shards[files[0]])))
            }
            None => misplaced.push((tensor.clone(), format!("named {shard:?}, found nowhere"))),
        }
    }
    let unlisted: Vec<_> = holder
        .iter()
        .filter(|(tensor, _)| !index.weight_map.contains_key(**tensor))
        .map(|(tensor, files)| ((*tensor).to_owned(), format!("in {:?}", shards[files[0]])))
        .collect();
    if misplaced.is_empty() && unlisted.is_empty() {
        Ok(())
    } else {
        Err(WeightsError::IndexMismatch { path: path.to_owned(), misplaced, unlisted })
    }
}

/// Whether there is anything of that name, a dangling link included: that one should be reported, not passed over for
/// the next candidate.
pub(crate) fn present(path: &Path) -> Result<bool, WeightsError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_error("looking for", path, e)),
    }
}

/// The error for a directory that has neither of the files looked for, by what it has instead.
fn no_weights(dir: &Path) -> WeightsError {
    let mut names: Vec<String> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
        Err(e) => return io_error("listing", dir, e),
    };
    names.sort_unstable();
    let (safe, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(".safetensors"));
    let is_pickle = |name: &String| {
        let name = name.strip_suffix(".index.json").unwrap_or(name);
        [".bin", ".pt", ".pth", ".ckpt"].iter().any(|suffix| name.ends_with(suffix)) && name != "training_args.bin"
    };
    let pickles: Vec<_> = rest.into_iter().filter(is_pickle).collect();
    let dir = dir.to_owned();
    if safe.is_empty() && !pickles.is_empty() {
        WeightsError::PickleOnly { dir, found: pickles }
    } else {
        WeightsError::NoWeights { dir, found: safe }
    }
}
