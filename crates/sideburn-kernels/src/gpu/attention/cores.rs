//! The kernels of attention for tensor cores, for floats of 16 bits.
//!
//! Tiles are in shared memory in the dtype of the tensors, products are taken by planes, matrix after matrix, and sums and
//! scores are `f32`. What a plane has summed lies where only the hardware knows, and so cannot be multiplied when the
//! maximum of a row rises. Therefore each kernel goes through the other side twice: for the normaliser of each query with
//! a running maximum, and then with weights that are final.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

use super::tiles::{Lines, Place, Sizes, Tiles, Tokens, UNSEEN, exponential, factors, load};
use crate::gpu::mask::Mask;

/// Planes of a cube.
const PLANES: usize = 4;

/// Scores that a unit takes at once, as many as a draw of a mask decides.
const QUAD: usize = 4;

/// Bytes that matrices in shared memory are aligned to.
const ALIGNED: usize = 32;

/// What these kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cores {
    pub(super) tiles: Tiles,
    /// Rows and columns of a product that a plane takes at once, and terms of its sums.
    pub(super) side: usize,
    pub(super) depth: usize,
    /// Units of a plane.
    pub(super) plane: usize,
    /// What the gradients of scores are multiplied by in 16 bits, so that those of `f16` do not vanish.
    pub(super) lift: u32,
}

impl Cores {
    /// Tokens that a cube computes results for.
    pub(super) fn own(side: usize) -> usize {
        PLANES * side
    }

    /// Units of a cube.
    pub(super) fn units(self) -> usize {
        PLANES * self.plane
    }

    /// Columns of a tile of tokens: an even number of matrices, so that both elements of each pair are in the same places of
    /// two.
    fn width(self) -> usize {
        self.tiles.width.next_multiple_of(2 * self.side.max(self.depth))
    }

    /// Matrices that a plane has of the output.
    fn blocks(self) -> usize {
        self.width() / self.side
    }

    /// Whether shapes and hardware are as the kernels take them.
    pub(super) fn fit(self) -> bool {
        let (own, others, units) = (self.tiles.own, self.tiles.others, self.units());
        let is_divided = |rows: usize, columns: usize| {
            // Each plane has one column of matrices, each unit some quads of one row.
            let is_even = units.is_multiple_of(rows) && columns.is_multiple_of(units / rows * QUAD);
            is_even && PLANES.is_multiple_of(columns / self.side)
        };
        self.side.is_multiple_of(QUAD)
            && own == Self::own(self.side)
            && others >= 2 * self.side
            && others.is_multiple_of(self.side)
            && others.is_multiple_of(self.depth)
            && is_divided(own, others)
            && is_divided(others, own)
            && (!self.tiles.turned || self.tiles.width == self.width())
    }

    /// Steps from line to line of a tile in 16 bits that is so wide, and of one in `f32`: matrices want 16 bytes, and
    /// neighbouring lines should not be in the same banks.
    fn stride(columns: usize) -> usize {
        columns + 8
    }

    fn score_stride(columns: usize) -> usize {
        columns + 4
    }

    /// Numbers of a tile of scores, which results pass through as well, in two matrices for each plane.
    fn score_count(self, rows: usize, columns: usize) -> usize {
        let results = self.tiles.own * Self::score_stride(2 * self.side);
        results.max(rows * Self::score_stride(columns))
    }

    fn lines(self, rows: usize, turned: bool) -> Lines {
        let (head, width) = (self.tiles.width, self.width());
        Lines { rows, head, width, stride: Self::stride(width), units: self.units(), turned }
    }

    /// The memory that the forward pass shares.
    pub(super) fn forward_bytes(self) -> usize {
        let Tiles { own, others, .. } = self.tiles;
        let halves = (own + others) * Self::stride(self.width()) + own * Self::stride(others);
        2 * halves + size_of::<f32>() * (self.score_count(own, others) + self.units())
    }

    /// The same of the backward pass: of the kernel that needs more.
    pub(super) fn backward_bytes(self) -> usize {
        let Tiles { own, others, .. } = self.tiles;
        let tokens = 2 * (own + others) * Self::stride(self.width());
        let queries = 2 * (tokens + own * Self::stride(others))
            + size_of::<f32>() * (2 * self.score_count(own, others) + self.units());
        let keys = 2 * (tokens + 2 * others * Self::stride(own)) + size_of::<f32>() * 2 * self.score_count(others, own);
        queries.max(keys)
    }
}

