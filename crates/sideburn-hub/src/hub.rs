//! From names to directories.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::Repo;
use crate::files::Kind;
use crate::{HubConfig, HubError, RepoId};

/// What goes on while the hub is asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum HubEvent<'a> {
    /// Some of a file has come.
    Download {
        /// The file.
        file: &'a str,
        /// How many bytes are there, with those of an earlier try.
        done: u64,
        /// How many it has, if the hub tells.
        total: Option<u64>,
    },
    /// Some of a file has gone.
    Upload {
        /// The file.
        file: &'a str,
        /// How many bytes have gone.
        done: u64,
        /// How many it has.
        total: u64,
    },
    /// Another process fetches the same file, and is waited for.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// A request has failed and is sent again after a pause.
    Pause {
        /// What has happened.
        reason: String,
        /// How long the pause is.
        pause: Duration,
    },
    /// The hub cannot be asked, and what is in the cache is used.
    Cached {
        /// The id.
        id: &'a RepoId,
        /// What has happened.
        reason: String,
    },
}

/// Where models and adapters come from: directories, and a hub with its cache.
#[derive(Clone)]
pub struct Hub {
    config: HubConfig,
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "nothing goes on"))]
    watcher: Arc<dyn Fn(&HubEvent<'_>) + Send + Sync>,
}

impl Hub {
    /// A hub as the environment describes it.
    ///
    /// # Errors
    /// Those of [`HubConfig::from_env`].
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self::new(HubConfig::from_env()?))
    }

    /// A hub that is configured so. It is not asked yet.
    pub fn new(config: HubConfig) -> Self {
        Self { config, watcher: Arc::new(|_| ()) }
    }

    /// With somebody who is told what goes on, for a progress bar.
    pub fn watched_by(self, watcher: impl Fn(&HubEvent<'_>) + Send + Sync + 'static) -> Self {
        Self { watcher: Arc::new(watcher), ..self }
    }

    /// How it is configured.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// What the cache has, if it is enough.
    pub(crate) fn cached(&self, id: &RepoId, kind: Kind) -> Result<PathBuf, HubError> {
        let repo = Repo::new(&self.config.cache, id);
        let lacks = |file: &str| HubError::NotCached {
            id: id.to_string(),
            file: file.to_owned(),
            cache: self.config.cache.clone(),
            why: self.why_not_asked(),
        };
        let commit = id.commit().map(str::to_owned).or_else(|| repo.reference(id.revision()));
        let commit = commit.filter(|commit| repo.has(commit, kind.config())).ok_or_else(|| lacks(kind.config()))?;
        match kind.weights() {
            [first, ..] if !kind.weights().iter().any(|file| repo.has(&commit, file)) => Err(lacks(first)),
            _ => Ok(repo.snapshot(&commit)),
        }
    }

    fn why_not_asked(&self) -> &'static str {
        if cfg!(not(feature = "net")) {
            "this program is built without the feature `hub`, which fetches it: build it with `--features hub`, or fetch it \
             with `hf download`"
        } else {
            "HF_HUB_OFFLINE is set, so the hub is not asked: unset it"
        }
    }

    #[cfg(feature = "net")]
    pub(crate) fn check_online(&self) -> Result<(), HubError> {
        if self.config.offline { Err(HubError::Offline { why: self.why_not_asked() }) } else { Ok(()) }
    }

    #[cfg(feature = "net")]
    pub(crate) fn tell(&self, event: &HubEvent<'_>) {
        (self.watcher)(event);
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("config", &self.config).finish_non_exhaustive()
    }
}
