//! What the kernels of attention share: tiles in shared memory, and what a unit has of them.
//!
//! A cube has 64 units in a square. With a tile of its own queries (or keys) and one of the other side's in shared
//! memory, a unit has the scores of a few neighbours of each, and the elements of the output for its few of the cube's
//! own and every eighth column.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use crate::gpu::mask::Mask;

/// Units at each side of the square.
pub(super) const LANES: usize = 8;
/// Units of a cube.
pub(super) const UNITS: usize = LANES * LANES;

/// The score of a key that the query must not see.
pub(super) const UNSEEN: f32 = -1e30;
/// Every other score is above this.
const HIDDEN: f32 = -1e29;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiles {
    /// The width of a head.
    pub(super) width: usize,
    /// How many tokens a cube computes results for: queries, or keys in the pass over the keys.
    pub(super) own: usize,
    /// How many tokens of the other side it looks at in one round: keys, or queries.
    pub(super) others: usize,
    /// Whether queries do not see keys behind their own place.
    pub(super) causal: bool,
    /// Whether the queries of a row are at the places of its last keys.
    pub(super) at_end: bool,
    /// Heads of queries that look through one of keys.
    pub(super) together: usize,
    /// Whether there is a bias, and whether it goes by the place of the key, not by distance.
    pub(super) biased: bool,
    pub(super) by_place: bool,
    /// Whether queries and keys are turned by angles.
    pub(super) turned: bool,
    /// Whether there is dropout.
    pub(super) drops: bool,
    /// Whether each row of the mask begins with a new draw.
    pub(super) aligned: bool,
}

impl Tiles {
    /// The columns of the output that each unit has.
    pub(super) fn columns(self) -> usize {
        self.width.div_ceil(LANES)
    }

    /// The width of a tile: one more than a multiple of eight, so that the same column of some rows is in as many
    /// banks.
    pub(super) fn stride(self) -> usize {
        self.columns() * LANES + 1
    }

    /// A tile of so many tokens, turned or not.
    pub(super) fn lines(self, rows: usize, turned: bool) -> Lines {
        Lines { rows, head: self.width, width: self.columns() * LANES, stride: self.stride(), units: UNITS, turned }
    }

    /// Rows of a score tile that a unit has, and columns.
    pub(super) fn rows(self) -> usize {
        self.own / LANES
    }

    pub(super) fn scores(self) -> usize {
        self.others / LANES
    }

    /// The memory that the backward pass shares, which is the most.
    pub(super) fn shared_bytes(self) -> usize {
        let tiles = 2 * (self.own + self.others) * self.stride();
        let scores = 2 * self.own * (self.others + 1) + self.own * LANES;
        size_of::<f32>() * (tiles + scores)
    }
}

/// How a tile of tokens is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lines {
    pub(super) rows: usize,
    /// Columns of a head.
    pub(super) head: usize,
    /// Columns of the tile, and steps from one of its lines to the next.
    pub(super) width: usize,
    pub(super) stride: usize,
    /// Units that fill it together.
    pub(super) units: usize,
    /// Whether tokens are turned by angles.
    pub(super) turned: bool,
}

/// Numbers of an attention.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Sizes {
    /// The most queries of a row, and the most keys, by which the elements of a mask are counted.
    pub(super) queries: u32,
    pub(super) keys: u32,
    /// The place of the first query among the keys.
    pub(super) first: u32,
    /// The column of the bias for the first key, as the first query sees it.
    pub(super) origin: u32,
    /// Heads of the queries.
    pub(super) heads: u32,
    /// What queries are multiplied by.
    pub(super) scale: f32,
    /// Where the columns of heads are in the matrices.
    pub(super) q: Columns,
    pub(super) k: Columns,
    pub(super) v: Columns,
}

/// Where the columns of a head of keys, or of the queries that look through it, begin: of the first, and how much further
/// those of the next are.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Columns {
    pub(super) first: u32,
    pub(super) stride: u32,
}

#[cube]
impl Columns {
    /// Those of a head of keys or values.
    pub(super) fn of_keys(&self, kv_head: usize) -> usize {
        self.first as usize + kv_head * self.stride as usize
    }