#[cube(launch_unchecked)]
pub(super) fn forward_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    angles: &Sequence<OwnedTensor<f32>>,
    rows: &[u32],
    out: &mut Tensor<F>,
    sizes: Sizes,
    mask: Mask,
    #[comptime] cores: Cores,
    #[define(F)] _dtype: ElemType,
) {
    let tiles = comptime!(cores.tiles);
    let place = Place::of_cube(rows, CUBE_POS_Y as usize);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.queries.places {
        terminate!();
    }
    let mut own = tile::<F>(comptime!(cores.lines(tiles.own, false)));
    let mut others = tile::<F>(comptime!(cores.lines(tiles.others, false)));
    let mut scores = score_tile(tiles.own, tiles.others, cores);
    let mut weights = weight_tile::<F>(tiles.own, tiles.others);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(cores.units()));
    let sums = no_sums(comptime!(cores.blocks()), cores);
    let part = Part::of_unit(tiles.own, tiles.others, cores);
    let limit = place.limit(first + part.row, &sizes, tiles);
    let mut highest = f32::new(UNSEEN);
    let mut below = 0.0f32;
    let mut quad = Array::<f32>::new(QUAD);
    let mut kept = Array::<f32>::new(QUAD);

    let of_queries = sizes.q.of_queries(place.head, tiles);
    let of_keys = sizes.k.of_keys(place.head / tiles.together);
    let of_values = sizes.v.of_keys(place.head / tiles.together);
    let lines = comptime!(cores.lines(tiles.own, tiles.turned));
    load::<F, F>(q, angles, &mut own, &place.queries, first, of_queries, sizes.scale, lines);
    let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
    let mut start = 0usize.runtime();
    while start < keys {
        // The tiles of the last round have been read.
        sync_cube();
        let lines = comptime!(cores.lines(tiles.others, tiles.turned));
        load::<F, F>(k, angles, &mut others, &place.keys, start, of_keys, 1.0f32, lines);
        sync_cube();
        multiply::<F>(&own, &others, &mut scores, tiles.own, tiles.others, cores);
        sync_cube();
        for index in 0..comptime!(part.quads) {
            let at = part.at(index, tiles.others);
            part.scores::<F>(&scores, at, index, &place, first, start, limit, bias, &mut quad, &sizes, tiles);
            let higher = max(highest, largest_of(&quad));
            below *= f32::exp(highest - higher);
            highest = higher;
            #[unroll]
            for lane in 0..QUAD {
                below += exponential(quad[lane], highest);
            }
        }
        start += tiles.others;
    }
    let largest = largest_of_row(highest, &mut shared, &part);
    below = sum_of_row(below * f32::exp(highest - largest), &mut shared, &part);
    let normaliser = largest + f32::ln(below);

    start = 0usize;
    while start < keys {
        sync_cube();
        let lines = comptime!(cores.lines(tiles.others, tiles.turned));
        load::<F, F>(k, angles, &mut others, &place.keys, start, of_keys, 1.0f32, lines);
        sync_cube();
        multiply::<F>(&own, &others, &mut scores, tiles.own, tiles.others, cores);
        sync_cube();
        // The keys have been read.
        let lines = comptime!(cores.lines(tiles.others, false));
        load::<F, F>(v, angles, &mut others, &place.keys, start, of_values, 1.0f32, lines);
        for index in 0..comptime!(part.quads) {
            let at = part.at(index, tiles.others);
            part.scores::<F>(&scores, at, index, &place, first, start, limit, bias, &mut quad, &sizes, tiles);
            part.draw(index, &place, first, start, &mask, &mut kept, &sizes, tiles);
            #[unroll]
            for lane in 0..QUAD {
                let mut weight = exponential(quad[lane], normaliser);
                if comptime!(tiles.drops) {
                    weight *= kept[lane];
                }
                part.put::<F>(&mut weights, index, lane, tiles.others, weight);
            }
        }
        sync_cube();
        add_products::<F>(&weights, &others, &sums, false, tiles.own, tiles.others, cores);
        start += tiles.others;
    }
    store::<F>(&sums, &mut scores, out, angles, &place.queries, first, outputs_of(&place, tiles), 1.0f32, false, cores);
}

