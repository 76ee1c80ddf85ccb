//! What can go wrong with a Falcon.

use sideburn_adapters::AdapterError;
use sideburn_files::FileError;
use sideburn_nn::NnError;

/// Why a Falcon could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FalconError {
    /// A configuration that cannot be read or is not of a Falcon, weights that cannot be opened, or a token that the
    /// embedding has no row for.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A file or directory that cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Weights that do not fit the model, or adapters that a pass cannot have.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}
