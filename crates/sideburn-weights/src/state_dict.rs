//! Named tensors in one file of either format.

use std::path::Path;

#[cfg(feature = "fs")]
use crate::directory::present;
use crate::error::WeightsError;
use crate::header::TensorInfo;
use crate::safetensors_file::SafetensorsFile;
use crate::source::TensorSource;
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

impl From<SafetensorsFile> for StateDict {
    fn from(file: SafetensorsFile) -> Self {
        Self::Safetensors(file)
    }
}

impl From<TorchFile> for StateDict {
    fn from(file: TorchFile) -> Self {
        Self::Torch(file)
    }
}

impl StateDict {
    /// Opens `STEM.safetensors` in the directory `dir` or, if there is none, `STEM.bin`.
    ///
    /// # Errors
    /// [`NoStateDict`](WeightsError::NoStateDict) if there is neither, and those of [`SafetensorsFile::open`] and
    /// [`TorchFile::open`].
    #[cfg(feature = "fs")]
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

    /// The file, whatever its format.
    fn file(&self) -> &dyn TensorSource {
        match self {
            Self::Safetensors(file) => file,
            Self::Torch(file) => file,
        }
    }
}

impl TensorSource for StateDict {
    fn path(&self) -> &Path {
        self.file().path()
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        self.file().names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file().info(name)
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        self.file().read(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.file().read_f32(name)
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.file().metadata(key)
    }
}
