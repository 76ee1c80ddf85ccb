//! A server that answers as the hub does, of one repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sideburn_hub::{Hub, HubConfig, HubEvent};
use sideburn_testing::http::{HttpServer, Reply, Request};
use tempfile::TempDir;

/// The repository.
pub(crate) const ID: &str = "someone/tiny-t5";
/// Its commit.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of it, and what the hub calls it: `git hash-object` of a small one, `sha256sum` of a large one.
pub(crate) struct Played {
    pub(crate) content: Vec<u8>,
    pub(crate) etag: &'static str,
    pub(crate) is_large: bool,
}

fn small(content: &str, etag: &'static str) -> Played {
    Played { content: content.as_bytes().to_vec(), etag, is_large: false }
}

/// The content of the weights: every byte is what its place leaves modulo 251.
pub(crate) fn weights() -> Vec<u8> {
    (0..300_000).map(|at| (at % 251) as u8).collect()
}

pub(crate) const WEIGHTS_HASH: &str = "3c65ea93424a9c362fec0e3a69ea36031e8a358441479dd665cc6110eabe7b08";

/// The files of a model.
pub(crate) fn model() -> BTreeMap<&'static str, Played> {
    BTreeMap::from([
        ("config.json", small("{\"model_type\": \"t5\"}\n", "d2d94a51536129ddc3c5cf32a7df62c6202a637e")),
        ("generation_config.json", small("{}", "9e26dfeeb6e641a33dae4961196235bdb965b21b")),
        ("model.safetensors", Played { content: weights(), etag: WEIGHTS_HASH, is_large: true }),
        ("tokenizer.json", small("{\"version\": \"1.0\"}\n", "92bdb0aff34a95a7c00546c3d608c984294164ed")),
        ("README.md", small("# A card\n", "f51eed857edcbc233cd309c3bfaf471f0e763142")),
        ("pytorch_model.bin", small("never wanted", "ff43d1f9c9a88843accc3f689d7b3119ef88152e")),
    ])
}

/// A hub with its storage, and a cache.
pub(crate) struct Stage {
    pub(crate) server: HttpServer,
    pub(crate) storage: HttpServer,
    pub(crate) folder: TempDir,
    events: Arc<Mutex<Vec<String>>>,
}

impl Stage {
    /// A hub with these files, whose large ones are in a storage on another host.
    pub(crate) fn new(files: BTreeMap<&'static str, Played>) -> Self {
        Self::changed(files, |_, reply| reply, |_, reply| reply)
    }

    /// The same, where answers are changed on their way: of the hub, and of its storage.
    pub(crate) fn changed(
        files: BTreeMap<&'static str, Played>,
        mut of_hub: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
        mut of_storage: impl FnMut(&Request, Reply) -> Reply + Send + 'static,
    ) -> Self {
        let files = Arc::new(files);
        let stored = Arc::clone(&files);
        let storage = HttpServer::start(move |request| {
            let found = stored.values().find(|file| request.path() == format!("/stored/{}", file.etag));
            let reply = found.map_or(Reply::new(404), |file| Reply::new(200).file(request, &file.content));
            of_storage(request, reply)
        });
        let at_storage = storage.url();
        let server = HttpServer::start(move |request| {
            let reply = resolve(request, &files, &at_storage);
            of_hub(request, reply)
        });
        Self { server, storage, folder: tempfile::tempdir().unwrap(), events: Arc::default() }
    }

    /// The cache.
    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    /// The folder of the repository in the cache.
    pub(crate) fn repo(&self) -> PathBuf {
        self.cache().join("models--someone--tiny-t5")
    }

    pub(crate) fn config(&self) -> HubConfig {
        HubConfig {
            endpoint: self.server.url(),
            cache: self.cache(),
            token: Some("hf_secret".to_owned()),
            offline: false,
            timeout: Duration::from_millis(500),
            first_pause: Duration::ZERO,
        }
    }

    /// One who asks.
    pub(crate) fn hub(&self) -> Hub {
        self.hub_with(self.config())
    }

    pub(crate) fn hub_with(&self, config: HubConfig) -> Hub {
        let events = Arc::clone(&self.events);
        Hub::new(config).watched_by(move |event| events.lock().unwrap().push(shown(event)))
    }

    /// What was told since the last time, each thing once in a row.
    pub(crate) fn take_events(&self) -> Vec<String> {
        let mut events = std::mem::take(&mut *self.events.lock().unwrap());
        events.dedup();
        events
    }
}

fn shown(event: &HubEvent<'_>) -> String {
    match event {
        HubEvent::Download { file, done, total } if Some(*done) == *total => format!("{file} is there"),
        HubEvent::Download { file, .. } => format!("{file} comes"),
        HubEvent::Upload { file, done, total } if done == total => format!("{file} is gone"),
        HubEvent::Upload { file, .. } => format!("{file} goes"),
        HubEvent::Waiting { file } => format!("{file} is waited for"),
        HubEvent::Pause { reason, .. } => format!("again: {reason}"),
        HubEvent::Cached { id, reason } => format!("{id} is as it was: {reason}"),
        other => format!("{other:?}"),
    }
}

/// What the hub answers when it is asked for a file.
fn resolve(request: &Request, files: &BTreeMap<&'static str, Played>, storage: &str) -> Reply {
    let commit = |reply: Reply| reply.header("x-repo-commit", COMMIT);
    let refuse = |code: &str| Reply::new(404).header("x-error-code", code).header("x-error-message", "is not here");
    let Some(path) = request.path().strip_prefix(&format!("/{ID}/resolve/")) else { return refuse("RepoNotFound") };
    let (revision, name) = path.split_once('/').unwrap();
    if !["main", "v1.0", "refs%2Fpr%2F3", COMMIT].contains(&revision) {
        return refuse("RevisionNotFound");
    }
    let Some(file) = files.get(name) else { return commit(refuse("EntryNotFound")) };
    let size = file.content.len().to_string();
    if file.is_large {
        let reply = Reply::redirect(302, format!("{storage}/stored/{}?signature=secret", file.etag));
        let reply = reply.header("x-linked-etag", format!("\"{}\"", file.etag)).header("x-linked-size", size);
        return commit(reply.header("etag", "\"of-the-pointer\"").header("content-length", "0"));
    }
    let reply = commit(Reply::new(200)).header("etag", format!("\"{}\"", file.etag));
    reply.file(request, &file.content)
}

/// The names of all below a folder, links with where they lead, files with their size.
pub(crate) fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            let kind = path.symlink_metadata().unwrap();
            if kind.is_symlink() {
                found.push(format!("{name} -> {}", path.read_link().unwrap().display()));
            } else if kind.is_dir() {
                pending.push(path);
            } else {
                found.push(format!("{name} {}", kind.len()));
            }
        }
    }
    found.sort();
    found
}