/// The gradient of the queries. Leaves each query's normaliser and pull behind, which is the sum of its weights times
/// their gradients.
#[cube(launch_unchecked)]
pub(super) fn queries_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    angles: &Sequence<OwnedTensor<f32>>,
    gradient: &Tensor<F>,
    rows: &[u32],
    of_q: &mut Tensor<F>,
    normalisers: &mut [f32],
    pulls: &mut [f32],
    sizes: Sizes,
    mask: Mask,
    #[comptime] cores: Cores,
    #[define(F)] _dtype: ElemType,
) {
    let tiles = comptime!(cores.tiles);
    let place = Place::of_cube(rows, CUBE_POS_Y as usize);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.queries.places {
        terminate!();
    }
    let mut own_q = tile::<F>(comptime!(cores.lines(tiles.own, false)));
    let mut own_g = tile::<F>(comptime!(cores.lines(tiles.own, false)));
    let mut others_k = tile::<F>(comptime!(cores.lines(tiles.others, false)));
    let mut others_v = tile::<F>(comptime!(cores.lines(tiles.others, false)));
    let mut scores = score_tile(tiles.own, tiles.others, cores);
    let mut slopes = score_tile(tiles.own, tiles.others, cores);
    let mut pulled = weight_tile::<F>(tiles.own, tiles.others);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(cores.units()));
    let sums = no_sums(comptime!(cores.blocks()), cores);
    let part = Part::of_unit(tiles.own, tiles.others, cores);
    let query = first + part.row;
    let limit = place.limit(query, &sizes, tiles);
    let mut highest = f32::new(UNSEEN);
    let mut below = 0.0f32;
    let mut pull = 0.0f32;
    let mut quad = Array::<f32>::new(QUAD);
    let mut kept = Array::<f32>::new(QUAD);

    let of_queries = sizes.q.of_queries(place.head, tiles);
    let of_keys = sizes.k.of_keys(place.head / tiles.together);
    let of_values = sizes.v.of_keys(place.head / tiles.together);
    let lines = comptime!(cores.lines(tiles.own, tiles.turned));
    load::<F, F>(q, angles, &mut own_q, &place.queries, first, of_queries, sizes.scale, lines);
    let lines = comptime!(cores.lines(tiles.own, false));
    load::<F, F>(gradient, angles, &mut own_g, &place.queries, first, outputs_of(&place, tiles), 1.0f32, lines);
    let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
    let mut start = 0usize.runtime();
    while start < keys {
        // The tiles of the last round have been read.
        sync_cube();
        let lines = comptime!(cores.lines(tiles.others, tiles.turned));
        load::<F, F>(k, angles, &mut others_k, &place.keys, start, of_keys, 1.0f32, lines);
        let lines = comptime!(cores.lines(tiles.others, false));
        load::<F, F>(v, angles, &mut others_v, &place.keys, start, of_values, 1.0f32, lines);
        sync_cube();
        multiply::<F>(&own_q, &others_k, &mut scores, tiles.own, tiles.others, cores);
        multiply::<F>(&own_g, &others_v, &mut slopes, tiles.own, tiles.others, cores);
        sync_cube();
        for index in 0..comptime!(part.quads) {
            let at = part.at(index, tiles.others);
            part.scores::<F>(&scores, at, index, &place, first, start, limit, bias, &mut quad, &sizes, tiles);
            part.draw(index, &place, first, start, &mask, &mut kept, &sizes, tiles);
            let higher = max(highest, largest_of(&quad));
            let scale = f32::exp(highest - higher);
            below *= scale;
            pull *= scale;
            highest = higher;
            #[unroll]
            for lane in 0..QUAD {
                let weight = exponential(quad[lane], highest);
                let mut slope = slopes[at + lane];
                if comptime!(tiles.drops) {
                    slope *= kept[lane];
                }
                below += weight;
                pull += weight * slope;
            }
        }
        start += tiles.others;
    }
    // The pull is a sum of the same exponentials.
    let largest = largest_of_row(highest, &mut shared, &part);
    let scale = f32::exp(highest - largest);
    below = sum_of_row(below * scale, &mut shared, &part);
    pull = sum_of_row(pull * scale, &mut shared, &part) / below;
    let normaliser = largest + f32::ln(below);
    if UNIT_POS as usize % comptime!(part.together) == 0 && query < place.queries.count {
        let index = place.query_index(query, &sizes);
        normalisers[index] = normaliser;
        pulls[index] = pull;
    }

    start = 0usize;
    while start < keys {
        sync_cube();
        let lines = comptime!(cores.lines(tiles.others, tiles.turned));
        load::<F, F>(k, angles, &mut others_k, &place.keys, start, of_keys, 1.0f32, lines);
        let lines = comptime!(cores.lines(tiles.others, false));
        load::<F, F>(v, angles, &mut others_v, &place.keys, start, of_values, 1.0f32, lines);
        sync_cube();
        multiply::<F>(&own_q, &others_k, &mut scores, tiles.own, tiles.others, cores);
        multiply::<F>(&own_g, &others_v, &mut slopes, tiles.own, tiles.others, cores);
        sync_cube();
        for index in 0..comptime!(part.quads) {
            let at = part.at(index, tiles.others);
            part.scores::<F>(&scores, at, index, &place, first, start, limit, bias, &mut quad, &sizes, tiles);
            part.draw(index, &place, first, start, &mask, &mut kept, &sizes, tiles);
            #[unroll]
            for lane in 0..QUAD {
                let weight = exponential(quad[lane], normaliser);
                let mut slope = slopes[at + lane];
                if comptime!(tiles.drops) {
                    slope *= kept[lane];
                }
                let of_score = select(weight == 0.0f32, 0.0f32, weight * (slope - pull));
                part.put::<F>(&mut pulled, index, lane, tiles.others, of_score * lift(cores));
            }
        }
        sync_cube();
        add_products::<F>(&pulled, &others_k, &sums, false, tiles.own, tiles.others, cores);
        start += tiles.others;
    }
    let scale = sizes.scale / lift(cores);
    store::<F>(&sums, &mut scores, of_q, angles, &place.queries, first, of_queries, scale, tiles.turned, cores);
}

