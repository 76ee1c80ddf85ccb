//! Questions to the hub.

use std::time::Duration;

use serde::de::DeserializeOwned;
use sideburn_http::{Http, HttpConfig, HttpError, Method, Request};

use crate::hub::{Hub, HubEvent};
use crate::id::is_commit;
use crate::{HubConfig, HubError, RepoId};

/// The longest answer of the hub that is no file, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// How many mirrors may send their clients on to the next.
const MAX_MIRRORS: usize = 3;

/// The hub, asked about one repository.
pub(crate) struct Remote<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) id: &'a RepoId,
    pub(crate) http: Http,
}

/// What the hub says of a file without sending it.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The commit that the revision is at.
    pub(crate) commit: String,
    /// What the file is called among the blobs.
    pub(crate) etag: String,
    pub(crate) size: Option<u64>,
}

impl<'a> Remote<'a> {
    pub(crate) fn new(hub: &'a Hub, id: &'a RepoId) -> Result<Self, HubError> {
        let HubConfig { timeout, first_pause, .. } = *hub.config();
        let config = HttpConfig { read_timeout: timeout, first_pause, ..HttpConfig::default() };
        Ok(Self { hub, id, http: Http::new(config)? })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.hub.config().endpoint
    }

    /// Where a file of a revision is.
    pub(crate) fn file_url(&self, revision: &str, file: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.endpoint(), self.id.name(), escaped(revision, ""), escaped(file, "/"))
    }

    /// Where the hub answers questions: `api/models/OWNER/NAME`, and what is behind it.
    pub(crate) fn api_url(&self, behind: &str) -> String {
        format!("{}/api/models/{}{behind}", self.endpoint(), self.id.name())
    }

    /// A request with the token, which is for the endpoint only.
    pub(crate) fn signed(&self, request: Request) -> Request {
        match &self.hub.config().token {
            Some(token) => request.bearer(token),
            None => request,
        }
    }

    /// Sends a request until it succeeds or must fail, and reads the JSON of the answer.
    pub(crate) fn json<T: DeserializeOwned>(&self, request: &Request) -> Result<T, HttpError> {
        self.http.patiently(|| self.http.send(request)?.json(MAX_ANSWER), |error, pause| self.pausing(error, pause))
    }

    pub(crate) fn pausing(&self, error: &HttpError, pause: Duration) {
        self.hub.tell(&HubEvent::Pause { reason: error.to_string(), pause });
    }

    /// What the hub says of a file. It is asked once, or, if it is `patient`, until it answers.
    pub(crate) fn head(&self, revision: &str, file: &str, patient: bool) -> Result<Head, HubError> {
        let url = self.file_url(revision, file);
        // The answer is in the redirect to the storage. A mirror, though, may send its clients to the hub itself, and they go
        // there without the token.
        let ask = || {
            let mut answer = self.http.send(&self.signed(Request::new(Method::Head, &url).within_origin()))?;
            for _ in 0..MAX_MIRRORS {
                let Some(to) = answer.location().filter(|_| answer.header("x-repo-commit").is_none()) else { break };
                answer = self.http.send(&Request::new(Method::Head, to).within_origin())?;
            }
            Ok(answer)
        };
        let answer = match patient {
            true => self.http.patiently(ask, |error, pause| self.pausing(error, pause)),
            false => ask(),
        };
        let answer = answer.map_err(|error| self.explain(error, Some(file)))?;
        let no_hub = |what: &str| HubError::NoHub { url: url.clone(), what: what.to_owned() };
        let commit = answer.header("x-repo-commit").ok_or_else(|| no_hub("there is no header x-repo-commit"))?;
        if !is_commit(commit) {
            return Err(no_hub("the header x-repo-commit is no hash of a commit"));
        }
        let etag = answer.header("x-linked-etag").or(answer.header("etag"));
        let etag = etag.ok_or_else(|| no_hub("there is no header etag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if etag.is_empty() || etag.len() > 200 || etag.starts_with('.') || !etag.chars().all(is_plain) {
            return Err(no_hub("the header etag is no name for a file"));
        }
        let size = match answer.header("x-linked-size") {
            None if answer.status() >= 300 => None,
            None => answer.header("content-length"),
            size => size,
        };
        let size = size.and_then(|size| size.parse().ok());
        Ok(Head { commit: commit.to_owned(), etag: etag.to_owned(), size })
    }

    /// What a refusal means. `file` is the file that was asked for, if it was one.
    pub(crate) fn explain(&self, error: HttpError, file: Option<&str>) -> HubError {
        let (id, endpoint) = (self.id.to_string(), self.endpoint().to_owned());
        let has_token = self.hub.config().token.is_some();
        let HttpError::Status { status, code, message, .. } = &error else { return error.into() };
        let message = if message.is_empty() { format!("status {status}") } else { message.clone() };
        match (status, code.as_deref(), file) {
            (_, Some("RevisionNotFound"), _) => HubError::NoRevision { id },
            (_, Some("EntryNotFound"), Some(file)) => HubError::NoFile { id, file: file.to_owned() },
            (_, Some("GatedRepo"), _) => {
                HubError::Gated { id: self.id.name().to_owned(), endpoint, message, has_token }
            }
            (_, Some("RepoNotFound"), _) => HubError::NoRepository { id, endpoint, has_token },
            (401, ..) if message.contains("Invalid credentials") => HubError::Token { id, endpoint, message },
            (401, ..) if has_token && file.is_none() => HubError::Token { id, endpoint, message },
            (401, ..) => HubError::NoRepository { id, endpoint, has_token },
            (403, ..) => HubError::Token { id, endpoint, message },
            (404, _, None) => HubError::NoRepository { id, endpoint, has_token },
            _ => error.into(),
        }
    }
}

/// A part of a URL, in which all but letters, digits, `-`, `_`, `.`, `~` and what is in `kept` is escaped.
fn escaped(text: &str, kept: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || kept.contains(c) {
            escaped.push(c);
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}
