//! Files that come from the hub into the cache.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sideburn_files::read_capped;
use sideburn_http::{HttpError, Request};
use sideburn_weights::ShardIndex;

use crate::cache::Repo;
use crate::files::Kind;
use crate::hash::Hash;
use crate::hub::{Hub, HubEvent};
use crate::remote::{Head, Remote};
use crate::{HubError, RepoId};

/// The longest index of shards, in bytes.
const MAX_INDEX: u64 = 64 << 20;

/// Fetches what a repository is wanted for, as far as it is not in the cache. The folder with it.
///
/// What the hub says of the configuration tells the commit, and all other files are those of this commit. The branch is written
/// down when all is there, so that without a network no half of a model is found.
pub(crate) fn snapshot(hub: &Hub, id: &RepoId, kind: Kind) -> Result<PathBuf, HubError> {
    let remote = Remote::new(hub, id)?;
    let repo = Repo::new(&hub.config().cache, id);
    let (commit, head) = match id.commit() {
        Some(commit) => (commit.to_owned(), None),
        None => {
            let cached = hub.cached(id, kind).ok();
            match (remote.head(id.revision(), kind.config(), cached.is_none()), cached) {
                (Ok(head), _) => (head.commit.clone(), Some(head)),
                // The repository is there, and what was in the cache is not in it any more.
                (Err(error @ (HubError::NoRevision { .. } | HubError::NoFile { .. })), _) => return Err(error),
                (Err(error), Some(cached)) => {
                    hub.tell(&HubEvent::Cached { id, reason: error.to_string() });
                    return Ok(cached);
                }
                (Err(error), None) => return Err(error),
            }
        }
    };
    let fetch = Fetch { remote, repo, commit };
    fetch.one(kind.config(), head)?;
    if kind.weights().is_empty() {
        // The branch stays where it was: of this commit there may be nothing else in the cache.
        return Ok(fetch.repo.snapshot(&fetch.commit));
    }
    fetch.weights(kind)?;
    for file in kind.companions() {
        fetch.one_if_there(file)?;
    }
    // What is there can be used, whether or not this can be written.
    let _ = fetch.repo.set_reference(id.revision(), &fetch.commit);
    Ok(fetch.repo.snapshot(&fetch.commit))
}

/// The files of one commit.
struct Fetch<'a> {
    remote: Remote<'a>,
    repo: Repo,
    commit: String,
}