/// The gradients of the keys and values of a head, in one pass over the queries that see them, head after head.
#[cube(launch_unchecked)]
pub(super) fn keys_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    angles: &Sequence<OwnedTensor<f32>>,
    gradient: &Tensor<F>,
    rows: &[u32],
    of_k: &mut Tensor<F>,
    of_v: &mut Tensor<F>,
    normalisers: &[f32],
    pulls: &[f32],
    sizes: Sizes,
    mask: Mask,
    #[comptime] cores: Cores,
    #[define(F)] _dtype: ElemType,
) {
    let tiles = comptime!(cores.tiles);
    let kv_head = CUBE_POS_Y as usize;
    let place = Place::of_cube(rows, kv_head * tiles.together);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.keys.places {
        terminate!();
    }
    let mut own_k = tile::<F>(comptime!(cores.lines(tiles.own, false)));
    let mut own_v = tile::<F>(comptime!(cores.lines(tiles.own, false)));
    let mut others_q = tile::<F>(comptime!(cores.lines(tiles.others, false)));
    let mut others_g = tile::<F>(comptime!(cores.lines(tiles.others, false)));
    let mut scores = score_tile(tiles.others, tiles.own, cores);
    let mut slopes = score_tile(tiles.others, tiles.own, cores);
    let mut weights = weight_tile::<F>(tiles.others, tiles.own);
    let mut pulled = weight_tile::<F>(tiles.others, tiles.own);
    let sums_k = no_sums(comptime!(cores.blocks()), cores);
    let sums_v = no_sums(comptime!(cores.blocks()), cores);
    let part = Part::of_unit(tiles.others, tiles.own, cores);
    let mut quad = Array::<f32>::new(QUAD);
    let mut kept = Array::<f32>::new(QUAD);

    let of_keys = sizes.k.of_keys(kv_head);
    let of_values = sizes.v.of_keys(kv_head);
    let lines = comptime!(cores.lines(tiles.own, tiles.turned));
    load::<F, F>(k, angles, &mut own_k, &place.keys, first, of_keys, 1.0f32, lines);
    let lines = comptime!(cores.lines(tiles.own, false));
    load::<F, F>(v, angles, &mut own_v, &place.keys, first, of_values, 1.0f32, lines);
    for member in 0..tiles.together {
        let place = Place::of_cube(rows, kv_head * tiles.together + member);
        let of_queries = sizes.q.of_queries(place.head, tiles);
        let mut start = place.first_to_see(first, &sizes, tiles);
        while start < place.queries.count {
            // The tiles of the last round have been read.
            sync_cube();
            let lines = comptime!(cores.lines(tiles.others, tiles.turned));
            load::<F, F>(q, angles, &mut others_q, &place.queries, start, of_queries, sizes.scale, lines);
            let lines = comptime!(cores.lines(tiles.others, false));
            let of_outputs = outputs_of(&place, tiles);
            load::<F, F>(gradient, angles, &mut others_g, &place.queries, start, of_outputs, 1.0f32, lines);
            sync_cube();
            multiply::<F>(&others_q, &own_k, &mut scores, tiles.others, tiles.own, cores);
            multiply::<F>(&others_g, &own_v, &mut slopes, tiles.others, tiles.own, cores);
            let query = start + part.row;
            let limit = place.limit(query, &sizes, tiles);
            let index = place.query_index(min(query, place.queries.count - 1), &sizes);
            let (normaliser, pull) = (normalisers[index], pulls[index]);
            sync_cube();
            for index in 0..comptime!(part.quads) {
                let at = part.at(index, tiles.own);
                part.scores::<F>(&scores, at, index, &place, start, first, limit, bias, &mut quad, &sizes, tiles);
                part.draw(index, &place, start, first, &mask, &mut kept, &sizes, tiles);
                #[unroll]
                for lane in 0..QUAD {
                    let weight = exponential(quad[lane], normaliser);
                    let mut slope = slopes[at + lane];
                    let mut dropped = weight;
                    if comptime!(tiles.drops) {
                        slope *= kept[lane];
                        dropped *= kept[lane];
                    }
                    let of_score = select(weight == 0.0f32, 0.0f32, weight * (slope - pull));
                    part.put::<F>(&mut weights, index, lane, tiles.own, dropped);
                    part.put::<F>(&mut pulled, index, lane, tiles.own, of_score * lift(cores));
                }
            }
            sync_cube();
            add_products::<F>(&weights, &others_g, &sums_v, true, tiles.own, tiles.others, cores);
            add_products::<F>(&pulled, &others_q, &sums_k, true, tiles.own, tiles.others, cores);
            start += tiles.others;
        }
    }
    let scale = 1.0f32 / lift(cores);
    store::<F>(&sums_k, &mut scores, of_k, angles, &place.keys, first, of_keys, scale, tiles.turned, cores);
    store::<F>(&sums_v, &mut slopes, of_v, angles, &place.keys, first, of_values, 1.0f32, false, cores);
}

