//! Products with packed weights on the CPU.
//!
//! Codes are unpacked tile by tile on the way into a product; nothing dense is kept. For a few rows of `x` they are
//! multiplied as they are looked up. All that is summed in floats is summed in an order that follows from shapes alone.

use std::ops::Range;

use rayon::prelude::*;
use sideburn_quant::{FourBit, Int8Rows};

use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::simd::{dots, vector_fn, vectorized};
use super::{Primitive, values};
use crate::ops::packed::{Kind, PackedMatrix, Scales};
use crate::runtime::memory::Buffer;

/// Rows of `x` up to which each row of a weight is multiplied on its own, while its codes are looked up.
const FEW: usize = 16;

/// Values of a weight that are unpacked at once, 16 MiB: for each tile, a product packs `x` again.
const TILE: usize = 1 << 22;

/// Values of a weight that a task multiplies with a few rows.
const FEW_TASK: usize = 1 << 17;

/// Values that are looked up together: as many lie in one block, if rows are multiples of them.
const GROUP: usize = 32;

/// A packed weight `[out, in]` in memory.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    shape: [usize; 2],
    codes: Codes<'a>,
    /// From which size on an input is an outlier, if inputs are quantised, too.
    threshold: Option<f32>,
    instructions: Instructions,
}

#[derive(Clone, Copy)]
enum Codes<'a> {
    FourBit { bytes: &'a [u8], table: &'static [f32; 16], block_size: usize, absmax: Absmax<'a> },
    Int8 { integers: &'a [i8], scb: &'a [f32] },
}

#[derive(Clone, Copy)]
enum Absmax<'a> {
    Floats(&'a [f32]),
    Nested { codes: &'a [u8], absmax: &'a [f32], map: &'a [f32], offset: f32 },
}

impl Absmax<'_> {
    /// Those of these blocks.
    fn write(&self, blocks: Range<usize>, to: &mut Vec<f32>) {
        to.clear();
        match self {
            Self::Floats(floats) => to.extend_from_slice(&floats[blocks]),
            Self::Nested { codes, absmax, map, offset } => to.extend(
                blocks
                    .map(|block| map[usize::from(codes[block])] * absmax[block / FourBit::NESTED_BLOCK_SIZE] + offset),
            ),
        }
    }
}

/// Which instructions of the machine are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    Any,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Instructions {
    /// The widest that the machine has.
    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                return Self::Avx512;
            }
            if super::simd::has_avx2() {
                return Self::Avx2;
            }
        }
        Self::Any
    }
}

impl<'a> Packed<'a> {
    /// A packed weight whose tensors are those of the CPU.
    pub(super) fn new(packed: &'a PackedMatrix<Primitive, Primitive>) -> Self {
        let bytes = |x: &'a Primitive| x.as_slice::<u8>().expect("codes are contiguous bytes");
        let (codes, threshold) = match packed.form.kind {
            Kind::FourBit { quant_type, block_size } => {
                let absmax = match &packed.scales {
                    Scales::Floats(absmax) => Absmax::Floats(values(absmax)),
                    Scales::Nested { codes, absmax, map, offset } => {
                        let (absmax, map) = (values(absmax), values(map));
                        Absmax::Nested { codes: bytes(codes), absmax, map, offset: *offset }
                    }
                };
                let table = quant_type.code();
                (Codes::FourBit { bytes: bytes(&packed.codes), table, block_size, absmax }, None)
            }
            Kind::Int8 { threshold } => {
                let Scales::Floats(scb) = &packed.scales else { unreachable!("rows have scales in floats") };
                let integers = packed.codes.as_slice::<i8>().expect("codes are contiguous integers");
                (Codes::Int8 { integers, scb: values(scb) }, threshold)
            }
        };
        Self { shape: packed.form.shape, codes, threshold, instructions: Instructions::best() }
    }

    /// Whether groups of codes begin at whole bytes and end within a block.
    fn is_grouped(&self) -> bool {
        self.shape[1].is_multiple_of(GROUP)
    }

