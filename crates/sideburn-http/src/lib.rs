//! HTTP for the crates that talk to a server. No other crate opens a socket.
//!
//! An [`Http`] sends a [`Request`]. What is no success is an [`HttpError`], which says whether to try again may help;
//! [`Http::patiently`] does so, with a growing pause, or that which a server asks for.
//!
//! ```no_run
//! use sideburn_http::{Http, HttpConfig, Request};
//!
//! let http = Http::new(HttpConfig::default())?;
//! let request = Request::get("https://huggingface.co/api/models/google/flan-t5-small").bearer("hf_...");
//! let model: serde_json::Value = http.patiently(
//!     || http.send(&request)?.json(1 << 20),
//!     |error, pause| eprintln!("{error}; next try in {} s", pause.as_secs()),
//! )?;
//! println!("{}", model["sha"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * Redirects are followed, ten at most. The `authorization` header goes to the origin (scheme, host and port) of the
//!   request alone: a hub sends its clients on to the storage of another company. `https` does not lead to `http`.
//! * A silence ends a request, not its length: a download takes as long as it takes.
//! * A proxy is taken from `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY`, but not for a server on this machine; `NO_PROXY` is
//!   heeded. Certificates are checked against Mozilla's list, or the file that `SSL_CERT_FILE` names.

#![forbid(unsafe_code)]

mod client;
mod error;
mod message;
mod method;
mod url;

pub use client::{Http, HttpConfig};
pub use error::HttpError;
pub use message::{Body, Request, Response};
pub use method::Method;
pub use url::is_local;
