//! Products by AVX-512 BF16: both sides are rounded to `bf16`, and sums are in `f32`.
//!
//! `vdpbf16ps` adds the products of pairs: a *word* of 32 bits holds two values that follow each other in a sum. A weight is laid
//! out in panels of 32 columns of the product, word after word, and so are the rows of `x`, 12 at a time. So a tile of 12 x 32 sums
//! stays in registers from beginning to end. Laying out a weight in `bf16` moves its values and rounds nothing.

use std::arch::x86_64::*;
use std::ops::Range;

use burn::tensor::bf16;
use rayon::prelude::*;

use super::{Codes, Packed};
use crate::flex::products::{Before, Mat, MatMut, Workers};
use crate::runtime::memory::Buffer;

/// Rows of `x` in a tile.
const ROWS: usize = 12;

/// Columns of the product in a tile: two registers.
const COLUMNS: usize = 32;

/// Words that are summed before the next tile is, 4 KiB of a row of `x`: more, and rows and panels would leave the second cache.
const DEPTH: usize = 1024;

/// Rows of `x` that a task lays out.
const BLOCK: usize = 96;

/// Tasks of a product at least, where it has as many parts.
const TASKS: usize = 16;

/// Multiplications below which a product is not shared out.
const SHARED_FROM: usize = 1 << 20;

/// Panels that a task lays out of columns of a weight.
const STRIP: usize = 4;

/// Whether the machine has the instructions.
pub(super) fn is_here() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// The right side of a product, laid out.
pub(super) struct Panels {
    words: Buffer,
    /// Values in a sum.
    depth: usize,
    columns: usize,
}

/// Words of a column, with those that a panel ends with so that whole registers can be written.
fn words(depth: usize) -> usize {
    depth.div_ceil(2).max(1).next_multiple_of(16)
}

impl Panels {
    /// `W^T` of some rows of a weight `W`: the sums go along these rows.
    ///
    /// # Panics
    /// If the machine has not got the instructions.
    pub(super) fn of_rows(weight: &Packed<'_>, rows: Range<usize>, workers: Workers) -> Self {
        assert!(is_here(), "a machine with AVX-512 BF16");
        let depth = weight.shape[1];
        let size = words(depth) * COLUMNS;
        let mut words = Buffer::new(rows.len().div_ceil(COLUMNS) * size);
        for_each(&mut words, size, workers, |index, panel| {
            let first = rows.start + index * COLUMNS;
            let rows = first..(first + COLUMNS).min(rows.end);
            let mut store = Store::default();
            let (values, stride) = weight.halves(rows.clone(), 0..depth, &mut store);
            for group in 0..rows.len().div_ceil(4) {
                let row = |index: usize| values.get((4 * group + index) * stride..)?.get(..depth);
                let four = std::array::from_fn(|index| if 4 * group + index < rows.len() { row(index) } else { None });
                let four = four.map(Option::unwrap_or_default);
                // SAFETY: the machine has the instructions; a panel has 32 columns of as many words as whole registers have.
                unsafe { lay_halves(four, panel.as_mut_ptr().cast::<u32>().add(4 * group)) };
            }
        });
        Self { words, depth, columns: rows.len() }
    }

