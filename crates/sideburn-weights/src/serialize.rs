//! From tensors to the bytes of a safetensors file.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use sideburn_files::FileError;

use crate::error::WeightsError;
use crate::header::{self, TensorInfo, byte_len};
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
    let (layout, tensors) = Layout::of(path, tensors, metadata.as_ref())?;
    let mut bytes = Vec::new();
    layout
        .write(&mut bytes, |out, name, _| out.write_all(tensors[name].borrow().bytes()))
        .map_err(|source| FileError::writing(path, source))?;
    Ok(bytes)
}

/// Where everything is to stand in a file: the header, and the tensors in their order.
pub(crate) struct Layout {
    header: Vec<u8>,
    tensors: Vec<(String, TensorInfo)>,
}

impl Layout {
    /// Lays out the file that will be called `path`.
    pub(crate) fn new(
        path: &Path,
        tensors: impl IntoIterator<Item = (String, TensorInfo)>,
        metadata: Option<&HashMap<String, String>>,
    ) -> Result<Self, WeightsError> {
        let mut tensors: Vec<(String, TensorInfo)> = tensors.into_iter().collect();
        check_names(path, &tensors)?;
        tensors.sort_by(|(left_name, left), (right_name, right)| {
            // Widest dtype first, so that every tensor is aligned to its element.
            right.dtype.cmp(&left.dtype).then_with(|| left_name.cmp(right_name))
        });
        let invalid = |detail: String| FileError::writing(path, io::Error::new(io::ErrorKind::InvalidInput, detail));
        let mut described = Vec::with_capacity(tensors.len());
        for (name, TensorInfo { dtype, shape }) in &tensors {
            let len = byte_len(*dtype, shape).map_err(|why| invalid(format!("{name:?}: {why}")))?;
            described.push((name.as_str(), *dtype, shape.as_slice(), len));
        }
        let header = header::encode(described.into_iter(), metadata).map_err(invalid)?;
        Ok(Self { header, tensors })
    }

    /// The same of tensors that are there already, which it gives back by their names.
    pub(crate) fn of<N: Into<String>, T: Borrow<Tensor>>(
        path: &Path,
        tensors: impl IntoIterator<Item = (N, T)>,
        metadata: Option<&HashMap<String, String>>,
    ) -> Result<(Self, HashMap<String, T>), WeightsError> {
        let tensors: Vec<(String, T)> = tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect();
        let layout =
            Self::new(path, tensors.iter().map(|(name, tensor)| (name.clone(), tensor.borrow().info())), metadata)?;
        Ok((layout, tensors.into_iter().collect()))
    }

    /// Writes the whole file; `tensor` writes the bytes of the tensor with this name and description.
    pub(crate) fn write<W: Write + ?Sized>(
        &self,
        out: &mut W,
        mut tensor: impl FnMut(&mut W, &str, &TensorInfo) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|(name, info)| tensor(out, name, info))
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