/// Where the columns of a head begin in the output.
#[cube]
fn outputs_of(place: &Place, #[comptime] tiles: Tiles) -> usize {
    place.head * tiles.width
}

#[cube]
fn lift(#[comptime] cores: Cores) -> f32 {
    f32::new(comptime!(cores.lift as f32))
}

/// What a unit has of a tile of scores, in which queries are rows and keys are columns: quads of a row, side by side.
#[derive(CubeType, Clone, Copy)]
struct Part {
    row: usize,
    column: usize,
    #[cube(comptime)]
    quads: usize,
    /// Units that have a row together.
    #[cube(comptime)]
    together: usize,
}

#[cube]
impl Part {
    fn of_unit(#[comptime] rows: usize, #[comptime] columns: usize, #[comptime] cores: Cores) -> Part {
        let together = comptime!(cores.units() / rows);
        let row = UNIT_POS as usize / together;
        let column = UNIT_POS as usize % together * comptime!(columns / together);
        Part { row, column, quads: comptime!(columns / together / QUAD), together }
    }

    /// Where its quad of this index is in a tile of scores that has so many columns.
    fn at(&self, index: usize, #[comptime] columns: usize) -> usize {
        self.row * comptime!(Cores::score_stride(columns)) + self.column + index * QUAD
    }

    /// The scores of a quad with their bias. The tile is of the queries from `first` and the keys from `start` on.
    fn scores<F: Float>(
        &self,
        scores: &Shared<[f32]>,
        at: usize,
        index: usize,
        place: &Place,
        first: usize,
        start: usize,
        limit: usize,
        bias: &Tensor<F>,
        quad: &mut Array<f32>,
        sizes: &Sizes,
        #[comptime] tiles: Tiles,
    ) {
        let key = start + self.column + index * QUAD;
        #[unroll]
        for lane in 0..QUAD {
            let score = scores[at + lane];
            quad[lane] = place.biased::<F>(score, first + self.row, key + lane, limit, bias, sizes, tiles);
        }
    }

