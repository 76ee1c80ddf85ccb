//! What git leaves in place of a large file.

/// Whether a file that begins with `bytes` is the stub that git has in place of a file in Git LFS.
///
/// ```
/// assert!(sideburn_files::is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"));
/// assert!(!sideburn_files::is_lfs_pointer(b"version,dialogue,summary\n"));
/// ```
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}
