//! Exact products of 8-bit integers.
//!
//! Every path gives the same sums, and so the same bits. AVX-512 VNNI and AVX-VNNI multiply bytes from 0 to 255 with integers
//! (`vpdpbusd`): the weight is moved up by 128, and 128 times the sum of the other side is taken away in the end. AVX2 adds pairs of
//! such products in 16 bits and saturates (`vpmaddubsw`): there the weight's absolute values are multiplied with the other side,
//! which is given the weight's signs, and no pair is too large.
//!
//! A few rows are multiplied with rows of the weight as these lie. For more, some rows of the weight are first laid side by side, four
//! integers of each in turn (a *panel*): then a sum is a lane of a register from beginning to end, and lanes are not added up.

use std::sync::OnceLock;

/// Which instructions of the machine are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    Any,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Instructions {
    /// All that the machine has, the fastest last.
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Any];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            all.push(Self::Avx2);
            if is_x86_feature_detected!("avxvnni") {
                all.push(Self::AvxVnni);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                all.push(Self::Avx512Vnni);
            }
        }
        all
    }

    /// The fastest that the machine has.
    pub(super) fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| *Self::all().last().expect("one is there on every machine"))
    }

    /// What they are called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Any => "none",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => "AVX-VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "AVX-512 VNNI",
        }
    }

    /// Gives the dot products of `n` rows of `x` and `out` rows of `weight`, each of `width` integers, to `write(i, j, products)`:
    /// those of row `i` of `x` with a few rows of the weight from `j` on, rounded to the nearest float. `sums` are those of the
    /// integers of each row of `x`, none of which may be -128.
    pub(super) fn dots(
        self,
        [n, out, width]: [usize; 3],
        x: &[i8],
        sums: &[i32],
        weight: &[i8],
        mut write: impl FnMut(usize, usize, &[f32]),
    ) {
        assert_eq!([x.len(), weight.len()], [n * width, out * width], "as many integers as rows of {width} have");
        assert_eq!(sums.len(), n, "a sum for each row");
        #[cfg(target_arch = "x86_64")]
        if self.takes_panels(n, width) {
            // SAFETY: whoever takes panels has AVX2.
            return unsafe { self.panels([n, out, width], x, sums, weight, write) };
        }
        for first in (0..n).step_by(BLOCK) {
            let end = (first + BLOCK).min(n);
            for j in (0..out).step_by(COLUMNS) {
                let columns = (out - j).min(COLUMNS);
                // A tile at the edge computes its last column several times.
                let weight: [&[i8]; COLUMNS] =
                    std::array::from_fn(|column| &weight[(j + column.min(columns - 1)) * width..][..width]);
                let mut i = first;
                while i < end {
                    let rows = if end - i >= self.rows() { self.rows() } else { 1 << (end - i).ilog2() };
                    let row = |index: usize| &x[(i + index) * width..][..width];
                    let mut write = |products: &[[f32; COLUMNS]]| {
                        let each = products.iter().enumerate();
                        each.for_each(|(row, products)| write(i + row, j, &products[..columns]));
                    };
                    match rows {
                        4 => write(&self.tile::<4>(std::array::from_fn(row), weight)),
                        2 => write(&self.tile::<2>(std::array::from_fn(row), weight)),
                        _ => write(&self.tile([row(0)], weight)),
                    }
                    i += rows;
                }
            }
        }
    }

    /// Whether so many rows of this width are worth panels.
    #[cfg(target_arch = "x86_64")]
    fn takes_panels(self, n: usize, width: usize) -> bool {
        self != Self::Any && n >= PANELS_FROM && (GROUP..=MOST).contains(&width)
    }

    /// The products of all rows of `x` with one panel after the other.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn panels(
        self,
        [n, out, width]: [usize; 3],
        x: &[i8],
        sums: &[i32],
        weight: &[i8],
        mut write: impl FnMut(usize, usize, &[f32]),
    ) {
        /// Rows of `x` at once.
        const ROWS: usize = 8;
        let whole = width / GROUP * GROUP;
        let rest = |row: usize| &x[row * width + whole..(row + 1) * width];
        let of_rest = |row: usize| rest(row).iter().copied().map(i32::from).sum::<i32>();
        let sums: Vec<i32> = sums.iter().enumerate().map(|(row, sum)| sum - of_rest(row)).collect();
        let mut panel = vec![0; PANEL * whole];
        let (mut products, mut floats) = ([[0; PANEL]; ROWS], [0.0; PANEL]);
        for j in (0..out).step_by(PANEL) {
            let columns = (out - j).min(PANEL);
            let weight = &weight[j * width..(j + columns) * width];
            // SAFETY: there are some rows of the width, and there is room for `PANEL` of them.
            unsafe { avx2::arrange(weight, width, whole, if self == Self::Avx2 { 0 } else { -128 }, &mut panel) };
            let mut i = 0;
            while i < n {
                let rows = 1 << (n - i).ilog2().min(ROWS.ilog2());
                macro_rules! tile {
                    ($rows:literal) => {{
                        // Functions that take closures, such as `map`, are not compiled for AVX2, and are not inlined here.
                        let mut of_x: [&[i8]; $rows] = [&[]; $rows];
                        for row in 0..$rows {
                            of_x[row] = &x[(i + row) * width..][..whole];
                        }
                        let sums = sums[i..].first_chunk().expect("a sum for each row");
                        let to = products.first_chunk_mut().expect("no more rows than that");
                        // SAFETY: the machine has what the functions are compiled for; the panel has `PANEL` rows of the whole
                        // groups.
                        match self {
                            Self::Avx512Vnni => unsafe { avx512vnni::panel(of_x, sums, &panel, to) },
                            Self::AvxVnni => unsafe { avxvnni::panel(of_x, sums, &panel, to) },
                            _ => unsafe { avx2::panel(of_x, &panel, to) },
                        }
                    }};
                }
                match rows {
                    8 => tile!(8),
                    4 => tile!(4),
                    2 => tile!(2),
                    _ => tile!(1),
                }
                for (row, products) in products.iter_mut().enumerate().take(rows) {
                    if whole < width {
                        for (sum, weight) in products.iter_mut().zip(weight.chunks_exact(width)) {
                            *sum += dot(rest(i + row), &weight[whole..]);
                        }
                    }
                    for (float, sum) in floats.iter_mut().zip(&*products) {
                        *float = *sum as f32;
                    }
                    write(i + row, j, &floats[..columns]);
                }
                i += rows;
            }
        }
    }

    /// How many rows of `x` are multiplied at once: as many as there are registers for.
    fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => 4,
            _ => 2,
        }
    }

    fn tile<const N: usize>(self, x: [&[i8]; N], weight: [&[i8]; COLUMNS]) -> [[f32; COLUMNS]; N] {
        let width = x[0].len();
        if width <= MOST {
            return self.sums(x, weight).map(|sums| sums.map(|sum| sum as f32));
        }
        let mut totals = [[0i64; COLUMNS]; N];
        for start in (0..width).step_by(MOST) {
            let end = (start + MOST).min(width);
            let sums = self.sums(x.map(|x| &x[start..end]), weight.map(|weight| &weight[start..end]));
            for (total, sum) in totals.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                *total += i64::from(*sum);
            }
        }
        totals.map(|totals| totals.map(|total| total as f32))
    }

    /// The same of at most [`MOST`] terms.
    #[inline]
    fn sums<const N: usize>(self, x: [&[i8]; N], weight: [&[i8]; COLUMNS]) -> [[i32; COLUMNS]; N] {
        let whole = x[0].len() / GROUP * GROUP;
        let (x_whole, weight_whole) = (x.map(|x| &x[..whole]), weight.map(|weight| &weight[..whole]));
        let mut sums = match self {
            // SAFETY: the machine has what the functions are compiled for; all slices are whole groups of one length.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { avx512vnni::sums(x_whole, weight_whole) },
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => unsafe { avxvnni::sums(x_whole, weight_whole) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::sums(x_whole, weight_whole) },
            Self::Any => x_whole.map(|x| weight_whole.map(|weight| dot(x, weight))),
        };
        if whole < x[0].len() {
            for (sums, x) in sums.iter_mut().zip(x) {
                sums.iter_mut().zip(weight).for_each(|(sum, weight)| *sum += dot(&x[whole..], &weight[whole..]));
            }
        }
        sums
    }
}

