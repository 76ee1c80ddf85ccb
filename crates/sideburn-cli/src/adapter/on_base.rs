//! The arguments of commands that need an adapter and its base.

use std::path::PathBuf;

// Not a doc comment: clap would take it for the text of the command.
#[derive(clap::Args)]
pub(crate) struct OnBase {
    /// Directory of the adapter
    #[arg(value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// Directory of the base model
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
}
