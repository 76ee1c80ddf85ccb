//! What the tests of several crates share: the reference numbers in `testdata`, how results are compared with them, and a
//! server of HTTP.
//!
//! All but the server and [`path`] is behind the feature `goldens`, since it knows Burn.

#[cfg(feature = "goldens")]
mod adapters;
pub mod http;
#[cfg(feature = "goldens")]
mod manifest;
#[cfg(test)]
mod modules;
#[cfg(feature = "goldens")]
mod numbers;

use std::path::{Path, PathBuf};

#[cfg(feature = "goldens")]
pub use adapters::{AdapterGoldens, Cast};
#[cfg(feature = "goldens")]
pub use manifest::{Entry, Exception, golden, goldens};
#[cfg(feature = "goldens")]
pub use numbers::{Golden, max_difference, parameters, relative_difference, values, written};

/// A file or folder of reference numbers.
pub fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(relative)
}
