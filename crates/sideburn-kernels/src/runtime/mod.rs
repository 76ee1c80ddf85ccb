//! What operations run on and with, apart from computing: how tokens lie in memory, memory itself, threads, which form
//! of an operation runs, and where the time goes.

#[cfg(feature = "gpu")]
pub(crate) mod compiled;
#[cfg(feature = "gpu")]
pub(crate) mod launches;
#[cfg(feature = "flex")]
pub(crate) mod memory;
pub(crate) mod mode;
pub(crate) mod out_of_memory;
pub(crate) mod precision;
pub(crate) mod profile;
pub(crate) mod refused;
pub(crate) mod row_layout;
pub(crate) mod vectorized;
pub(crate) mod workers;
