//! Adapters that go to the hub, as `push_to_hub` of `peft` sends them (`huggingface_hub/_commit_api.py`, `lfs.py`).
//!
//! 1. The repository is made, unless it is there.
//! 2. The hub says of each file whether it goes into git or, if it is large, into storage of its own (Git LFS).
//! 3. Files for the storage go there, in one piece or in many.
//! 4. One commit has all files: small ones themselves, others by their hash.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sideburn_files::{FileError, is_lfs_pointer, open_regular, read_capped};
use sideburn_http::{Body, HttpError, Method, Request};

use crate::files::Kind;
use crate::hash::Hash;
use crate::hub::{Hub, HubEvent};
use crate::remote::Remote;
use crate::{HubError, RepoId};

/// How an adapter is pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushConfig {
    /// Whether a new repository is private. One that is there stays as it is.
    pub private: bool,
    /// The message of the commit.
    pub commit_message: String,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self { private: false, commit_message: "Upload adapter".to_owned() }
    }
}

/// What has been pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// The repository: `OWNER/NAME`.
    pub id: String,
    /// Where people find it.
    pub url: String,
    /// The commit; none if the hub had all files already.
    pub commit: Option<String>,
    /// The files that were sent.
    pub files: Vec<String>,
}

/// A file to be sent.
struct Sent {
    name: String,
    path: PathBuf,
    size: u64,
}

/// What the hub wants of a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    oid: Option<String>,
}

/// What the storage wants of an object.
#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Actions,
    error: Option<ObjectError>,
}

#[derive(Default, Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

#[derive(Deserialize)]
struct ObjectError {
    message: String,
}

impl Hub {
    /// Sends an adapter to the repository `id`, with its model card (`README.md`) if it has one. The repository is made if it is
    /// not there; without `OWNER/` it is one of the token's owner, behind an `@` may stand a branch.
    ///
    /// ```no_run
    /// use sideburn_hub::{Hub, PushConfig};
    ///
    /// let pushed = Hub::from_env()?.push_adapter("runs/lora", "someone/flan-t5-small-dialogsum-lora", &PushConfig::default())?;
    /// println!("{}", pushed.url);
    /// # Ok::<(), sideburn_hub::HubError>(())
    /// ```
    ///
    /// # Errors
    /// If the directory holds no adapter, there is no token, or the hub or its storage refuses something. No commit is made
    /// then.
    pub fn push_adapter(&self, directory: impl AsRef<Path>, id: &str, config: &PushConfig) -> Result<Pushed, HubError> {
        let directory = directory.as_ref();
        let id: RepoId = id.parse()?;
        let files = files(directory)?;
        self.check_online()?;
        if self.config().token.is_none() {
            return Err(HubError::NoToken { endpoint: self.config().endpoint.clone() });
        }
        let id = Push { remote: Remote::new(self, &id)? }.with_owner()?;
        Push { remote: Remote::new(self, &id)? }.run(&files, config)
    }
}

/// The files of an adapter that go.
fn files(directory: &Path) -> Result<Vec<Sent>, HubError> {
    let kind = Kind::Adapter;
    let is_there = |name: &&str| directory.join(name).exists();
    let weights = kind.weights().iter().copied().find(is_there).unwrap_or(kind.weights()[0]);
    let card = Some("README.md").filter(is_there);
    let file = |name: &str| {
        let path = directory.join(name);
        let (mut file, size) = open_regular(&path)?;
        let mut start = [0; 64];
        let read = file.read(&mut start).map_err(|source| FileError::reading("reading", &path, source))?;
        match is_lfs_pointer(&start[..read]) {
            true => Err(FileError::GitLfsPointer { path }.into()),
            false => Ok(Sent { name: name.to_owned(), path, size }),
        }
    };
    [kind.config(), weights].into_iter().chain(card).map(file).collect()
}

/// A push to one repository.
struct Push<'a> {
    remote: Remote<'a>,
}

