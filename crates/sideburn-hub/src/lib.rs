//! Models and adapters by their directory, or by their id on the Hugging Face hub.
//!
//! [`Hub::model`] and [`Hub::adapter`] turn what a person names into a directory, from which everything is loaded as from any
//! other. What is not there is fetched into the cache that Python's `huggingface_hub` has, in the same layout: what Python
//! has fetched is used, and the other way round.
//!
//! ```no_run
//! use sideburn_hub::Hub;
//!
//! let hub = Hub::from_env()?;
//! let model = hub.model("google/flan-t5-small")?; // or "runs/model", or "google/flan-t5-small@main"
//! let adapter = hub.adapter("someone/flan-t5-small-dialogsum-lora@v1.0")?;
//! println!("{} and {}", model.display(), adapter.display());
//! # Ok::<(), sideburn_hub::HubError>(())
//! ```
//!
//! * Only the files that loading needs are fetched, all of one commit: `config.json`, `generation_config.json`, those of the
//!   tokenizer, `model.safetensors` or the shards that its index names, where there are none `pytorch_model.bin` or its shards;
//!   of an adapter its configuration and tensors.
//! * Each is checked against its size and hash (SHA-256, or git's SHA-1 of small files) before it has its name in the cache.
//!   What is half there, of a process that was killed, goes on from there.
//! * Processes that want the same file wait for each other, those of Python too.
//! * With the network gone, or `HF_HUB_OFFLINE` set, what is in the cache is used.
//!
//! [`HubConfig`] says which variables of the environment are heeded. Without the feature `net` no socket is opened and no
//! client compiled; then only the cache is looked into.

#![forbid(unsafe_code)]

mod cache;
mod config;
mod error;
mod files;
mod find;
mod hub;
mod id;

#[cfg(feature = "net")]
mod download;
#[cfg(feature = "net")]
mod hash;
#[cfg(feature = "net")]
mod push;
#[cfg(feature = "net")]
mod remote;

pub use config::HubConfig;
pub use error::HubError;
pub use files::COMPANIONS;
pub use hub::{Hub, HubEvent};
pub use id::RepoId;
#[cfg(feature = "net")]
pub use push::{PushConfig, Pushed};
