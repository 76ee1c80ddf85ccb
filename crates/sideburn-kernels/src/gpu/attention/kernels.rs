//! The kernels of attention.
//!
//! A cube has 64 units in a square. With a tile of its own queries (or keys) and one of the other side's in shared
//! memory, a unit has the scores of a few neighbours of each, and the elements of the output for its few of the cube's
//! own and every eighth column.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

use crate::gpu::mask::Mask;

/// Units at each side of the square.
pub(super) const LANES: usize = 8;
/// Units of a cube.
pub(super) const UNITS: usize = LANES * LANES;

/// What a score that is not to be seen is set to.
const UNSEEN: f32 = -1e30;
/// What no other score is below.
const HIDDEN: f32 = -1e29;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiles {
    /// The width of a head.
    pub(super) width: usize,
    /// Queries, or in the pass over the keys these, that a cube has the results of.
    pub(super) own: usize,
    /// What it goes through for them, at a time.
    pub(super) others: usize,
    /// Whether queries do not see keys behind their own place.
    pub(super) causal: bool,
    /// Whether there is a bias by distance.
    pub(super) biased: bool,
    /// Whether there is dropout.
    pub(super) drops: bool,
    /// Whether each row of the mask begins with a new draw.
    pub(super) aligned: bool,
}

impl Tiles {
    /// The columns of the output that each unit has.
    fn columns(self) -> usize {
        self.width.div_ceil(LANES)
    }

    /// The width of a tile: one more than a multiple of eight, so that the same column of some rows is in as many banks.
    fn stride(self) -> usize {
        self.columns() * LANES + 1
    }

    /// Rows of a score tile that a unit has, and columns.
    fn rows(self) -> usize {
        self.own / LANES
    }

    fn scores(self) -> usize {
        self.others / LANES
    }

    /// The memory that the backward pass shares, which is the most.
    pub(super) fn shared_bytes(self) -> usize {
        let tiles = 2 * (self.own + self.others) * self.stride();
        let scores = 2 * self.own * (self.others + 1) + self.own * LANES;
        size_of::<f32>() * (tiles + scores)
    }
}

/// Numbers of an attention.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Sizes {
    /// The most queries of a row, and the most keys, by which the elements of a mask are counted.
    queries: u32,
    keys: u32,
    /// The place of the first query among the keys.
    first: u32,
    /// The column of the bias for the first key, as the first query sees it.
    origin: u32,
}

/// Where a head of a row is.
#[derive(CubeType, Clone, Copy)]
struct Place {
    row: usize,
    head: usize,
    query_start: usize,
    query_count: usize,
    query_places: usize,
    key_start: usize,
    key_count: usize,
    key_places: usize,
}

#[cube]
impl Place {
    /// That of this cube.
    fn of_cube(rows: &[u32]) -> Place {
        let row = CUBE_POS_Z as usize;
        Place {
            row,
            head: CUBE_POS_Y as usize,
            query_start: rows[row * 6] as usize,
            query_count: rows[row * 6 + 1] as usize,
            query_places: rows[row * 6 + 2] as usize,
            key_start: rows[row * 6 + 3] as usize,
            key_count: rows[row * 6 + 4] as usize,
            key_places: rows[row * 6 + 5] as usize,
        }
    }

    /// The index of a query among all of all rows and heads.
    fn query_index(&self, query: usize, sizes: &Sizes) -> usize {
        (self.row * CUBE_COUNT_Y as usize + self.head) * sizes.queries as usize + query
    }

    /// The index of a weight in the mask.
    fn mask_index(&self, query: usize, key: usize, sizes: &Sizes) -> u32 {
        (self.query_index(query, sizes) * sizes.keys as usize + key) as u32
    }

    /// How many keys the queries up to this one see.
    fn seen(&self, query: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
        let mut seen = self.key_count;
        if comptime!(tiles.causal) {
            seen = min(seen, sizes.first as usize + query + 1);
        }
        seen
    }

