//! Sends requests.

use std::time::Duration;

use ureq::http::{Request as Parts, Response as Answer};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use crate::url::Origin;
use crate::{Body, HttpError, Method, Request, Response};

/// How an [`Http`] behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// What it calls itself.
    pub user_agent: String,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long a server may be silent: before its answer, and within it.
    pub read_timeout: Duration,
    /// How often a request is tried.
    pub attempts: u32,
    /// The pause before the second try. Each further one is twice as long.
    pub first_pause: Duration,
    /// The longest pause of one's own accord.
    pub longest_pause: Duration,
    /// The longest pause that a server may ask for. If it asks for more, there is no other try.
    pub longest_retry_after: Duration,
}

impl Default for HttpConfig {
    /// Six tries within 23 seconds, as `huggingface_hub` has them; connections in 10 seconds, silences of 10 seconds, pauses of
    /// five minutes where they are asked for, which is the time that the hub counts requests in.
    fn default() -> Self {
        Self {
            user_agent: concat!("sideburn/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
            attempts: 6,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(8),
            longest_retry_after: Duration::from_secs(300),
        }
    }
}

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 10;

/// A client. Connections are used again; clones share them.
#[derive(Clone, Debug)]
pub struct Http {
    /// Goes through the proxy, if there is one.
    agent: Agent,
    /// For servers on this machine.
    local: Agent,
    config: HttpConfig,
}

impl Http {
    /// A client that is configured so.
    ///
    /// # Errors
    /// [`HttpError::Certificates`] if `SSL_CERT_FILE` names a file that cannot be used.
    pub fn new(config: HttpConfig) -> Result<Self, HttpError> {
        let (connect, read) = (Some(config.connect_timeout), Some(config.read_timeout));
        let tls = TlsConfig::builder().root_certs(root_certs()?).build();
        let agent = |proxy: Option<Proxy>| {
            let builder = Agent::config_builder()
                .user_agent(config.user_agent.as_str())
                .accept_encoding("identity")
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_resolve(connect)
                .timeout_connect(connect)
                .timeout_recv_response(read)
                .timeout_per_read(read)
                .timeout_per_write(read)
                .tls_config(tls.clone())
                .proxy(proxy);
            builder.build().new_agent()
        };
        let (agent, local) = (agent(Proxy::try_from_env()), agent(None));
        Ok(Self { agent, local, config })
    }

    /// Sends a request once, and follows redirects.
    ///
    /// # Errors
    /// If there is no answer, or none that is a success.
    pub fn send(&self, request: &Request) -> Result<Response, HttpError> {
        let invalid = |url: &str| HttpError::Url { url: url.to_owned() };
        let home = Origin::of(&request.url).ok_or_else(|| invalid(&request.url))?;
        let (mut url, mut origin, mut is_home) = (request.url.clone(), home.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(request, &url, &origin, is_home)?;
            let status = response.status();
            let Some(to) = response.location() else {
                return if (200..300).contains(&status) { Ok(response) } else { Err(response.into_error()) };
            };
            let next = Origin::of(&to).ok_or_else(|| invalid(&to))?;
            if request.stays && next != home {
                return Ok(response);
            }
            let reads = matches!(request.method, Method::Get | Method::Head);
            let reason = if origin.scheme == "https" && next.scheme != "https" {
                Some("it is not encrypted")
            } else if !reads && (next != home || !matches!(status, 307 | 308)) {
                Some("what is sent is for the first address only; give the one that it has moved to")
            } else {
                None
            };
            if let Some(reason) = reason {
                return Err(HttpError::Redirect { method: request.method, url, to, reason });
            }
            is_home &= next == home;
            (url, origin) = (to, next);
        }
        let (method, to) = (request.method, url);
        Err(HttpError::Redirect { method, url: request.url.clone(), to, reason: "there were ten redirects already" })
    }

    /// Asks one server, without following where it leads.
    fn ask(&self, request: &Request, url: &str, origin: &Origin, is_home: bool) -> Result<Response, HttpError> {
        let method = request.method;
        let broken = |error: ureq::Error| HttpError::broken(method, url, error);
        let agent = if origin.is_local() { &self.local } else { &self.agent };
        let mut parts = Parts::builder().method(method.to_string().as_str()).uri(url);
        for (name, value) in &request.headers {
            if is_home || !name.eq_ignore_ascii_case("authorization") {
                parts = parts.header(name, value);
            }
        }
        let failed = |error: ureq::http::Error| broken(error.into());
        let answer: Result<Answer<ureq::Body>, ureq::Error> = match &request.body {
            Body::Empty if matches!(method, Method::Get | Method::Head) => agent.run(parts.body(()).map_err(failed)?),
            Body::Empty => agent.run(parts.body(&[][..]).map_err(failed)?),
            Body::Bytes(bytes) => agent.run(parts.body(&bytes[..]).map_err(failed)?),
            Body::Stream { length, open } => {
                let mut reader = open().map_err(|error| broken(error.into()))?;
                let body = ureq::SendBody::from_reader(&mut *reader);
                agent.run(parts.header("content-length", *length).body(body).map_err(failed)?)
            }
        };
        Ok(Response { method, url: url.to_owned(), inner: answer.map_err(broken)? })
    }

    /// Does something again while it fails in a way that may pass. `on_pause` is told of each failure and of the pause
    /// behind it.
    ///
    /// # Errors
    /// The last one of `attempt`.
    pub fn patiently<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, HttpError>,
        mut on_pause: impl FnMut(&HttpError, Duration),
    ) -> Result<T, HttpError> {
        let mut failures = 0;
        loop {
            let error = match attempt() {
                Err(error) => error,
                done => return done,
            };
            failures += 1;
            let Some(pause) = self.pause_after(failures, &error) else { return Err(error) };
            on_pause(&error, pause);
            std::thread::sleep(pause);
        }
    }

    /// The pause behind so many failures, of which `error` is the last. None if it is not to be tried again.
    pub fn pause_after(&self, failures: u32, error: &HttpError) -> Option<Duration> {
        let HttpConfig { attempts, first_pause, longest_pause, longest_retry_after, .. } = &self.config;
        if failures >= *attempts || !error.is_transient() {
            return None;
        }
        match error {
            HttpError::Status { retry_after: Some(asked), .. } => {
                Some(*asked).filter(|asked| asked <= longest_retry_after)
            }
            _ => Some(first_pause.saturating_mul(1 << (failures - 1).min(16)).min(*longest_pause)),
        }
    }
}

/// Mozilla's certificates, or those of `SSL_CERT_FILE`.
fn root_certs() -> Result<RootCerts, HttpError> {
    let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) else {
        return Ok(RootCerts::WebPki);
    };
    let failed = |message: String| HttpError::Certificates { path: (&path).into(), message };
    let pem = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| failed(error.to_string()))? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err(failed("it holds none".to_owned())) } else { Ok(found.into()) }
}