    /// What dropout multiplies the weights of a quad by.
    fn draw(
        &self,
        index: usize,
        place: &Place,
        first: usize,
        start: usize,
        mask: &Mask,
        kept: &mut Array<f32>,
        sizes: &Sizes,
        #[comptime] tiles: Tiles,
    ) {
        if comptime!(tiles.drops) {
            let element = place.mask_index(first + self.row, start + self.column + index * QUAD, sizes);
            factors(mask, element, kept, QUAD, tiles.aligned);
        }
    }

    /// Puts a number of a quad into a tile of weights.
    fn put<F: Float>(
        &self,
        weights: &mut Shared<[F]>,
        index: usize,
        lane: usize,
        #[comptime] columns: usize,
        value: f32,
    ) {
        let at = self.row * comptime!(Cores::stride(columns)) + self.column + index * QUAD + lane;
        weights[at] = F::cast_from(value);
    }
}

#[cube]
fn largest_of(quad: &Array<f32>) -> f32 {
    max(max(quad[0], quad[1]), max(quad[2], quad[3]))
}

/// The largest of what the units of a row have.
#[cube]
fn largest_of_row(value: f32, shared: &mut Shared<[f32]>, part: &Part) -> f32 {
    // What was here before has been read.
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut largest = value;
    #[unroll]
    for unit in 0..comptime!(part.together) {
        largest = max(largest, shared[part.row * comptime!(part.together) + unit]);
    }
    largest
}

/// Its sum, the same for all of them.
#[cube]
fn sum_of_row(value: f32, shared: &mut Shared<[f32]>, part: &Part) -> f32 {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut sum = 0.0f32;
    #[unroll]
    for unit in 0..comptime!(part.together) {
        sum += shared[part.row * comptime!(part.together) + unit];
    }
    sum
}

/// Memory that the cube shares, for tokens.
#[cube]
fn tile<F: Float>(#[comptime] lines: Lines) -> Shared<[F]> {
    Shared::<[F]>::new_aligned_slice(comptime!(lines.rows * lines.stride), ALIGNED)
}

/// The same for a number of each pair of a query and a key, in `f32`.
#[cube]
fn score_tile(#[comptime] rows: usize, #[comptime] columns: usize, #[comptime] cores: Cores) -> Shared<[f32]> {
    Shared::<[f32]>::new_aligned_slice(comptime!(cores.score_count(rows, columns)), ALIGNED)
}

/// The same in 16 bits.
#[cube]
fn weight_tile<F: Float>(#[comptime] rows: usize, #[comptime] columns: usize) -> Shared<[F]> {
    Shared::<[F]>::new_aligned_slice(comptime!(rows * Cores::stride(columns)), ALIGNED)
}

