//! The cache of `huggingface_hub`, whose directories are full of links.

use std::path::{Path, PathBuf};

/// What marks the folder of blobs that repositories share, of `huggingface_hub` from its version 2 on.
const SHARED: &str = ".huggingface-shared-blobs";

/// Where links may lead out of `root`, which has been canonicalised, if it is a snapshot in the Hugging Face cache (or a folder
/// inside one): for `CACHE/models--ORG--NAME/snapshots/REVISION` these are `CACHE/models--ORG--NAME/blobs` and, if the cache
/// has blobs that repositories share, `CACHE/blobs`. For any other directory there is none.
pub fn cache_blobs(root: &Path) -> Vec<PathBuf> {
    let snapshots = root.ancestors().skip(1).find(|dir| dir.file_name().is_some_and(|name| name == "snapshots"));
    let Some(entry) = snapshots.and_then(Path::parent) else { return Vec::new() };
    let is_model = entry.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("models--"));
    if !is_model {
        return Vec::new();
    }
    let shared = entry.parent().map(|cache| cache.join("blobs")).filter(|blobs| blobs.join(SHARED).is_file());
    [Some(entry.join("blobs")), shared].into_iter().flatten().filter_map(|blobs| blobs.canonicalize().ok()).collect()
}