    /// Some rows and columns of a weight as they are: the sums go along its columns. The columns must begin at a multiple of 32.
    ///
    /// # Panics
    /// If the machine has not got the instructions.
    pub(super) fn of_columns(weight: &Packed<'_>, rows: Range<usize>, columns: Range<usize>, workers: Workers) -> Self {
        assert!(is_here(), "a machine with AVX-512 BF16");
        let depth = rows.len();
        let (size, panels) = (words(depth) * COLUMNS, columns.len().div_ceil(COLUMNS));
        let mut words = Buffer::new(panels * size);
        // Codes of 4 bits are unpacked in whole groups or rows.
        let strip = if weight.is_grouped() { STRIP } else { panels.max(1) };
        for_each(&mut words, strip * size, workers, |index, panels| {
            let first = columns.start + index * strip * COLUMNS;
            let columns = first..(first + strip * COLUMNS).min(columns.end);
            let mut store = Store::default();
            for word in 0..depth.div_ceil(2) {
                let pair = rows.start + 2 * word..(rows.start + 2 * word + 2).min(rows.end);
                let (values, stride) = weight.halves(pair.clone(), columns.clone(), &mut store);
                let second = if pair.len() == 2 { &values[stride..][..columns.len()] } else { &[] };
                let first = &values[..columns.len()];
                for (index, panel) in panels.chunks_exact_mut(size).enumerate() {
                    let of_panel = |row: &'_ [bf16]| {
                        let start = (index * COLUMNS).min(row.len());
                        (row.as_ptr().wrapping_add(start), (row.len() - start).min(COLUMNS))
                    };
                    // SAFETY: the machine has the instructions, and the panel has a place for the word of 32 columns.
                    unsafe {
                        let to = panel.as_mut_ptr().cast::<u32>().add(word * COLUMNS);
                        lay_pair(of_panel(first), of_panel(second), to);
                    }
                }
            }
        });
        Self { words, depth, columns: columns.len() }
    }

    /// Writes the products of `x` with them to `to`, or adds them.
    pub(super) fn multiply(&self, to: MatMut<'_>, x: Mat<'_>, before: Before, workers: Workers) {
        let ([n, depth], panels) = (x.shape(), self.columns.div_ceil(COLUMNS));
        assert_eq!((depth, to.shape()), (self.depth, [n, self.columns]), "the matrices of a product must fit");
        if n == 0 || panels == 0 {
            return;
        }
        let rows = n.div_ceil(n.div_ceil(BLOCK)).next_multiple_of(ROWS);
        let blocks = n.div_ceil(rows);
        // How the work is shared out follows from shapes alone, though no sum depends on it.
        let is_shared = workers == Workers::All && n * self.columns * depth >= SHARED_FROM;
        let groups = if is_shared { TASKS.div_ceil(blocks).min(panels) } else { 1 };
        let each = panels.div_ceil(groups);
        let groups = panels.div_ceil(each);
        let to = to.into_parts();
        let task = |task: usize| {
            let (block, group) = (task / groups, task % groups);
            let rows = block * rows..((block + 1) * rows).min(n);
            let panels = group * each..((group + 1) * each).min(panels);
            let columns = panels.start * COLUMNS..(panels.end * COLUMNS).min(self.columns);
            // SAFETY: each task has its own rows and columns.
            let to = unsafe { to.part(rows.clone(), columns) };
            self.multiply_here(to, x.rows(rows), panels, before);
        };
        match is_shared {
            true => (0..blocks * groups).into_par_iter().with_max_len(1).for_each(task),
            false => (0..blocks * groups).for_each(task),
        }
    }

    /// The same of some panels on this thread.
    fn multiply_here(&self, mut to: MatMut<'_>, x: Mat<'_>, panels: Range<usize>, before: Before) {
        let ([n, columns], (place, stride)) = (to.shape(), to.place());
        let tiles = n.div_ceil(ROWS);
        let of_tile = ROWS * words(self.depth.min(2 * DEPTH));
        let mut laid = Buffer::new(tiles * of_tile);
        let mut before = before;
        // Without terms, sums are zero.
        for start in (0..self.depth.max(1)).step_by(2 * DEPTH) {
            let end = (start + 2 * DEPTH).min(self.depth);
            for (tile, laid) in laid.chunks_exact_mut(of_tile).enumerate() {
                let row = |row: usize| if row < n { &x.row(row)[start..end] } else { &[] };
                for group in 0..(n - tile * ROWS).min(ROWS).div_ceil(4) {
                    let four = std::array::from_fn(|index| row(tile * ROWS + 4 * group + index));
                    // SAFETY: `multiply` is for machines with the instructions; a tile has as many words as whole registers have.
                    unsafe { lay_floats(four, laid.as_mut_ptr().cast::<u32>().add(4 * group)) };
                }
            }
            for (index, panel) in panels.clone().enumerate() {
                let panel = &self.words[(panel * words(self.depth) + start / 2) * COLUMNS..];
                for (tile, laid) in laid.chunks_exact(of_tile).enumerate() {
                    let tile = Tile {
                        words: (end - start).div_ceil(2),
                        x: laid.as_ptr().cast(),
                        panel: panel.as_ptr().cast(),
                        to: place.wrapping_add(tile * ROWS * stride + index * COLUMNS),
                        stride,
                        rows: (n - tile * ROWS).min(ROWS),
                        columns: (columns - index * COLUMNS).min(COLUMNS),
                        before,
                    };
                    // SAFETY: the machine has the instructions; rows and panel have as many words, and the rows and columns
                    // of the tile are part of `to`.
                    unsafe {
                        match tile.rows {
                            9.. => tile.multiply::<12>(),
                            5.. => tile.multiply::<8>(),
                            _ => tile.multiply::<4>(),
                        }
                    }
                }
            }
            before = Before::Kept;
        }
    }
}

