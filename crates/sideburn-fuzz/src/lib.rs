//! Every parser of files from strangers as a function of bytes.
//!
//! A [`Target`] takes any bytes as the content of a file, reads it as a user's program would, and panics if a promise is
//! broken: a parser that panics, reads what the reference implementation refuses, leads out of a directory, or gives a
//! message that a terminal would obey. What runs the targets is elsewhere: `fuzz/` has one for libFuzzer, and
//! `tests/fuzz` of this crate changes known files at random, a fixed number of times from a fixed seed.

#![forbid(unsafe_code)]

mod mutate;
mod seeds;
mod targets;

pub use mutate::mutate;
pub use targets::{TARGETS, Target};

/// Runs the target of that name.
///
/// # Panics
/// If there is none, or `bytes` break a promise.
pub fn run(target: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|known| known.name == target).unwrap_or_else(|| panic!("no target {target}"));
    (target.run)(bytes);
}