/// Rows of `x` that are multiplied with all of a weight before the next are: they stay in cache.
const BLOCK: usize = 32;

/// Rows of a weight that are multiplied at once.
const COLUMNS: usize = 4;

/// Rows of `x` from which panels are worth arranging.
#[cfg(target_arch = "x86_64")]
const PANELS_FROM: usize = 4;

/// Rows of a weight in a panel.
#[cfg(target_arch = "x86_64")]
const PANEL: usize = 32;

/// Integers that are multiplied together.
const GROUP: usize = 64;

/// Terms of a sum of 32 bits.
const MOST: usize = 1 << 16;

fn dot(x: &[i8], y: &[i8]) -> i32 {
    x.iter().zip(y).map(|(x, y)| i32::from(*x) * i32::from(*y)).sum()
}

/// The sums of `x` with all rows of a panel, where `multiply(total, weight, x)` adds products of four integers in each lane. It is not
/// a function, since it must be compiled for what `multiply` is compiled for.
#[cfg(target_arch = "x86_64")]
macro_rules! panel_of_256_bits {
    ($x:ident, $panel:ident, $out:ident, $multiply:ident) => {{
        /// Rows of `x`, and registers of rows of the panel, at once: there are 16 registers.
        const ROWS: usize = 4;
        const EACH: usize = 2;
        for (out, x) in $out.chunks_mut(ROWS).zip($x.chunks(ROWS)) {
            for first in (0..PANEL).step_by(8 * EACH) {
                let mut totals = [[_mm256_setzero_si256(); EACH]; ROWS];
                for (place, of_panel) in $panel.chunks_exact(4 * PANEL).enumerate() {
                    let mut weights = [_mm256_setzero_si256(); EACH];
                    for index in 0..EACH {
                        // SAFETY: there are 128 integers.
                        weights[index] =
                            unsafe { _mm256_loadu_si256(of_panel.as_ptr().add(4 * first + 32 * index).cast()) };
                    }
                    for row in 0..ROWS.min(N) {
                        // SAFETY: a panel has as many fours as each `x`, of which there are a power of two.
                        let four = unsafe { x.get_unchecked(row).as_ptr().cast::<i32>().add(place).read_unaligned() };
                        let four = _mm256_set1_epi32(four);
                        for index in 0..EACH {
                            totals[row][index] = $multiply(totals[row][index], weights[index], four);
                        }
                    }
                }
                for (out, totals) in out.iter_mut().zip(totals) {
                    for (index, totals) in totals.into_iter().enumerate() {
                        // SAFETY: there is room for 8 sums.
                        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(first + 8 * index).cast(), totals) };
                    }
                }
            }
        }
    }};
}

