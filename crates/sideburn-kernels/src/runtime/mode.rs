//! Which of the two forms of an operation runs.

use std::sync::atomic::{AtomicU8, Ordering};

/// How operations are computed. On the CPU those of the optimiser always run by kernels, so that a norm does not depend on
/// the number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelMode {
    /// By the kernels of this crate: the default.
    Fused,
    /// By Burn's primitives. That is slower, and what the kernels are tested against. On a GPU each primitive is a
    /// launch.
    Composed,
}

const UNSET: u8 = 0;
const FUSED: u8 = 1;
const COMPOSED: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(UNSET);

/// Chooses the mode of the whole process, from the next operation on. Until then the environment variable
/// `SIDEBURN_KERNELS` chooses: `composed`, or anything else for the default.
pub fn set_kernel_mode(mode: KernelMode) {
    MODE.store(if mode == KernelMode::Fused { FUSED } else { COMPOSED }, Ordering::Relaxed);
}

/// The mode of the process.
pub fn kernel_mode() -> KernelMode {
    match MODE.load(Ordering::Relaxed) {
        FUSED => KernelMode::Fused,
        COMPOSED => KernelMode::Composed,
        _ => {
            let composed = std::env::var_os("SIDEBURN_KERNELS").is_some_and(|value| value == "composed");
            let mode = if composed { KernelMode::Composed } else { KernelMode::Fused };
            set_kernel_mode(mode);
            mode
        }
    }
}
