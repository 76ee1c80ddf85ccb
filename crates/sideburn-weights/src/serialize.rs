//! From tensors to the bytes of a safetensors file.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use sideburn_files::FileError;

use crate::error::WeightsError;
use crate::header;
use crate::tensor::Tensor;

/// The bytes of the safetensors file that [`write_safetensors`](crate::write_safetensors) would write; `name` is what
/// messages call it.
///
/// # Errors
/// [`WeightsError::BadNames`] if two tensors have the same name or one is called `__metadata__`,
/// [`FileError::Unwritable`] if the header would be longer than readers accept.
pub fn safetensors_bytes<N, T>(
    name: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (N, T)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, WeightsError>
where
    N: Into<String>,
    T: Borrow<Tensor>,
{
    let path = name.as_ref();
    let mut bytes = Vec::new();
    Content::new(path, tensors, metadata.as_ref())?
        .write(&mut bytes)
        .map_err(|source| FileError::writing(path, source))?;
    Ok(bytes)
}

/// What is to stand in a file: the header, and the tensors in their order.
pub(crate) struct Content<T> {
    header: Vec<u8>,
    tensors: Vec<(String, T)>,
}

impl<T: Borrow<Tensor>> Content<T> {
    /// Lays out the file that will be called `path`.
    pub(crate) fn new<N: Into<String>>(
        path: &Path,
        tensors: impl IntoIterator<Item = (N, T)>,
        metadata: Option<&HashMap<String, String>>,
    ) -> Result<Self, WeightsError> {
        let mut tensors: Vec<(String, T)> = tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect();
        check_names(path, &tensors)?;
        tensors.sort_by(|(left_name, left), (right_name, right)| {
            // Widest dtype first, so that every tensor is aligned to its element.
            right.borrow().dtype().cmp(&left.borrow().dtype()).then_with(|| left_name.cmp(right_name))
        });
        let described = tensors.iter().map(|(name, tensor)| {
            let tensor = tensor.borrow();
            (name.as_str(), tensor.dtype(), tensor.shape(), tensor.bytes().len())
        });
        let header = header::encode(described, metadata)
            .map_err(|detail| FileError::writing(path, io::Error::new(io::ErrorKind::InvalidInput, detail)))?;
        Ok(Self { header, tensors })
    }

    /// Writes the whole file.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|(_, tensor)| out.write_all(tensor.borrow().bytes()))
    }
}

fn check_names<T>(path: &Path, tensors: &[(String, T)]) -> Result<(), WeightsError> {
    let mut sorted: Vec<&String> = tensors.iter().map(|(name, _)| name).collect();
    sorted.sort_unstable();
    let reserved = sorted.iter().copied().filter(|name| header::is_reserved(name));
    let twice = sorted.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    let mut names: Vec<String> = reserved.chain(twice).cloned().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { Ok(()) } else { Err(WeightsError::BadNames { path: path.to_owned(), names }) }
}
