//! Models and adapters from a server that plays the hub; and, built without `net`, from the cache alone.

#![forbid(unsafe_code)]

#[cfg(feature = "net")]
mod cached;
#[cfg(feature = "net")]
mod damaged;
mod environment;
#[cfg(feature = "net")]
mod fetched;
mod names;
#[cfg(feature = "net")]
mod played;
#[cfg(feature = "net")]
mod pushed;
#[cfg(feature = "net")]
mod refused;
#[cfg(not(feature = "net"))]
mod without;
