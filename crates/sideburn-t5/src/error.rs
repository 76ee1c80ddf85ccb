//! What can go wrong with a T5 model.

use std::path::PathBuf;

use sideburn_adapters::AdapterError;
use sideburn_files::{FileError, printable};
use sideburn_nn::NnError;
use sideburn_weights::WeightsError;

/// Why a T5 model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum T5Error {
    /// A configuration that cannot be read or is not of a T5 model, tensors that ought to be one embedding and differ, or a
    /// token that the embedding has no row for.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// Rows to write, and no token to begin with.
    #[error(
        "neither config.json nor generation_config.json has a `decoder_start_token_id`; \
         add the one that the model was trained with, for a T5 that of padding (0)"
    )]
    NoStartToken,
    /// Weights without a decoder.
    #[error(
        "{}: holds the encoder of a T5 alone, without one tensor of a decoder; \
         this crate has T5 with an encoder, a decoder and an output head",
        printable(path)
    )]
    NoDecoder {
        /// The model directory or file.
        path: PathBuf,
    },
    /// A file or directory that cannot be written or read, whatever it holds.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file or directory that cannot be written or read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Weights that do not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}