    /// What a score becomes with its bias, or if it is not to be seen.
    fn biased<F: Float>(
        &self,
        score: f32,
        query: usize,
        key: usize,
        bias: &Tensor<F>,
        sizes: &Sizes,
        #[comptime] tiles: Tiles,
    ) -> f32 {
        let mut score = score;
        if query >= self.query_count || key >= self.seen(query, sizes, tiles) {
            score = f32::new(UNSEEN);
        } else if comptime!(tiles.biased) {
            let column = sizes.origin as usize + key - query;
            score += f32::cast_from(bias[self.head * bias.stride(0) + column * bias.stride(1)]);
        } else {
            score += f32::cast_from(bias[0]);
        }
        score
    }

    /// The same for all scores of a unit, in the tile of the queries from `first` and the keys from `start` on.
    fn bias_all<F: Float>(
        &self,
        scores: &mut Array<f32>,
        first: usize,
        start: usize,
        bias: &Tensor<F>,
        sizes: &Sizes,
        #[comptime] tiles: Tiles,
    ) {
        let rows = comptime!(tiles.rows());
        let columns = comptime!(tiles.scores());
        #[unroll]
        for i in 0..rows {
            let query = first + unit_row() * rows + i;
            #[unroll]
            for j in 0..columns {
                let key = start + unit_column() * columns + j;
                let at = comptime!(i * columns + j);
                scores[at] = self.biased::<F>(scores[at], query, key, bias, sizes, tiles);
            }
        }
    }
}

/// This unit's place in the square.
#[cube]
fn unit_row() -> usize {
    (UNIT_POS / LANES as u32) as usize
}

#[cube]
fn unit_column() -> usize {
    (UNIT_POS % LANES as u32) as usize
}

/// Fills a tile with the columns of a head of `count` tokens from `start` on, and with zeros beyond them.
#[cube]
fn load<F: Float>(
    x: &Tensor<F>,
    tile: &mut Shared<[f32]>,
    start: usize,
    count: usize,
    head: usize,
    #[comptime] rows: usize,
    #[comptime] tiles: Tiles,
) {
    let width = comptime!(tiles.columns() * LANES);
    let stride = comptime!(tiles.stride());
    let mut index = UNIT_POS as usize;
    while index < comptime!(rows * width) {
        let row = index / width;
        let column = index % width;
        let mut value = 0.0f32;
        if row < count && column < tiles.width {
            value = f32::cast_from(x[(start + row) * x.stride(0) + (head * tiles.width + column) * x.stride(1)]);
        }
        tile[row * stride + column] = value;
        index += UNITS;
    }
}

/// The products of this unit's rows of one tile with its rows of another.
#[cube]
fn products(own: &Shared<[f32]>, others: &Shared<[f32]>, out: &mut Array<f32>, #[comptime] tiles: Tiles) {
    let rows = comptime!(tiles.rows());
    let columns = comptime!(tiles.scores());
    let stride = comptime!(tiles.stride());
    let (row, column) = (unit_row() * rows, unit_column() * columns);
    #[unroll]
    for index in 0..comptime!(rows * columns) {
        out[index] = 0.0f32;
    }
    for at in 0..tiles.width {
        let mut left = Array::<f32>::new(rows);
        #[unroll]
        for i in 0..rows {
            left[i] = own[(row + i) * stride + at];
        }
        #[unroll]
        for j in 0..columns {
            let right = others[(column + j) * stride + at];
            #[unroll]
            for i in 0..rows {
                out[i * columns + j] += left[i] * right;
            }
        }
    }
}

/// Adds, to this unit's elements of the output, its rows of weights times the other side's tile.
#[cube]
fn mix(weights: &Shared<[f32]>, others: &Shared<[f32]>, out: &mut Array<f32>, #[comptime] tiles: Tiles) {
    let rows = comptime!(tiles.rows());
    let columns = comptime!(tiles.columns());
    let stride = comptime!(tiles.stride());
    let row = unit_row() * rows;
    for other in 0..tiles.others {
        let mut left = Array::<f32>::new(rows);
        #[unroll]
        for i in 0..rows {
            left[i] = weights[(row + i) * comptime!(tiles.others + 1) + other];
        }
        #[unroll]
        for c in 0..columns {
            let right = others[other * stride + unit_column() + c * LANES];
            #[unroll]
            for i in 0..rows {
                out[i * columns + c] += left[i] * right;
            }
        }
    }
}