/// Gives parts of this size to `task`, with their indices.
fn for_each(words: &mut [f32], size: usize, workers: Workers, task: impl Fn(usize, &mut [f32]) + Sync) {
    let size = size.max(1);
    match workers {
        Workers::All => words.par_chunks_mut(size).enumerate().for_each(|(index, part)| task(index, part)),
        Workers::One => words.chunks_mut(size).enumerate().for_each(|(index, part)| task(index, part)),
    }
}

/// Where values are unpacked to.
#[derive(Default)]
struct Store {
    floats: Vec<f32>,
    halves: Vec<bf16>,
}

impl Packed<'_> {
    /// The values of some rows and columns in `bf16`, and how far their rows are apart: as they lie, or unpacked and rounded in
    /// `store`.
    fn halves<'s>(&'s self, rows: Range<usize>, columns: Range<usize>, store: &'s mut Store) -> (&'s [bf16], usize) {
        if let Codes::Bf16(floats) = self.codes {
            let input = self.shape[1];
            return (&floats[(rows.start * input + columns.start).min(floats.len())..], input);
        }
        let width = columns.len();
        store.floats.resize(width, 0.0);
        store.halves.resize(rows.len() * width, bf16::ZERO);
        for (row, to) in rows.zip(store.halves.chunks_exact_mut(width.max(1))) {
            self.unpack_rows(row..row + 1, columns.clone(), &mut store.floats);
            // SAFETY: whoever lays out panels has the instructions.
            unsafe { round(&store.floats, to) };
        }
        (&store.halves, width)
    }
}

/// The first `count` of sixteen lanes.
fn first(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// The first `count` of 32 lanes.
fn first_of_32(count: usize) -> u32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

/// # Safety
/// The machine must have the instructions, and the slices one length.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round(from: &[f32], to: &mut [bf16]) {
    for place in (0..from.len()).step_by(32) {
        let left = from.len() - place;
        // SAFETY: no lane is read or written behind the slices.
        unsafe {
            let words = words_of_floats(from.as_ptr().add(place), left);
            _mm512_mask_storeu_epi16(to.as_mut_ptr().add(place).cast(), first_of_32(left), words);
        }
    }
}

/// Sixteen words of at most 32 values, rounded to the nearest, of two the even one; zeros stand for what is missing.
///
/// # Safety
/// There must be `left` values, or 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn words_of_floats(from: *const f32, left: usize) -> __m512i {
    // SAFETY: no lane is read behind what is there, and both types are 512 bits.
    unsafe {
        let low = _mm512_maskz_loadu_ps(first(left), from);
        let high = _mm512_maskz_loadu_ps(first(left.saturating_sub(16)), from.wrapping_add(16));
        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// Lays four rows of `x` beside each other, in tiles of [`ROWS`]. A row that is missing is empty.
///
/// # Safety
/// The machine must have the instructions, and `to` room for [`words`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn lay_floats(rows: [&[f32]; 4], to: *mut u32) {
    for place in (0..rows[0].len()).step_by(32) {
        let mut four = [_mm512_setzero_si512(); 4];
        for index in 0..4 {
            let left = rows[index].len().saturating_sub(place);
            // SAFETY: as many are there.
            four[index] = unsafe { words_of_floats(rows[index].as_ptr().wrapping_add(place), left) };
        }
        // SAFETY: promised by the caller.
        unsafe { lay_four(four, to.add(place / 2 * ROWS), ROWS) };
    }
}

