//! What can go wrong between here and a server.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sideburn_files::printable;

use crate::{Method, Response};

/// Why there is no answer, or none that is a success. No message shows a token, or the query of a URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The server says no.
    #[error("{method} {}: status {status}{}", shown(url), because(message))]
    Status {
        /// What was asked.
        method: Method,
        /// Of whom.
        url: String,
        /// The status, such as 404.
        status: u16,
        /// What the server calls it: its header `x-error-code`, such as `GatedRepo`.
        code: Option<String>,
        /// What it says about it; may be empty.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },

    /// No connection, or one that ended too early or was silent for too long.
    #[error("{method} {}: {}", shown(url), printable(&connection(source)))]
    Broken {
        /// What was asked.
        method: Method,
        /// Of whom.
        url: String,
        /// What happened.
        source: Box<ureq::Error>,
    },

    /// A redirect that is not followed.
    #[error("{method} {} leads to {}, which is not followed: {reason}", shown(url), shown(to))]
    Redirect {
        /// What was asked.
        method: Method,
        /// Of whom.
        url: String,
        /// Where it leads.
        to: String,
        /// Why it is not followed.
        reason: &'static str,
    },

    /// Something that is not the URL of a server.
    #[error("{:?} is no URL of a server; expected http:// or https://, and a host", shown(url))]
    Url {
        /// What it is.
        url: String,
    },

    /// More than is wanted.
    #[error("{method} {}: the answer has more than {limit} bytes; is that the right server?", shown(url))]
    TooLarge {
        /// What was asked.
        method: Method,
        /// Of whom.
        url: String,
        /// The cap in bytes.
        limit: u64,
    },

    /// An answer of another kind than expected.
    #[error(
        "{method} {}: the answer is not the expected JSON ({}); is that the right server?",
        shown(url),
        printable(message)
    )]
    NotJson {
        /// What was asked.
        method: Method,
        /// Of whom.
        url: String,
        /// What the parser says.
        message: String,
    },

    /// The file of certificates that `SSL_CERT_FILE` names cannot be used.
    #[error(
        "SSL_CERT_FILE is {path:?}, of which no certificate can be read ({}); mend or unset it",
        printable(message)
    )]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl HttpError {
    pub(crate) fn broken(method: Method, url: &str, source: ureq::Error) -> Self {
        Self::Broken { method, url: url.to_owned(), source: Box::new(source) }
    }

    /// The error of an answer that is no success.
    pub(crate) fn status(response: Response) -> Self {
        let (method, url, status) = (response.method, response.url.clone(), response.status());
        let code = response.header("x-error-code").map(str::to_owned);
        let retry_after = retry_after(&response);
        let message = match response.header("x-error-message").map(str::to_owned) {
            Some(message) => message,
            None => message(&response.bytes(64 << 10).unwrap_or_default()),
        };
        Self::Status { method, url, status, code, message, retry_after }
    }

    /// Whether another try may end otherwise: a server that is busy or in trouble (status 408, 429, 500, 502, 503, 504), a
    /// connection that was lost or silent.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Broken { source, .. } => match &**source {
                ureq::Error::Io(error) => {
                    // What is wrong with a certificate is invalid data.
                    !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidData)
                }
                ureq::Error::Timeout(_) | ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// The status, if the server has said no.
    pub fn status_code(&self) -> Option<u16> {
        if let Self::Status { status, .. } = self { Some(*status) } else { None }
    }
}

/// A URL without its query, which may hold a signature.
fn shown(url: &str) -> String {
    printable(url.split('?').next().unwrap_or_default()).to_string()
}

fn because(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {}", printable(message)) }
}

/// What happened to a connection, and what may help.
fn connection(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => {
            "the host is not known; is this machine connected, and has HTTPS_PROXY to be set?".to_owned()
        }
        ureq::Error::Timeout(_) => format!("no answer in time ({error})"),
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            "the connection is refused; does a server run there?".to_owned()
        }
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection ended in the middle of the answer".to_owned()
        }
        ureq::Error::Io(error) if error.to_string().contains("certificate") => {
            format!("{error}; if a proxy has certificates of its own, SSL_CERT_FILE must name a file with them")
        }
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// How long a server wants to be left alone: `Retry-After` in seconds, or of `RateLimit: "api";r=0;t=55` the time.
fn retry_after(response: &Response) -> Option<Duration> {
    let limit = || {
        let parts: Vec<&str> = response.header("ratelimit")?.split(';').map(str::trim).collect();
        let is_used_up = parts.contains(&"r=0");
        parts.iter().find_map(|part| part.strip_prefix("t=")).filter(|_| is_used_up)
    };
    let seconds = response.header("retry-after").or_else(limit)?;
    seconds.trim().parse().ok().map(Duration::from_secs)
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