/// The factors of `count` neighbours in a row of the mask, none of which is in another draw if rows are aligned.
#[cube]
fn factors(mask: &Mask, first: u32, out: &mut Array<f32>, #[comptime] count: usize, #[comptime] aligned: bool) {
    if comptime!(aligned) {
        let draw = mask.draw(first / 4);
        #[unroll]
        for index in 0..count {
            out[index] = mask.factor(&draw, first % 4 + index as u32);
        }
    } else {
        #[unroll]
        for index in 0..count {
            out[index] = mask.at(first + index as u32);
        }
    }
}

/// Puts what each unit has for its rows where all can see it.
#[cube]
fn share(values: &Array<f32>, shared: &mut Shared<[f32]>, #[comptime] rows: usize) {
    #[unroll]
    for i in 0..rows {
        shared[(unit_row() * rows + i) * LANES + unit_column()] = values[i];
    }
}

/// Puts the largest score that each unit has for each of its rows there, or what was highest before.
#[cube]
fn share_largest(scores: &Array<f32>, highest: &Array<f32>, shared: &mut Shared<[f32]>, #[comptime] tiles: Tiles) {
    let rows = comptime!(tiles.rows());
    let columns = comptime!(tiles.scores());
    #[unroll]
    for i in 0..rows {
        let mut largest = highest[i];
        #[unroll]
        for j in 0..columns {
            largest = max(largest, scores[i * columns + j]);
        }
        shared[(unit_row() * rows + i) * LANES + unit_column()] = largest;
    }
}

/// The sum of what the units of a row have put there.
#[cube]
fn shared_sum(shared: &Shared<[f32]>, row: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for lane in 0..LANES {
        sum += shared[row * LANES + lane];
    }
    sum
}

/// The larger of what the units of a row have put there and `value`.
#[cube]
fn shared_largest(shared: &Shared<[f32]>, row: usize, value: f32) -> f32 {
    let mut largest = value;
    #[unroll]
    for lane in 0..LANES {
        largest = max(largest, shared[row * LANES + lane]);
    }
    largest
}

/// `exp(score - shift)`, or zero where the score is not to be seen. A NaN is seen.
#[cube]
fn exponential(score: f32, shift: f32) -> f32 {
    select(score <= f32::new(HIDDEN), 0.0f32, f32::exp(score - shift))
}

#[cube]
fn fill(values: &mut Array<f32>, value: f32, #[comptime] count: usize) {
    #[unroll]
    for index in 0..count {
        values[index] = value;
    }
}

