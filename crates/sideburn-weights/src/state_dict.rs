//! Named tensors in one file of either format.

use std::path::{Path, PathBuf};

use crate::checkpoint::present;
use crate::error::WeightsError;
use crate::file::SafetensorsFile;
use crate::header::TensorInfo;
use crate::tensor::Tensor;
use crate::torch_file::TorchFile;

/// One file of named tensors: safetensors, or where a directory has none of that, a state dict of `torch.save`.
#[derive(Debug)]
pub enum StateDict {
    /// A safetensors file.
    Safetensors(SafetensorsFile),
    /// A PyTorch file.
    Torch(TorchFile),
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
        let [safetensors, torch]: [PathBuf; 2] = names.each_ref().map(|name| dir.join(name));
        if present(&safetensors)? {
            SafetensorsFile::open(safetensors).map(Self::Safetensors)
        } else if present(&torch)? {
            TorchFile::open(torch).map(Self::Torch)
        } else {
            Err(WeightsError::NoStateDict { dir: dir.to_owned(), names })
        }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Safetensors(file) => file.path(),
            Self::Torch(file) => file.path(),
        }
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        match self {
            Self::Safetensors(file) => Box::new(file.names()),
            Self::Torch(file) => Box::new(file.names()),
        }
    }

    /// Dtype and shape of a tensor, or `None` if there is none of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self {
            Self::Safetensors(file) => file.info(name),
            Self::Torch(file) => file.info(name),
        }
    }

    /// An entry of the free-form metadata, which only safetensors files have.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        match self {
            Self::Safetensors(file) => file.metadata().get(key).map(String::as_str),
            Self::Torch(_) => None,
        }
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// Those of [`SafetensorsFile::read`].
    pub fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        match self {
            Self::Safetensors(file) => file.read(name),
            Self::Torch(file) => file.read(name),
        }
    }

    /// Reads one tensor of floating-point numbers as `f32`.
    ///
    /// # Errors
    /// Those of [`SafetensorsFile::read_f32`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        match self {
            Self::Safetensors(file) => file.read_f32(name),
            Self::Torch(file) => file.read_f32(name),
        }
    }
}