impl Fetch<'_> {
    fn no_file(&self, file: &str) -> HubError {
        HubError::NoFile { id: self.remote.id.to_string(), file: file.to_owned() }
    }

    /// The first file of weights that is there, and the shards that it names.
    fn weights(&self, kind: Kind) -> Result<(), HubError> {
        let mut found = None;
        for file in kind.weights() {
            if self.one_if_there(file)? {
                found = Some(*file);
                break;
            }
        }
        let weights = found.ok_or_else(|| self.no_file(kind.weights()[0]))?;
        if weights.ends_with(".index.json") {
            let path = self.repo.snapshot(&self.commit).join(weights);
            let index = ShardIndex::parse(&read_capped(&path, MAX_INDEX)?, &path)?;
            index.shards().into_iter().try_for_each(|shard| self.one(shard, None))?;
        }
        Ok(())
    }

    /// A file that must be there. `head` is what the hub has said of it, if it has.
    fn one(&self, file: &str, head: Option<Head>) -> Result<(), HubError> {
        if self.repo.has(&self.commit, file) {
            return Ok(());
        }
        let head = match head {
            Some(head) => head,
            None => self.remote.head(&self.commit, file, true)?,
        };
        self.repo.begin()?;
        self.blob(file, &head)?;
        self.repo.link(&head.etag, &self.commit, file)
    }

    /// A file that may be there. Whether it is.
    fn one_if_there(&self, file: &str) -> Result<bool, HubError> {
        if self.repo.is_absent(&self.commit, file) {
            return Ok(false);
        }
        match self.one(file, None) {
            Ok(()) => Ok(true),
            Err(HubError::NoFile { .. }) => {
                self.repo.mark_absent(&self.commit, file);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The content of a file, which has the name of its hash.
    fn blob(&self, file: &str, head: &Head) -> Result<(), HubError> {
        let blob = self.repo.blob(&head.etag);
        if blob.is_file() {
            return Ok(());
        }
        let _lock = self.repo.lock(&head.etag, || self.remote.hub.tell(&HubEvent::Waiting { file }))?;
        if blob.is_file() {
            return Ok(());
        }
        let part = blob.with_file_name(format!("{}.incomplete", head.etag));
        let failed = |source| HubError::Cache { path: part.clone(), source };
        fs::create_dir_all(part.parent().expect("it is below the cache")).map_err(failed)?;
        let mut open = OpenOptions::new();
        let mut to = open.create(true).truncate(false).write(true).open(&part).map_err(failed)?;
        let begun = to.metadata().map_err(failed)?.len();
        let mut checked = self.fetch(file, head, &mut to, &part).and_then(|()| self.check(file, head, &part));
        if begun > 0 && matches!(checked, Err(HubError::Hash { .. } | HubError::Size { .. })) {
            // What another process has left was the beginning of something else.
            to.set_len(0).map_err(failed)?;
            checked = self.fetch(file, head, &mut to, &part).and_then(|()| self.check(file, head, &part));
        }
        if let Err(HubError::Hash { .. } | HubError::Size { .. }) = checked {
            let _ = fs::remove_file(&part);
        }
        checked?;
        to.sync_all().map_err(failed)?;
        fs::rename(&part, &blob).map_err(failed)
    }

    /// That a file is what the hub says.
    fn check(&self, file: &str, head: &Head, part: &Path) -> Result<(), HubError> {
        let Some(kind) = Hash::of_name(&head.etag) else { return Ok(()) };
        let found = kind.of_file(part).map_err(|source| HubError::Cache { path: part.to_owned(), source })?;
        if found == head.etag {
            return Ok(());
        }
        let (id, expected) = (self.remote.id.to_string(), head.etag.clone());
        Err(HubError::Hash { id, file: file.to_owned(), expected, found })
    }

    /// Fetches what is missing at the end of the file `to`, which is at `part`, until it has its size. Tries that bring nothing
    /// new are counted.
    fn fetch(&self, file: &str, head: &Head, to: &mut File, part: &Path) -> Result<(), HubError> {
        let written = |source| HubError::Cache { path: part.to_owned(), source };
        let mut done = to.metadata().map_err(written)?.len();
        if head.size.is_some_and(|size| done > size) {
            to.set_len(0).map_err(written)?;
            done = 0;
        }
        let mut failures = 0;
        loop {
            if head.size == Some(done) && done > 0 {
                self.remote.hub.tell(&HubEvent::Download { file, done, total: head.size });
                return Ok(());
            }
            let before = done;
            let error = match self.read_on(file, head, to, &mut done, part) {
                Ok(()) if head.size.is_none_or(|size| size == done) => return Ok(()),
                Ok(()) => None,
                Err(Failure::Here(error)) => return Err(error),
                Err(Failure::There(error)) => Some(error),
            };
            failures = if done > before { 1 } else { failures + 1 };
            let size = || HubError::Size {
                id: self.remote.id.to_string(),
                file: file.to_owned(),
                expected: head.size.unwrap_or_default(),
                found: done,
            };
            match error {
                // It has ended as if that were all, or goes on behind its end.
                None if failures > 2 || head.size.is_some_and(|size| done > size) => return Err(size()),
                None => {}
                Some(error) => match self.remote.http.pause_after(failures, &error) {
                    None => return Err(error.into()),
                    Some(pause) => {
                        self.remote.pausing(&error, pause);
                        std::thread::sleep(pause);
                    }
                },
            }
        }
    }

    /// Reads the answer to one request from byte `done` on, which is the end of the file `to`.
    fn read_on(&self, file: &str, head: &Head, to: &mut File, done: &mut u64, part: &Path) -> Result<(), Failure> {
        let written = |source| Failure::Here(HubError::Cache { path: part.to_owned(), source });
        let mut request = self.remote.signed(Request::get(self.remote.file_url(&self.commit, file)));
        if *done > 0 {
            request = request.header("range", format!("bytes={done}-"));
        }
        let mut answer = match self.remote.http.send(&request) {
            // There is nothing behind what is there: it is no beginning of the file.
            Err(HttpError::Status { status: 416, .. }) if *done > 0 => {
                to.set_len(0).map_err(written)?;
                *done = 0;
                return Ok(());
            }
            answer => answer.map_err(Failure::There)?,
        };
        let goes_on = answer.header("content-range").is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
        if answer.status() != 206 || !goes_on {
            to.set_len(0).map_err(written)?;
            *done = 0;
        }
        to.seek(SeekFrom::Start(*done)).map_err(written)?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = answer.read(&mut buffer).map_err(Failure::There)?;
            if count == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..count]).map_err(written)?;
            *done += count as u64;
            self.remote.hub.tell(&HubEvent::Download { file, done: *done, total: head.size });
            if head.size.is_some_and(|size| *done > size) {
                return Ok(());
            }
        }
    }
}

/// Where something failed: what failed there may pass.
enum Failure {
    Here(HubError),
    There(HttpError),
}
