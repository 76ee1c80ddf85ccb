//! The weights of a model: one namespace of tensors over one file or many.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::error::WeightsError;
use crate::header::TensorInfo;
use crate::index::ShardIndex;
use crate::source::TensorSource;
use crate::state_dict::StateDict;
use crate::tensor::Tensor;

/// The tensors of a model as Hugging Face writes it: one file, or several and an index; safetensors, or state dicts of
/// `torch.save`.
///
/// Opening reads headers, or pickles, only; [`read`](TensorSource::read) reads one tensor. [`open`](Self::open) takes a directory,
/// [`from_shards`](Self::from_shards) an index and whatever gives the shards it names, and [`From`] one file.
///
/// An index may name tensors that no shard holds: converters leave the second copies of tied weights out of the shards
/// and not out of the index, as in `google/flan-t5-xl`. Such a tensor is not there, and
/// [`promised`](TensorSource::promised) says which shard the index has it in.
#[derive(Debug)]
pub struct ModelFiles {
    path: PathBuf,
    files: Vec<StateDict>,
    /// Which of `files` holds a tensor.
    holder: BTreeMap<String, usize>,
    /// Tensors that the index names and no shard holds, each with the shard in which the index has it.
    absent: BTreeMap<String, String>,
}

impl<F: Into<StateDict>> From<F> for ModelFiles {
    fn from(file: F) -> Self {
        let file = file.into();
        let holder = file.names().map(|name| (name.to_owned(), 0)).collect();
        Self { path: file.path().to_owned(), files: vec![file], holder, absent: BTreeMap::new() }
    }
}

impl ModelFiles {
    /// Takes the text of a shard index, called `name` in messages, and has every shard it names opened by `open`.
    ///
    /// Shard names are checked first: each is a relative path that does not lead upwards, to a `.safetensors` file, or where the
    /// index is called `….bin.index.json` to a `.bin` file.
    ///
    /// ```
    /// use sideburn_weights::{ModelFiles, SafetensorsFile, Tensor, TensorSource, safetensors_bytes};
    ///
    /// # fn main() -> Result<(), sideburn_weights::WeightsError> {
    /// let one = Tensor::from_f32(vec![1], &[1.0])?;
    /// let shard = safetensors_bytes("m-1.safetensors", [("a", one)], None)?;
    /// let index = br#"{"weight_map": {"a": "m-1.safetensors"}}"#;
    /// let model = ModelFiles::from_shards("the index", index, |name| SafetensorsFile::from_bytes(name, shard.clone()))?;
    /// assert_eq!(model.read_f32("a")?, [1.0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`BadIndex`](WeightsError::BadIndex) or [`DuplicateKeys`](WeightsError::DuplicateKeys) if the index is not valid;
    /// [`UnsafeShardNames`](WeightsError::UnsafeShardNames) if it leads out of its directory;
    /// [`TensorTwice`](WeightsError::TensorTwice) or [`IndexMismatch`](WeightsError::IndexMismatch) if the shards are
    /// not those of the index; and those of `open`.
    pub fn from_shards<F: Into<StateDict>>(
        name: impl AsRef<Path>,
        index: &[u8],
        mut open: impl FnMut(&str) -> Result<F, WeightsError>,
    ) -> Result<Self, WeightsError> {
        let path = name.as_ref();
        Self::of_index(path, &ShardIndex::parse(index, path)?, |name| Ok(open(name)?.into()))
    }

    pub(crate) fn of_index(
        path: &Path,
        index: &ShardIndex,
        open: impl FnMut(&str) -> Result<StateDict, WeightsError>,
    ) -> Result<Self, WeightsError> {
        let shards: Vec<&str> = index.shards().into_iter().collect();
        let files = shards.iter().copied().map(open).collect::<Result<Vec<_>, _>>()?;

        let mut holder: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                holder.entry(name).or_default().push(i);
            }
        }
        check_holders(path, index, &shards, &holder)?;
        let holder: BTreeMap<_, _> = holder.into_iter().map(|(name, files)| (name.to_owned(), files[0])).collect();
        let absent = index.weight_map.iter().filter(|(tensor, _)| !holder.contains_key(*tensor));
        let absent = absent.map(|(tensor, shard)| (tensor.clone(), shard.clone())).collect();
        Ok(Self { path: path.to_owned(), files, holder, absent })
    }

    /// The file that holds a tensor, or `None` if there is no tensor of that name.
    pub fn file_of(&self, name: &str) -> Option<&StateDict> {
        self.holder.get(name).map(|&i| &self.files[i])
    }

    /// The open files, sorted by name.
    pub fn files(&self) -> &[StateDict] {
        &self.files
    }
}

impl TensorSource for ModelFiles {
    /// The single file, or the index.
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        Box::new(self.holder.keys().map(String::as_str))
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file_of(name)?.info(name)
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        self.file_of(name).ok_or_else(|| WeightsError::tensor_not_found(self, name))?.read(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.file_of(name).ok_or_else(|| WeightsError::tensor_not_found(self, name))?.read_f32(name)
    }

    fn promised(&self, name: &str) -> Option<&str> {
        self.absent.get(name).map(String::as_str)
    }
}

/// Checks that every tensor that a shard holds is in one shard, the one where the index has it. `holder` gives positions
/// in `shards`.
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
        if let Some(files) = holder.get(tensor.as_str())
            && position.get(shard.as_str()) != Some(&files[0])
        {
            misplaced.push((tensor.clone(), format!("named {shard:?}, found in {:?}", shards[files[0]])));
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
