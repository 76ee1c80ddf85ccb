//! Loops that the compiler turns into vector instructions, and sums and exponentials made for them.

/// Runs `task` compiled for the widest vectors that both this crate knows and the machine has.
///
/// `task` is to be a plain loop: what it calls must be inlined to profit.
#[inline(always)]
pub(crate) fn vectorized<R>(task: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the machine has what the function is compiled for.
        return unsafe { with_avx2(task) };
    }
    task()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(task: impl FnOnce() -> R) -> R {
    task()
}

#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Defines a function that is compiled twice, for the widest vectors that this crate knows and for any machine, and
/// calls the one that the machine can run. For loops too large to be inlined into [`vectorized`].
macro_rules! vector_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) {
            #[inline(always)]
            fn any($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) {
                any($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            if $crate::flex::simd::has_avx2() {
                // SAFETY: the machine has what the function is compiled for.
                return unsafe { avx2($($arg),*) };
            }
            any($($arg),*);
        }
    };
}
pub(crate) use vector_fn;

/// Accumulators of a reduction: a fixed order whatever the machine, more exact than one running sum, and vectorised.
const LANES: usize = 8;

/// The sum of `term` over slices of equal length.
#[inline(always)]
pub(crate) fn sum<const N: usize>(slices: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let blocks = slices.map(|slice| slice.as_chunks::<LANES>());
    for block in 0..blocks[0].0.len() {
        let block = blocks.map(|(blocks, _)| blocks[block]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(block.map(|values| values[lane]));
        }
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(blocks[0].1.len()) {
        *sum += term(blocks.map(|(_, rest)| rest[lane]));
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// The largest value that is a number.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let larger = |x: f32, y: f32| if y > x { y } else { x };
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane = larger(*lane, *value));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// How far ahead memory is asked for, in values.
const AHEAD: usize = 2048;

/// Asks for the line of memory that is read a while after this one, where all of it is read one after the other.
///
/// Into the second cache: in the first there is no place for as many lines as are on their way (with eight rows,
/// weights came a third faster than when asked into the first, and more than twice as fast as when not asked for).
#[inline(always)]
pub(crate) fn fetch_ahead(line: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every such machine has the instruction, and it may be given any address: it changes nothing but
        // caches.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(AHEAD).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Values of a line of memory.
pub(crate) const LINE: usize = 16;

/// The dot products of `M` slices with `N` others, all of one length; the others are part of memory that is read from beginning
/// to end, and each of their values is loaded once. Each product is summed in the same order whatever `M` and `N` are.
#[inline]
pub(crate) fn dots<const M: usize, const N: usize>(x: [&[f32]; M], y: [&[f32]; N]) -> [[f32; N]; M] {
    let length = y[0].len();
    assert!(x.iter().all(|x| x.len() == length) && y.iter().all(|y| y.len() == length), "slices of one length");
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the machine has what the function is compiled for, and the slices have one length.
        return unsafe { dots_avx2(x, y) };
    }
    x.map(|x| y.map(|y| sum([x, y], |[x, y]| x * y)))
}

/// # Safety
/// The slices must have one length.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_avx2<const M: usize, const N: usize>(x: [&[f32]; M], y: [&[f32]; N]) -> [[f32; N]; M] {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    let whole = y[0].len() / LINE * LINE;
    // The compiler keeps these in registers, which it does not with arrays of floats.
    let mut sums = [[_mm256_setzero_ps(); N]; M];
    for line in (0..whole).step_by(LINE) {
        for y in y {
            fetch_ahead(&y[line..]);
        }
        for start in [line, line + LANES] {
            let mut of_y = [_mm256_setzero_ps(); N];
            for column in 0..N {
                // SAFETY: `start + LANES` is at most the length of each slice.
                of_y[column] = unsafe { _mm256_loadu_ps(y[column].as_ptr().add(start)) };
            }
            for row in 0..M {
                // SAFETY: as above.
                let x = unsafe { _mm256_loadu_ps(x[row].as_ptr().add(start)) };
                for column in 0..N {
                    sums[row][column] = _mm256_fmadd_ps(x, of_y[column], sums[row][column]);
                }
            }
        }
    }
    let mut out = [[0.0; N]; M];
    for row in 0..M {
        for column in 0..N {
            let mut lanes = [0f32; LANES];
            // SAFETY: there is room for the lanes.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[row][column]) };
            let rest: f32 = x[row][whole..].iter().zip(&y[column][whole..]).map(|(x, y)| x * y).sum();
            out[row][column] = lanes.iter().sum::<f32>() + rest;
        }
    }
    out
}

/// `e^x` within 2 units in the last place, without branches or calls, so that loops over it vectorise (after Cephes
/// `expf`: range reduction by `ln 2`, then a polynomial of degree 6).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    // Rounding to the nearest whole number by adding and taking away 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    // The lowest bits of `shifted` are `n`: with the bias added, the exponent of 2^n.
    value * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        for step in -870_000..880_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}): relative error {error:e}");
        }
        assert!(exp(-1e30) < 2e-38);
        assert!(exp(f32::NAN).is_nan(), "a NaN must not be hidden");
    }
}
