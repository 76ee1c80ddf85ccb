//! What can go wrong between here and a server.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sideburn_files::printable;

use crate::method::Method;

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
