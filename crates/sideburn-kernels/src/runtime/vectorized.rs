//! Loops compiled for the vectors that the machine has.

/// Runs `task` compiled for the widest vectors that both this crate knows and the machine has.
///
/// `task` is to be a plain loop: what it calls must be inlined to profit.
///
/// ```
/// use sideburn_kernels::vectorized;
///
/// let values = [3.0, 1.0, 2.0];
/// let sum: f64 = vectorized(|| values.iter().map(|x| x * x).sum());
/// assert_eq!(sum, 14.0);
/// ```
#[inline(always)]
pub fn vectorized<R>(task: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            // SAFETY: the machine has what the function is compiled for.
            return unsafe { with_avx512(task) };
        }
        if has_avx2() {
            // SAFETY: as above.
            return unsafe { with_avx2(task) };
        }
    }
    task()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn with_avx512<R>(task: impl FnOnce() -> R) -> R {
    task()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(task: impl FnOnce() -> R) -> R {
    task()
}

/// Of processors since 2019: older ones lower their clock for vectors of 512 bits.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi2")
        && has_avx2()
}

#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}
