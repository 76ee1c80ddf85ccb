//! Which of the two forms of an operation runs.

use std::sync::atomic::{AtomicU8, Ordering};

/// How operations are computed. Those of the optimiser, which are no part of a model, are always computed by kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// By the kernels of this crate: the default.
    Fused,
    /// By Burn's primitives: slower, and what the kernels are held against. On a GPU each primitive is a launch.
    Composed,
}

const UNSET: u8 = 0;
const FUSED: u8 = 1;
const COMPOSED: u8 = 2;

static PATH: AtomicU8 = AtomicU8::new(UNSET);

/// Chooses for the whole process, from the next operation on. Without it, the environment variable `SIDEBURN_KERNELS`
/// chooses: `composed`, or anything else for the default.
pub fn set_path(path: Path) {
    PATH.store(if path == Path::Fused { FUSED } else { COMPOSED }, Ordering::Relaxed);
}

/// What was chosen.
pub fn path() -> Path {
    match PATH.load(Ordering::Relaxed) {
        FUSED => Path::Fused,
        COMPOSED => Path::Composed,
        _ => {
            let composed = std::env::var_os("SIDEBURN_KERNELS").is_some_and(|value| value == "composed");
            let path = if composed { Path::Composed } else { Path::Fused };
            set_path(path);
            path
        }
    }
}