/// Writes this unit's elements, divided by their rows' divisors, and zeros for tokens of no row.
#[cube]
fn store<F: Float>(
    values: &Array<f32>,
    out: &mut Tensor<F>,
    first: usize,
    start: usize,
    count: usize,
    places: usize,
    head: usize,
    #[comptime] tiles: Tiles,
) {
    let rows = comptime!(tiles.rows());
    let columns = comptime!(tiles.columns());
    #[unroll]
    for i in 0..rows {
        let token = first + unit_row() * rows + i;
        #[unroll]
        for c in 0..columns {
            let column = unit_column() + c * LANES;
            if token < places && column < tiles.width {
                let value = select(token < count, values[i * columns + c], 0.0f32);
                let at = (start + token) * out.stride(0) + head * tiles.width + column;
                out[at] = F::cast_from(value);
            }
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn forward_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    rows: &[u32],
    out: &mut Tensor<F>,
    sizes: Sizes,
    mask: Mask,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let place = Place::of_cube(rows);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.query_places {
        terminate!();
    }
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let column_count = comptime!(tiles.columns());
    let stride = comptime!(tiles.stride());
    let mut own = Shared::<[f32]>::new_slice(comptime!(tiles.own * stride));
    let mut others = Shared::<[f32]>::new_slice(comptime!(tiles.others * stride));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tiles.own * (tiles.others + 1)));
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tiles.own * LANES));
    let mut mixed = Array::<f32>::new(comptime!(row_count * column_count));
    let mut highest = Array::<f32>::new(row_count);
    let mut below = Array::<f32>::new(row_count);
    let mut scores = Array::<f32>::new(comptime!(row_count * score_count));
    let mut kept = Array::<f32>::new(score_count);
    fill(&mut mixed, 0.0f32, comptime!(row_count * column_count));
    fill(&mut highest, f32::new(UNSEEN), row_count);
    fill(&mut below, 0.0f32, row_count);

    let count = place.query_count - min(first, place.query_count);
    load::<F>(q, &mut own, place.query_start + first, count, place.head, tiles.own, tiles);
    let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
    let mut start = 0usize.runtime();
    while start < keys {
        // The values of the last round have been read.
        sync_cube();
        let left = place.key_count - start;
        load::<F>(k, &mut others, place.key_start + start, left, place.head, tiles.others, tiles);
        sync_cube();
        products(&own, &others, &mut scores, tiles);
        place.bias_all::<F>(&mut scores, first, start, bias, &sizes, tiles);
        share_largest(&scores, &highest, &mut shared, tiles);
        sync_cube();
        // The keys have been read.
        load::<F>(v, &mut others, place.key_start + start, left, place.head, tiles.others, tiles);
        #[unroll]
        for i in 0..row_count {
            let row = unit_row() * row_count + i;
            let higher = shared_largest(&shared, row, highest[i]);
            let scale = f32::exp(highest[i] - higher);
            highest[i] = higher;
            below[i] *= scale;
            #[unroll]
            for c in 0..column_count {
                mixed[i * column_count + c] *= scale;
            }
            if comptime!(tiles.drops) {
                let index = place.mask_index(first + row, start + unit_column() * score_count, &sizes);
                factors(&mask, index, &mut kept, score_count, tiles.aligned);
            }
            #[unroll]
            for j in 0..score_count {
                let weight = exponential(scores[i * score_count + j], higher);
                below[i] += weight;
                let at = row * comptime!(tiles.others + 1) + unit_column() * score_count + j;
                if comptime!(tiles.drops) {
                    weights[at] = weight * kept[j];
                } else {
                    weights[at] = weight;
                }
            }
        }
        sync_cube();
        mix(&weights, &others, &mut mixed, tiles);
        start += tiles.others;
    }
    sync_cube();
    share(&below, &mut shared, row_count);
    sync_cube();
    #[unroll]
    for i in 0..row_count {
        let sum = shared_sum(&shared, unit_row() * row_count + i);
        #[unroll]
        for c in 0..column_count {
            mixed[i * column_count + c] /= sum;
        }
    }
    store::<F>(&mixed, out, first, place.query_start, place.query_count, place.query_places, place.head, tiles);
}