    /// Those of a head of queries.
    pub(super) fn of_queries(&self, head: usize, #[comptime] tiles: Tiles) -> usize {
        self.of_keys(head / tiles.together) + head % tiles.together * tiles.width
    }
}

/// The tokens of a row: the first, how many there are, and with padding.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Tokens {
    pub(super) start: usize,
    pub(super) count: usize,
    pub(super) places: usize,
}

#[cube]
impl Tokens {
    /// From three numbers.
    pub(super) fn read(rows: &[u32], at: usize) -> Tokens {
        Tokens { start: rows[at] as usize, count: rows[at + 1] as usize, places: rows[at + 2] as usize }
    }
}

/// A head of a row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    /// Of the queries.
    pub(super) head: usize,
    pub(super) queries: Tokens,
    pub(super) keys: Tokens,
}

#[cube]
impl Place {
    /// This head in the row of this cube.
    pub(super) fn of_cube(rows: &[u32], head: usize) -> Place {
        let row = CUBE_POS_Z as usize;
        Place { row, head, queries: Tokens::read(rows, row * 6), keys: Tokens::read(rows, row * 6 + 3) }
    }

    /// The index of a query among all of all rows and heads.
    pub(super) fn query_index(&self, query: usize, sizes: &Sizes) -> usize {
        (self.row * sizes.heads as usize + self.head) * sizes.queries as usize + query
    }

    /// The index of a weight in the mask.
    pub(super) fn mask_index(&self, query: usize, key: usize, sizes: &Sizes) -> u32 {
        (self.query_index(query, sizes) * sizes.keys as usize + key) as u32
    }

    /// Draws what dropout multiplies this unit's weights of a query by, in the tile of the keys from `start` on.
    pub(super) fn draw(
        &self,
        query: usize,
        start: usize,
        mask: &Mask,
        out: &mut Array<f32>,
        sizes: &Sizes,
        #[comptime] tiles: Tiles,
    ) {
        if comptime!(tiles.drops) {
            let scores = comptime!(tiles.scores());
            let index = self.mask_index(query, start + unit_column() * scores, sizes);
            factors(mask, index, out, scores, tiles.aligned);
        }
    }

    /// How many keys the queries up to this one see.
    pub(super) fn seen(&self, query: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
        let mut seen = self.keys.count;
        if comptime!(tiles.at_end) {
            let places = self.keys.count + query + 1;
            seen = min(seen, places - min(places, sizes.queries as usize));
        } else if comptime!(tiles.causal) {
            seen = min(seen, sizes.first as usize + query + 1);
        }
        seen
    }

    /// The first query that may see one of the keys from this one on, as queries are taken in tiles of `others`.
    pub(super) fn first_to_see(&self, key: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
        let mut start = 0usize.runtime();
        if comptime!(tiles.at_end) {
            let before = key + sizes.queries as usize;
            start = (before - min(before, self.keys.count)) / tiles.others * tiles.others;
        } else if comptime!(tiles.causal) {
            start = (key - min(key, sizes.first as usize)) / tiles.others * tiles.others;
        }
        start
    }

    /// How many keys a query sees: none, if there is no such query.
    pub(super) fn limit(&self, query: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
        let mut limit = self.seen(query, sizes, tiles);
        if query >= self.queries.count {
            limit = 0usize;
        }
        limit
    }

    /// What the score of a query that sees `limit` keys becomes with its bias, or if it is not to be seen.
    pub(super) fn biased<F: Float>(
        &self,
        score: f32,
        query: usize,
        key: usize,
        limit: usize,
        bias: &Tensor<F>,
        sizes: &Sizes,
        #[comptime] tiles: Tiles,
    ) -> f32 {
        let mut score = score;
        if key >= limit {
            score = f32::new(UNSEEN);
        } else if comptime!(tiles.biased) {
            let mut column = key;
            if comptime!(!tiles.by_place) {
                column = sizes.origin as usize + key - query;
            }
            score += f32::cast_from(bias[self.head * bias.stride(0) + column * bias.stride(1)]);
        } else {
            score += f32::cast_from(bias[0]);
        }
        score
    }

