//! The kernels of attention; [`tiles`](super::tiles) says how a cube shares the work.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

use super::tiles::{
    LANES, Place, Sizes, Tiles, UNITS, UNSEEN, exponential, factors, load, mix, multiply_row, of_rows, outputs,
    products, score_place, score_tile, share_largest, shared_largest, store, sum_rows_of_units, tile, turn_back,
    unit_column, unit_row,
};
use crate::gpu::mask::Mask;

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
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let place = Place::of_cube(rows, CUBE_POS_Y as usize);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.queries.places {
        terminate!();
    }
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let column_count = comptime!(tiles.columns());
    let mut own = tile(tiles.own, tiles);
    let mut others = tile(tiles.others, tiles);
    let mut weights = score_tile(tiles);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tiles.own * LANES));
    let mut mixed = outputs(tiles);
    let mut highest = of_rows(f32::new(UNSEEN), tiles);
    let mut below = of_rows(0.0f32, tiles);
    let mut scores = Array::<f32>::new(comptime!(tiles.rows() * tiles.scores()));
    let mut kept = Array::<f32>::new(score_count);

    let of_queries = sizes.q.of_queries(place.head, tiles);
    let of_keys = sizes.k.of_keys(place.head / tiles.together);
    let of_values = sizes.v.of_keys(place.head / tiles.together);
    let of_outputs = place.head * tiles.width;
    let lines = comptime!(tiles.lines(tiles.own, tiles.turned));
    load::<F, f32>(q, angles, &mut own, &place.queries, first, of_queries, sizes.scale, lines);
    let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
    let mut start = 0usize.runtime();
    while start < keys {
        // The values of the last round have been read.
        sync_cube();
        let lines = comptime!(tiles.lines(tiles.others, tiles.turned));
        load::<F, f32>(k, angles, &mut others, &place.keys, start, of_keys, 1.0f32, lines);
        sync_cube();
        products(&own, &others, &mut scores, tiles);
        place.bias_all::<F>(&mut scores, first, start, bias, &sizes, tiles);
        share_largest(&scores, &highest, &mut shared, tiles);
        sync_cube();
        // The keys have been read.
        let lines = comptime!(tiles.lines(tiles.others, false));
        load::<F, f32>(v, angles, &mut others, &place.keys, start, of_values, 1.0f32, lines);
        #[unroll]
        for i in 0..row_count {
            let row = unit_row() * row_count + i;
            let higher = shared_largest(&shared, row, highest[i]);
            let scale = f32::exp(highest[i] - higher);
            highest[i] = higher;
            below[i] *= scale;
            multiply_row(&mut mixed, i, scale, tiles);
            place.draw(first + row, start, &mask, &mut kept, &sizes, tiles);
            #[unroll]
            for j in 0..score_count {
                let weight = exponential(scores[i * score_count + j], higher);
                below[i] += weight;
                let at = score_place(row, j, tiles);
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
    sum_rows_of_units(&mut below, &mut shared, tiles);
    #[unroll]
    for i in 0..row_count {
        #[unroll]
        for c in 0..column_count {
            mixed[i * column_count + c] /= below[i];
        }
    }
    store::<F>(&mixed, out, &place.queries, first, of_outputs, tiles);
}

/// The gradient of the queries, in one pass over the keys: with the exponentials `e` and the gradient `g` of the
/// weights, it is `(sum(e g k) - pull * sum(e k)) / sum(e)`, where `pull = sum(e g) / sum(e)`.
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
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let place = Place::of_cube(rows, CUBE_POS_Y as usize);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.queries.places {
        terminate!();
    }
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let column_count = comptime!(tiles.columns());
    let mut own_q = tile(tiles.own, tiles);
    let mut own_g = tile(tiles.own, tiles);
    let mut others_k = tile(tiles.others, tiles);
    let mut others_v = tile(tiles.others, tiles);
    let mut weights = score_tile(tiles);
    let mut pulled = score_tile(tiles);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tiles.own * LANES));
    let mut of_weights = outputs(tiles);
    let mut of_pulled = outputs(tiles);
    let mut highest = of_rows(f32::new(UNSEEN), tiles);
    let mut below = of_rows(0.0f32, tiles);
    let mut pull = of_rows(0.0f32, tiles);
    let mut scores = Array::<f32>::new(comptime!(tiles.rows() * tiles.scores()));
    let mut slopes = Array::<f32>::new(comptime!(tiles.rows() * tiles.scores()));
    let mut kept = Array::<f32>::new(score_count);

    let of_queries = sizes.q.of_queries(place.head, tiles);
    let of_keys = sizes.k.of_keys(place.head / tiles.together);
    let of_values = sizes.v.of_keys(place.head / tiles.together);
    let of_outputs = place.head * tiles.width;
    let lines = comptime!(tiles.lines(tiles.own, tiles.turned));
    load::<F, f32>(q, angles, &mut own_q, &place.queries, first, of_queries, sizes.scale, lines);
    let lines = comptime!(tiles.lines(tiles.own, false));
    load::<F, f32>(gradient, angles, &mut own_g, &place.queries, first, of_outputs, 1.0f32, lines);
    let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
    let mut start = 0usize.runtime();
    while start < keys {
        // The tiles of the last round have been read.
        sync_cube();
        let lines = comptime!(tiles.lines(tiles.others, tiles.turned));
        load::<F, f32>(k, angles, &mut others_k, &place.keys, start, of_keys, 1.0f32, lines);
        let lines = comptime!(tiles.lines(tiles.others, false));
        load::<F, f32>(v, angles, &mut others_v, &place.keys, start, of_values, 1.0f32, lines);
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
            multiply_row(&mut of_weights, i, scale, tiles);
            multiply_row(&mut of_pulled, i, scale, tiles);
            place.draw(first + row, start, &mask, &mut kept, &sizes, tiles);
            #[unroll]
            for j in 0..score_count {
                let weight = exponential(scores[i * score_count + j], higher);
                let mut slope = weight * slopes[i * score_count + j];
                if comptime!(tiles.drops) {
                    slope *= kept[j];
                }
                below[i] += weight;
                pull[i] += slope;
                let at = score_place(row, j, tiles);
                weights[at] = weight;
                pulled[at] = slope;
            }
        }
        sync_cube();
        mix(&weights, &others_k, &mut of_weights, tiles);
        mix(&pulled, &others_k, &mut of_pulled, tiles);
        start += tiles.others;
    }
    sum_rows_of_units(&mut below, &mut shared, tiles);
    sum_rows_of_units(&mut pull, &mut shared, tiles);
    #[unroll]
    for i in 0..row_count {
        let row = unit_row() * row_count + i;
        let pull = pull[i] / below[i];
        #[unroll]
        for c in 0..column_count {
            let at = comptime!(i * column_count + c);
            of_pulled[at] = (of_pulled[at] - pull * of_weights[at]) / below[i];
        }
        if unit_column() == 0 && first + row < place.queries.count {
            let index = place.query_index(first + row, &sizes);
            normalisers[index] = highest[i] + f32::ln(below[i]);
            pulls[index] = pull;
        }
    }
    turn_back(&mut of_pulled, angles, &place.queries, first, sizes.scale, tiles);
    store::<F>(&of_pulled, of_q, &place.queries, first, of_queries, tiles);
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
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: ElemType,
) {
    let kv_head = CUBE_POS_Y as usize;
    let place = Place::of_cube(rows, kv_head * tiles.together);
    let first = CUBE_POS_X as usize * tiles.own;
    if first >= place.keys.places {
        terminate!();
    }
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let mut own_k = tile(tiles.own, tiles);
    let mut own_v = tile(tiles.own, tiles);
    let mut others_q = tile(tiles.others, tiles);
    let mut others_g = tile(tiles.others, tiles);
    let mut weights = score_tile(tiles);
    let mut pulled = score_tile(tiles);
    let mut sums_k = outputs(tiles);
    let mut sums_v = outputs(tiles);
    let mut scores = Array::<f32>::new(comptime!(tiles.rows() * tiles.scores()));
    let mut slopes = Array::<f32>::new(comptime!(tiles.rows() * tiles.scores()));
    let mut kept = Array::<f32>::new(row_count);

    let of_keys = sizes.k.of_keys(kv_head);
    let of_values = sizes.v.of_keys(kv_head);
    let lines = comptime!(tiles.lines(tiles.own, tiles.turned));
    load::<F, f32>(k, angles, &mut own_k, &place.keys, first, of_keys, 1.0f32, lines);
    let lines = comptime!(tiles.lines(tiles.own, false));
    load::<F, f32>(v, angles, &mut own_v, &place.keys, first, of_values, 1.0f32, lines);
    for member in 0..tiles.together {
        let place = Place::of_cube(rows, kv_head * tiles.together + member);
        let of_queries = sizes.q.of_queries(place.head, tiles);
        let of_outputs = place.head * tiles.width;
        let mut start = place.first_to_see(first, &sizes, tiles);
        while start < place.queries.count {
            sync_cube();
            let lines = comptime!(tiles.lines(tiles.others, tiles.turned));
            load::<F, f32>(q, angles, &mut others_q, &place.queries, start, of_queries, sizes.scale, lines);
            let lines = comptime!(tiles.lines(tiles.others, false));
            load::<F, f32>(gradient, angles, &mut others_g, &place.queries, start, of_outputs, 1.0f32, lines);
            sync_cube();
            products(&own_k, &others_q, &mut scores, tiles);
            products(&own_v, &others_g, &mut slopes, tiles);
            #[unroll]
            for j in 0..score_count {
                let query = start + unit_column() * score_count + j;
                let row = unit_row() * row_count;
                let index = place.query_index(min(query, place.queries.count - 1), &sizes);
                let (normaliser, pull) = (normalisers[index], pulls[index]);
                if comptime!(tiles.drops) {
                    factors(&mask, place.mask_index(query, first + row, &sizes), &mut kept, row_count, tiles.aligned);
                }
                let limit = place.limit(query, &sizes, tiles);
                #[unroll]
                for i in 0..row_count {
                    let at = comptime!(i * score_count + j);
                    let score = place.biased::<F>(scores[at], query, first + row + i, limit, bias, &sizes, tiles);
                    let weight = exponential(score, normaliser);
                    let to = score_place(row + i, j, tiles);
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
    }
    turn_back(&mut sums_k, angles, &place.keys, first, 1.0f32, tiles);
    store::<F>(&sums_k, of_k, &place.keys, first, of_keys, tiles);
    store::<F>(&sums_v, of_v, &place.keys, first, of_values, tiles);
}

/// The gradient of the bias of a head, as far as it comes of one row. A unit sums, tile after tile, the diagonals of
/// the columns that leave its own number when divided by the number of units.
#[cube(launch_unchecked)]
pub(super) fn bias_kernel<F: Float>(
    q: &Tensor<F>,
    k: &Tensor<F>,
    v: &Tensor<F>,
    bias: &Tensor<F>,
    angles: &Sequence<OwnedTensor<f32>>,
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
    let place = Place::of_cube(rows, CUBE_POS_Y as usize);
    let row_count = comptime!(tiles.rows());
    let score_count = comptime!(tiles.scores());
    let mut own_q = tile(tiles.own, tiles);
    let mut own_g = tile(tiles.own, tiles);
    let mut others_k = tile(tiles.others, tiles);
    let mut others_v = tile(tiles.others, tiles);
    let mut pulled = score_tile(tiles);
    let mut scores = Array::<f32>::new(comptime!(tiles.rows() * tiles.scores()));
    let mut slopes = Array::<f32>::new(comptime!(tiles.rows() * tiles.scores()));
    let mut kept = Array::<f32>::new(score_count);

    let of_queries = sizes.q.of_queries(place.head, tiles);
    let of_keys = sizes.k.of_keys(place.head / tiles.together);
    let of_values = sizes.v.of_keys(place.head / tiles.together);
    let of_outputs = place.head * tiles.width;
    let columns = bias.shape(1);
    let base = (place.row * sizes.heads as usize + place.head) * columns;
    let mut column = UNIT_POS as usize;
    while column < columns {
        partial[base + column] = 0.0f32;
        column += UNITS;
    }
    let mut first = 0usize.runtime();
    while first < place.queries.count {
        sync_cube();
        let lines = comptime!(tiles.lines(tiles.own, tiles.turned));
        load::<F, f32>(q, angles, &mut own_q, &place.queries, first, of_queries, sizes.scale, lines);
        let lines = comptime!(tiles.lines(tiles.own, false));
        load::<F, f32>(gradient, angles, &mut own_g, &place.queries, first, of_outputs, 1.0f32, lines);
        let keys = place.seen(first + comptime!(tiles.own - 1), &sizes, tiles);
        let mut start = 0usize.runtime();
        while start < keys {
            sync_cube();
            let lines = comptime!(tiles.lines(tiles.others, tiles.turned));
            load::<F, f32>(k, angles, &mut others_k, &place.keys, start, of_keys, 1.0f32, lines);
            let lines = comptime!(tiles.lines(tiles.others, false));
            load::<F, f32>(v, angles, &mut others_v, &place.keys, start, of_values, 1.0f32, lines);
            sync_cube();
            products(&own_q, &others_k, &mut scores, tiles);
            products(&own_g, &others_v, &mut slopes, tiles);
            place.bias_all::<F>(&mut scores, first, start, bias, &sizes, tiles);
            #[unroll]
            for i in 0..row_count {
                let row = unit_row() * row_count + i;
                let index = place.query_index(min(first + row, place.queries.count - 1), &sizes);
                let (normaliser, pull) = (normalisers[index], pulls[index]);
                place.draw(first + row, start, &mask, &mut kept, &sizes, tiles);
                #[unroll]
                for j in 0..score_count {
                    let at = comptime!(i * score_count + j);
                    let mut slope = slopes[at];
                    if comptime!(tiles.drops) {
                        slope *= kept[j];
                    }
                    let to = score_place(row, j, tiles);
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
