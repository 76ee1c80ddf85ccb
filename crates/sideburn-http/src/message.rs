//! What is sent, and what comes back.

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::HttpError;
use crate::method::Method;
use crate::url::join;

/// The body of a request. It can be sent more than once.
#[derive(Clone)]
#[non_exhaustive]
pub enum Body {
    /// None.
    Empty,
    /// What is in memory.
    Bytes(Vec<u8>),
    /// What is read as it is sent, such as a file, or a part of one.
    Stream {
        /// Its length in bytes.
        length: u64,
        /// Begins to read it.
        open: Arc<dyn Fn() -> std::io::Result<Box<dyn Read>> + Send + Sync>,
    },
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "no body"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Stream { length, .. } => write!(f, "a stream of {length} bytes"),
        }
    }
}

/// What is asked of a server.
#[derive(Clone)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
    pub(crate) stays: bool,
}

impl Request {
    /// A request without headers and body.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: Vec::new(), body: Body::Empty, stays: false }
    }

    /// A `GET` request.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::Get, url)
    }

    /// A `POST` request of JSON.
    pub fn post_json(url: impl Into<String>, value: &impl Serialize) -> Self {
        let json = serde_json::to_vec(value).expect("what is sent can be written as JSON");
        Self::new(Method::Post, url).header("content-type", "application/json").body(Body::Bytes(json))
    }

    /// With a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With a token in the `authorization` header, which no error shows.
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// With a body.
    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Follows redirects within the origin of the URL only. One that leads elsewhere is the answer, with its status of 3xx.
    pub fn within_origin(mut self) -> Self {
        self.stays = true;
        self
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {:?}", self.method, self.url, self.body)
    }
}

/// What a server has answered: a success, or a redirect of a request that stays [within its origin](Request::within_origin).
/// The body is still to be read.
#[derive(Debug)]
pub struct Response {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) inner: ureq::http::Response<ureq::Body>,
}

impl Response {
    /// The status, such as 200.
    pub fn status(&self) -> u16 {
        self.inner.status().as_u16()
    }

    /// Where it came from, behind all redirects that were followed.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where a redirect leads, as a whole URL; none for any other answer.
    pub fn location(&self) -> Option<String> {
        let is_redirect = matches!(self.status(), 301 | 302 | 303 | 307 | 308);
        self.header("location").filter(|_| is_redirect).map(|location| join(&self.url, location))
    }

    /// The value of a header, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// Reads on in the body, as [`Read::read`] does: 0 bytes at its end.
    ///
    /// # Errors
    /// [`HttpError::Broken`] if the connection ends before the body, or is silent for too long.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, HttpError> {
        let read = self.inner.body_mut().as_reader().read(buffer);
        read.map_err(|error| HttpError::broken(self.method, &self.url, error.into()))
    }

    /// The error of an answer that is no success.
    pub(crate) fn into_error(self) -> HttpError {
        let (method, url, status) = (self.method, self.url.clone(), self.status());
        let code = self.header("x-error-code").map(str::to_owned);
        let retry_after = retry_after(&self);
        let message = match self.header("x-error-message").map(str::to_owned) {
            Some(message) => message,
            None => message(&self.bytes(64 << 10).unwrap_or_default()),
        };
        HttpError::Status { method, url, status, code, message, retry_after }
    }

    /// The whole body.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`HttpError::TooLarge`] if it has more than `limit` bytes.
    pub fn bytes(mut self, limit: u64) -> Result<Vec<u8>, HttpError> {
        let mut bytes = Vec::new();
        let mut reader = self.inner.body_mut().as_reader().take(limit.saturating_add(1));
        reader.read_to_end(&mut bytes).map_err(|error| HttpError::broken(self.method, &self.url, error.into()))?;
        match bytes.len() as u64 > limit {
            true => Err(HttpError::TooLarge { method: self.method, url: self.url, limit }),
            false => Ok(bytes),
        }
    }

    /// The body, which is JSON.
    ///
    /// # Errors
    /// Those of [`bytes`](Self::bytes), and [`HttpError::NotJson`].
    pub fn json<T: DeserializeOwned>(self, limit: u64) -> Result<T, HttpError> {
        let (method, url) = (self.method, self.url.clone());
        let bytes = self.bytes(limit)?;
        serde_json::from_slice(&bytes).map_err(|error| HttpError::NotJson { method, url, message: error.to_string() })
    }
}

/// How long a server wants to be left alone: `Retry-After` in seconds or as a date, or of `RateLimit: "api";r=0;t=55` the time.
fn retry_after(response: &Response) -> Option<Duration> {
    let limit = || {
        let parts: Vec<&str> = response.header("ratelimit")?.split(';').map(str::trim).collect();
        let is_used_up = parts.contains(&"r=0");
        parts.iter().find_map(|part| part.strip_prefix("t=")).filter(|_| is_used_up)
    };
    let text = response.header("retry-after").or_else(limit)?.trim();
    text.parse().ok().map(Duration::from_secs).or_else(|| {
        let date = |text: &str| httpdate::parse_http_date(text).ok();
        // By the server's own clock, if it tells the time.
        let now = response.header("date").and_then(date).unwrap_or_else(SystemTime::now);
        date(text)?.duration_since(now).ok()
    })
}

/// What the body of an error says: `{"error": "..."}`, `{"error": {"message": "..."}}`, `{"message": "..."}`, or a short text.
fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) => {
            let texts = [&value["error"], &value["error"]["message"], &value["message"], &value["detail"]];
            texts.into_iter().find_map(|text| text.as_str()).unwrap_or_default().to_owned()
        }
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    // A page is for browsers.
    if text.starts_with('<') { String::new() } else { text.chars().take(500).collect() }
}
