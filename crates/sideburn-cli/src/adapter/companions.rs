//! The files of a model directory that are neither architecture nor weights, and go with a merged model.
//!
//! A model's directory comes from outside, and what is copied may be published. So only files of known names are copied,
//! and a link is followed only if it stays inside the directory: one that leads to `~/.ssh/id_ed25519` would otherwise put
//! a private key into the merged model, under the name `vocab.json`. The cache of `huggingface_hub` is excepted, whose
//! snapshots are links into the blobs of the same entry.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use sideburn::files::cache_blobs;
use sideburn::hub::COMPANIONS;

use crate::report::shown;

/// What became of the companions that a base has.
pub(crate) struct Copied {
    pub(crate) copied: Vec<&'static str>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// A companion that is not copied.
#[derive(Serialize)]
pub(crate) struct LeftOut {
    pub(crate) file: &'static str,
    pub(crate) reason: String,
}

/// Copies the companions in the directory `base` to the directory `output`, which is being made: what a model has been saved with
/// there, such as `generation_config.json`, gives way to what the base has.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn copy_companions(base: &Path, output: &Path) -> anyhow::Result<Copied> {
    let mut all = Copied { copied: Vec::new(), left_out: Vec::new() };
    let root = base.canonicalize().with_context(|| shown(base))?;
    for file in COMPANIONS {
        let from = base.join(file);
        if from.symlink_metadata().is_err() {
            continue;
        }
        match inside(&root, &from) {
            Ok(real) => {
                copy(&real, &output.join(file)).with_context(|| format!("copying {}", shown(&from)))?;
                all.copied.push(file);
            }
            Err(reason) => all.left_out.push(LeftOut { file, reason }),
        }
    }
    Ok(all)
}

/// The regular file that `path` is, in the directory `root`, all links followed; or why it is none.
fn inside(root: &Path, path: &Path) -> Result<PathBuf, String> {
    let real = path.canonicalize().map_err(|error| format!("a link that leads nowhere ({error})"))?;
    let is_home = real.starts_with(root) || cache_blobs(root).iter().any(|blobs| real.starts_with(blobs));
    if !is_home {
        return Err("a link out of the directory; copy the file itself if it is yours".to_owned());
    }
    match fs::metadata(&real) {
        Ok(found) if found.is_file() => Ok(real),
        Ok(_) => Err("not a regular file".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Copies the content of a file, and nothing else of it: the copy has the permissions of a new file.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    io::copy(&mut File::open(from)?, &mut File::create_new(to)?)?;
    Ok(())
}