    /// Writes the values of some rows and columns, one row after the other. The columns must begin and end at groups, or be
    /// all.
    fn unpack(&self, rows: Range<usize>, columns: Range<usize>, to: &mut [f32]) {
        const ROWS: usize = 32;
        to.par_chunks_mut((ROWS * columns.len()).max(1)).enumerate().for_each(|(index, to)| {
            let first = rows.start + index * ROWS;
            self.unpack_rows(first..(first + ROWS).min(rows.end), columns.clone(), to);
        });
    }

    /// The same on this thread.
    fn unpack_rows(&self, rows: Range<usize>, columns: Range<usize>, to: &mut [f32]) {
        let (width, mut scales) = (columns.len(), Vec::new());
        for (row, to) in rows.zip(to.chunks_exact_mut(width.max(1))) {
            let start = row * self.shape[1] + columns.start;
            match self.codes {
                Codes::FourBit { bytes, table, block_size, absmax } => {
                    absmax.write(start / block_size..(start + width).div_ceil(block_size), &mut scales);
                    let segment = Segment { bytes, start, table, scales: &scales, block_size };
                    match self.instructions {
                        // SAFETY: the machine has what the functions are compiled for, and segments of whole groups lie
                        // in `bytes`.
                        #[cfg(target_arch = "x86_64")]
                        Instructions::Avx512 if self.is_grouped() => unsafe { avx512::unpack(&segment, to) },
                        #[cfg(target_arch = "x86_64")]
                        Instructions::Avx2 if self.is_grouped() => unsafe { avx2::unpack(&segment, to) },
                        _ => segment.unpack(to),
                    }
                }
                Codes::Int8 { integers, scb } => scaled(to, &integers[start..start + width], scb[row] * (1.0 / 127.0)),
            }
        }
    }
}

/// 4-bit codes of a part of a row.
struct Segment<'a> {
    /// Of the whole matrix.
    bytes: &'a [u8],
    /// Where the part begins, in codes.
    start: usize,
    table: &'static [f32; 16],
    /// Of the blocks that the part lies in.
    scales: &'a [f32],
    block_size: usize,
}

impl Segment<'_> {
    fn unpack(&self, to: &mut [f32]) {
        let first = self.start / self.block_size;
        for (index, to) in to.iter_mut().enumerate() {
            let place = self.start + index;
            let byte = self.bytes[place / 2];
            let code = if place.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            *to = self.table[usize::from(code)] * self.scales[place / self.block_size - first];
        }
    }

    /// The parts of the first `width` codes that lie in one block: where each begins and ends, and its scale.
    #[inline(always)]
    fn runs(&self, width: usize) -> impl Iterator<Item = (usize, usize, f32)> {
        let Self { start, scales, block_size, .. } = *self;
        let before = start % block_size;
        scales.iter().enumerate().map_while(move |(block, scale)| {
            let begin = (block * block_size).saturating_sub(before);
            let end = ((block + 1) * block_size - before).min(width);
            (begin < end).then_some((begin, end, *scale))
        })
    }
}

vector_fn! {
    fn scaled(to: &mut [f32], integers: &[i8], scale: f32) {
        to.iter_mut().zip(integers).for_each(|(to, integer)| *to = f32::from(*integer) * scale);
    }
}

vector_fn! {
    /// Adds four rows, each times a factor.
    fn add_four(to: &mut [f32], rows: [&[f32]; 4], factors: [f32; 4]) {
        let [a, b, c, d] = rows;
        for ((((to, a), b), c), d) in to.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *to += (a * factors[0] + b * factors[1]) + (c * factors[2] + d * factors[3]);
        }
    }
}

