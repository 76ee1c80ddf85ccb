//! Directories that are filled aside and put in place at the end.

use std::collections::HashMap;
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::FileError;
use crate::atomic_file::sync_dir;
use crate::staging::{Staging, Turn};

/// A directory in the making: write into [`path`](Self::path), then [`commit`](Self::commit). Dropped without a commit
/// it leaves nothing behind. A killed process leaves a hidden directory `.NAME.tmp-…`, which the next one that writes to
/// the same target removes.
///
/// * The target does not exist: one rename puts the whole directory in place.
/// * The target exists: files of other names in it are taken over (by hard links, so that they stay the very same), and
///   the old directory and the new one change places in one step. After a crash the old files are there or the new ones.
///   Where a file system cannot exchange, the old directory is renamed first: a crash between the two renames leaves no
///   directory, and the next writer puts the old one back.
/// * The target exists and nothing can be put beside it (it is a mount point, its parent is not writable, or this
///   process works inside it): the files are renamed one after the other. Each is replaced atomically, the set of them is
///   not.
///
/// Of two processes that write to one target, the one that commits last has its files there, all of them.
///
/// ```
/// use sideburn_files::AtomicDir;
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
    /// The directory that the staging directory is in.
    home: PathBuf,
    // Fields are dropped in order: the staging directory goes before the parents that were made for it.
    staging: Staging,
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
    /// [`FileError::Unwritable`] if that is not possible, [`FileError::InTheWay`] if `target` is a file or a symbolic
    /// link to nothing, and [`FileError::Busy`] if another process holds the place for 10 seconds.
    pub fn create(target: impl AsRef<Path>) -> Result<Self, FileError> {
        let given = target.as_ref();
        let fail = |source| FileError::writing(given, source);
        match fs::metadata(given) {
            Ok(found) if found.is_dir() => {
                // What a link leads to is replaced, not the link.
                let target = given.canonicalize().map_err(fail)?;
                if let Some(home) = target.parent().filter(|parent| can_exchange(&target, &found, parent))
                    && let Ok(staging) = Staging::make(home, &target)
                {
                    let home = home.to_owned();
                    return Ok(Self { target, home, staging, parents: MadeParents::default() });
                }
                let staging = Staging::make(&target, &target)?;
                Ok(Self { home: target.clone(), target, staging, parents: MadeParents::default() })
            }
            Ok(_) => Err(in_the_way(given, "file", "directory")),
            // A link to nowhere would be found out by the commit only, at the end of the work.
            Err(_) if given.is_symlink() => Err(in_the_way(given, "broken symbolic link", "directory")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let home = match given.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
                    _ => PathBuf::from("."),
                };
                let parents = make_parents(&home).map_err(fail)?;
                let staging = Staging::make(&home, given)?;
                Ok(Self { target: given.to_owned(), home, staging, parents })
            }
            Err(e) => Err(fail(e)),
        }
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
    /// [`FileError::InTheWay`] if a directory stands where a file is to be, or the other way round: nothing is
    /// replaced then. [`FileError::Unwritable`] if syncing or renaming fails, [`FileError::Busy`] if another process
    /// holds the place for 10 seconds.
    pub fn commit(self) -> Result<(), FileError> {
        // Parents first: what is bound last is dropped first, and parents can go only when the staging directory has.
        let Self { mut parents, staging, home, target } = self;
        let fail = |source| FileError::writing(&target, source);
        let staged = sync_tree(staging.path()).map_err(fail)?;
        let _turn = Turn::take(&home, &target)?;
        if target.symlink_metadata().is_err() {
            fs::rename(staging.path(), &target).map_err(fail)?;
            staging.keep();
            parents.0.iter().chain([&target]).filter_map(|dir| dir.parent()).try_for_each(sync_dir).map_err(fail)?;
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
        // If the others cannot be taken over (files of another user, a file system without hard links), they stay where
        // they are.
        let whole = home != target && take_over(&target, staging.path(), &staged).is_ok();
        if whole {
            exchange(&staging, &target).and_then(|()| sync_dir(&home)).map_err(fail)
        } else {
            rename_each(&staging, &target, &staged)?;
            sync_dir(&target).map_err(fail)
        }
    }
}

/// Whether another directory can take the place of the directory `target`, whose metadata is `found`, in its `parent`.
fn can_exchange(target: &Path, found: &Metadata, parent: &Path) -> bool {
    // Else the process, or the shell that it was started from, would go on in the old directory.
    let works_inside = std::env::current_dir().is_ok_and(|here| here.starts_with(target));
    !works_inside && is_on_file_system_of(found, parent)
}

