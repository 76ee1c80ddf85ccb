//! Kernels that a device cannot compile.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

static REFUSED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// The kernels that a GPU of this process could not compile, by the names of their operations, and what it says of each.
/// In their place Burn's primitives run: the results are the same, and take longer.
pub fn refused_kernels() -> BTreeMap<String, String> {
    REFUSED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(feature = "gpu")]
pub(crate) fn refuse(name: &str, reason: String) {
    REFUSED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), reason);
}
