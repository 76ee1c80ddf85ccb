//! The cache of `huggingface_hub`, whose directories are full of links.

use std::path::{Path, PathBuf};

/// The blobs directory of the Hugging Face cache entry that `root`, which has been canonicalised, is a snapshot of (or a folder
/// inside one): `models--ORG--NAME/blobs` for `models--ORG--NAME/snapshots/REVISION`. The only place outside a model's
/// directory that its links may lead to.
pub fn cache_blobs(root: &Path) -> Option<PathBuf> {
    let entry =
        root.ancestors().skip(1).find(|dir| dir.file_name().is_some_and(|name| name == "snapshots"))?.parent()?;
    let is_model = entry.file_name()?.to_str()?.starts_with("models--");
    if is_model { entry.join("blobs").canonicalize().ok() } else { None }
}
