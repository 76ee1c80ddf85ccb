//! The arguments of commands that need an adapter and its base.

use std::path::PathBuf;

use crate::hub;

// Not a doc comment: clap would take it for the text of the command.
#[derive(clap::Args)]
pub(crate) struct OnBase {
    /// Directory of the adapter, or its id on the hub
    #[arg(value_name = "DIR|ID")]
    pub(crate) adapter: PathBuf,
    /// Directory of the base model, or its id on the hub
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) base: PathBuf,
}

impl OnBase {
    /// The directories of both, which are fetched if they have to be.
    pub(crate) fn directories(&self) -> anyhow::Result<(PathBuf, PathBuf)> {
        Ok((hub::adapter(&self.adapter)?, hub::model(&self.base)?))
    }
}