#[cfg(target_arch = "x86_64")]
mod avx512vnni {
    use std::arch::x86_64::*;

    use super::{COLUMNS, GROUP, PANEL, fetch_ahead};

    /// The sums of `x` with all rows of a panel that were moved up; `sums` are those of each `x` alone.
    ///
    /// # Safety
    /// All of `x` must be as long as the first, whole groups, and `panel` as long as [`PANEL`] of them.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn panel<const N: usize>(
        x: [&[i8]; N],
        sums: &[i32; N],
        panel: &[i8],
        out: &mut [[i32; PANEL]; N],
    ) {
        let mut totals = [[_mm512_setzero_si512(); 2]; N];
        for (place, of_panel) in panel.chunks_exact(4 * PANEL).enumerate() {
            // SAFETY: there are 128 integers.
            let low = unsafe { _mm512_loadu_si512(of_panel.as_ptr().cast()) };
            // SAFETY: as above.
            let high = unsafe { _mm512_loadu_si512(of_panel.as_ptr().add(64).cast()) };
            for row in 0..N {
                // SAFETY: the panel has as many fours as `x`.
                let four = unsafe { x[row].as_ptr().cast::<i32>().add(place).read_unaligned() };
                let four = _mm512_set1_epi32(four);
                totals[row][0] = _mm512_dpbusd_epi32(totals[row][0], low, four);
                totals[row][1] = _mm512_dpbusd_epi32(totals[row][1], high, four);
            }
        }
        for row in 0..N {
            let moved = _mm512_set1_epi32(128 * sums[row]);
            for (half, total) in totals[row].into_iter().enumerate() {
                let sums = _mm512_sub_epi32(total, moved);
                // SAFETY: there is room for two times 16.
                unsafe { _mm512_storeu_si512(out[row].as_mut_ptr().add(16 * half).cast(), sums) };
            }
        }
    }

    /// # Safety
    /// All slices must be as long as the first, whole groups.
    #[target_feature(enable = "avx512f,avx512vnni,avx2")]
    pub(super) unsafe fn sums<const N: usize>(x: [&[i8]; N], weight: [&[i8]; COLUMNS]) -> [[i32; COLUMNS]; N] {
        let mut sums = [[_mm512_setzero_si512(); COLUMNS]; N];
        // What moving the weight up adds: each `x` times 128.
        let mut moved = [_mm512_setzero_si512(); N];
        let up = _mm512_set1_epi8(-128);
        for place in (0..x[0].len()).step_by(GROUP) {
            let mut of_weight = [up; COLUMNS];
            for column in 0..COLUMNS {
                fetch_ahead(weight[column], place);
                // SAFETY: the caller promises that 64 integers are there.
                let weight = unsafe { _mm512_loadu_si512(weight[column].as_ptr().add(place).cast()) };
                of_weight[column] = _mm512_xor_si512(weight, up);
            }
            for row in 0..N {
                // SAFETY: as above.
                let x = unsafe { _mm512_loadu_si512(x[row].as_ptr().add(place).cast()) };
                moved[row] = _mm512_dpbusd_epi32(moved[row], up, x);
                for column in 0..COLUMNS {
                    sums[row][column] = _mm512_dpbusd_epi32(sums[row][column], of_weight[column], x);
                }
            }
        }
        let mut totals = [[0; COLUMNS]; N];
        for row in 0..N {
            let mut halves = [_mm256_setzero_si256(); COLUMNS];
            for column in 0..COLUMNS {
                let sums = _mm512_sub_epi32(sums[row][column], moved[row]);
                let (low, high) = (_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums));
                halves[column] = _mm256_add_epi32(low, high);
            }
            totals[row] = super::avx2::totals(halves);
        }
        totals
    }
}

