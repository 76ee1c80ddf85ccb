//! How exactly a GPU multiplies matrices of `f32`.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// How exactly a GPU multiplies matrices in `f32`; the names are those of `torch.set_float32_matmul_precision`. Sums are
/// in `f32` always. The CPU rounds nothing.
///
/// ```
/// use sideburn_kernels::MatmulPrecision;
///
/// assert_eq!("high".parse(), Ok(MatmulPrecision::High));
/// assert_eq!(MatmulPrecision::default().to_string(), "highest");
/// assert!("tf32".parse::<MatmulPrecision>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// In `f32`: the default.
    #[default]
    Highest,
    /// By tensor cores, where the GPU has some for numbers of 32 bits: on NVIDIA's in TF32, which has 10 bits after the
    /// binary point where `f32` has 23, for an error of about 1e-3. Where it has none, as [`Highest`](Self::Highest).
    High,
    /// As [`High`](Self::High). In PyTorch this may compute in `bf16`.
    Medium,
}

/// A name that no precision has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPrecision;

impl Display for UnknownPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected highest, high or medium")
    }
}

impl std::error::Error for UnknownPrecision {}

const NAMES: [(MatmulPrecision, &str); 3] =
    [(MatmulPrecision::Highest, "highest"), (MatmulPrecision::High, "high"), (MatmulPrecision::Medium, "medium")];

impl FromStr for MatmulPrecision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> Result<Self, UnknownPrecision> {
        NAMES.iter().find(|(_, name)| *name == text).map(|(precision, _)| *precision).ok_or(UnknownPrecision)
    }
}

impl Display for MatmulPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(NAMES[*self as usize].1)
    }
}

static PRECISION: AtomicU8 = AtomicU8::new(0);

/// Chooses how exactly matrices of `f32` are multiplied in the whole process, from the next product on.
pub fn set_matmul_precision(precision: MatmulPrecision) {
    PRECISION.store(precision as u8, Ordering::Relaxed);
}

/// What was chosen.
pub fn matmul_precision() -> MatmulPrecision {
    NAMES[usize::from(PRECISION.load(Ordering::Relaxed))].0
}