/// The gradient of the queries, in one pass over the keys: with the exponentials `e` and the gradient `g` of the weights,
/// it is `(sum(e g k) - pull * sum(e k)) / sum(e)`, where `pull = sum(e g) / sum(e)`.
#[cube(launch_unchecked)]
pub(super) fn queries_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    gradient: &Tensor<F>,
    rows: &[u32],
    of_q: &mut Tensor<F>,
    normalisers: &mut [f32],
    pulls: &mut [f32],
    sizes: Sizes,
    mask: Mask,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let place = Place::of_cube(rows);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.query_places {
        terminate!();
    }
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let column_count = comptime!(tiles.columns());
    let stride = comptime!(tiles.stride());
    let mut own_q = Shared::<[f32]>::new_slice(comptime!(tiles.own * stride));
    let mut own_g = Shared::<[f32]>::new_slice(comptime!(tiles.own * stride));
    let mut others_k = Shared::<[f32]>::new_slice(comptime!(tiles.others * stride));
    let mut others_v = Shared::<[f32]>::new_slice(comptime!(tiles.others * stride));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tiles.own * (tiles.others + 1)));
    let mut pulled = Shared::<[f32]>::new_slice(comptime!(tiles.own * (tiles.others + 1)));
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tiles.own * LANES));
    let mut of_weights = Array::<f32>::new(comptime!(row_count * column_count));
    let mut of_pulled = Array::<f32>::new(comptime!(row_count * column_count));
    let mut highest = Array::<f32>::new(row_count);
    let mut below = Array::<f32>::new(row_count);
    let mut pull = Array::<f32>::new(row_count);
    let mut scores = Array::<f32>::new(comptime!(row_count * score_count));
    let mut slopes = Array::<f32>::new(comptime!(row_count * score_count));
    let mut kept = Array::<f32>::new(score_count);
    fill(&mut of_weights, 0.0f32, comptime!(row_count * column_count));
    fill(&mut of_pulled, 0.0f32, comptime!(row_count * column_count));
    fill(&mut highest, f32::new(UNSEEN), row_count);
    fill(&mut below, 0.0f32, row_count);
    fill(&mut pull, 0.0f32, row_count);

    let count = place.query_count - min(first, place.query_count);
    load::<F>(q, &mut own_q, place.query_start + first, count, place.head, tiles.own, tiles);
    load::<F>(gradient, &mut own_g, place.query_start + first, count, place.head, tiles.own, tiles);
    let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
    let mut start = 0usize.runtime();
    while start < keys {
        // The tiles of the last round have been read.
        sync_cube();
        let left = place.key_count - start;
        load::<F>(k, &mut others_k, place.key_start + start, left, place.head, tiles.others, tiles);
        load::<F>(v, &mut others_v, place.key_start + start, left, place.head, tiles.others, tiles);
        sync_cube();
        products(&own_q, &others_k, &mut scores, tiles);
        products(&own_g, &others_v, &mut slopes, tiles);
        place.bias_all::<F>(&mut scores, first, start, bias, &sizes, tiles);
        share_largest(&scores, &highest, &mut shared, tiles);
        sync_cube();
        #[unroll]
        for i in 0..row_count {
            let row = unit_row() * row_count + i;
            let higher = shared_largest(&shared, row, highest[i]);
            let scale = f32::exp(highest[i] - higher);
            highest[i] = higher;
            below[i] *= scale;
            pull[i] *= scale;
            #[unroll]
            for c in 0..column_count {
                of_weights[i * column_count + c] *= scale;
                of_pulled[i * column_count + c] *= scale;
            }
            if comptime!(tiles.drops) {
                let index = place.mask_index(first + row, start + unit_column() * score_count, &sizes);
                factors(&mask, index, &mut kept, score_count, tiles.aligned);
            }
            #[unroll]
            for j in 0..score_count {
                let weight = exponential(scores[i * score_count + j], higher);
                let mut slope = weight * slopes[i * score_count + j];
                if comptime!(tiles.drops) {
                    slope *= kept[j];
                }
                below[i] += weight;
                pull[i] += slope;
                let at = row * comptime!(tiles.others + 1) + unit_column() * score_count + j;
                weights[at] = weight;
                pulled[at] = slope;
            }
        }
        sync_cube();
        mix(&weights, &others_k, &mut of_weights, tiles);
        mix(&pulled, &others_k, &mut of_pulled, tiles);
        start += tiles.others;
    }
    sync_cube();
    share(&below, &mut shared, row_count);
    sync_cube();
    #[unroll]
    for i in 0..row_count {
        below[i] = shared_sum(&shared, unit_row() * row_count + i);
    }
    sync_cube();
    share(&pull, &mut shared, row_count);
    sync_cube();
    #[unroll]
    for i in 0..row_count {
        let row = unit_row() * row_count + i;
        let pull = shared_sum(&shared, row) / below[i];
        #[unroll]
        for c in 0..column_count {
            let at = comptime!(i * column_count + c);
            of_pulled[at] = (of_pulled[at] - pull * of_weights[at]) / below[i];
        }
        if unit_column() == 0 && first + row < place.query_count {
            let index = place.query_index(first + row, &sizes);
            normalisers[index] = highest[i] + f32::ln(below[i]);
            pulls[index] = pull;
        }
    }
    store::<F>(&of_pulled, of_q, first, place.query_start, place.query_count, place.query_places, place.head, tiles);
}

