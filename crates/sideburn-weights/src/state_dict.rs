//! Named tensors in one file of either format.

use std::path::Path;

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
