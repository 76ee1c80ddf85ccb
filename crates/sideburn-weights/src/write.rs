//! Safetensors files that appear under their name complete or not at all.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::io;
use std::path::Path;

use sideburn_files::write_atomic_with;

use crate::error::WeightsError;
use crate::header::TensorInfo;
use crate::serialize::Layout;
use crate::tensor::Tensor;

/// Writes tensors and free-form metadata as a safetensors file at `path`, atomically as [`write_atomic`](sideburn_files::write_atomic) does.
///
/// The bytes are a function of the input alone: tensors are ordered by dtype and name as the reference implementation
/// orders them (the order given does not matter), metadata by key. `transformers` and `peft` expect the metadata
/// `format: pt`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use sideburn_weights::{SafetensorsFile, Tensor, TensorSource, write_safetensors};
///
/// # let dir = tempfile::tempdir()?;
/// let path = dir.path().join("adapter_model.safetensors");
/// let bias = Tensor::from_f32(vec![3], &[0.5, -1.0, 2.0])?;
/// write_safetensors(&path, [("bias", &bias)], Some([("format".into(), "pt".into())].into()))?;
/// assert_eq!(SafetensorsFile::open(&path)?.read("bias")?, bias);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`WeightsError::BadNames`] if two tensors have the same name or one is called `__metadata__`,
/// [`FileError::Unwritable`](sideburn_files::FileError::Unwritable) if the file cannot be written, or its header would be longer than readers accept.
pub fn write_safetensors<N, T>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (N, T)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), WeightsError>
where
    N: Into<String>,
    T: Borrow<Tensor>,
{
    let path = path.as_ref();
    let (layout, tensors) = Layout::of(path, tensors, metadata.as_ref())?;
    write_atomic_with(path, |out| layout.write(out, |out, name, _| out.write_all(tensors[name].borrow().bytes())))?;
    Ok(())
}

/// As [`write_safetensors`], of tensors that `make` makes one by one when they are written, so that no two of them are in
/// memory at once. What they are, dtype and shape, is known before.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use sideburn_weights::{Dtype, SafetensorsFile, Tensor, TensorInfo, TensorSource, WeightsError, write_safetensors_lazily};
///
/// # let dir = tempfile::tempdir()?;
/// let path = dir.path().join("model.safetensors");
/// let row = |name: &str| TensorInfo { dtype: Dtype::F32, shape: vec![name.len()] };
/// let tensors = ["a", "bb"].map(|name| (name.to_owned(), row(name)));
/// write_safetensors_lazily(&path, tensors, |name| Tensor::from_f32(vec![name.len()], &vec![1.0; name.len()]), None)?;
/// assert_eq!(SafetensorsFile::open(&path)?.read_f32("bb")?, [1.0, 1.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`write_safetensors`], or the error of `make`; what was there before is then untouched.
///
/// # Panics
/// If `make` makes a tensor of another dtype or shape than was said.
pub fn write_safetensors_lazily<E: From<WeightsError>>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (String, TensorInfo)>,
    mut make: impl FnMut(&str) -> Result<Tensor, E>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), E> {
    let path = path.as_ref();
    let layout = Layout::new(path, tensors, metadata.as_ref())?;
    let mut failed = None;
    let written = write_atomic_with(path, |out| {
        layout.write(out, |out, name, info| match make(name) {
            Ok(tensor) => {
                assert_eq!(tensor.info(), *info, "what was said of {name}");
                out.write_all(tensor.bytes())
            }
            Err(error) => {
                failed = Some(error);
                Err(io::Error::other("a tensor could not be made"))
            }
        })
    });
    match (failed, written) {
        (Some(error), _) => Err(error),
        (None, written) => Ok(written.map_err(WeightsError::from)?),
    }
}
