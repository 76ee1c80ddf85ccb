//! As much of URLs as redirects need.

use ureq::http::Uri;

/// Scheme, host and port, such as `https`, `huggingface.co` and 443.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) scheme: String,
    pub(crate) host: String,
    port: u16,
}

impl Origin {
    /// That of a URL; none if it is not one of `http` or `https` with a host.
    pub(crate) fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let (scheme, host) = (uri.scheme_str()?.to_lowercase(), uri.host()?.to_lowercase());
        let usual = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        Some(Self { port: uri.port_u16().unwrap_or(usual), scheme, host })
    }

    /// Whether it is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Whether a URL is that of a server on this machine: of `localhost`, or of an address such as 127.0.0.1.
///
/// ```
/// assert!(sideburn_http::is_local("http://localhost:8000/v1"));
/// assert!(!sideburn_http::is_local("https://api.openai.com/v1"));
/// ```
pub fn is_local(url: &str) -> bool {
    Origin::of(url).is_some_and(|origin| origin.is_local())
}

/// Where `location` leads from `base`, which is a URL.
pub(crate) fn join(base: &str, location: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, rest) = base.split_once("://").unwrap_or_default();
    let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_at);
    let is_absolute =
        location.split_once("://").is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric()));
    if is_absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let path = path.split('?').next().unwrap_or_default();
        let directory = path.rfind('/').map_or("/", |end| &path[..=end]);
        format!("{scheme}://{authority}{directory}{location}")
    }
}
