//! `sideburn push`: an adapter goes to the hub.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use sideburn::hub::PushConfig;

use crate::hub::hub;
use crate::report::{Finding, in_line, table};

/// Send an adapter to the Hugging Face hub, as push_to_hub of peft does
///
/// What goes is adapter_config.json, the tensors, and the model card (README.md) if there is one. The repository is made if
/// it is not there; what it has already is not sent again. The token is that of HF_TOKEN, or of `hf auth login`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the adapter
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The repository: OWNER/NAME, or NAME for one of your own; @BRANCH behind it for another branch than main
    #[arg(long, value_name = "ID")]
    to: String,
    /// Make a new repository private
    #[arg(long)]
    private: bool,
    /// The message of the commit
    #[arg(long, value_name = "TEXT", default_value = "Upload adapter")]
    message: String,
}

#[derive(Serialize)]
pub(crate) struct Found {
    id: String,
    url: String,
    /// `null` if the hub had all files already.
    commit: Option<String>,
    files: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Found> {
    let config = PushConfig { private: args.private, commit_message: args.message.clone() };
    let pushed = hub()?.push_adapter(&args.adapter, &args.to, &config)?;
    Ok(Found { id: pushed.id, url: pushed.url, commit: pushed.commit, files: pushed.files })
}

impl Finding for Found {}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = match &self.commit {
            Some(commit) => vec![
                ["pushed", &self.files.join(", ")].map(in_line),
                ["to", &self.url].map(in_line),
                ["commit", commit].map(in_line),
            ],
            None => vec![["nothing to push", &format!("{} has it already", self.url)].map(in_line)],
        };
        table(f, &rows)
    }
}