/// Writes `x W^T` to these columns of `y`, which are the caller's alone.
pub(super) fn forward(y: Parts<'_>, columns: Range<usize>, x: Mat<'_>, weight: &Packed<'_>) {
    let ([n, input], [out, _]) = (x.shape(), weight.shape);
    if n == 0 || out == 0 {
        return;
    }
    let rounded = weight.threshold.map(|threshold| Rounded::new(x, threshold, weight));
    // SAFETY: each tile has its own columns.
    let part = |rows: &Range<usize>| unsafe { y.part(0..n, columns.start + rows.start..columns.start + rows.end) };
    if n > FEW {
        for rows in tiles(out, tile_rows(TILE, input)) {
            let (mut dense, mut y) = (Buffer::new(rows.len() * input), part(&rows));
            match &rounded {
                None => {
                    weight.unpack(rows.clone(), 0..input, &mut dense);
                    let tile = Mat::new(&dense, rows.len(), input);
                    product(y, x, tile.t(), 1.0, Before::Forgotten, Workers::All);
                }
                Some(rounded) => {
                    rounded.unpack(rows.clone(), &mut dense);
                    let tile = Mat::new(&dense, rows.len(), input);
                    let floats = Mat::new(&rounded.floats, n, input);
                    product(y.by_ref(), floats, tile.t(), 1.0, Before::Forgotten, Workers::All);
                    rounded.finish(&mut y, rows);
                }
            }
        }
        return;
    }
    let arranged = (rounded.is_none() && weight.is_grouped()).then(|| weight.arranged(x));
    tiles(out, tile_rows(FEW_TASK, input)).into_par_iter().with_max_len(1).for_each(|rows| {
        let mut y = part(&rows);
        match (&rounded, &arranged) {
            (Some(rounded), _) => rounded.few_rows(&mut y, rows),
            (None, Some(arranged)) => weight.few_rows(&mut y, Mat::new(arranged, n, input), rows),
            (None, None) => {
                let mut dense = Buffer::new(input);
                for (index, row) in rows.enumerate() {
                    weight.unpack_rows(row..row + 1, 0..input, &mut dense);
                    for i in 0..n {
                        y.row(i)[index] = dots([x.row(i)], &dense)[0];
                    }
                }
            }
        }
    });
}

/// Writes `dY W` to `of_x`, or adds it.
pub(super) fn backward(of_x: &mut [f32], gradient: Mat<'_>, weight: &Packed<'_>, before: Before) {
    let ([n, _], [out, input]) = (gradient.shape(), weight.shape);
    if before == Before::Forgotten && (n <= FEW || out == 0) {
        of_x.fill(0.0);
    }
    let of_x = Parts::new(of_x, n, input);
    // Columns in whole groups, or all.
    let strip = |most: usize| if weight.is_grouped() { most.max(GROUP) / GROUP * GROUP } else { input.max(1) };
    // SAFETY: each strip has its own columns.
    let part = |columns: &Range<usize>| unsafe { of_x.part(0..n, columns.clone()) };
    if n > FEW {
        for columns in tiles(input, strip((TILE / out.max(1)).min(1024))) {
            let rows = tile_rows(TILE, columns.len());
            let mut dense = Buffer::new(rows.min(out) * columns.len());
            let (mut of_x, mut before) = (part(&columns), before);
            for rows in tiles(out, rows) {
                let tile = &mut dense[..rows.len() * columns.len()];
                weight.unpack(rows.clone(), columns.clone(), tile);
                let tile = Mat::new(tile, rows.len(), columns.len());
                product(of_x.by_ref(), gradient.columns(rows), tile, 1.0, before, Workers::All);
                before = Before::Kept;
            }
        }
        return;
    }
    tiles(input, strip(512)).into_par_iter().with_max_len(1).for_each(|columns| {
        let (width, mut of_x) = (columns.len(), part(&columns));
        let mut dense = Buffer::new(4 * width);
        for rows in tiles(out, 4) {
            weight.unpack_rows(rows.clone(), columns.clone(), &mut dense[..rows.len() * width]);
            let of_tile: [&[f32]; 4] = std::array::from_fn(|row| &dense[row.min(rows.len() - 1) * width..][..width]);
            for row in 0..n {
                let gradient = &gradient.row(row)[rows.clone()];
                let factors = std::array::from_fn(|row| gradient.get(row).copied().unwrap_or(0.0));
                add_four(of_x.row(row), of_tile, factors);
            }
        }
    });
}

