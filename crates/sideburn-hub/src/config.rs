//! What the environment says of the hub.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use sideburn_files::read_text;

use crate::HubError;

/// Where the hub is, who asks, and where its files are kept. [`from_env`](Self::from_env) reads the variables that Python's
/// `huggingface_hub` reads:
///
/// | field | variables, the first that is set | else |
/// |---|---|---|
/// | `endpoint` | `HF_ENDPOINT` | `https://huggingface.co` |
/// | `cache` | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `hub` in `HF_HOME`, `huggingface/hub` in `XDG_CACHE_HOME` | `~/.cache/huggingface/hub` |
/// | `token` | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file that `HF_TOKEN_PATH` names, `token` in `HF_HOME` | none; with `HF_HUB_DISABLE_IMPLICIT_TOKEN` none, too |
/// | `offline` | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`: `1`, `on`, `yes` or `true` | no |
/// | `timeout` | `HF_HUB_DOWNLOAD_TIMEOUT` in seconds | 10 |
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// The address of the hub, or of a mirror.
    pub endpoint: String,
    /// The folder with `models--OWNER--NAME`.
    pub cache: PathBuf,
    /// Who asks. It is sent to the endpoint alone.
    pub token: Option<String>,
    /// Whether the hub is not asked at all.
    pub offline: bool,
    /// How long the hub may be silent.
    pub timeout: Duration,
    /// The pause before a request is sent a second time; each further one is twice as long. One second.
    pub first_pause: Duration,
}

impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, cache, token, offline, timeout, first_pause } = self;
        let token = token.as_ref().map(|_| "(hidden)");
        f.debug_struct("HubConfig")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token)
            .field("offline", offline)
            .field("timeout", timeout)
            .field("first_pause", first_pause)
            .finish()
    }
}

impl HubConfig {
    /// As the environment says.
    ///
    /// # Errors
    /// [`HubError::Variable`] if a variable is no text or number that it should be, or no folder can be found for the cache;
    /// [`HubError::File`] if there is a file of the token that cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| env::var_os(name))
    }

    /// As variables say that are not those of the environment.
    ///
    /// # Errors
    /// As for [`from_env`](Self::from_env).
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &'static str| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
        let text = |name| match set(name) {
            None => Ok(None),
            Some((_, value)) => match value.into_string() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(HubError::Variable { name, reason: "it is no text".to_owned() }),
            },
        };
        let home = set("HOME").or_else(|| set("USERPROFILE")).map(|(_, value)| PathBuf::from(value));
        let path = |name| set(name).map(|(_, value)| expand(&value, home.as_ref(), &variable));
        let hf_home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(home.clone()?.join(".cache")));
            Some(caches?.join("huggingface"))
        });
        let nowhere = || HubError::Variable {
            name: "HF_HOME",
            reason: "neither it nor HOME is set, so there is no place for the cache".to_owned(),
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(hf_home.clone()?.join("hub"))).ok_or_else(nowhere)?;
        let is_true = |name| -> Result<bool, HubError> {
            let value = text(name)?.unwrap_or_default().to_uppercase();
            Ok(["1", "ON", "YES", "TRUE"].contains(&value.as_str()))
        };
        let offline = match set("HF_HUB_OFFLINE") {
            Some(_) => is_true("HF_HUB_OFFLINE")?,
            None => is_true("TRANSFORMERS_OFFLINE")?,
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token")));
        let token = match text("HF_TOKEN")?.or(text("HUGGING_FACE_HUB_TOKEN")?) {
            _ if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN")? => None,
            Some(token) => Some(token),
            None => match token_file.filter(|path| path.exists()) {
                Some(path) => Some(read_text(path, 64 << 10)?),
                None => None,
            },
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            let reason = "a token has letters, digits and signs only, in one line".to_owned();
            return Err(HubError::Variable { name: "HF_TOKEN", reason });
        }
        let timeout = text("HF_HUB_DOWNLOAD_TIMEOUT")?.map(|value| {
            let invalid = || HubError::Variable {
                name: "HF_HUB_DOWNLOAD_TIMEOUT",
                reason: format!("it is {value:?}, expected a number of seconds, such as 10"),
            };
            value.trim().parse().map(Duration::from_secs).map_err(|_| invalid())
        });
        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| "https://huggingface.co".to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token,
            offline,
            timeout: timeout.transpose()?.unwrap_or(Duration::from_secs(10)),
            first_pause: Duration::from_secs(1),
        })
    }
}

/// A path in which `~` at the beginning is the home directory, and `$NAME` and `${NAME}` are variables, as Python expands it.
fn expand(value: &OsStr, home: Option<&PathBuf>, variable: &impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = value.to_str() else { return value.into() };
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        let name = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}'),
            None => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                Some(after.split_at(end))
            }
        };
        let found = name.and_then(|(name, after)| Some((variable(name)?.into_string().ok()?, after)));
        expanded += before;
        match found {
            Some((value, after)) => {
                expanded += &value;
                rest = after;
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded += rest;
    match (expanded.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.clone(),
        (Some(below), Some(home)) if below.starts_with(['/', '\\']) => home.join(&below[1..]),
        _ => expanded.into(),
    }
}
