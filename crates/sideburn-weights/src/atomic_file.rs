//! Files that appear under their name complete or not at all: temporary file in the same directory, fsync, rename,
//! fsync of the directory.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::{WeightsError, unwritable};
use crate::serialize::Content;
use crate::tensor::Tensor;

/// Writes `bytes` to `path`, replacing what is there; after a crash the file is the old one or the new one. A symbolic
/// link at `path` is replaced, not followed.
///
/// # Errors
/// [`WeightsError::Unwritable`] if the directory does not exist, is not writable or is full; the old file is intact.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), WeightsError> {
    write_with(path.as_ref(), |out| out.write_all(bytes))
}

/// Writes tensors and free-form metadata as a safetensors file at `path`, atomically as [`write_atomic`] does.
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
/// [`WeightsError::Unwritable`] if the file cannot be written, or its header would be longer than readers accept.
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
    write_with(path, |out| content.write(out))
}

/// Writes `path` by way of a temporary file that `fill` fills.
fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WeightsError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let attempt = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tmp-");
        // A temporary file is private by default; this one is to become an ordinary file. The umask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut temporary = builder.tempfile_in(dir)?;
        let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        fill(&mut out)?;
        out.flush()?;
        drop(out);
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        sync_dir(dir)
    };
    attempt().map_err(|source| unwritable(path, source))
}

/// Makes renames inside `dir` durable. Only Unix can, and only there it is needed.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
