//! Unpacking and dot products on machines with AVX2.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::{GROUP, Segment};

/// Looks the lowest four bits of each lane up in a table of two halves.
#[target_feature(enable = "avx2,fma")]
fn look_up(table: [__m256; 2], indices: __m256i) -> __m256 {
    let low = _mm256_permutevar8x32_ps(table[0], indices);
    let high = _mm256_permutevar8x32_ps(table[1], indices);
    _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices)))
}

/// The table times a scale.
#[target_feature(enable = "avx2,fma")]
fn scaled(table: &[f32; 16], scale: f32) -> [__m256; 2] {
    // SAFETY: a table has sixteen values.
    let (low, high) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
    [_mm256_mul_ps(low, _mm256_set1_ps(scale)), _mm256_mul_ps(high, _mm256_set1_ps(scale))]
}

#[target_feature(enable = "avx2,fma")]
fn totals<const N: usize>(upper: [__m256; N], lower: [__m256; N]) -> [f32; N] {
    let mut totals = [0.0; N];
    for (total, (upper, lower)) in totals.iter_mut().zip(upper.into_iter().zip(lower)) {
        let mut lanes = [0f32; 8];
        // SAFETY: there is room for the lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(upper, lower)) };
        *total = lanes.iter().sum();
    }
    totals
}

/// # Safety
/// The segment must begin at a group and have whole groups.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn unpack(segment: &Segment<'_>, to: &mut [f32]) {
    let shifts = _mm256_set_epi32(0, 4, 0, 4, 0, 4, 0, 4);
    for (begin, end, scale) in segment.runs(to.len()) {
        let table = scaled(segment.table, scale);
        for place in (begin..end).step_by(16) {
            // SAFETY: the caller promises that eight bytes are there, and place for sixteen values.
            unsafe {
                let bytes = _mm_loadl_epi64(segment.bytes.as_ptr().add((segment.start + place) / 2).cast());
                let doubled = _mm_unpacklo_epi8(bytes, bytes);
                for (half, bytes) in [doubled, _mm_srli_si128::<8>(doubled)].into_iter().enumerate() {
                    let indices = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(bytes), shifts);
                    _mm256_storeu_ps(to.as_mut_ptr().add(place + 8 * half), look_up(table, indices));
                }
            }
        }
    }
}

/// # Safety
/// Each `x` must be as long as the segment, which has whole groups.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots_of_codes<const N: usize>(x: [&[f32]; N], segment: &Segment<'_>) -> [f32; N] {
    let (mut upper, mut lower) = ([_mm256_setzero_ps(); N], [_mm256_setzero_ps(); N]);
    for (begin, end, scale) in segment.runs(x[0].len()) {
        let table = scaled(segment.table, scale);
        for place in (begin..end).step_by(GROUP) {
            for half in [0, 8] {
                // SAFETY: the caller promises that sixteen bytes are there, and 32 values of each `x`.
                unsafe {
                    let at = segment.bytes.as_ptr().add((segment.start + place) / 2 + half);
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(4096).cast());
                    let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
                    let first = look_up(table, _mm256_srli_epi32::<4>(bytes));
                    let second = look_up(table, bytes);
                    for row in 0..N {
                        let x = x[row].as_ptr().add(place + half);
                        upper[row] = _mm256_fmadd_ps(_mm256_loadu_ps(x), first, upper[row]);
                        lower[row] = _mm256_fmadd_ps(_mm256_loadu_ps(x.add(16)), second, lower[row]);
                    }
                }
            }
        }
    }
    totals(upper, lower)
}

/// # Safety
/// Each `x` must be as long as `integers`, which are a multiple of 32.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots_of_integers<const N: usize>(x: [&[f32]; N], integers: &[i8]) -> [f32; N] {
    let (mut upper, mut lower) = ([_mm256_setzero_ps(); N], [_mm256_setzero_ps(); N]);
    for place in (0..integers.len()).step_by(16) {
        // SAFETY: the caller promises that sixteen of each are there.
        unsafe {
            let at = integers.as_ptr().add(place);
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(4096).cast());
            let first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())));
            let second = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(8).cast())));
            for row in 0..N {
                let x = x[row].as_ptr().add(place);
                upper[row] = _mm256_fmadd_ps(_mm256_loadu_ps(x), first, upper[row]);
                lower[row] = _mm256_fmadd_ps(_mm256_loadu_ps(x.add(8)), second, lower[row]);
            }
        }
    }
    totals(upper, lower)
}

/// # Safety
/// Each `x` must be in pairs and as long as `floats`, which are a multiple of 32.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots_of_halves<const N: usize>(x: [&[f32]; N], floats: &[bf16]) -> [f32; N] {
    let (mut upper, mut lower) = ([_mm256_setzero_ps(); N], [_mm256_setzero_ps(); N]);
    let odd = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    for place in (0..floats.len()).step_by(GROUP) {
        for half in [0, 8] {
            // SAFETY: the caller promises that 32 of each are there.
            unsafe {
                let at = floats.as_ptr().add(place + 2 * half);
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(4096).cast());
                let pairs = _mm256_loadu_si256(at.cast());
                // A float in 16 bits is the upper half of one in 32.
                let first = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
                let second = _mm256_castsi256_ps(_mm256_and_si256(pairs, odd));
                for row in 0..N {
                    let x = x[row].as_ptr().add(place + half);
                    upper[row] = _mm256_fmadd_ps(_mm256_loadu_ps(x), first, upper[row]);
                    lower[row] = _mm256_fmadd_ps(_mm256_loadu_ps(x.add(16)), second, lower[row]);
                }
            }
        }
    }
    totals(upper, lower)
}
