//! What every holder of named tensors can do.

use std::path::Path;

use crate::error::WeightsError;
use crate::header::TensorInfo;
use crate::tensor::Tensor;

/// Named tensors that can be looked at without reading them, and read one by one: a file, the files of a model, tensors
/// that somebody fetches over a network.
///
/// Models and adapters are filled from a `&dyn TensorSource`, so a new kind of source is an implementation of this trait
/// and nothing else. Tensors may be read from several threads at once.
pub trait TensorSource: Send + Sync {
    /// Where the tensors come from, for messages: the path of the file or directory, or the name given to bytes.
    fn path(&self) -> &Path;

    /// The names of all tensors, sorted.
    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_>;

    /// Dtype and shape of a tensor, or `None` if there is none of that name.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// Reads one tensor: its bytes and no others.
    ///
    /// # Errors
    /// [`TensorNotFound`](WeightsError::TensorNotFound) if there is none of that name, for which
    /// [`WeightsError::tensor_not_found`] is there; [`File`](WeightsError::File) if the bytes cannot be read (a file that was
    /// cut after it was opened included).
    fn read(&self, name: &str) -> Result<Tensor, WeightsError>;

    /// Reads one tensor of floating-point numbers as `f32`; see [`Tensor::to_f32`] for the rounding.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`NotFloat`](WeightsError::NotFloat) if the dtype is none of F32, F16, BF16
    /// and F64.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.read(name)?.to_f32_named(self.path(), name)
    }

    /// Whether there is a tensor of that name.
    fn contains(&self, name: &str) -> bool {
        self.info(name).is_some()
    }

    /// Where a tensor should be that is not there: the shard in which an index has it. `None` if nothing promises it.
    fn promised(&self, _name: &str) -> Option<&str> {
        None
    }

    /// An entry of the free-form metadata, which only safetensors files have.
    fn metadata(&self, _key: &str) -> Option<&str> {
        None
    }
}

impl WeightsError {
    /// The error for a name that `source` has no tensor of, with the name that shares the longest ending or beginning: a
    /// wrong prefix (`model.`, `base_model.`) and a wrong suffix are the two usual mistakes.
    pub fn tensor_not_found(source: &dyn TensorSource, tensor: &str) -> Self {
        let shared = |name: &str| {
            let head = name.bytes().zip(tensor.bytes()).take_while(|(a, b)| a == b).count();
            let tail = name.bytes().rev().zip(tensor.bytes().rev()).take_while(|(a, b)| a == b).count();
            head.max(tail)
        };
        let names = source.names();
        let count = names.len();
        let nearest = names.max_by_key(|name| shared(name)).filter(|name| shared(name) * 2 >= tensor.len());
        Self::TensorNotFound {
            path: source.path().to_owned(),
            tensor: tensor.to_owned(),
            count,
            nearest: nearest.map(str::to_owned),
        }
    }
}
