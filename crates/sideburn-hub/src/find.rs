//! What a name stands for: a directory, or a repository of the hub.

use std::path::{Path, PathBuf};

use crate::HubError;
use crate::files::Kind;
use crate::hub::Hub;

impl Hub {
    /// The directory of a model: `name` itself, if there is such a file or directory, or what is fetched of the repository
    /// with the id `name` (see [`RepoId`](crate::RepoId)), unless it is in the cache.
    ///
    /// A branch or tag is looked up on the hub each time, with one request; a commit that is in the cache costs none.
    ///
    /// # Errors
    /// If `name` is neither, or something cannot be fetched; see [`HubError`].
    pub fn model(&self, name: impl AsRef<Path>) -> Result<PathBuf, HubError> {
        self.find(name.as_ref(), Kind::Model)
    }

    /// A directory with the `config.json` of a model, in the same way: nothing else is fetched of a repository.
    ///
    /// # Errors
    /// As for [`model`](Self::model).
    pub fn config_of(&self, name: impl AsRef<Path>) -> Result<PathBuf, HubError> {
        self.find(name.as_ref(), Kind::Config)
    }

    /// The directory of an adapter of `peft`, in the same way.
    ///
    /// # Errors
    /// As for [`model`](Self::model).
    pub fn adapter(&self, name: impl AsRef<Path>) -> Result<PathBuf, HubError> {
        self.find(name.as_ref(), Kind::Adapter)
    }

    fn find(&self, name: &Path, kind: Kind) -> Result<PathBuf, HubError> {
        if name.exists() {
            return Ok(name.to_owned());
        }
        let nowhere = || HubError::NoDirectory { path: name.to_owned() };
        let text = name.to_str().ok_or_else(nowhere)?;
        let is_path = text.is_empty() || text.starts_with(['/', '.', '~']) || text.contains('\\');
        let before_revision = text.split('@').next().unwrap_or_default();
        if !text.contains("://") && (is_path || text.ends_with('/') || before_revision.split('/').count() > 2) {
            return Err(nowhere());
        }
        let id = text.parse()?;
        #[cfg(feature = "net")]
        if !self.config().offline {
            return crate::download::snapshot(self, &id, kind);
        }
        self.cached(&id, kind)
    }
}