impl Push<'_> {
    /// The id with its owner: without one it is that of the token.
    fn with_owner(&self) -> Result<RepoId, HubError> {
        let id = self.remote.id;
        if id.name().contains('/') {
            return Ok(id.clone());
        }
        #[derive(Deserialize)]
        struct Owner {
            name: String,
        }
        let url = format!("{}/api/whoami-v2", self.remote.endpoint());
        let owner: Owner = self.ask(&self.remote.signed(Request::get(url)))?;
        format!("{}/{}@{}", owner.name, id.name(), id.revision()).parse()
    }

    /// Asks for JSON.
    fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> Result<T, HubError> {
        self.remote.json(request).map_err(|error| self.remote.explain(error, None))
    }

    fn post(&self, url: String, value: &Value) -> Request {
        self.remote.signed(Request::post_json(url, value))
    }

    fn run(&self, files: &[Sent], config: &PushConfig) -> Result<Pushed, HubError> {
        self.make(config.private)?;
        let name = self.remote.id.name();
        let (id, url) = (name.to_owned(), format!("{}/{name}", self.remote.endpoint()));
        let mut lines = vec![json!({"key": "header", "value": {"summary": config.commit_message, "description": ""}})];
        let (mut stored, mut sent) = (Vec::new(), Vec::new());
        for (file, mode) in self.modes(files)? {
            // An empty file cannot be stored.
            let is_stored = mode.upload_mode == "lfs" && file.size > 0;
            let hash = if is_stored { Hash::Sha256 } else { Hash::Git };
            let oid = hash.of_file(&file.path).map_err(|source| FileError::reading("reading", &file.path, source))?;
            if mode.should_ignore || mode.oid.as_deref() == Some(&*oid) {
                continue;
            }
            sent.push(file.name.clone());
            lines.push(if is_stored {
                json!({"key": "lfsFile", "value": {"path": file.name, "algo": "sha256", "oid": oid, "size": file.size}})
            } else {
                let content = STANDARD.encode(read_capped(&file.path, file.size)?);
                json!({"key": "file", "value": {"path": file.name, "content": content, "encoding": "base64"}})
            });
            if is_stored {
                stored.push((file, oid));
            }
        }
        if sent.is_empty() {
            return Ok(Pushed { id, url, commit: None, files: sent });
        }
        self.store(&stored)?;
        let commit = self.commit(&lines)?;
        Ok(Pushed { id, url, commit: Some(commit), files: sent })
    }

    /// Makes the repository, unless it is there.
    fn make(&self, private: bool) -> Result<(), HubError> {
        let (owner, name) = self.remote.id.name().split_once('/').expect("it has an owner");
        let mut fields = json!({"name": name, "organization": owner, "type": "model"});
        if private {
            fields["private"] = true.into();
        }
        let request = self.post(format!("{}/api/repos/create", self.remote.endpoint()), &fields);
        match self.remote.json::<Value>(&request) {
            Ok(_) => Ok(()),
            Err(error) => match error.status_code() {
                // It is there.
                Some(409) => Ok(()),
                // The token may write there, perhaps, without making any.
                Some(401..=403) => {
                    let there = self.remote.json::<Value>(&self.remote.signed(Request::get(self.remote.api_url(""))));
                    there.map(drop).map_err(|_| self.remote.explain(error, None))
                }
                _ => Err(self.remote.explain(error, None)),
            },
        }
    }

    fn revision(&self) -> String {
        self.remote.id.revision().replace('/', "%2F")
    }

    /// How the hub wants each file.
    fn modes<'a>(&self, files: &'a [Sent]) -> Result<Vec<(&'a Sent, Mode)>, HubError> {
        #[derive(Deserialize)]
        struct Modes {
            files: Vec<Mode>,
        }
        let mut asked = Vec::new();
        for Sent { name, path, size } in files {
            let mut sample = Vec::new();
            let read = open_regular(path)?.0.take(512).read_to_end(&mut sample);
            read.map_err(|source| FileError::reading("reading", path, source))?;
            asked.push(json!({"path": name, "sample": STANDARD.encode(sample), "size": size}));
        }
        let url = self.remote.api_url(&format!("/preupload/{}", self.revision()));
        let mut modes: Modes = self.ask(&self.post(url.clone(), &json!({"files": asked})))?;
        let mode = |file: &'a Sent| {
            let at = modes.files.iter().position(|mode| mode.path == file.name);
            let what = || format!("it says nothing of {}", file.name);
            let at = at.ok_or_else(|| HubError::NoHub { url: url.clone(), what: what() })?;
            Ok((file, modes.files.swap_remove(at)))
        };
        files.iter().map(mode).collect()
    }

    /// Sends files to the storage, as far as it has not got them.
    fn store(&self, files: &[(&Sent, String)]) -> Result<(), HubError> {
        if files.is_empty() {
            return Ok(());
        }
        #[derive(Deserialize)]
        struct Batch {
            objects: Vec<Object>,
        }
        const LFS: &str = "application/vnd.git-lfs+json";
        let objects: Vec<Value> = files.iter().map(|(file, oid)| json!({"oid": oid, "size": file.size})).collect();
        let wanted = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": {"name": self.remote.id.revision()},
        });
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.remote.endpoint(), self.remote.id.name());
        let body = Body::Bytes(wanted.to_string().into_bytes());
        let request =
            Request::new(Method::Post, url.clone()).header("accept", LFS).header("content-type", LFS).body(body);
        let batch: Batch = self.ask(&self.remote.signed(request))?;
        for (file, oid) in files {
            let object = batch.objects.iter().find(|object| object.oid == *oid);
            let what = format!("it says nothing of {}", file.name);
            let object = object.ok_or_else(|| HubError::NoHub { url: url.clone(), what })?;
            if let Some(ObjectError { message }) = &object.error {
                return Err(HubError::Upload { file: file.name.clone(), message: message.clone() });
            }
            // Without an action it is there already.
            if let Some(upload) = &object.actions.upload {
                self.upload(file, oid, upload)?;
                if let Some(verify) = &object.actions.verify {
                    let url = self.at_endpoint(&verify.href);
                    let request = Request::post_json(&url, &json!({"oid": oid, "size": file.size}));
                    let is_home = url.starts_with(&format!("{}/", self.remote.endpoint()));
                    self.put(&if is_home { self.remote.signed(request) } else { request }, file)?;
                }
            }
        }
        Ok(())
    }

    /// Sends a file to the storage, in as many pieces as that wants.
    fn upload(&self, file: &Sent, oid: &str, action: &Action) -> Result<(), HubError> {
        let href = self.at_endpoint(&action.href);
        let refused = |message: &str| HubError::Upload { file: file.name.clone(), message: message.to_owned() };
        let Some(chunk) = action.header.get("chunk_size") else {
            self.put(&self.piece(&href, file, 0, file.size), file)?;
            return Ok(());
        };
        let chunk = chunk.as_u64().or_else(|| chunk.as_str()?.parse().ok()).filter(|chunk| *chunk > 0);
        let chunk = chunk.ok_or_else(|| refused("the storage wants it in pieces of no size"))?;
        let number = |(name, url): (&String, &Value)| Some((name.parse::<u64>().ok()?, url.as_str()?.to_owned()));
        let mut urls: Vec<(u64, String)> = action.header.iter().filter_map(number).collect();
        urls.sort();
        if urls.len() as u64 != file.size.div_ceil(chunk) {
            return Err(refused("the storage names another number of addresses than of pieces"));
        }
        let mut parts = Vec::new();
        for (index, (_, url)) in urls.iter().enumerate() {
            let start = index as u64 * chunk;
            let etag = self.put(&self.piece(url, file, start, chunk.min(file.size - start)), file)?;
            let etag = etag.ok_or_else(|| refused("the storage does not confirm a piece"))?;
            parts.push(json!({"partNumber": index + 1, "etag": etag}));
        }
        self.put(&Request::post_json(href, &json!({"oid": oid, "parts": parts})), file)?;
        Ok(())
    }

    /// A request with some of a file. The address has a signature of its own, and gets no token.
    fn piece(&self, url: &str, file: &Sent, start: u64, length: u64) -> Request {
        let (path, name, total, hub) = (file.path.clone(), file.name.clone(), file.size, self.remote.hub.clone());
        let open = move || {
            let mut from = File::open(&path)?;
            from.seek(SeekFrom::Start(start))?;
            let (name, hub) = (name.clone(), hub.clone());
            Ok(Box::new(Told { from: from.take(length), done: start, total, name, hub }) as Box<dyn Read>)
        };
        Request::new(Method::Put, url).body(Body::Stream { length, open: Arc::new(open) })
    }

    /// Sends something to the storage. What the storage calls it.
    fn put(&self, request: &Request, file: &Sent) -> Result<Option<String>, HubError> {
        let http = &self.remote.http;
        let answer = http.patiently(|| http.send(request), |error, pause| self.remote.pausing(error, pause));
        match answer {
            Ok(answer) => Ok(answer.header("etag").map(str::to_owned)),
            Err(error @ HttpError::Status { .. }) => {
                Err(HubError::Upload { file: file.name.clone(), message: error.to_string() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// An address of the hub, at the mirror that is asked.
    fn at_endpoint(&self, href: &str) -> String {
        match href.strip_prefix("https://huggingface.co/") {
            Some(path) => format!("{}/{path}", self.remote.endpoint()),
            None => href.to_owned(),
        }
    }

    /// Makes the commit. Its hash.
    fn commit(&self, lines: &[Value]) -> Result<String, HubError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Commit {
            commit_oid: String,
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = self.remote.api_url(&format!("/commit/{}", self.revision()));
        let request = Request::new(Method::Post, url).header("content-type", "application/x-ndjson");
        let request = self.remote.signed(request.body(Body::Bytes(body.into_bytes())));
        // What the hub has refused can be sent again. Where the answer is lost, there may be a commit.
        let http = &self.remote.http;
        let attempt = || match http.send(&request) {
            Err(error) if error.status_code().is_some() => Err(error),
            sent => Ok(sent),
        };
        let sent = http.patiently(attempt, |error, pause| self.remote.pausing(error, pause));
        let commit: Commit =
            sent.and_then(|sent| sent?.json(1 << 20)).map_err(|error| self.remote.explain(error, None))?;
        Ok(commit.commit_oid)
    }
}

/// Some of a file, and somebody who is told how much of it has been read.
struct Told {
    from: io::Take<File>,
    done: u64,
    total: u64,
    name: String,
    hub: Hub,
}

impl Read for Told {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.done += count as u64;
        self.hub.tell(&HubEvent::Upload { file: &self.name, done: self.done, total: self.total });
        Ok(count)
    }
}
