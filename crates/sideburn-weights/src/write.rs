//! Safetensors files that appear under their name complete or not at all.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::path::Path;

use sideburn_files::write_atomic_with;

use crate::error::WeightsError;
use crate::serialize::Content;
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
    let content = Content::new(path, tensors, metadata.as_ref())?;
    write_atomic_with(path, |out| content.write(out))?;
    Ok(())
}