#[cfg(target_arch = "x86_64")]
mod avxvnni {
    use std::arch::x86_64::*;

    use super::{COLUMNS, PANEL, fetch_ahead};

    /// The sums of `x` with all rows of a panel that were moved up; `sums` are those of each `x` alone.
    ///
    /// # Safety
    /// All of `x` must be as long as the first, whole groups, and `panel` as long as [`PANEL`] of them.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn panel<const N: usize>(
        x: [&[i8]; N],
        sums: &[i32; N],
        panel: &[i8],
        out: &mut [[i32; PANEL]; N],
    ) {
        panel_of_256_bits!(x, panel, out, _mm256_dpbusd_avx_epi32);
        for (row, totals) in out.iter_mut().enumerate() {
            totals.iter_mut().for_each(|total| *total -= 128 * sums[row]);
        }
    }

    /// # Safety
    /// All slices must be as long as the first, whole groups.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn sums<const N: usize>(x: [&[i8]; N], weight: [&[i8]; COLUMNS]) -> [[i32; COLUMNS]; N] {
        let mut sums = [[_mm256_setzero_si256(); COLUMNS]; N];
        let mut moved = [_mm256_setzero_si256(); N];
        let up = _mm256_set1_epi8(-128);
        for place in (0..x[0].len()).step_by(32) {
            let mut of_x = [up; N];
            for row in 0..N {
                // SAFETY: the caller promises that 32 integers are there.
                of_x[row] = unsafe { _mm256_loadu_si256(x[row].as_ptr().add(place).cast()) };
                moved[row] = _mm256_dpbusd_avx_epi32(moved[row], up, of_x[row]);
            }
            for column in 0..COLUMNS {
                fetch_ahead(weight[column], place);
                // SAFETY: as above.
                let weight = unsafe { _mm256_loadu_si256(weight[column].as_ptr().add(place).cast()) };
                let weight = _mm256_xor_si256(weight, up);
                for row in 0..N {
                    sums[row][column] = _mm256_dpbusd_avx_epi32(sums[row][column], weight, of_x[row]);
                }
            }
        }
        let mut totals = [[0; COLUMNS]; N];
        for row in 0..N {
            totals[row] = super::avx2::totals(sums[row].map(|sum| _mm256_sub_epi32(sum, moved[row])));
        }
        totals
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{COLUMNS, GROUP, PANEL, fetch_ahead};

    /// Writes rows of a weight, of the first `whole` integers of each, to a panel: the first four of each row, then the next four.
    /// `flip` is -128 where they are to be moved up. Behind the last row there are copies of it.
    ///
    /// # Safety
    /// `weight` must be rows of this width, one at least, `whole` whole groups within it, and `panel` as long as [`PANEL`] of them.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn arrange(weight: &[i8], width: usize, whole: usize, flip: i8, panel: &mut [i8]) {
        const ROWS: usize = 8;
        let (last, flip) = (weight.len() / width - 1, _mm256_set1_epi8(flip));
        for first in (0..PANEL).step_by(ROWS) {
            let rows: [*const i8; ROWS] = std::array::from_fn(|row| {
                // SAFETY: the row is in the weight.
                unsafe { weight.as_ptr().add((first + row).min(last) * width) }
            });
            for place in (0..whole).step_by(32) {
                let mut fours = [flip; ROWS];
                for row in 0..ROWS {
                    if place.is_multiple_of(GROUP) {
                        // The same rows of the next panel.
                        _mm_prefetch::<_MM_HINT_T1>(rows[row].wrapping_add(PANEL * width + place));
                    }
                    // SAFETY: 32 integers from `place` on are in the row.
                    let of_row = unsafe { _mm256_loadu_si256(rows[row].add(place).cast()) };
                    fours[row] = _mm256_xor_si256(of_row, flip);
                }
                for (index, fours) in turned(fours).into_iter().enumerate() {
                    // SAFETY: the panel has room for the fours of all rows up to `whole`.
                    let to = unsafe { panel.as_mut_ptr().add((place / 4 + index) * 4 * PANEL + 4 * first) };
                    // SAFETY: as above.
                    unsafe { _mm256_storeu_si256(to.cast(), fours) };
                }
            }
        }
    }

    /// Eight times eight words, rows for columns.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn turned([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> [__m256i; 8] {
        let pairs = |x, y| (_mm256_unpacklo_epi32(x, y), _mm256_unpackhi_epi32(x, y));
        let fours = |(low, high), (other_low, other_high)| {
            let [first, second] = [_mm256_unpacklo_epi64(low, other_low), _mm256_unpackhi_epi64(low, other_low)];
            [first, second, _mm256_unpacklo_epi64(high, other_high), _mm256_unpackhi_epi64(high, other_high)]
        };
        let (upper, lower) = (fours(pairs(a, b), pairs(c, d)), fours(pairs(e, f), pairs(g, h)));
        std::array::from_fn(|column| match column {
            0..4 => _mm256_permute2x128_si256::<0x20>(upper[column], lower[column]),
            _ => _mm256_permute2x128_si256::<0x31>(upper[column - 4], lower[column - 4]),
        })
    }

    /// The sums of `x` with all rows of a panel.
    ///
    /// # Safety
    /// All of `x` must be as long as the first, whole groups, and `panel` as long as [`PANEL`] of them.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn panel<const N: usize>(x: [&[i8]; N], panel: &[i8], out: &mut [[i32; PANEL]; N]) {
        let ones = _mm256_set1_epi16(1);
        let multiply = |total, weight, x| {
            // Of at most 2 * 128 * 127.
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(x, weight));
            _mm256_add_epi32(total, _mm256_madd_epi16(pairs, ones))
        };
        panel_of_256_bits!(x, panel, out, multiply);
    }

    /// The sums of the lanes of each.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn totals([a, b, c, d]: [__m256i; COLUMNS]) -> [i32; COLUMNS] {
        let both = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        let sums = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
        let mut totals = [0; COLUMNS];
        // SAFETY: there is room for the lanes.
        unsafe { _mm_storeu_si128(totals.as_mut_ptr().cast(), sums) };
        totals
    }

    /// # Safety
    /// All slices must be as long as the first, whole groups.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn sums<const N: usize>(x: [&[i8]; N], weight: [&[i8]; COLUMNS]) -> [[i32; COLUMNS]; N] {
        let mut sums = [[_mm256_setzero_si256(); COLUMNS]; N];
        let ones = _mm256_set1_epi16(1);
        for place in (0..x[0].len()).step_by(32) {
            let mut of_x = [ones; N];
            for row in 0..N {
                // SAFETY: the caller promises that 32 integers are there.
                of_x[row] = unsafe { _mm256_loadu_si256(x[row].as_ptr().add(place).cast()) };
            }
            for column in 0..COLUMNS {
                fetch_ahead(weight[column], place);
                // SAFETY: as above.
                let weight = unsafe { _mm256_loadu_si256(weight[column].as_ptr().add(place).cast()) };
                let size = _mm256_abs_epi8(weight);
                for row in 0..N {
                    // Of at most 2 * 128 * 127.
                    let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(of_x[row], weight));
                    sums[row][column] = _mm256_add_epi32(sums[row][column], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        let mut totals = [[0; COLUMNS]; N];
        for row in 0..N {
            totals[row] = self::totals(sums[row]);
        }
        totals
    }
}

/// Asks for what is read a while later, into the second cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fetch_ahead(integers: &[i8], place: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: any address may be asked for: only caches change.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(integers.as_ptr().wrapping_add(place + AHEAD).cast()) };
}

