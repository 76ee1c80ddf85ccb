//! Directories that are filled aside and put in place at the end.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::atomic_file::sync_dir;
use crate::error::{WeightsError, unwritable};

/// A directory in the making: write into [`path`](Self::path), then [`commit`](Self::commit). Dropped without a commit
/// it leaves nothing behind. (A killed process leaves a hidden directory `.NAME.tmp-…`, which may be deleted.)
///
/// * The target does not exist: the files are staged beside it and one rename puts the whole directory in place.
/// * The target exists: the files are staged inside it, and committing renames each over its predecessor. Files of
///   other names are not touched, whatever they are. Each file is replaced atomically, the set of them is not: a crash
///   during the commit can leave files of both. Give every checkpoint a directory of its own where that matters.
///
/// ```
/// use sideburn_weights::AtomicDir;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let parent = tempfile::tempdir()?;
/// let target = parent.path().join("checkpoint-100");
/// let staged = AtomicDir::create(&target)?;
/// std::fs::write(staged.path().join("trainer_state.json"), "{}")?;
/// assert!(!target.exists());
/// staged.commit()?;
/// assert!(target.join("trainer_state.json").exists());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AtomicDir {
    target: PathBuf,
    // Fields are dropped in order: the staging directory goes before the parents that were made for it.
    staging: TempDir,
    parents: MadeParents,
}

/// Parents that were created for a target, outermost first; those that are empty are removed again on drop.
#[derive(Debug, Default)]
struct MadeParents(Vec<PathBuf>);

impl Drop for MadeParents {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            // Fails, as it should, for a directory that has something in it by now.
            let _ = fs::remove_dir(dir);
        }
    }
}

impl AtomicDir {
    /// Makes a staging directory for `target`, and the parents that `target` lacks.
    ///
    /// # Errors
    /// [`WeightsError::Unwritable`] if that is not possible, and [`WeightsError::InTheWay`] if `target` is a file or a
    /// symbolic link to nothing.
    pub fn create(target: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let target = target.as_ref();
        let (inside, target) = match fs::metadata(target) {
            Ok(found) if found.is_dir() => (true, target.to_owned()),
            Ok(_) => return Err(in_the_way(target, "file", "directory")),
            // A link to nowhere would be found out by the commit only, at the end of the work.
            Err(_) if target.is_symlink() => return Err(in_the_way(target, "broken symbolic link", "directory")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (false, target.to_owned()),
            Err(e) => return Err(unwritable(target, e)),
        };
        // A target that exists may be a mount point: only inside it is a rename sure to stay on one file system, and
        // its parent may be out of bounds.
        let home = match target.parent() {
            _ if inside => target.clone(),
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let parents = make_parents(&home).map_err(|e| unwritable(&target, e))?;
        let name = target.file_name().map_or("output".into(), |name| name.to_string_lossy());
        let mut builder = tempfile::Builder::new();
        let prefix = format!(".{name}.tmp-");
        builder.prefix(&prefix);
        // A temporary directory is private by default; this one is to become an ordinary one. The umask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let staging = builder.tempdir_in(&home).map_err(|e| unwritable(&target, e))?;
        Ok(Self { target, staging, parents })
    }

    /// The staging directory. Everything in it is put in place by [`commit`](Self::commit).
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Where the files will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the staged files durable and puts them in place; see [`AtomicDir`] for what happens to files that are
    /// there already.
    ///
    /// # Errors
    /// [`WeightsError::InTheWay`] if a directory stands where a file is to be, or the other way round: nothing is
    /// replaced then. [`WeightsError::Unwritable`] if syncing or renaming fails.
    pub fn commit(self) -> Result<(), WeightsError> {
        // Parents first: what is bound last is dropped first, and parents can go only when the staging directory has.
        let Self { mut parents, mut staging, target } = self;
        let fail = |source| unwritable(&target, source);
        let staged = sync_tree(staging.path()).map_err(fail)?;

        if target.symlink_metadata().is_err() {
            fs::rename(staging.path(), &target).map_err(fail)?;
            staging.disable_cleanup(true);
            parents.0.iter().chain([&target]).filter_map(|dir| dir.parent()).try_for_each(sync_named).map_err(fail)?;
            parents.0.clear();
            return Ok(());
        }
        for (relative, is_dir) in &staged {
            let place = target.join(relative);
            match fs::metadata(&place) {
                Ok(found) if found.is_dir() && !is_dir => return Err(in_the_way(&place, "directory", "file")),
                Ok(found) if !found.is_dir() && *is_dir => return Err(in_the_way(&place, "file", "directory")),
                _ => {}
            }
        }
        for (relative, is_dir) in &staged {
            let (from, to) = (staging.path().join(relative), target.join(relative));
            let moved = if *is_dir { fs::create_dir_all(&to) } else { fs::rename(from, &to) };
            moved.map_err(|e| unwritable(&to, e))?;
        }
        staging.close().map_err(fail)?;
        for (relative, _) in staged.iter().filter(|(_, is_dir)| *is_dir) {
            sync_dir(&target.join(relative)).map_err(fail)?;
        }
        sync_dir(&target).map_err(fail)
    }
}

/// Checks that a directory `dir` can be made or written into, by making and removing a staging directory with a file.
/// Meant for before a long run: an output path that cannot be written should be known at its start.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let parent = tempfile::tempdir()?;
/// # let parent = parent.path();
/// sideburn_weights::check_writable(parent.join("runs/first"))?;
/// assert!(!parent.join("runs").exists()); // no trace is left
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`AtomicDir::create`], and [`WeightsError::Unwritable`] if no file can be written.
pub fn check_writable(dir: impl AsRef<Path>) -> Result<(), WeightsError> {
    let staged = AtomicDir::create(&dir)?;
    fs::write(staged.path().join("probe"), b"probe").map_err(|e| unwritable(dir.as_ref(), e))
}

/// Creates `dir` and the parents that it lacks, and says which those were.
fn make_parents(dir: &Path) -> io::Result<MadeParents> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    let mut made = MadeParents::default();
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => made.0.push(dir.to_owned()),
            // Another process was faster.
            Err(_) if dir.is_dir() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(made)
}

/// Syncs every file and directory under `root`. Returns their paths relative to it, each directory (marked `true`)
/// before what it holds.
fn sync_tree(root: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let mut entries = fs::read_dir(root.join(&relative))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = relative.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(path.clone());
            } else if kind.is_file() {
                // Windows flushes only what is open for writing.
                OpenOptions::new().read(true).write(cfg!(windows)).open(entry.path())?.sync_all()?;
            }
            found.push((path, kind.is_dir()));
        }
        sync_dir(&root.join(&relative))?;
    }
    Ok(found)
}

/// [`sync_dir`] for a parent, which for a bare name is the empty path.
fn sync_named(dir: &Path) -> io::Result<()> {
    sync_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
}

fn in_the_way(path: &Path, found: &'static str, expected: &'static str) -> WeightsError {
    WeightsError::InTheWay { path: path.to_owned(), found, expected }
}