/// How many rows of this width make about so many values; a multiple of 16.
fn tile_rows(values: usize, width: usize) -> usize {
    (values / width.max(1)).next_multiple_of(16).max(16)
}

/// Parts of a range of this length, the last of which may be short.
fn tiles(length: usize, size: usize) -> Vec<Range<usize>> {
    (0..length).step_by(size).map(|start| start..(start + size).min(length)).collect()
}

impl Packed<'_> {
    /// The rows of `x` in the order in which codes are looked up: of each group of 4-bit codes those in the upper halves of
    /// their bytes before those in the lower.
    fn arranged(&self, x: Mat<'_>) -> Buffer {
        let [n, input] = x.shape();
        let mut arranged = Buffer::new(n * input);
        for (row, to) in arranged.chunks_exact_mut(input.max(1)).enumerate() {
            let x = x.row(row);
            match self.codes {
                Codes::Int8 { .. } => to.copy_from_slice(x),
                Codes::FourBit { .. } => {
                    for (to, x) in to.as_chunks_mut::<GROUP>().0.iter_mut().zip(x.as_chunks::<GROUP>().0) {
                        for (index, pair) in x.as_chunks::<2>().0.iter().enumerate() {
                            [to[index], to[GROUP / 2 + index]] = *pair;
                        }
                    }
                }
            }
        }
        arranged
    }

    /// `y[i][j]` is the dot product of row `i` of `x`, arranged, and row `rows.start + j`.
    fn few_rows(&self, y: &mut MatMut<'_>, x: Mat<'_>, rows: Range<usize>) {
        let (n, mut scales) = (x.shape()[0], Vec::new());
        for (index, row) in rows.enumerate() {
            let mut first = 0;
            if let Codes::FourBit { block_size, absmax, .. } = self.codes {
                let start = row * self.shape[1];
                absmax.write(start / block_size..(start + self.shape[1]).div_ceil(block_size), &mut scales);
            }
            while first < n {
                let width = self.width(n - first);
                let mut write = |products: &[f32]| {
                    products.iter().enumerate().for_each(|(i, product)| y.row(first + i)[index] = *product);
                };
                match width {
                    8 => write(&self.dots(std::array::from_fn::<_, 8, _>(|i| x.row(first + i)), row, &scales)),
                    4 => write(&self.dots(std::array::from_fn::<_, 4, _>(|i| x.row(first + i)), row, &scales)),
                    2 => write(&self.dots(std::array::from_fn::<_, 2, _>(|i| x.row(first + i)), row, &scales)),
                    _ => write(&self.dots([x.row(first)], row, &scales)),
                }
                first += width;
            }
        }
    }

    /// How many rows of `x` are multiplied at once, of so many.
    fn width(&self, rows: usize) -> usize {
        let most = match self.instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => 8,
            _ => 4,
        };
        if rows >= most { most } else { 1 << rows.ilog2() }
    }

    /// Dot products with a row, whose length is a multiple of [`GROUP`].
    fn dots<const N: usize>(&self, x: [&[f32]; N], row: usize, scales: &[f32]) -> [f32; N] {
        let (width, start) = (self.shape[1], row * self.shape[1]);
        assert!(width.is_multiple_of(GROUP) && x.iter().all(|x| x.len() == width), "rows of one length, in groups");
        match self.codes {
            Codes::FourBit { bytes, table, block_size, .. } => {
                assert!((start + width) / 2 <= bytes.len(), "the row lies in the matrix");
                let segment = Segment { bytes, start, table, scales, block_size };
                match self.instructions {
                    // SAFETY: the machine has what the functions are compiled for; slices are as long as they must be.
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => unsafe { avx512::dots_of_codes(x, &segment) },
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => unsafe { avx2::dots_of_codes(x, &segment) },
                    Instructions::Any => dots_of_codes(x, &segment),
                }
            }
            Codes::Int8 { integers, scb } => {
                let integers = &integers[start..start + width];
                let sums = match self.instructions {
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => unsafe { avx512::dots_of_integers(x, integers) },
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => unsafe { avx2::dots_of_integers(x, integers) },
                    Instructions::Any => {
                        x.map(|x| x.iter().zip(integers).map(|(x, integer)| x * f32::from(*integer)).sum())
                    }
                };
                sums.map(|sum: f32| sum * (scb[row] * (1.0 / 127.0)))
            }
        }
    }
}