/// False for a mount point, which cannot be renamed.
#[cfg(unix)]
fn is_on_file_system_of(found: &Metadata, parent: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(parent).is_ok_and(|parent| parent.dev() == found.dev())
}

#[cfg(not(unix))]
fn is_on_file_system_of(_: &Metadata, _: &Path) -> bool {
    true
}

/// Links whatever `old` has and `new` has not into `new`, and gives `new` the owner and the permissions of `old`.
/// `staged` is what `new` has.
fn take_over(old: &Path, new: &Path, staged: &[(PathBuf, bool)]) -> io::Result<()> {
    let staged: HashMap<&Path, bool> = staged.iter().map(|(path, is_dir)| (path.as_path(), *is_dir)).collect();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        for entry in fs::read_dir(old.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            let is_dir = entry.file_type()?.is_dir();
            match staged.get(path.as_path()) {
                Some(true) if is_dir => pending.push(path),
                Some(_) => {}
                None if is_dir => {
                    fs::create_dir(new.join(&path))?;
                    pending.push(path);
                }
                None => fs::hard_link(entry.path(), new.join(&path))?,
            }
        }
        copy_access(&old.join(&relative), &new.join(&relative))?;
        sync_dir(&new.join(&relative))?;
    }
    Ok(())
}

/// Gives the directory `to` the owner and the permissions of `from`.
fn copy_access(from: &Path, to: &Path) -> io::Result<()> {
    let found = fs::metadata(from)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, chown};
        let made = fs::metadata(to)?;
        if (made.uid(), made.gid()) != (found.uid(), found.gid()) {
            chown(to, Some(found.uid()), Some(found.gid()))?;
        }
    }
    fs::set_permissions(to, found.permissions())
}

/// Puts the staging directory in the place of `target`, and what was there in the place of the staging directory, which
/// is then removed.
fn exchange(staging: &Staging, target: &Path) -> io::Result<()> {
    match exchange_at_once(staging.path(), target) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
        done => return done,
    }
    let aside = staging.aside();
    fs::rename(target, &aside)?;
    let moved = fs::rename(staging.path(), target);
    if moved.is_err() {
        return fs::rename(&aside, target).and(moved);
    }
    // The new files are in place; old ones that cannot be removed are left to the next writer.
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange_at_once(left: &Path, right: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    renameat_with(CWD, left, CWD, right, RenameFlags::EXCHANGE).map_err(|errno| match errno {
        // Old kernels, and file systems that do not know the flag.
        Errno::NOSYS | Errno::INVAL | Errno::NOTSUP => io::ErrorKind::Unsupported.into(),
        errno => errno.into(),
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange_at_once(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Renames each staged file to its place in `target`.
fn rename_each(staging: &Staging, target: &Path, staged: &[(PathBuf, bool)]) -> Result<(), FileError> {
    for (relative, is_dir) in staged {
        let (from, to) = (staging.path().join(relative), target.join(relative));
        let moved = if *is_dir { fs::create_dir_all(&to) } else { fs::rename(from, &to) };
        moved.map_err(|e| FileError::writing(&to, e))?;
    }
    for (relative, _) in staged.iter().filter(|(_, is_dir)| *is_dir) {
        let dir = target.join(relative);
        sync_dir(&dir).map_err(|e| FileError::writing(&dir, e))?;
    }
    Ok(())
}

/// Checks that a directory `dir` can be made or written into, by making and removing a staging directory with a file.
/// Meant for before a long run: an output path that cannot be written should be known at its start.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let parent = tempfile::tempdir()?;
/// # let parent = parent.path();
/// sideburn_files::check_writable(parent.join("runs/first"))?;
/// assert!(!parent.join("runs").exists()); // no trace is left
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`AtomicDir::create`], and [`FileError::Unwritable`] if no file can be written.
pub fn check_writable(dir: impl AsRef<Path>) -> Result<(), FileError> {
    let staged = AtomicDir::create(&dir)?;
    fs::write(staged.path().join("probe"), b"probe").map_err(|e| FileError::writing(dir.as_ref(), e))
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

fn in_the_way(path: &Path, found: &'static str, expected: &'static str) -> FileError {
    FileError::InTheWay { path: path.to_owned(), found, expected }
}