    /// The same for all scores of a unit, in the tile of the queries from `first` and the keys from `start` on.
    pub(super) fn bias_all<F: Float>(
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
            let limit = self.limit(query, sizes, tiles);
            #[unroll]
            for j in 0..columns {
                let key = start + unit_column() * columns + j;
                let at = comptime!(i * columns + j);
                scores[at] = self.biased::<F>(scores[at], query, key, limit, bias, sizes, tiles);
            }
        }
    }
}

/// This unit's place in the square.
#[cube]
pub(super) fn unit_row() -> usize {
    (UNIT_POS / LANES as u32) as usize
}

#[cube]
pub(super) fn unit_column() -> usize {
    (UNIT_POS % LANES as u32) as usize
}

/// Fills a tile with the columns of a head, which begin at `column`, of the tokens from `first` on, and with zeros beyond
/// the last: turned by the angles of their tokens if they are to be, as [`rotary`](crate::rotary) does, and multiplied by
/// `scale`.
#[cube]
pub(super) fn load<F: Float, T: Float>(
    x: &Tensor<F>,
    angles: &Sequence<OwnedTensor<f32>>,
    tile: &mut Shared<[T]>,
    tokens: &Tokens,
    first: usize,
    column: usize,
    scale: f32,
    #[comptime] lines: Lines,
) {
    let left = tokens.count - min(first, tokens.count);
    let start = tokens.start + first;
    let mut index = UNIT_POS as usize;
    while index < comptime!(lines.rows * lines.width) {
        let row = index / lines.width;
        let own = index % lines.width;
        let mut value = 0.0f32;
        if row < left && own < lines.head {
            let line = (start + row) * x.stride(0);
            value = f32::cast_from(x[line + (column + own) * x.stride(1)]);
            if comptime!(lines.turned) {
                let half = comptime!(lines.head / 2);
                let is_first = own < half;
                let pair = own % half;
                let other = f32::cast_from(x[line + (column + select(is_first, own + half, pair)) * x.stride(1)]);
                let of_token = (start + row) * lines.head;
                let (cos, sin) = (angles[0][of_token + pair], angles[0][of_token + half + pair]);
                value = value * cos + other * select(is_first, -sin, sin);
            }
            value *= scale;
        }
        tile[row * lines.stride + own] = T::cast_from(value);
        index += lines.units;
    }
}

