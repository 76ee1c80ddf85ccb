//! Products with packed weights on the CPU, and with floats of 16 bits, which are unpacked in the same way.
//!
//! Codes are unpacked tile by tile on the way into a product; nothing dense is kept. For a few rows of `x` they are
//! multiplied as they are looked up. All that is summed in floats is summed in an order that follows from shapes alone.
//!
//! On a device in `bf16`, and a machine with AVX-512 BF16, tiles are in `bf16`, and so is `x`. Elsewhere nothing is rounded.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod rounded;

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Device, FloatDType, bf16, f16};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use sideburn_quant::FourBit;

use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::simd::{dots, vector_fn};
use super::{Primitive, integers, values};
use crate::ops::packed::{Inputs, Kind, PackedMatrix, Scales};
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
    /// How `x` is taken.
    inputs: Inputs,
    instructions: Instructions,
    of_integers: integers::Instructions,
    /// Whether more than a few rows are multiplied in `bf16`.
    in_bf16: bool,
}

#[derive(Clone, Copy)]
enum Codes<'a> {
    FourBit { bytes: &'a [u8], table: &'static [f32; 16], block_size: usize, absmax: Absmax<'a> },
    Int8 { integers: &'a [i8], scb: &'a [f32] },
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
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

/// Whether the machine multiplies in `bf16`.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512bf16::is_here();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether products are to be in `bf16`: the device makes tensors in it, and the machine multiplies them.
fn in_bf16() -> bool {
    has_bf16() && Device::flex().settings().float_dtype == FloatDType::BF16
}

impl<'a> Packed<'a> {
    /// A packed weight whose tensors are those of the CPU.
    pub(super) fn new(packed: &'a PackedMatrix<Primitive, Primitive>) -> Self {
        let bytes = |x: &'a Primitive| x.as_slice::<u8>().expect("codes are contiguous bytes");
        let (codes, inputs) = match packed.form.kind {
            Kind::FourBit { quant_type, block_size } => {
                let absmax = match &packed.scales {
                    Scales::Floats(absmax) => Absmax::Floats(values(absmax)),
                    Scales::Nested { codes, absmax, map, offset } => {
                        let (absmax, map) = (values(absmax), values(map));
                        Absmax::Nested { codes: bytes(codes), absmax, map, offset: *offset }
                    }
                };
                let table = quant_type.code();
                (Codes::FourBit { bytes: bytes(&packed.codes), table, block_size, absmax }, Inputs::Floats)
            }
            Kind::Int8 { inputs } => {
                let Scales::Floats(scb) = &packed.scales else { unreachable!("rows have scales in floats") };
                let integers = packed.codes.as_slice::<i8>().expect("codes are contiguous integers");
                (Codes::Int8 { integers, scb: values(scb) }, inputs)
            }
        };
        let (instructions, of_integers) = (Instructions::best(), integers::Instructions::best());
        Self { shape: packed.form.shape, codes, inputs, instructions, of_integers, in_bf16: in_bf16() }
    }

    /// A weight of floats in 16 bits, in row-major order; `None` of others.
    pub(super) fn of_halves(floats: &'a Primitive) -> Option<Self> {
        let codes = match floats.dtype() {
            DType::BF16 => Codes::Bf16(floats.as_slice().expect("a contiguous tensor")),
            DType::F16 => Codes::F16(floats.as_slice().expect("a contiguous tensor")),
            _ => return None,
        };
        let (instructions, of_integers) = (Instructions::best(), integers::Instructions::best());
        let shape = [floats.shape()[0], floats.shape()[1]];
        // Those of `f16` have more digits than `bf16`.
        let in_bf16 = matches!(codes, Codes::Bf16(_)) && in_bf16();
        Some(Self { shape, codes, inputs: Inputs::Floats, instructions, of_integers, in_bf16 })
    }

    /// `[out, in]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Whether more than a few rows are multiplied in `bf16`.
    pub(super) fn is_in_bf16(&self) -> bool {
        self.in_bf16
    }

    /// Whether codes are multiplied as they are looked up, or widened.
    fn is_looked_up(&self) -> bool {
        self.is_grouped() && !matches!(self.codes, Codes::F16(_))
    }

    /// Whether, of each group of `x`, values at even places come before those at odd ones when codes are looked up.
    fn takes_pairs(&self) -> bool {
        self.is_looked_up() && matches!(self.codes, Codes::FourBit { .. } | Codes::Bf16(_))
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
    pub(super) fn unpack_rows(&self, rows: Range<usize>, columns: Range<usize>, to: &mut [f32]) {
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
                Codes::Bf16(floats) => widened(to, &floats[start..start + width]),
                Codes::F16(floats) => floats[start..start + width].convert_to_f32_slice(to),
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
    fn widened(to: &mut [f32], floats: &[bf16]) {
        to.iter_mut().zip(floats).for_each(|(to, x)| *to = f32::from_bits(u32::from(x.to_bits()) << 16));
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

/// Writes `x W^T` at each of these weights to its columns of `y`, which are the caller's alone.
pub(super) fn forward<'a>(y: Parts<'_>, x: Mat<'_>, weights: impl Iterator<Item = (Range<usize>, Packed<'a>)>) {
    let weights: Vec<_> = weights.collect();
    for together in weights.chunk_by(|(_, a), (_, b)| a.inputs == b.inputs) {
        match together[0].1.inputs {
            Inputs::Floats if x.shape()[0] <= FEW => few_with_floats(y, x, together),
            Inputs::Floats => together.iter().for_each(|(columns, weight)| with_floats(y, columns, x, weight)),
            inputs => rounded::forward(y, x, inputs, together),
        }
    }
}

/// The same of one weight that is multiplied with floats.
fn with_floats(y: Parts<'_>, columns: &Range<usize>, x: Mat<'_>, weight: &Packed<'_>) {
    let ([n, input], [out, _]) = (x.shape(), weight.shape);
    for rows in tiles(out, tile_rows(TILE, input)) {
        // SAFETY: each tile has its own columns.
        let y = unsafe { y.part(0..n, columns.start + rows.start..columns.start + rows.end) };
        weight.product(y, x, rows, Workers::All, &mut None);
    }
}

/// The same of weights that are multiplied with a few rows of floats.
fn few_with_floats(y: Parts<'_>, x: Mat<'_>, weights: &[(Range<usize>, Packed<'_>)]) {
    let [n, input] = x.shape();
    if n == 0 {
        return;
    }
    let pairs = weights.iter().any(|(_, weight)| weight.takes_pairs()).then(|| in_pairs(x));
    let pairs = pairs.as_ref().map(|pairs| Mat::new(pairs, n, input));
    let mut tasks = Vec::new();
    for (columns, weight) in weights {
        let tiles = tiles(columns.len(), tile_rows(FEW_TASK, input));
        tasks.extend(tiles.into_iter().map(|rows| (columns.start, *weight, rows)));
    }
    let task = |(start, weight, rows): (usize, Packed<'_>, Range<usize>)| {
        // SAFETY: each task has its own columns.
        let mut y = unsafe { y.part(0..n, start + rows.start..start + rows.end) };
        match pairs.filter(|_| weight.takes_pairs()) {
            _ if !weight.is_looked_up() => weight.few_rows_unpacked(&mut y, x, rows),
            Some(pairs) => weight.few_rows(&mut y, pairs, rows),
            None => weight.few_rows(&mut y, x, rows),
        }
    };
    match tasks.len() {
        1 => tasks.into_iter().for_each(task),
        _ => tasks.into_par_iter().with_max_len(1).for_each(task),
    }
}

/// The rows of `x` with, in each group, the values at even places before those at odd ones.
fn in_pairs(x: Mat<'_>) -> Buffer {
    let [n, input] = x.shape();
    let mut pairs = Buffer::new(n * input);
    for (row, to) in pairs.chunks_exact_mut(input.max(1)).enumerate() {
        for (to, x) in to.as_chunks_mut::<GROUP>().0.iter_mut().zip(x.row(row).as_chunks::<GROUP>().0) {
            for (index, pair) in x.as_chunks::<2>().0.iter().enumerate() {
                [to[index], to[GROUP / 2 + index]] = *pair;
            }
        }
    }
    pairs
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
            let (mut of_x, mut before, mut store) = (part(&columns), before, None);
            for rows in tiles(out, tile_rows(TILE, columns.len())) {
                let gradient = gradient.columns(rows.clone());
                weight.product_back(of_x.by_ref(), gradient, [rows, columns.clone()], before, Workers::All, &mut store);
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
    /// Writes `x W^T` of some rows of the weight, which are unpacked into `store` unless the product is in `bf16`.
    pub(super) fn product(
        &self,
        y: MatMut<'_>,
        x: Mat<'_>,
        rows: Range<usize>,
        workers: Workers,
        store: &mut Option<Buffer>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.in_bf16 {
            return avx512bf16::Panels::of_rows(self, rows, workers).multiply(y, x, Before::Forgotten, workers);
        }
        let tile = self.unpacked([rows, 0..self.shape[1]], workers, store);
        product(y, x, tile.t(), 1.0, Before::Forgotten, workers);
    }

    /// Writes `dY W` of some rows and columns of the weight to `of_x`, or adds it; unpacked into `store` as above.
    pub(super) fn product_back(
        &self,
        of_x: MatMut<'_>,
        gradient: Mat<'_>,
        [rows, columns]: [Range<usize>; 2],
        before: Before,
        workers: Workers,
        store: &mut Option<Buffer>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.in_bf16 {
            let panels = avx512bf16::Panels::of_columns(self, rows, columns, workers);
            return panels.multiply(of_x, gradient, before, workers);
        }
        let tile = self.unpacked([rows, columns], workers, store);
        product(of_x, gradient, tile, 1.0, before, workers);
    }

    /// Some rows and columns, unpacked into `store`.
    fn unpacked<'s>(
        &self,
        [rows, columns]: [Range<usize>; 2],
        workers: Workers,
        store: &'s mut Option<Buffer>,
    ) -> Mat<'s> {
        let (count, shape) = (rows.len() * columns.len(), [rows.len(), columns.len()]);
        if store.as_ref().is_none_or(|store| store.len() < count) {
            *store = Some(Buffer::new(count));
        }
        let dense = &mut store.as_mut().expect("it was made")[..count];
        match workers {
            Workers::All => self.unpack(rows, columns, dense),
            Workers::One => self.unpack_rows(rows, columns, dense),
        }
        Mat::new(dense, shape[0], shape[1])
    }

    /// `y[i][j]` is the dot product of row `i` of `x` and row `rows.start + j`, which is unpacked first.
    fn few_rows_unpacked(&self, y: &mut MatMut<'_>, x: Mat<'_>, rows: Range<usize>) {
        let [n, input] = x.shape();
        let mut dense = Buffer::new(input);
        for (index, row) in rows.enumerate() {
            self.unpack_rows(row..row + 1, 0..input, &mut dense);
            let mut i = 0;
            while i < n {
                let mut write = |products: &[[f32; 1]]| {
                    products.iter().enumerate().for_each(|(row, product)| y.row(i + row)[index] = product[0]);
                    products.len()
                };
                i += match n - i {
                    1..=3 => write(&dots([x.row(i)], [&dense])),
                    _ => write(&dots::<4, 1>(std::array::from_fn(|row| x.row(i + row)), [&dense])),
                };
            }
        }
    }

    /// `y[i][j]` is the dot product of row `i` of `x`, in the order in which codes are looked up, and row `rows.start + j`.
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
            Codes::Bf16(floats) => {
                let floats = &floats[start..start + width];
                match self.instructions {
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => unsafe { avx512::dots_of_halves(x, floats) },
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => unsafe { avx2::dots_of_halves(x, floats) },
                    Instructions::Any => dots_of_halves(x, floats),
                }
            }
            Codes::F16(_) => unreachable!("they are unpacked"),
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

/// Dot products of rows in pairs with floats.
fn dots_of_halves<const N: usize>(x: [&[f32]; N], floats: &[bf16]) -> [f32; N] {
    x.map(|x| {
        let groups = x.as_chunks::<GROUP>().0.iter().zip(floats.as_chunks::<GROUP>().0);
        let sum = |(x, floats): (&[f32; GROUP], &[bf16; GROUP])| {
            let pairs = floats.as_chunks::<2>().0.iter().enumerate();
            let product = |(index, [even, odd]): (usize, &[bf16; 2])| {
                x[index] * even.to_f32() + x[GROUP / 2 + index] * odd.to_f32()
            };
            pairs.map(product).sum::<f32>()
        };
        groups.map(sum).sum()
    })
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
                    forward(Parts::new(&mut y, n, out), Mat::new(&x, n, input), [(0..out, packed)].into_iter());
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

    /// Products in `bf16` are those of what both sides are rounded to, with sums in `f32`: forward and back, of every kind of weight,
    /// with edges of tiles and panels, and sums that are parted.
    #[test]
    fn products_in_bf16_are_those_of_rounded_factors() {
        if !has_bf16() {
            println!("skipped: no AVX-512 BF16");
            return;
        }
        let rounded = |values: &[f32]| values.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
        let wide = |values: &[bf16]| values.iter().map(|x| f64::from(x.to_f32())).collect::<Vec<_>>();
        let shapes = [
            ([64, 96], 17),
            ([33, 45], 24),
            ([1, 1], 18),
            ([70, 2500], 23),
            ([2500, 70], 100),
            ([200, 130], 200),
            ([512, 64], 300),
        ];
        for ([out, input], n) in shapes {
            let (x, gradient) = (numbers(n * input, 0.71), numbers(n * out, 0.13));
            let floats = rounded(&numbers(out * input, 0.37));
            let quantized = [Quantization::NF4, Quantization::INT8]
                .map(|how| Quantized::quantize("w", &numbers(out * input, 0.37), [out, input], how).unwrap());
            let shape = [out, input];
            let (instructions, of_integers) = (Instructions::best(), integers::Instructions::best());
            let halves = Packed {
                shape,
                codes: Codes::Bf16(&floats),
                inputs: Inputs::Floats,
                instructions,
                of_integers,
                in_bf16: true,
            };
            let cases = [(wide(&floats), halves)].into_iter().chain(quantized.iter().map(|quantized| {
                (
                    wide(&rounded(&quantized.dequantize())),
                    Packed { in_bf16: true, ..in_memory(quantized, instructions) },
                )
            }));
            let (wide_x, wide_gradient) = (wide(&rounded(&x)), wide(&rounded(&gradient)));
            for (dense, packed) in cases {
                let mut y = vec![f32::NAN; n * out];
                forward(Parts::new(&mut y, n, out), Mat::new(&x, n, input), [(0..out, packed)].into_iter());
                let sum = |i: usize, j: usize| (0..input).map(|k| wide_x[i * input + k] * dense[j * input + k]).sum();
                assert_sums(&y, [n, out], sum);
                let mut of_x = vec![2.0; n * input];
                backward(&mut of_x, Mat::new(&gradient, n, out), &packed, Before::Kept);
                let sum = |i: usize, k: usize| {
                    2.0 + (0..out).map(|j| wide_gradient[i * out + j] * dense[j * input + k]).sum::<f64>()
                };
                assert_sums(&of_x, [n, input], sum);
                backward(&mut of_x, Mat::new(&gradient, n, out), &packed, Before::Forgotten);
                assert_sums(&of_x, [n, input], |i, k| sum(i, k) - 2.0);
            }
        }
    }

    /// A product without terms is zero, and one without rows nothing.
    #[test]
    fn empty_products_in_bf16() {
        if !has_bf16() {
            return;
        }
        let (instructions, of_integers) = (Instructions::best(), integers::Instructions::best());
        let none = Packed {
            shape: [40, 0],
            codes: Codes::Bf16(&[]),
            inputs: Inputs::Floats,
            instructions,
            of_integers,
            in_bf16: true,
        };
        let mut y = vec![f32::NAN; 20 * 40];
        forward(Parts::new(&mut y, 20, 40), Mat::new(&[], 20, 0), [(0..40, none)].into_iter());
        assert!(y.iter().all(|y| *y == 0.0));
        let none = Packed { shape: [0, 40], ..none };
        let mut of_x = vec![f32::NAN; 20 * 40];
        backward(&mut of_x, Mat::new(&[], 20, 0), &none, Before::Forgotten);
        assert!(of_x.iter().all(|x| *x == 0.0));
    }

    fn assert_sums(found: &[f32], [rows, columns]: [usize; 2], expected: impl Fn(usize, usize) -> f64) {
        let expected: Vec<f64> = (0..rows * columns).map(|at| expected(at / columns, at % columns)).collect();
        let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 3e-6 * largest, "{rows} x {columns}, {at}: {found} for {expected}");
        }
    }

    /// A few rows are multiplied with floats in `bf16` as exactly as with floats, by all machines.
    #[test]
    fn a_few_rows_with_floats_in_bf16_are_exact() {
        for ([out, input], n) in [([40, 96], 1), ([33, 160], 7), ([20, 64], 16), ([9, 13], 3)] {
            let floats: Vec<bf16> = numbers(out * input, 0.37).into_iter().map(bf16::from_f32).collect();
            let x = numbers(n * input, 0.71);
            for instructions in instructions() {
                let (shape, codes) = ([out, input], Codes::Bf16(&floats));
                let of_integers = integers::Instructions::best();
                let packed =
                    Packed { shape, codes, inputs: Inputs::Floats, instructions, of_integers, in_bf16: has_bf16() };
                let mut y = vec![f32::NAN; n * out];
                forward(Parts::new(&mut y, n, out), Mat::new(&x, n, input), [(0..out, packed)].into_iter());
                let product = |i: usize, j: usize, k: usize| {
                    f64::from(x[i * input + k]) * f64::from(floats[j * input + k].to_f32())
                };
                assert_sums(&y, [n, out], |i, j| (0..input).map(|k| product(i, j, k)).sum());
            }
        }
    }

    /// The sums of integers are exact, and so all machines give the same bits.
    #[test]
    fn rounded_inputs_give_the_same_bits() {
        let llm_int8 = Inputs::LlmInt8 { threshold: 6.0 };
        let shapes = [([40, 96], 1), ([33, 45], 5), ([50, 96], 17)];
        for (([out, input], n), inputs) in
            shapes.into_iter().flat_map(|shape| [(shape, llm_int8), (shape, Inputs::Rounded)])
        {
            let weight = numbers(out * input, 0.37);
            let quantized = Quantized::quantize("w", &weight, [out, input], Quantization::INT8).unwrap();
            let x = numbers(n * input, 0.71);
            let results: Vec<Vec<u32>> = integers::Instructions::all()
                .into_iter()
                .map(|of_integers| {
                    let packed = in_memory(&quantized, Instructions::best());
                    let packed = Packed { inputs, of_integers, ..packed };
                    let mut y = vec![f32::NAN; n * out];
                    forward(Parts::new(&mut y, n, out), Mat::new(&x, n, input), [(0..out, packed)].into_iter());
                    y.into_iter().map(f32::to_bits).collect()
                })
                .collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{out} x {input}, {n} rows, {inputs:?}");
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
        let of_integers = integers::Instructions::best();
        Packed { shape: quantized.shape(), codes, inputs: Inputs::Floats, instructions, of_integers, in_bf16: false }
    }

    fn assert_near(found: &[f32], expected: &[f32], case: impl std::fmt::Debug) {
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-5 * largest, "{case:?}: {found} for {expected}");
        }
    }
}
