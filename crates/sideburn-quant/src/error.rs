//! What can go wrong with quantised weights.

use std::path::PathBuf;

use sideburn_files::printable;
use sideburn_weights::WeightsError;

use crate::code::BLOCK_SIZES;

/// Why weights cannot be quantised, or quantised ones not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A weight with a value that has no code.
    #[error(
        "{tensor:?} has {value} in row {row}, column {column}: what is not finite cannot be quantised; mend the weights"
    )]
    NotFinite {
        /// The weight.
        tensor: String,
        /// The row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
        /// The value: `NaN`, `inf` or `-inf`.
        value: String,
    },

    /// A weight too large for what it is to be quantised to.
    #[error("{tensor:?} cannot be quantised: {detail}; quantise to another type, or leave it as it is")]
    OutOfRange {
        /// The weight.
        tensor: String,
        /// What is too large.
        detail: String,
    },

    /// A block size that bitsandbytes has not.
    #[error("{tensor:?}: a block size of {found} is none of {BLOCK_SIZES:?}")]
    BlockSize {
        /// The weight.
        tensor: String,
        /// The size.
        found: usize,
    },

    /// Parts of a quantised weight contradict each other, or the model.
    #[error(
        "the quantised weight {tensor:?} of {path:?}: {}; copy or download the file again, or quantise the unquantised model \
         anew",
        printable(detail)
    )]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// The tensor or field that does not fit, what it is, and what it must be.
        detail: String,
    },

    /// A weight of integers without what says which numbers they stand for.
    #[error(
        "the quantised weight {tensor:?} of {path:?} has no {}; copy or download the file again, or load the unquantised \
         model",
        missing.join(", ")
    )]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// The names of the tensors that are not there.
        missing: Vec<String>,
    },

    /// A `quantization_config` that cannot be read.
    #[error("`quantization_config`: {}", printable(message))]
    Config {
        /// What is wrong, with the field's name.
        message: String,
    },

    /// A method of quantisation other than those of bitsandbytes.
    #[error(
        "`quantization_config` says that the weights are quantised by {}, which is not here; load the unquantised model, \
         or one that is quantised by bitsandbytes",
        printable(method)
    )]
    UnknownMethod {
        /// The method, by its usual name.
        method: String,
    },

    /// Tensors that cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}
