//! What can go wrong with a model on the hub.

use std::io;
use std::path::PathBuf;

use sideburn_files::{FileError, printable};

/// Why a model or adapter cannot be had, or pushed. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name that is neither a directory nor can be an id.
    #[error("{name:?} is neither a directory nor an id on the hub: {}", printable(reason))]
    Id {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A path that leads nowhere.
    #[error(
        "{path:?} does not exist; it is taken for a path, since an id on the hub is OWNER/NAME or OWNER/NAME@REVISION"
    )]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },

    /// Something that is to be used is not in the cache, and the hub is not asked.
    #[error("{id} is no directory here, and {file} of it is not in the cache {cache:?}; {why}")]
    NotCached {
        /// The id.
        id: String,
        /// The file.
        file: String,
        /// The folder of the cache.
        cache: PathBuf,
        /// Why the hub is not asked, and how it is.
        why: &'static str,
    },

    /// The hub is to be changed, and must not be asked.
    #[error("nothing is pushed: {why}")]
    Offline {
        /// Why the hub is not asked, and how it is.
        why: &'static str,
    },

    /// The hub knows no such repository, or does not show it.
    #[error(
        "{id} is no directory here, and {endpoint} has no such repository, or it is private and {}; is the name right?",
        token_of(*has_token)
    )]
    NoRepository {
        /// The id.
        id: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// The repository has no such branch, tag or commit.
    #[error("{id}: the repository has no branch, tag or commit of that name; without @REVISION it is the branch main")]
    NoRevision {
        /// The id.
        id: String,
    },

    /// The repository lacks a file that must be there.
    #[error("{id} has no {file}; {}", expected(file))]
    NoFile {
        /// The id.
        id: String,
        /// The file.
        file: String,
    },

    /// The authors of a model want to be asked first.
    #[error("{id} is gated: {}; ask for access at {endpoint}/{id} and set HF_TOKEN{}", printable(message), given(*has_token))]
    Gated {
        /// The id.
        id: String,
        /// The hub.
        endpoint: String,
        /// What the hub says.
        message: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// The token is not one that the hub knows, or may not do this.
    #[error(
        "{id}: {endpoint} refuses the token ({}); make one at {endpoint}/settings/tokens and set HF_TOKEN",
        printable(message)
    )]
    Token {
        /// The id.
        id: String,
        /// The hub.
        endpoint: String,
        /// What the hub says.
        message: String,
    },

    /// There is no token, and there has to be one.
    #[error(
        "to push wants a token that may write: make one at {endpoint}/settings/tokens and set HF_TOKEN, or `hf auth login`"
    )]
    NoToken {
        /// The hub.
        endpoint: String,
    },

    /// A server answers, but not as a hub does.
    #[error("{url} does not answer as a hub does: {what}; is HF_ENDPOINT right?")]
    NoHub {
        /// What was asked.
        url: String,
        /// What is missing or odd.
        what: String,
    },

    /// Another number of bytes came than was said.
    #[error("{file} of {id} is to have {expected} bytes, but {found} came; try again")]
    Size {
        /// The id.
        id: String,
        /// The file.
        file: String,
        /// The size that the hub states, in bytes.
        expected: u64,
        /// What came, in bytes.
        found: u64,
    },

    /// What came is not what the hub has.
    #[error(
        "{file} of {id} came damaged: its hash is {found}, that on the hub {expected}; it was thrown away, try again"
    )]
    Hash {
        /// The id.
        id: String,
        /// The file.
        file: String,
        /// The hash on the hub.
        expected: String,
        /// The hash of what came.
        found: String,
    },

    /// The cache cannot be written.
    #[error("the cache cannot be written at {path:?} ({source}); HF_HUB_CACHE names another folder for it")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// A variable of the environment.
    #[error("{name}: {}", printable(reason))]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// The hub does not take a file.
    #[error("the hub does not take {file}: {}", printable(message))]
    Upload {
        /// The file.
        file: String,
        /// What the hub says.
        message: String,
    },

    /// A file here cannot be read.
    #[error(transparent)]
    File(#[from] FileError),

    /// An index of shards that must not be followed.
    #[cfg(feature = "net")]
    #[error(transparent)]
    Weights(#[from] sideburn_weights::WeightsError),

    /// The server, or the way to it.
    #[cfg(feature = "net")]
    #[error(transparent)]
    Http(#[from] sideburn_http::HttpError),
}

fn token_of(has_token: bool) -> &'static str {
    match has_token {
        true => "the token does not open it",
        false => "there is no token (set HF_TOKEN, or `hf auth login`)",
    }
}

fn given(has_token: bool) -> &'static str {
    if has_token { " to the token of whoever has it; the one that is set opens nothing here" } else { "" }
}

fn expected(file: &str) -> &'static str {
    match file {
        "config.json" => "it is no model of transformers, or an adapter alone",
        "adapter_config.json" => "it is no adapter of peft",
        "model.safetensors" => "nor has it pytorch_model.bin, or an index of either; is it on another revision?",
        "adapter_model.safetensors" => "nor has it adapter_model.bin; is it on another revision?",
        _ => "what is there names it, and so the repository is damaged; is it whole on another revision?",
    }
}