/// Dot products of arranged rows with codes.
fn dots_of_codes<const N: usize>(x: [&[f32]; N], segment: &Segment<'_>) -> [f32; N] {
    let width = x[0].len();
    let mut sums = [0.0; N];
    for (begin, end, scale) in segment.runs(width) {
        let mut run = [0.0; N];
        for group in (begin..end).step_by(GROUP) {
            let bytes = &segment.bytes[(segment.start + group) / 2..][..GROUP / 2];
            for (sum, x) in run.iter_mut().zip(x) {
                let (upper, lower) = x[group..group + GROUP].split_at(GROUP / 2);
                for ((byte, upper), lower) in bytes.iter().zip(upper).zip(lower) {
                    *sum += segment.table[usize::from(byte >> 4)] * upper;
                    *sum += segment.table[usize::from(byte & 15)] * lower;
                }
            }
        }
        sums.iter_mut().zip(run).for_each(|(sum, run)| *sum += run * scale);
    }
    sums
}

/// What LLM.int8() makes of `x`: integers, and the columns with outliers as they are.
struct Rounded<'a> {
    rows: Int8Rows,
    /// The integers of more than a few rows as floats.
    floats: Vec<f32>,
    /// `[n, outliers]`.
    outliers: Vec<f32>,
    integers: &'a [i8],
    scb: &'a [f32],
    instructions: Instructions,
}

impl<'a> Rounded<'a> {
    fn new(x: Mat<'_>, threshold: f32, weight: &Packed<'a>) -> Self {
        let Codes::Int8 { integers, scb } = weight.codes else { unreachable!("integers alone have a threshold") };
        let [n, input] = x.shape();
        let rows = Int8Rows::quantize(x.row_major(), input, threshold);
        let outliers = (0..n).flat_map(|row| rows.outlier_columns.iter().map(move |column| x.row(row)[*column]));
        let outliers = outliers.collect();
        let floats = if n > FEW { rows.codes.iter().map(|code| f32::from(*code)).collect() } else { Vec::new() };
        Self { rows, floats, outliers, integers, scb, instructions: weight.instructions }
    }

    fn input(&self) -> usize {
        self.integers.len() / self.scb.len().max(1)
    }

    /// The integers of some rows as floats.
    fn unpack(&self, rows: Range<usize>, to: &mut [f32]) {
        const TASK: usize = 1 << 16;
        let integers = &self.integers[rows.start * self.input()..rows.end * self.input()];
        to.par_chunks_mut(TASK).zip(integers.par_chunks(TASK)).for_each(|(to, integers)| scaled(to, integers, 1.0));
    }

    /// From sums of integers to products, in these columns of all rows.
    fn finish(&self, y: &mut MatMut<'_>, columns: Range<usize>) {
        const SCALE: f32 = 1.0 / (127.0 * 127.0);
        for (row, absmax) in self.rows.absmax.iter().enumerate() {
            let scb = &self.scb[columns.clone()];
            vectorized(|| y.row(row).iter_mut().zip(scb).for_each(|(y, scb)| *y = *y * (absmax * scb) * SCALE));
        }
        let count = self.rows.outlier_columns.len();
        if count == 0 {
            return;
        }
        let input = self.input();
        let mut dense = Buffer::new(columns.len() * count);
        for (row, to) in columns.clone().zip(dense.chunks_exact_mut(count)) {
            let (integers, scale) = (&self.integers[row * input..(row + 1) * input], self.scb[row] * (1.0 / 127.0));
            for (to, column) in to.iter_mut().zip(&self.rows.outlier_columns) {
                *to = f32::from(integers[*column]) * scale;
            }
        }
        let (n, dense) = (self.rows.absmax.len(), Mat::new(&dense, columns.len(), count));
        product(y.by_ref(), Mat::new(&self.outliers, n, count), dense.t(), 1.0, Before::Kept, Workers::One);
    }