/// How far ahead of what is multiplied a weight is asked for, in bytes.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// Integers of all sizes; -128 only where that is allowed.
    fn integers(count: usize, seed: u32, least: i8) -> Vec<i8> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as u8 as i8).max(least)
        };
        (0..count).map(next).collect()
    }

    fn assert_exact([n, out, width]: [usize; 3], x: &[i8], weight: &[i8]) {
        let row = |row: usize| x[row * width..(row + 1) * width].iter().map(|x| i32::from(*x)).sum();
        let sums: Vec<i32> = (0..n).map(row).collect();
        for instructions in Instructions::all() {
            let mut found = vec![f32::NAN; n * out];
            instructions.dots([n, out, width], x, &sums, weight, |i, j, products| {
                found[i * out + j..][..products.len()].copy_from_slice(products);
            });
            for (place, found) in found.iter().enumerate() {
                let (x, weight) = (&x[place / out * width..][..width], &weight[place % out * width..][..width]);
                let exact: i64 = x.iter().zip(weight).map(|(x, y)| i64::from(*x) * i64::from(*y)).sum();
                assert_eq!(*found, exact as f32, "{instructions:?}, {n} x {out} x {width} at {place}");
            }
        }
    }

    #[test]
    fn all_machines_give_the_exact_products() {
        for shape in [
            [1, 1, 1],
            [1, 5, 64],
            [2, 4, 63],
            [3, 9, 70],
            [4, 3, 0],
            [7, 6, 192],
            [33, 11, 130],
            [15, 70, 128],
            [2, 3, 70_000],
        ] {
            let [n, out, width] = shape;
            assert_exact(shape, &integers(n * width, 1, -127), &integers(out * width, 2, -128));
        }
    }

    /// The largest sums that there are: nothing saturates, and nothing overflows.
    #[test]
    fn the_largest_integers_do_not_overflow() {
        for width in [64, 256, 3 * MOST] {
            for x in [127, -127] {
                for weight in [127, -128] {
                    assert_exact([3, 5, width], &vec![x; 3 * width], &vec![weight; 5 * width]);
                }
            }
        }
    }
}
