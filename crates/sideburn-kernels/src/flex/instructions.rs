//! Which of the machine's instructions products on the CPU use.

use super::{integers, packed};

/// The instructions that products on the CPU use: what the machine has, found out when the program runs, and the same for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuInstructions {
    /// Of `f32`.
    pub f32: &'static str,
    /// Of frozen weights on a device in `bf16`, with more than 16 rows.
    pub bf16: &'static str,
    /// Of integers of 8 bits.
    pub int8: &'static str,
}

/// What this machine uses.
///
/// ```
/// let instructions = sideburn_kernels::cpu_instructions();
/// assert!(!instructions.f32.is_empty());
/// ```
pub fn cpu_instructions() -> CpuInstructions {
    let f32 = of_floats();
    CpuInstructions {
        f32,
        bf16: if packed::has_bf16() { "AVX-512 BF16" } else { f32 },
        int8: integers::Instructions::best().name(),
    }
}

fn of_floats() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        // As the `gemm` crate sees it.
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if super::simd::has_avx2() {
            return "AVX2";
        }
    }
    "none"
}