    fn few_rows(&self, y: &mut MatMut<'_>, rows: Range<usize>) {
        let (n, input) = (self.rows.absmax.len(), self.input());
        for (index, row) in rows.clone().enumerate() {
            let weight = &self.integers[row * input..(row + 1) * input];
            for i in 0..n {
                let x = &self.rows.codes[i * input..(i + 1) * input];
                let sum = match self.instructions {
                    // SAFETY: the machine has what the functions are compiled for.
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => unsafe { avx512::integer_dot(x, weight) },
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => unsafe { avx2::integer_dot(x, weight) },
                    Instructions::Any => integer_dot(x, weight),
                };
                y.row(i)[index] = sum as f32;
            }
        }
        self.finish(y, rows);
    }
}

fn integer_dot(x: &[i8], y: &[i8]) -> i64 {
    x.iter().zip(y).map(|(x, y)| i64::from(i32::from(*x) * i32::from(*y))).sum()
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

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

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn integer_dot(x: &[i8], y: &[i8]) -> i64 {
        let (x_groups, x_rest) = x.as_chunks::<32>();
        let (y_groups, y_rest) = y.as_chunks::<32>();
        let mut sums = _mm512_setzero_si512();
        for (x, y) in x_groups.iter().zip(y_groups) {
            // SAFETY: 32 integers are there.
            let (x, y) = unsafe { (_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(y.as_ptr().cast())) };
            let (x, y) = (_mm512_cvtepi8_epi16(x), _mm512_cvtepi8_epi16(y));
            sums = _mm512_add_epi32(sums, _mm512_madd_epi16(x, y));
        }
        let mut lanes = [0i32; 16];
        // SAFETY: there is room for the lanes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sums) };
        lanes.iter().map(|lane| i64::from(*lane)).sum::<i64>() + super::integer_dot(x_rest, y_rest)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

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

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn integer_dot(x: &[i8], y: &[i8]) -> i64 {
        let (x_groups, x_rest) = x.as_chunks::<16>();
        let (y_groups, y_rest) = y.as_chunks::<16>();
        let mut sums = _mm256_setzero_si256();
        for (x, y) in x_groups.iter().zip(y_groups) {
            // SAFETY: sixteen integers are there.
            let (x, y) = unsafe { (_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(y.as_ptr().cast())) };
            let (x, y) = (_mm256_cvtepi8_epi16(x), _mm256_cvtepi8_epi16(y));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(x, y));
        }
        let mut lanes = [0i32; 8];
        // SAFETY: there is room for the lanes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
        lanes.iter().map(|lane| i64::from(*lane)).sum::<i64>() + super::integer_dot(x_rest, y_rest)
    }
}

#[cfg(test)]
mod tests {
    use sideburn_quant::{Absmax as Scale, Packed as Quantized, QuantType, Quantization};

    use super::*;

    /// The machine's instructions and all that are narrower.
    fn instructions() -> Vec<Instructions> {
        #[cfg(target_arch = "x86_64")]
        let all = [Instructions::Any, Instructions::Avx2, Instructions::Avx512];
        #[cfg(not(target_arch = "x86_64"))]
        let all = [Instructions::Any];
        let best = all.iter().position(|one| *one == Instructions::best()).unwrap();
        all[..=best].to_vec()
    }