/// The gradients of the keys and values, in one pass over the queries that see them.
#[cube(launch_unchecked)]
pub(super) fn keys_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    gradient: &Tensor<F>,
    rows: &[u32],
    of_k: &mut Tensor<F>,
    of_v: &mut Tensor<F>,
    normalisers: &[f32],
    pulls: &[f32],
    sizes: Sizes,
    mask: Mask,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let place = Place::of_cube(rows);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.key_places {
        terminate!();
    }
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let column_count = comptime!(tiles.columns());
    let stride = comptime!(tiles.stride());
    let mut own_k = Shared::<[f32]>::new_slice(comptime!(tiles.own * stride));
    let mut own_v = Shared::<[f32]>::new_slice(comptime!(tiles.own * stride));
    let mut others_q = Shared::<[f32]>::new_slice(comptime!(tiles.others * stride));
    let mut others_g = Shared::<[f32]>::new_slice(comptime!(tiles.others * stride));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tiles.own * (tiles.others + 1)));
    let mut pulled = Shared::<[f32]>::new_slice(comptime!(tiles.own * (tiles.others + 1)));
    let mut sums_k = Array::<f32>::new(comptime!(row_count * column_count));
    let mut sums_v = Array::<f32>::new(comptime!(row_count * column_count));
    let mut scores = Array::<f32>::new(comptime!(row_count * score_count));
    let mut slopes = Array::<f32>::new(comptime!(row_count * score_count));
    let mut kept = Array::<f32>::new(row_count);
    fill(&mut sums_k, 0.0f32, comptime!(row_count * column_count));
    fill(&mut sums_v, 0.0f32, comptime!(row_count * column_count));

    let count = place.key_count - min(first, place.key_count);
    load::<F>(k, &mut own_k, place.key_start + first, count, place.head, tiles.own, tiles);
    load::<F>(v, &mut own_v, place.key_start + first, count, place.head, tiles.own, tiles);
    let mut start = 0usize.runtime();
    if comptime!(tiles.causal) {
        // Queries before these see none of the keys.
        let before = first - min(first, sizes.first as usize);
        start = before / tiles.others * tiles.others;
    }
    while start < place.query_count {
        sync_cube();
        let left = place.query_count - start;
        load::<F>(q, &mut others_q, place.query_start + start, left, place.head, tiles.others, tiles);
        load::<F>(gradient, &mut others_g, place.query_start + start, left, place.head, tiles.others, tiles);
        sync_cube();
        products(&own_k, &others_q, &mut scores, tiles);
        products(&own_v, &others_g, &mut slopes, tiles);
        #[unroll]
        for j in 0..score_count {
            let query = start + unit_column() * score_count + j;
            let row = unit_row() * row_count;
            let index = place.query_index(min(query, place.query_count - 1), &sizes);
            let (normaliser, pull) = (normalisers[index], pulls[index]);
            if comptime!(tiles.drops) {
                factors(&mask, place.mask_index(query, first + row, &sizes), &mut kept, row_count, tiles.aligned);
            }
            #[unroll]
            for i in 0..row_count {
                let at = comptime!(i * score_count + j);
                let score = place.biased::<F>(scores[at], query, first + row + i, bias, &sizes, tiles);
                let weight = exponential(score, normaliser);
                let to = (row + i) * comptime!(tiles.others + 1) + unit_column() * score_count + j;
                if comptime!(tiles.drops) {
                    weights[to] = weight * kept[i];
                    pulled[to] = weight * (slopes[at] * kept[i] - pull);
                } else {
                    weights[to] = weight;
                    pulled[to] = weight * (slopes[at] - pull);
                }
            }
        }
        sync_cube();
        mix(&weights, &others_g, &mut sums_v, tiles);
        mix(&pulled, &others_q, &mut sums_k, tiles);
        start += tiles.others;
    }
    store::<F>(&sums_k, of_k, first, place.key_start, place.key_count, place.key_places, place.head, tiles);
    store::<F>(&sums_v, of_v, first, place.key_start, place.key_count, place.key_places, place.head, tiles);
}