/// The products of this unit's rows of one tile with its rows of another.
#[cube]
pub(super) fn products(own: &Shared<[f32]>, others: &Shared<[f32]>, out: &mut Array<f32>, #[comptime] tiles: Tiles) {
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
pub(super) fn mix(weights: &Shared<[f32]>, others: &Shared<[f32]>, out: &mut Array<f32>, #[comptime] tiles: Tiles) {
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
pub(super) fn factors(
    mask: &Mask,
    first: u32,
    out: &mut Array<f32>,
    #[comptime] count: usize,
    #[comptime] aligned: bool,
) {
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

/// For each of this unit's rows, the sum of what all units of the row have for it.
#[cube]
pub(super) fn sum_rows_of_units(values: &mut Array<f32>, shared: &mut Shared<[f32]>, #[comptime] tiles: Tiles) {
    let rows = comptime!(tiles.rows());
    // What was here before has been read.
    sync_cube();
    #[unroll]
    for i in 0..rows {
        shared[(unit_row() * rows + i) * LANES + unit_column()] = values[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..rows {
        let row = unit_row() * rows + i;
        let mut sum = 0.0f32;
        #[unroll]
        for lane in 0..LANES {
            sum += shared[row * LANES + lane];
        }
        values[i] = sum;
    }
}

/// Puts the largest score that each unit has for each of its rows there, or what was highest before.
#[cube]
pub(super) fn share_largest(
    scores: &Array<f32>,
    highest: &Array<f32>,
    shared: &mut Shared<[f32]>,
    #[comptime] tiles: Tiles,
) {
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

/// The larger of what the units of a row have put there and `value`.
#[cube]
pub(super) fn shared_largest(shared: &Shared<[f32]>, row: usize, value: f32) -> f32 {
    let mut largest = value;
    #[unroll]
    for lane in 0..LANES {
        largest = max(largest, shared[row * LANES + lane]);
    }
    largest
}

/// `exp(score - shift)`, or zero where the score is not to be seen. A NaN is seen.
#[cube]
pub(super) fn exponential(score: f32, shift: f32) -> f32 {
    select(score <= f32::new(HIDDEN), 0.0f32, f32::exp(score - shift))
}

/// Memory that the cube shares, for the columns of a head of this many tokens.
#[cube]
pub(super) fn tile(#[comptime] rows: usize, #[comptime] tiles: Tiles) -> Shared<[f32]> {
    Shared::<[f32]>::new_slice(comptime!(rows * tiles.stride()))
}

/// Memory that the cube shares, for a number of each pair of tokens; see [`score_place`].
#[cube]
pub(super) fn score_tile(#[comptime] tiles: Tiles) -> Shared<[f32]> {
    Shared::<[f32]>::new_slice(comptime!(tiles.own * (tiles.others + 1)))
}

/// Where the `column`th of this unit's scores in a row of the tile is.
#[cube]
pub(super) fn score_place(row: usize, column: usize, #[comptime] tiles: Tiles) -> usize {
    row * comptime!(tiles.others + 1) + unit_column() * comptime!(tiles.scores()) + column
}

/// This unit's elements of the output, all zero.
#[cube]
pub(super) fn outputs(#[comptime] tiles: Tiles) -> Array<f32> {
    filled(0.0f32, comptime!(tiles.rows() * tiles.columns()))
}

/// One value for each of this unit's rows.
#[cube]
pub(super) fn of_rows(value: f32, #[comptime] tiles: Tiles) -> Array<f32> {
    filled(value, comptime!(tiles.rows()))
}

#[cube]
pub(super) fn filled(value: f32, #[comptime] count: usize) -> Array<f32> {
    let mut values = Array::<f32>::new(count);
    #[unroll]
    for index in 0..count {
        values[index] = value;
    }
    values
}

/// Multiplies this unit's elements of the output in one of its rows.
#[cube]
pub(super) fn multiply_row(values: &mut Array<f32>, row: usize, factor: f32, #[comptime] tiles: Tiles) {
    let columns = comptime!(tiles.columns());
    #[unroll]
    for column in 0..columns {
        values[row * columns + column] *= factor;
    }
}

/// Turns this unit's elements of a gradient back, and multiplies them by `scale`. A unit has both elements of its pairs.
#[cube]
pub(super) fn turn_back(
    values: &mut Array<f32>,
    angles: &Sequence<OwnedTensor<f32>>,
    tokens: &Tokens,
    first: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
) {
    let rows = comptime!(tiles.rows());
    let columns = comptime!(tiles.columns());
    #[unroll]
    for i in 0..rows {
        if comptime!(tiles.turned) {
            let token = first + unit_row() * rows + i;
            let of_token = (tokens.start + min(token, tokens.count - 1)) * tiles.width;
            #[unroll]
            for c in 0..comptime!(columns / 2) {
                let pair = of_token + unit_column() + c * LANES;
                let (cos, sin) = (angles[0][pair], angles[0][pair + comptime!(tiles.width / 2)]);
                let (at, other) = (comptime!(i * columns + c), comptime!(i * columns + c + columns / 2));
                let (a, b) = (values[at], values[other]);
                values[at] = a * cos + b * sin;
                values[other] = b * cos - a * sin;
            }
        }
        multiply_row(values, i, scale, tiles);
    }
}

/// Writes this unit's elements of the output into the columns from `column` on, and zeros for tokens of no row.
#[cube]
pub(super) fn store<F: Float>(
    values: &Array<f32>,
    out: &mut Tensor<F>,
    tokens: &Tokens,
    first: usize,
    column: usize,
    #[comptime] tiles: Tiles,
) {
    let rows = comptime!(tiles.rows());
    let columns = comptime!(tiles.columns());
    #[unroll]
    for i in 0..rows {
        let token = first + unit_row() * rows + i;
        #[unroll]
        for c in 0..columns {
            let own = unit_column() + c * LANES;
            if token < tokens.places && own < tiles.width {
                let value = select(token < tokens.count, values[i * columns + c], 0.0f32);
                let at = (tokens.start + token) * out.stride(0) + column + own;
                out[at] = F::cast_from(value);
            }
        }
    }
}