/// Lays four rows of a weight beside each other, in panels. A row that is missing is empty.
///
/// # Safety
/// The machine must have the instructions, and `to` room for [`words`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn lay_halves(rows: [&[bf16]; 4], to: *mut u32) {
    for place in (0..rows[0].len()).step_by(32) {
        let mut four = [_mm512_setzero_si512(); 4];
        for index in 0..4 {
            let left = rows[index].len().saturating_sub(place);
            // SAFETY: no lane is read behind what is there.
            four[index] =
                unsafe { _mm512_maskz_loadu_epi16(first_of_32(left), rows[index].as_ptr().wrapping_add(place).cast()) };
        }
        // SAFETY: promised by the caller.
        unsafe { lay_four(four, to.add(place / 2 * COLUMNS), COLUMNS) };
    }
}

/// Writes the sixteen words of four rows: the first of all four, `step` words on the second, and so on.
///
/// # Safety
/// There must be room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn lay_four([a, b, c, d]: [__m512i; 4], to: *mut u32, step: usize) {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_next, cd_next) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    // Every fourth word of all four rows, from the first, second, third and fourth on.
    let fours = [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_next, cd_next),
        _mm512_unpackhi_epi64(ab_next, cd_next),
    ];
    for (index, four) in fours.into_iter().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            _mm_storeu_si128(to.add(index * step).cast(), _mm512_castsi512_si128(four));
            _mm_storeu_si128(to.add((4 + index) * step).cast(), _mm512_extracti32x4_epi32::<1>(four));
            _mm_storeu_si128(to.add((8 + index) * step).cast(), _mm512_extracti32x4_epi32::<2>(four));
            _mm_storeu_si128(to.add((12 + index) * step).cast(), _mm512_extracti32x4_epi32::<3>(four));
        }
    }
}

/// Writes 32 words of two rows of values: pairs of what stands above each other. Each row is a place and how many values are there, of
/// 32; zeros stand for what is missing.
///
/// # Safety
/// The machine must have the instructions, and there must be room for 32 words.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn lay_pair(above: (*const bf16, usize), below: (*const bf16, usize), to: *mut u32) {
    // SAFETY: no lane is read behind what is there; the caller promises the room.
    unsafe {
        let above = _mm512_maskz_loadu_epi16(first_of_32(above.1), above.0.cast());
        let below = _mm512_maskz_loadu_epi16(first_of_32(below.1), below.0.cast());
        // Of each index, bit 5 says which of the two.
        let low = _mm512_set_epi16(
            47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33,
            1, 32, 0,
        );
        let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(above, low, below));
        _mm512_storeu_si512(to.add(16).cast(), _mm512_permutex2var_epi16(above, high, below));
    }
}

/// Some rows of `x` and a panel, and where their products go.
struct Tile {
    words: usize,
    x: *const u32,
    panel: *const u32,
    to: *mut f32,
    /// How far rows are apart there.
    stride: usize,
    rows: usize,
    columns: usize,
    before: Before,
}

impl Tile {
    /// Multiplies `R` rows, those of the tile and what lies behind them.
    ///
    /// # Safety
    /// The machine must have the instructions, and the pointers must be to what they say.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn multiply<const R: usize>(&self) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for word in 0..self.words {
            // SAFETY: the caller promises as many words of rows and columns.
            unsafe {
                let of_panel = self.panel.add(word * COLUMNS);
                let low = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(of_panel.cast()));
                let high = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(of_panel.add(16).cast()));
                #[expect(clippy::needless_range_loop, reason = "a row is a place in three arrays")]
                for row in 0..R {
                    let x = _mm512_set1_epi32(*self.x.add(word * ROWS + row).cast::<i32>());
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    sums[row][0] = _mm512_dpbf16_ps(sums[row][0], x, low);
                    sums[row][1] = _mm512_dpbf16_ps(sums[row][1], x, high);
                }
            }
        }
        let lanes = [first(self.columns), first(self.columns.saturating_sub(16))];
        // With a bound that is no constant, sums would be in memory from the start.
        for row in 0..R {
            for half in 0..2 {
                if row >= self.rows {
                    continue;
                }
                let to = self.to.wrapping_add(row * self.stride + 16 * half);
                // SAFETY: the lanes are part of the tile.
                unsafe {
                    let sums = match self.before {
                        Before::Forgotten => sums[row][half],
                        Before::Kept => _mm512_add_ps(_mm512_maskz_loadu_ps(lanes[half], to), sums[row][half]),
                    };
                    _mm512_mask_storeu_ps(to, lanes[half], sums);
                }
            }
        }
    }
}