/// The gradient of the bias of a head, as far as it comes of one row. A unit sums, tile after tile, the diagonals of the
/// columns that leave its own number when divided by the number of units.
#[cube(launch_unchecked)]
pub(super) fn bias_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    gradient: &Tensor<F>,
    rows: &[u32],
    partial: &mut [f32],
    normalisers: &[f32],
    pulls: &[f32],
    sizes: Sizes,
    mask: Mask,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    comptime!(assert!(tiles.own + tiles.others <= UNITS, "a tile has a diagonal for each unit at most"));
    let place = Place::of_cube(rows);
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let stride = comptime!(tiles.stride());
    let mut own_q = Shared::<[f32]>::new_slice(comptime!(tiles.own * stride));
    let mut own_g = Shared::<[f32]>::new_slice(comptime!(tiles.own * stride));
    let mut others_k = Shared::<[f32]>::new_slice(comptime!(tiles.others * stride));
    let mut others_v = Shared::<[f32]>::new_slice(comptime!(tiles.others * stride));
    let mut pulled = Shared::<[f32]>::new_slice(comptime!(tiles.own * (tiles.others + 1)));
    let mut scores = Array::<f32>::new(comptime!(row_count * score_count));
    let mut slopes = Array::<f32>::new(comptime!(row_count * score_count));
    let mut kept = Array::<f32>::new(score_count);

    let columns = bias.shape(1);
    let base = (place.row * CUBE_COUNT_Y as usize + place.head) * columns;
    let mut column = UNIT_POS as usize;
    while column < columns {
        partial[base + column] = 0.0f32;
        column += UNITS;
    }
    let mut first = 0usize.runtime();
    while first < place.query_count {
        sync_cube();
        let count = place.query_count - first;
        load::<F>(q, &mut own_q, place.query_start + first, count, place.head, tiles.own, tiles);
        load::<F>(gradient, &mut own_g, place.query_start + first, count, place.head, tiles.own, tiles);
        let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
        let mut start = 0usize.runtime();
        while start < keys {
            sync_cube();
            let left = place.key_count - start;
            load::<F>(k, &mut others_k, place.key_start + start, left, place.head, tiles.others, tiles);
            load::<F>(v, &mut others_v, place.key_start + start, left, place.head, tiles.others, tiles);
            sync_cube();
            products(&own_q, &others_k, &mut scores, tiles);
            products(&own_g, &others_v, &mut slopes, tiles);
            place.bias_all::<F>(&mut scores, first, start, bias, &sizes, tiles);
            #[unroll]
            for i in 0..row_count {
                let row = unit_row() * row_count + i;
                let index = place.query_index(min(first + row, place.query_count - 1), &sizes);
                let (normaliser, pull) = (normalisers[index], pulls[index]);
                if comptime!(tiles.drops) {
                    let index = place.mask_index(first + row, start + unit_column() * score_count, &sizes);
                    factors(&mask, index, &mut kept, score_count, tiles.aligned);
                }
                #[unroll]
                for j in 0..score_count {
                    let at = comptime!(i * score_count + j);
                    let mut slope = slopes[at];
                    if comptime!(tiles.drops) {
                        slope *= kept[j];
                    }
                    let to = row * comptime!(tiles.others + 1) + unit_column() * score_count + j;
                    pulled[to] = exponential(scores[at], normaliser) * (slope - pull);
                }
            }
            sync_cube();
            // Diagonals are counted from the lower left corner, and columns from `UNITS` before the first.
            let corner = sizes.origin as usize + start + comptime!(UNITS + 1 - tiles.own) - first;
            let diagonal = (UNIT_POS as usize + UNITS - corner % UNITS) % UNITS;
            let mut sum = 0.0f32;
            for row in 0..tiles.own {
                let other = diagonal + row;
                if other >= comptime!(tiles.own - 1) && other < comptime!(tiles.own + tiles.others - 1) {
                    sum += pulled[row * comptime!(tiles.others + 1) + other - comptime!(tiles.own - 1)];
                }
            }
            let column = corner + diagonal;
            if column >= UNITS && column < UNITS + columns {
                partial[base + column - UNITS] += sum;
            }
            start += tiles.others;
        }
        first += tiles.own;
    }
}
