//! Loops that the compiler turns into vector instructions, and sums and exponentials made for them.

#[cfg(target_arch = "x86_64")]
pub(crate) use crate::runtime::vectorized::has_avx2;
pub(crate) use crate::runtime::vectorized::vectorized;

/// Defines a function that is compiled three times, for vectors of 512 and of 256 bits and for any machine, and calls the widest that
/// the machine can run. For loops too large to be inlined into [`vectorized`].
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
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn avx512($($arg: $type),*) {
                any($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            if $crate::runtime::vectorized::has_avx512() {
                // SAFETY: the machine has what the function is compiled for.
                return unsafe { avx512($($arg),*) };
            }
            #[cfg(target_arch = "x86_64")]
            if $crate::runtime::vectorized::has_avx2() {
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

/// Asks for memory that is read soon.
#[inline(always)]
pub(crate) fn fetch(values: &[f32]) {
    values.chunks(LINE).for_each(|line| fetch_line(line.as_ptr()));
}

/// Into the second cache: in the first there is no place for as many lines as are on their way (with eight rows,
/// weights came a third faster than when asked into the first, and more than twice as fast as when not asked for).
#[inline(always)]
fn fetch_line(line: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every such machine has the instruction, and it may be given any address: it changes nothing but
        // caches.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
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
    dots_of::<M, N, true>(x, y)
}

/// The same where all is in cache.
#[inline(always)]
pub(crate) fn dots_in_cache<const M: usize, const N: usize>(x: [&[f32]; M], y: [&[f32]; N]) -> [[f32; N]; M] {
    dots_of::<M, N, false>(x, y)
}

#[inline(always)]
fn dots_of<const M: usize, const N: usize, const FETCH: bool>(x: [&[f32]; M], y: [&[f32]; N]) -> [[f32; N]; M] {
    let length = y[0].len();
    assert!(x.iter().all(|x| x.len() == length) && y.iter().all(|y| y.len() == length), "slices of one length");
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the machine has what the function is compiled for, and the slices have one length.
        return unsafe { dots_avx2::<M, N, FETCH>(x, y) };
    }
    x.map(|x| y.map(|y| sum([x, y], |[x, y]| x * y)))
}

/// # Safety
/// The slices must have one length.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_avx2<const M: usize, const N: usize, const FETCH: bool>(
    x: [&[f32]; M],
    y: [&[f32]; N],
) -> [[f32; N]; M] {
    use std::arch::x86_64::{
        _mm_add_ps, _mm_storeu_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_hadd_ps,
        _mm256_loadu_ps, _mm256_setzero_ps,
    };
    /// Sums whose lanes are added up together.
    const TOGETHER: usize = 4;
    let whole = y[0].len() / LINE * LINE;
    // The compiler keeps these in registers, which it does not with arrays of floats.
    let mut sums = [[_mm256_setzero_ps(); N]; M];
    for line in (0..whole).step_by(LINE) {
        if FETCH {
            // Lines are asked for in the order in which they lie, whichever of the slices they are part of.
            let ahead = y[0].as_ptr().wrapping_add(AHEAD.max(N * whole) + N * line);
            (0..N).for_each(|next| fetch_line(ahead.wrapping_add(next * LINE)));
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
    for (sums, out) in sums.as_flattened().chunks(TOGETHER).zip(out.as_flattened_mut().chunks_mut(TOGETHER)) {
        let of = |index: usize| sums.get(index).copied().unwrap_or(_mm256_setzero_ps());
        let halves = _mm256_hadd_ps(_mm256_hadd_ps(of(0), of(1)), _mm256_hadd_ps(of(2), of(3)));
        let totals = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
        let mut lanes = [0f32; TOGETHER];
        // SAFETY: there is room for the lanes.
        unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), totals) };
        out.copy_from_slice(&lanes[..out.len()]);
    }
    if whole < y[0].len() {
        for (out, x) in out.iter_mut().zip(x) {
            for (out, y) in out.iter_mut().zip(y) {
                *out += x[whole..].iter().zip(&y[whole..]).map(|(x, y)| x * y).sum::<f32>();
            }
        }
    }
    out
}

/// Adds `N` slices, one after the other, each times its weight, to each of `M` others. All have one length. What is added to one of
/// them depends on neither `M` nor on how slices are parted.
#[inline(always)]
pub(crate) fn add_weighted<const M: usize, const N: usize>(
    out: [&mut [f32]; M],
    weights: [[f32; N]; M],
    values: [&[f32]; N],
) {
    let length = values[0].len();
    assert!(
        out.iter().all(|out| out.len() == length) && values.iter().all(|values| values.len() == length),
        "slices of one length"
    );
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the machine has what the function is compiled for, and the slices have one length.
        return unsafe { add_weighted_avx2(out, weights, values) };
    }
    for (out, weights) in out.into_iter().zip(weights) {
        for (weight, values) in weights.into_iter().zip(values) {
            out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
        }
    }
}

/// # Safety
/// The slices must have one length.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_weighted_avx2<const M: usize, const N: usize>(
    out: [&mut [f32]; M],
    weights: [[f32; N]; M],
    values: [&[f32]; N],
) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    let whole = values[0].len() / LANES * LANES;
    // The compiler keeps these in registers, which it does not with what `map` makes.
    let mut lanes = [[_mm256_setzero_ps(); N]; M];
    for row in 0..M {
        for index in 0..N {
            lanes[row][index] = _mm256_set1_ps(weights[row][index]);
        }
    }
    for start in (0..whole).step_by(LANES) {
        let mut of_values = [_mm256_setzero_ps(); N];
        for index in 0..N {
            // SAFETY: `start + LANES` is at most the length of each slice.
            of_values[index] = unsafe { _mm256_loadu_ps(values[index].as_ptr().add(start)) };
        }
        for row in 0..M {
            // SAFETY: as above.
            let mut sums = unsafe { _mm256_loadu_ps(out[row].as_ptr().add(start)) };
            for index in 0..N {
                sums = _mm256_fmadd_ps(lanes[row][index], of_values[index], sums);
            }
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(out[row].as_mut_ptr().add(start), sums) };
        }
    }
    for (out, weights) in out.into_iter().zip(weights) {
        for (weight, values) in weights.into_iter().zip(values) {
            let rest = out[whole..].iter_mut().zip(&values[whole..]);
            rest.for_each(|(out, value)| *out = weight.mul_add(*value, *out));
        }
    }
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