/// Matrices of a plane, all zero.
#[cube]
fn no_sums(#[comptime] count: usize, #[comptime] cores: Cores) -> Sequence<Matrix<f32>> {
    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..count {
        sums.push(Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            cores.side,
            cores.side,
            cores.depth,
            MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    sums
}

/// A matrix of a tile, from this place on.
#[cube]
fn matrix<F: Float>(
    tile: &Shared<[F]>,
    at: usize,
    #[comptime] stride: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
    #[comptime] cores: Cores,
) -> Matrix<F> {
    let end = tile.len();
    let numbers = tile.slice(at, end);
    Matrix::<F>::from_slice(ident, cores.side, cores.side, cores.depth, layout, numbers, comptime!(stride as u32))
}

/// The products of the rows of one tile with those of another. A plane has one column of matrices, or part of it.
#[cube]
fn multiply<F: Float>(
    left: &Shared<[F]>,
    right: &Shared<[F]>,
    out: &mut Shared<[f32]>,
    #[comptime] rows: usize,
    #[comptime] columns: usize,
    #[comptime] cores: Cores,
) {
    let stride = comptime!(Cores::stride(cores.width()));
    let score_stride = comptime!(Cores::score_stride(columns));
    let across = comptime!(columns / cores.side);
    let down = comptime!(PLANES / across);
    let column = PLANE_POS as usize % across * cores.side;
    let row = PLANE_POS as usize / across * cores.side;
    let count = comptime!(rows / cores.side / down);
    let sums = no_sums(count, cores);
    for step in 0..comptime!(cores.width() / cores.depth) {
        let term = step * cores.depth;
        let of_right =
            matrix::<F>(right, column * stride + term, stride, MatrixIdent::B, MatrixLayout::ColMajor, cores);
        #[unroll]
        for index in 0..count {
            let at = (row + comptime!(index * down * cores.side)) * stride + term;
            let of_left = matrix::<F>(left, at, stride, MatrixIdent::A, MatrixLayout::RowMajor, cores);
            cmma::execute(&of_left, &of_right, &sums[index], &sums[index]);
        }
    }
    let end = out.len();
    #[unroll]
    for index in 0..count {
        let at = (row + comptime!(index * down * cores.side)) * score_stride + column;
        cmma::store(out.slice_mut(at, end), &sums[index], comptime!(score_stride as u32), MatrixLayout::RowMajor);
    }
}

/// Adds, to the sums of each plane, its rows of weights times the other side's tile. Weights lie as own rows, or as own
/// columns.
#[cube]
fn add_products<F: Float>(
    weights: &Shared<[F]>,
    others: &Shared<[F]>,
    sums: &Sequence<Matrix<f32>>,
    #[comptime] as_columns: bool,
    #[comptime] own: usize,
    #[comptime] terms: usize,
    #[comptime] cores: Cores,
) {
    let stride = comptime!(Cores::stride(cores.width()));
    let weight_stride = comptime!(Cores::stride(if as_columns { own } else { terms }));
    let layout = comptime!(if as_columns { MatrixLayout::ColMajor } else { MatrixLayout::RowMajor });
    let row = PLANE_POS as usize * cores.side;
    for step in 0..comptime!(terms / cores.depth) {
        let term = step * cores.depth;
        let mut at = row * weight_stride + term;
        if comptime!(as_columns) {
            at = term * weight_stride + row;
        }
        let weight = matrix::<F>(weights, at, weight_stride, MatrixIdent::A, layout, cores);
        #[unroll]
        for block in 0..comptime!(cores.blocks()) {
            let at = term * stride + comptime!(block * cores.side);
            let other = matrix::<F>(others, at, stride, MatrixIdent::B, MatrixLayout::RowMajor, cores);
            cmma::execute(&weight, &other, &sums[block], &sums[block]);
        }
    }
}

/// Writes the sums of the planes, times `scale`, into the columns from `column` on, turned back if they are to be, and zeros
/// for tokens of no row. They pass through shared memory, two matrices of each plane at once: those of the first and of
/// the second elements of some pairs.
#[cube]
fn store<F: Float>(
    sums: &Sequence<Matrix<f32>>,
    passage: &mut Shared<[f32]>,
    out: &mut Tensor<F>,
    angles: &Sequence<OwnedTensor<f32>>,
    tokens: &Tokens,
    first: usize,
    column: usize,
    scale: f32,
    #[comptime] turned: bool,
    #[comptime] cores: Cores,
) {
    let side = comptime!(cores.side);
    let stride = comptime!(Cores::score_stride(2 * side));
    let half = comptime!(cores.blocks() / 2);
    let head = comptime!(cores.tiles.width);
    let own = PLANE_POS as usize * side * stride;
    #[unroll]
    for block in 0..half {
        // What was here before has been read.
        sync_cube();
        let end = passage.len();
        cmma::store(passage.slice_mut(own, end), &sums[block], comptime!(stride as u32), MatrixLayout::RowMajor);
        let other = comptime!(block + half);
        cmma::store(passage.slice_mut(own + side, end), &sums[other], comptime!(stride as u32), MatrixLayout::RowMajor);
        sync_cube();
        let mut index = UNIT_POS as usize;
        while index < comptime!(cores.tiles.own * side) {
            let (row, place) = (index / side, index % side);
            let token = first + row;
            if token < tokens.places {
                let mut a = passage[row * stride + place] * scale;
                let mut b = passage[row * stride + side + place] * scale;
                let (of_a, of_b) = (place + comptime!(block * side), place + comptime!(other * side));
                if comptime!(turned) {
                    let of_token = (tokens.start + min(token, tokens.count - 1)) * head;
                    let (cos, sin) = (angles[0][of_token + of_a], angles[0][of_token + of_b]);
                    let turned_back = a * cos + b * sin;
                    b = b * cos - a * sin;
                    a = turned_back;
                }
                let is_there = token < tokens.count;
                let at = (tokens.start + token) * out.stride(0) + column;
                if of_a < head {
                    out[at + of_a] = F::cast_from(select(is_there, a, 0.0f32));
                }
                if of_b < head {
                    out[at + of_b] = F::cast_from(select(is_there, b, 0.0f32));
                }
            }
            index += comptime!(cores.units());
        }
    }
}
