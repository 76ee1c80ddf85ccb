//! Unpacking and dot products on machines with AVX-512.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::{GROUP, Segment};

#[target_feature(enable = "avx512f,avx512bw")]
fn totals<const N: usize>(upper: [__m512; N], lower: [__m512; N]) -> [f32; N] {
    let mut totals = [0.0; N];
    for (total, (upper, lower)) in totals.iter_mut().zip(upper.into_iter().zip(lower)) {
        *total = _mm512_reduce_add_ps(_mm512_add_ps(upper, lower));
    }
    totals
}

/// # Safety
/// The segment must begin at a group and have whole groups.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn unpack(segment: &Segment<'_>, to: &mut [f32]) {
    let shifts = _mm512_set_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
    // SAFETY: a table has sixteen values.
    let table = unsafe { _mm512_loadu_ps(segment.table.as_ptr()) };
    for (begin, end, scale) in segment.runs(to.len()) {
        let scaled = _mm512_mul_ps(table, _mm512_set1_ps(scale));
        for place in (begin..end).step_by(16) {
            // SAFETY: the caller promises that eight bytes are there, and place for sixteen values.
            unsafe {
                let bytes = _mm_loadl_epi64(segment.bytes.as_ptr().add((segment.start + place) / 2).cast());
                let doubled = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes));
                // The permutation looks at the lowest four bits.
                let values = _mm512_permutexvar_ps(_mm512_srlv_epi32(doubled, shifts), scaled);
                _mm512_storeu_ps(to.as_mut_ptr().add(place), values);
            }
        }
    }
}

/// # Safety
/// Each `x` must be as long as the segment, which has whole groups.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn dots_of_codes<const N: usize>(x: [&[f32]; N], segment: &Segment<'_>) -> [f32; N] {
    // SAFETY: a table has sixteen values.
    let table = unsafe { _mm512_loadu_ps(segment.table.as_ptr()) };
    let (mut upper, mut lower) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
    for (begin, end, scale) in segment.runs(x[0].len()) {
        let scaled = _mm512_mul_ps(table, _mm512_set1_ps(scale));
        for place in (begin..end).step_by(GROUP) {
            // SAFETY: the caller promises that sixteen bytes are there, and 32 values of each `x`.
            unsafe {
                let at = segment.bytes.as_ptr().add((segment.start + place) / 2);
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(4096).cast());
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
                let first = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), scaled);
                let second = _mm512_permutexvar_ps(bytes, scaled);
                for row in 0..N {
                    let x = x[row].as_ptr().add(place);
                    upper[row] = _mm512_fmadd_ps(_mm512_loadu_ps(x), first, upper[row]);
                    lower[row] = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(16)), second, lower[row]);
                }
            }
        }
    }
    totals(upper, lower)
}

/// # Safety
/// Each `x` must be as long as `integers`, which are a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn dots_of_integers<const N: usize>(x: [&[f32]; N], integers: &[i8]) -> [f32; N] {
    let (mut upper, mut lower) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
    for place in (0..integers.len()).step_by(GROUP) {
        // SAFETY: the caller promises that 32 of each are there.
        unsafe {
            let at = integers.as_ptr().add(place);
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(4096).cast());
            let first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())));
            let second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.add(16).cast())));
            for row in 0..N {
                let x = x[row].as_ptr().add(place);
                upper[row] = _mm512_fmadd_ps(_mm512_loadu_ps(x), first, upper[row]);
                lower[row] = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(16)), second, lower[row]);
            }
        }
    }
    totals(upper, lower)
}

/// # Safety
/// Each `x` must be in pairs and as long as `floats`, which are a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn dots_of_halves<const N: usize>(x: [&[f32]; N], floats: &[bf16]) -> [f32; N] {
    let (mut upper, mut lower) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
    let odd = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    for place in (0..floats.len()).step_by(GROUP) {
        // SAFETY: the caller promises that 32 of each are there.
        unsafe {
            let at = floats.as_ptr().add(place);
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(4096).cast());
            let pairs = _mm512_loadu_si512(at.cast());
            // A float in 16 bits is the upper half of one in 32.
            let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            let second = _mm512_castsi512_ps(_mm512_and_si512(pairs, odd));
            for row in 0..N {
                let x = x[row].as_ptr().add(place);
                upper[row] = _mm512_fmadd_ps(_mm512_loadu_ps(x), first, upper[row]);
                lower[row] = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(16)), second, lower[row]);
            }
        }
    }
    totals(upper, lower)
}
