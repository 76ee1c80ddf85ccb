//! The cache of `huggingface_hub`:
//!
//! ```text
//! CACHE/CACHEDIR.TAG
//! CACHE/.locks/models--OWNER--NAME/HASH.lock
//! CACHE/models--OWNER--NAME/refs/main                        the commit that the branch was at
//!                           blobs/HASH                       a file, by its hash
//!                           blobs/HASH.incomplete            the beginning of one
//!                           snapshots/COMMIT/config.json     a link to its blob
//!                           .no_exist/COMMIT/vocab.json      empty: the commit has no such file
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use sideburn_files::read_text;

use crate::RepoId;
use crate::id::is_commit;

/// What the cache has of a repository.
pub(crate) struct Repo {
    pub(crate) cache: PathBuf,
    /// `models--OWNER--NAME`.
    pub(crate) folder: String,
}

impl Repo {
    pub(crate) fn new(cache: &Path, id: &RepoId) -> Self {
        // Links in the cache lead up and down from real folders.
        let cache = cache.canonicalize().or_else(|_| std::path::absolute(cache)).unwrap_or_else(|_| cache.to_owned());
        Self { cache, folder: format!("models--{}", id.name().replace('/', "--")) }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    /// The commit that a branch or tag was at when the hub was asked last.
    pub(crate) fn reference(&self, revision: &str) -> Option<String> {
        let text = read_text(self.root().join("refs").join(revision), 1 << 10).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The folder of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root().join("snapshots").join(commit)
    }

    /// Whether a file of a commit is there, all of it.
    pub(crate) fn has(&self, commit: &str, file: &str) -> bool {
        fs::metadata(self.snapshot(commit).join(file)).is_ok_and(|found| found.is_file())
    }
}

#[cfg(feature = "net")]
mod writing {
    use std::fs::{self, File, OpenOptions, TryLockError};
    use std::io;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use sideburn_files::write_atomic;

    use super::Repo;
    use crate::HubError;

    /// What `huggingface_hub` marks the folder with, so that backups leave it out.
    const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
        # This file is a cache directory tag created by huggingface_hub.\n\
        # For information about cache directory tags, see:\n\
        #\thttps://bford.info/cachedir/\n";

    /// How often it is looked whether another process is ready.
    const LOOK: Duration = Duration::from_millis(50);

    fn failed(path: &Path) -> impl FnOnce(io::Error) -> HubError + '_ {
        |source| HubError::Cache { path: path.to_owned(), source }
    }

    fn make_parent(path: &Path) -> Result<(), HubError> {
        let parent = path.parent().expect("it is below the cache");
        fs::create_dir_all(parent).map_err(failed(parent))
    }

    impl Repo {
        /// Makes the folder of the cache, and marks it.
        pub(crate) fn begin(&self) -> Result<(), HubError> {
            fs::create_dir_all(&self.cache).map_err(failed(&self.cache))?;
            let tag = self.cache.join("CACHEDIR.TAG");
            if !tag.exists() {
                // It matters to backups only.
                let _ = fs::write(tag, TAG);
            }
            Ok(())
        }

        /// Writes down at which commit a branch or tag is.
        pub(crate) fn set_reference(&self, revision: &str, commit: &str) -> Result<(), HubError> {
            if revision == commit || self.reference(revision).as_deref() == Some(commit) {
                return Ok(());
            }
            let path = self.root().join("refs").join(revision);
            make_parent(&path)?;
            Ok(write_atomic(&path, commit.as_bytes())?)
        }

        /// Where a blob is.
        pub(crate) fn blob(&self, etag: &str) -> PathBuf {
            self.root().join("blobs").join(etag)
        }

        /// Whether it is written down that a commit has no such file.
        pub(crate) fn is_absent(&self, commit: &str, file: &str) -> bool {
            self.absence(commit, file).is_file()
        }

        /// Writes down that a commit has no such file. It is only to spare a question.
        pub(crate) fn mark_absent(&self, commit: &str, file: &str) {
            let path = self.absence(commit, file);
            let _ = make_parent(&path).map(|()| fs::write(path, ""));
        }

        fn absence(&self, commit: &str, file: &str) -> PathBuf {
            self.root().join(".no_exist").join(commit).join(file)
        }

        /// The right to write a blob, for as long as the file is open. `on_wait` is called once if another process has it.
        ///
        /// It is `flock` on the file that Python's `filelock` locks. Where files cannot be locked, there is nothing to wait for:
        /// then two processes may fetch the same, and what they mix up is found out by its hash.
        pub(crate) fn lock(&self, etag: &str, on_wait: impl FnOnce()) -> Result<Option<File>, HubError> {
            let path = self.cache.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
            make_parent(&path)?;
            let mut on_wait = Some(on_wait);
            loop {
                let lock =
                    OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed(&path))?;
                let_others_lock(&lock);
                match lock.try_lock() {
                    // Whoever had it may have removed the file, and others make it anew.
                    Ok(()) if is_at(&lock, &path) => return Ok(Some(lock)),
                    Ok(()) => continue,
                    Err(TryLockError::Error(_)) => return Ok(None),
                    Err(TryLockError::WouldBlock) => {}
                }
                if let Some(on_wait) = on_wait.take() {
                    on_wait();
                }
                std::thread::sleep(LOOK);
            }
        }

        /// Gives a file of a commit its blob, by a link if there can be one. It may be there already.
        pub(crate) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<(), HubError> {
            let (blob, path) = (self.blob(etag), self.snapshot(commit).join(file));
            make_parent(&path)?;
            let up = "../".repeat(1 + Path::new(file).components().count());
            // A link of another name takes the place, so that there is always one.
            let aside = path.with_file_name(format!(".{}.{}.tmp", etag, std::process::id()));
            let _ = fs::remove_file(&aside);
            let made = symlink(Path::new(&format!("{up}blobs/{etag}")), &blob, &aside);
            made.and_then(|()| fs::rename(&aside, &path)).map_err(failed(&path))
        }
    }

    /// Lets the group take the lock, too, as Python does: a cache may be that of several users.
    fn let_others_lock(lock: &File) {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // It fails for the lock of another user, which is as that one has made it.
            let _ = lock.set_permissions(fs::Permissions::from_mode(0o664));
        }
        #[cfg(not(unix))]
        let _ = lock;
    }

    #[cfg(unix)]
    fn is_at(lock: &File, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        match (lock.metadata(), fs::metadata(path)) {
            (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    #[cfg(not(unix))]
    fn is_at(_: &File, _: &Path) -> bool {
        true
    }

    #[cfg(unix)]
    fn symlink(relative: &Path, _: &Path, at: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(relative, at)
    }

    /// Links want a right of their own on Windows.
    #[cfg(not(unix))]
    fn symlink(_: &Path, blob: &Path, at: &Path) -> io::Result<()> {
        fs::hard_link(blob, at).or_else(|_| fs::copy(blob, at).map(drop))
    }
}