    fn numbers(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * step).sin() * (1.0 + (index % 7) as f32)).collect()
    }

    /// All machines give the same products, with every kind of weight, shape and number of rows.
    #[test]
    fn narrower_machines_give_the_same() {
        let four_bit =
            |quant_type, block_size, double_quant| Quantization::FourBit { quant_type, block_size, double_quant };
        for quantization in [
            four_bit(QuantType::Nf4, 64, true),
            four_bit(QuantType::Fp4, 32, false),
            four_bit(QuantType::Nf4, 128, true),
            Quantization::INT8,
        ] {
            for ([out, input], n) in
                [([40, 96], 1), ([33, 160], 7), ([20, 64], 16), ([50, 96], 17), ([9, 13], 3), ([9, 13], 20)]
            {
                let weight = numbers(out * input, 0.37);
                let quantized = Quantized::quantize("w", &weight, [out, input], quantization).unwrap();
                let (x, gradient) = (numbers(n * input, 0.71), numbers(n * out, 0.13));
                let dense = quantized.dequantize();
                for instructions in instructions() {
                    let packed = in_memory(&quantized, instructions);
                    let mut y = vec![f32::NAN; n * out];
                    forward(Parts::new(&mut y, n, out), 0..out, Mat::new(&x, n, input), &packed);
                    let mut expected = vec![0.0; n * out];
                    let whole = Mat::new(&dense, out, input);
                    let to = MatMut::new(&mut expected, n, out);
                    product(to, Mat::new(&x, n, input), whole.t(), 1.0, Before::Forgotten, Workers::One);
                    assert_near(&y, &expected, (quantization, instructions, out, input, n));

                    let (mut of_x, mut expected) = (vec![2.0; n * input], vec![2.0; n * input]);
                    backward(&mut of_x, Mat::new(&gradient, n, out), &packed, Before::Kept);
                    let to = MatMut::new(&mut expected, n, input);
                    product(to, Mat::new(&gradient, n, out), whole, 1.0, Before::Kept, Workers::One);
                    assert_near(&of_x, &expected, (quantization, instructions, out, input, n));
                }
            }
        }
    }

    /// The sums of integers are exact, and so all machines give the same bits.
    #[test]
    fn rounded_inputs_give_the_same_bits() {
        for ([out, input], n) in [([40, 96], 1), ([33, 45], 5), ([50, 96], 17)] {
            let weight = numbers(out * input, 0.37);
            let quantized = Quantized::quantize("w", &weight, [out, input], Quantization::INT8).unwrap();
            let x = numbers(n * input, 0.71);
            let results: Vec<Vec<u32>> = instructions()
                .into_iter()
                .map(|instructions| {
                    let packed = Packed { threshold: Some(6.0), ..in_memory(&quantized, instructions) };
                    let mut y = vec![f32::NAN; n * out];
                    forward(Parts::new(&mut y, n, out), 0..out, Mat::new(&x, n, input), &packed);
                    y.into_iter().map(f32::to_bits).collect()
                })
                .collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{out} x {input}, {n} rows");
        }
    }

    fn in_memory(quantized: &Quantized, instructions: Instructions) -> Packed<'_> {
        let codes = match quantized {
            Quantized::FourBit(matrix) => Codes::FourBit {
                bytes: matrix.codes(),
                table: matrix.quant_type().code(),
                block_size: matrix.block_size(),
                absmax: match matrix.absmax() {
                    Scale::Floats(floats) => Absmax::Floats(floats),
                    Scale::Nested { rest, offset } => Absmax::Nested {
                        codes: &rest.codes,
                        absmax: &rest.absmax,
                        map: rest.code.as_slice(),
                        offset: *offset,
                    },
                },
            },
            Quantized::Int8(matrix) => Codes::Int8 { integers: matrix.codes(), scb: matrix.scb() },
        };
        Packed { shape: quantized.shape(), codes, threshold: None, instructions }
    }

    fn assert_near(found: &[f32], expected: &[f32], case: impl std::fmt::Debug) {
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5 * largest, "{case:?}: {found} for {expected}");
        }
    }
}
