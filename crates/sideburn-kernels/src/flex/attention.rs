//! Attention on the CPU: one task for each row and head, a block of queries at a time, scores in cache only.

use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;
use sideburn_batch::Dropout;

use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::simd::{LINE, dots, exp, fetch_ahead, largest, sum, vector_fn};
use super::{Primitive, matrix, row_major};
use crate::ops::attention::{AttentionKernels, Visibility};
use crate::runtime::memory::Buffer;

/// Queries that a task takes at once.
const BLOCK: usize = 128;

impl AttentionKernels for Flex {
    fn try_attention(
        inputs: [Primitive; 4],
        visibility: &Visibility,
        dropout: Option<Dropout>,
    ) -> Result<Primitive, [Primitive; 4]> {
        if visibility.keys.scattered_row(0).is_some() && !reads_one_query(visibility, dropout) {
            return Err(inputs);
        }
        let inputs = row_major(inputs)?;
        Ok(Heads::new(inputs.each_ref().map(matrix), visibility, dropout).forward())
    }

    fn try_attention_backward(
        inputs: [Primitive; 5],
        visibility: &Visibility,
        of_bias: bool,
        dropout: Option<Dropout>,
    ) -> Result<[Primitive; 4], [Primitive; 5]> {
        let [q, k, v, bias, gradient] = row_major(inputs)?;
        let heads = Heads::new([&q, &k, &v, &bias].map(matrix), visibility, dropout);
        let mut of_q = zeros_if(visibility.queries.has_padding(), &q);
        let [mut of_k, mut of_v] = [&k, &v].map(|x| zeros_if(visibility.keys.has_padding(), x));
        let out = Gradients {
            q: Parts::new(&mut of_q, q.shape()[0], q.shape()[1]),
            k: Parts::new(&mut of_k, k.shape()[0], k.shape()[1]),
            v: Parts::new(&mut of_v, v.shape()[0], v.shape()[1]),
            first: [0; 3],
        };
        let of_bias = heads.backward(matrix(&gradient), &out, of_bias);
        Ok([of_q.into_tensor(q.shape()), of_k.into_tensor(k.shape()), of_v.into_tensor(v.shape()), of_bias])
    }

    fn try_self_attention(
        inputs: [Primitive; 2],
        visibility: &Visibility,
        dropout: Option<Dropout>,
    ) -> Result<Primitive, [Primitive; 2]> {
        let [qkv, bias] = row_major(inputs)?;
        let [q, k, v] = parts(matrix(&qkv));
        Ok(Heads::new([q, k, v, matrix(&bias)], visibility, dropout).forward())
    }

    fn try_self_attention_backward(
        inputs: [Primitive; 3],
        visibility: &Visibility,
        of_bias: bool,
        dropout: Option<Dropout>,
    ) -> Result<[Primitive; 2], [Primitive; 3]> {
        let [qkv, bias, gradient] = row_major(inputs)?;
        let ([q, k, v], [tokens, columns]) = (parts(matrix(&qkv)), matrix(&qkv).shape());
        let heads = Heads::new([q, k, v, matrix(&bias)], visibility, dropout);
        let mut of_qkv = zeros_if(visibility.queries.has_padding() || visibility.keys.has_padding(), &qkv);
        let of = Parts::new(&mut of_qkv, tokens, columns);
        let out = Gradients { q: of, k: of, v: of, first: [0, columns / 3, columns / 3 * 2] };
        let of_bias = heads.backward(matrix(&gradient), &out, of_bias);
        Ok([of_qkv.into_tensor(qkv.shape()), of_bias])
    }
}

/// Whether each row has one query, as decoding has them.
fn reads_one_query(visibility: &Visibility, dropout: Option<Dropout>) -> bool {
    visibility.queries.columns() == 1 && dropout.is_none()
}

/// The `N` matrices that lie side by side in one.
fn parts<const N: usize>(x: Mat<'_>) -> [Mat<'_>; N] {
    let width = x.shape()[1] / N;
    std::array::from_fn(|part| x.columns(part * width..(part + 1) * width))
}

/// Memory for a gradient, which is zero where there is padding.
fn zeros_if(padded: bool, x: &Primitive) -> Buffer {
    let size = x.shape().num_elements();
    if padded { Buffer::zeros(size) } else { Buffer::new(size) }
}

/// Where the gradients go: matrices, which may be one, and the first column of each part in its matrix.
struct Gradients<'a> {
    q: Parts<'a>,
    k: Parts<'a>,
    v: Parts<'a>,
    first: [usize; 3],
}

/// The inputs of an attention.
struct Heads<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    bias: Mat<'a>,
    visibility: &'a Visibility,
    dropout: Option<Dropout>,
    width: usize,
}

impl<'a> Heads<'a> {
    fn new([q, k, v, bias]: [Mat<'a>; 4], visibility: &'a Visibility, dropout: Option<Dropout>) -> Self {
        let width = q.shape()[1] / visibility.heads;
        Self { q, k, v, bias, visibility, dropout, width }
    }

    fn forward(&self) -> Primitive {
        let [tokens, columns] = self.q.shape();
        let size = tokens * columns;
        let mut out = if self.visibility.queries.has_padding() { Buffer::zeros(size) } else { Buffer::new(size) };
        let parts = Parts::new(&mut out, tokens, columns);
        if reads_one_query(self.visibility, self.dropout) {
            self.each_row(|row| self.decode(row, parts));
        } else {
            self.each(|head| head.forward(parts));
        }
        out.into_tensor([tokens, columns])
    }

    /// Writes the gradients, and returns that of the bias: zeros unless it is asked for.
    fn backward(&self, gradient: Mat<'_>, out: &Gradients<'_>, of_bias: bool) -> Primitive {
        let sums = self.each(|head| head.backward(gradient, out, of_bias));
        let [rows, width] = self.bias.shape();
        let mut total = Buffer::zeros(rows * width);
        for (index, of_bias) in sums.into_iter().enumerate() {
            let head = if rows == 1 { 0 } else { index % self.visibility.heads };
            total[head * width..].iter_mut().zip(of_bias.iter().flatten()).for_each(|(total, x)| *total += x);
        }
        total.into_tensor([rows, width])
    }

    /// Runs `task` for each row.
    fn each_row(&self, task: impl Fn(usize) + Send + Sync) {
        (0..self.visibility.queries.rows()).into_par_iter().with_max_len(1).for_each(task);
    }

    /// A row with one query: all heads together, so that keys and values are read as they lie.
    fn decode(&self, row: usize, out: Parts<'_>) {
        let (heads, width, token) = (self.visibility.heads, self.width, self.visibility.queries.row(row).start);
        let keys = &self.visibility.keys;
        let seen = self.visibility.seen(0, keys.lengths()[row]);
        let places = match keys.scattered_row(row) {
            Some(places) => Places::Scattered(places),
            None => Places::From(keys.row(row).start),
        };
        let q = self.q.row(token);
        let mut weights = Buffer::new(heads * seen);
        for key in 0..seen {
            for (head, (q, k)) in q.chunks_exact(width).zip(self.k.row(places.of(key)).chunks_exact(width)).enumerate()
            {
                [weights[head * seen + key]] = dots([q], k);
            }
        }
        // SAFETY: each task has its own row.
        let mut out = unsafe { out.part(token..token + 1, 0..heads * width) };
        let out = out.row(0);
        mix_one_query(self, out, &mut weights, places, seen);
    }

    /// The bias of a head.
    fn bias_row(&self, head: usize) -> &'a [f32] {
        let row = if self.bias.shape()[0] == 1 { 0 } else { head };
        self.bias.rows(row..row + 1).row_major()
    }

    /// Runs `task` for each head of each row, in their order.
    fn each<R: Send>(&self, task: impl Fn(Head<'_>) -> R + Sync) -> Vec<R> {
        let Visibility { heads, queries, keys, .. } = self.visibility;
        // Short rows make small tasks, of which a few go together.
        let work = queries.columns() * keys.columns() * self.width;
        let together = ((1 << 16) / work.max(1)).clamp(1, 16);
        let head = |index: usize| {
            let (row, head) = (index / heads, index % heads);
            let columns = head * self.width..(head + 1) * self.width;
            let part = |x: Mat<'a>, tokens| x.rows(tokens).columns(columns.clone());
            Head {
                q: part(self.q, queries.row(row)),
                k: part(self.k, keys.row(row)),
                v: part(self.v, keys.row(row)),
                bias: self.bias_row(head),
                visibility: self.visibility,
                dropout: self.dropout,
                index,
                row,
                columns,
            }
        };
        (0..queries.rows() * heads).into_par_iter().with_min_len(together).map(|index| task(head(index))).collect()
    }
}

/// Where the keys of a row lie.
#[derive(Clone, Copy)]
enum Places<'a> {
    /// Side by side, from this token on.
    From(usize),
    Scattered(&'a [u32]),
}

impl Places<'_> {
    #[inline(always)]
    fn of(self, key: usize) -> usize {
        match self {
            Self::From(first) => first + key,
            Self::Scattered(places) => places[key] as usize,
        }
    }
}

/// One head of one row.
struct Head<'a> {
    /// `[queries, width]`.
    q: Mat<'a>,
    /// `[keys, width]`.
    k: Mat<'a>,
    v: Mat<'a>,
    bias: &'a [f32],
    visibility: &'a Visibility,
    dropout: Option<Dropout>,
    index: usize,
    row: usize,
    /// Its columns in the matrices of all heads.
    columns: std::ops::Range<usize>,
}

impl Head<'_> {
    /// Blocks of queries, each with the number of keys that they see: the first query, how many, how many keys.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let ([queries, _], [keys, _]) = (self.q.shape(), self.k.shape());
        (0..queries).step_by(BLOCK).map(move |first| {
            let count = BLOCK.min(queries - first);
            (first, count, self.visibility.seen(first + count - 1, keys))
        })
    }

    /// The exponentials of a block's scores below their largest, `[count, keys]`, and the inverse of each row's sum.
    fn exponentials(&self, out: &mut [f32], inverse: &mut [f32], (first, count, keys): (usize, usize, usize)) {
        let q = self.q.rows(first..first + count);
        let k = self.k.rows(0..keys);
        product(MatMut::new(out, count, keys), q, k.t(), 1.0, Before::Forgotten, Workers::One);
        exponentials_of_block(self, out, inverse, first, keys);
    }

    /// Where the elements of a query's row of weights begin in the mask.
    fn first_draw(&self, query: usize) -> usize {
        let (queries, keys) = (self.visibility.queries.columns(), self.visibility.keys.columns());
        (self.index * queries + query) * keys
    }

    fn forward(&self, out: Parts<'_>) {
        let [keys, _] = self.k.shape();
        let mut scores = Buffer::new(BLOCK.min(self.q.shape()[0]) * keys);
        let mut factors = self.dropout.map(|_| Buffer::new(keys));
        let mut inverse = [0f32; BLOCK];
        let tokens = self.visibility.queries.row(self.row);
        for block @ (first, count, keys) in self.blocks() {
            let scores = &mut scores[..count * keys];
            self.exponentials(scores, &mut inverse, block);
            if let (Some(dropout), Some(factors)) = (self.dropout, &mut factors) {
                drop_of_block(self, dropout, scores, factors, first, keys);
            }
            let rows = tokens.start + first..tokens.start + first + count;
            // SAFETY: each task has its own row and head, and its blocks have rows of their own.
            let mut out = unsafe { out.part(rows, self.columns.clone()) };
            let scores = Mat::new(scores, count, keys);
            product(out.by_ref(), scores, self.v.rows(0..keys), 1.0, Before::Forgotten, Workers::One);
            for (index, inverse) in inverse[..count].iter().enumerate() {
                out.row(index).iter_mut().for_each(|x| *x *= inverse);
            }
        }
    }

    /// Writes the gradients of this head, and returns that of its row of the bias if it is asked for.
    fn backward(&self, gradient: Mat<'_>, out: &Gradients<'_>, of_bias: bool) -> Option<Vec<f32>> {
        let ([queries, _], [keys, _]) = (self.q.shape(), self.k.shape());
        let (query_tokens, key_tokens) = (self.visibility.queries.row(self.row), self.visibility.keys.row(self.row));
        let gradient = gradient.rows(query_tokens.clone()).columns(self.columns.clone());
        let [q_columns, k_columns, v_columns] =
            out.first.map(|first| first + self.columns.start..first + self.columns.end);
        // SAFETY: each task has its own row and head.
        let (mut of_k, mut of_v) =
            unsafe { (out.k.part(key_tokens.clone(), k_columns), out.v.part(key_tokens, v_columns)) };
        for key in 0..keys {
            of_k.row(key).fill(0.0);
            of_v.row(key).fill(0.0);
        }
        let size = BLOCK.min(queries) * keys;
        let [mut weights, mut scores] = [(); 2].map(|()| Buffer::new(size));
        let mut dropped = self.dropout.map(|_| Buffer::new(size));
        let mut inverse = [0f32; BLOCK];
        let mut bias_sums = of_bias.then(|| vec![0f32; self.bias.len()]);
        for block @ (first, count, keys) in self.blocks() {
            let (weights, scores) = (&mut weights[..count * keys], &mut scores[..count * keys]);
            let mut dropped = dropped.as_deref_mut().map(|dropped| &mut dropped[..count * keys]);
            self.exponentials(weights, &mut inverse, block);
            let gradient = gradient.rows(first..first + count);
            let v = self.v.rows(0..keys).t();
            product(MatMut::new(scores, count, keys), gradient, v, 1.0, Before::Forgotten, Workers::One);
            softmax_backward_of_block(self, weights, scores, dropped.as_deref_mut(), &inverse, first, keys);
            let mixed = Mat::new(dropped.as_deref().unwrap_or(weights), count, keys);
            product(of_v.by_ref().first_rows(keys), mixed.t(), gradient, 1.0, Before::Kept, Workers::One);
            let scores_matrix = Mat::new(scores, count, keys);
            let q = self.q.rows(first..first + count);
            product(of_k.by_ref().first_rows(keys), scores_matrix.t(), q, 1.0, Before::Kept, Workers::One);
            let rows = query_tokens.start + first..query_tokens.start + first + count;
            // SAFETY: each task has its own row and head, and its blocks have rows of their own.
            let of_q = unsafe { out.q.part(rows, q_columns.clone()) };
            product(of_q, scores_matrix, self.k.rows(0..keys), 1.0, Before::Forgotten, Workers::One);
            if let Some(sums) = &mut bias_sums {
                for (index, scores) in scores.chunks_exact(keys).enumerate() {
                    match &mut sums[..] {
                        [total] => *total += sum([scores], |[x]| x),
                        sums => {
                            let seen = self.visibility.seen(first + index, keys);
                            let sums = &mut sums[self.visibility.first_column(first + index)..];
                            sums.iter_mut().zip(&scores[..seen]).for_each(|(sum, x)| *sum += x);
                        }
                    }
                }
            }
        }
        bias_sums
    }
}

vector_fn! {
    /// Turns the scores of a block of queries into exponentials; see [`exponentials`].
    fn exponentials_of_block(head: &Head<'_>, scores: &mut [f32], inverse: &mut [f32], first: usize, keys: usize) {
        for (index, (row, inverse)) in scores.chunks_exact_mut(keys).zip(inverse).enumerate() {
            let query = first + index;
            let (row, unseen) = row.split_at_mut(head.visibility.seen(query, keys));
            *inverse = exponentials(row, head.bias, head.visibility, query);
            unseen.fill(0.0);
        }
    }
}

vector_fn! {
    /// Drops elements of a block's weights.
    fn drop_of_block(head: &Head<'_>, dropout: Dropout, weights: &mut [f32], factors: &mut [f32], first: usize, keys: usize) {
        for (index, row) in weights.chunks_exact_mut(keys).enumerate() {
            dropout.factors(head.first_draw(first + index), &mut factors[..keys]);
            row.iter_mut().zip(factors.iter()).for_each(|(x, factor)| *x *= factor);
        }
    }
}

vector_fn! {
    /// From exponentials with the inverses of their sums, and the gradient of the weights after dropout: the weights,
    /// the gradient of the scores and, if there is dropout, the weights after it.
    fn softmax_backward_of_block(
        head: &Head<'_>,
        weights: &mut [f32],
        scores: &mut [f32],
        dropped: Option<&mut [f32]>,
        inverse: &[f32],
        first: usize,
        keys: usize,
    ) {
        let mut dropped = dropped;
        for (index, (weights, scores)) in weights.chunks_exact_mut(keys).zip(scores.chunks_exact_mut(keys)).enumerate() {
            let inverse = inverse[index];
            weights.iter_mut().for_each(|x| *x *= inverse);
            if let (Some(dropout), Some(dropped)) = (head.dropout, &mut dropped) {
                let dropped = &mut dropped[index * keys..][..keys];
                dropout.factors(head.first_draw(first + index), dropped);
                scores.iter_mut().zip(dropped.iter()).for_each(|(x, factor)| *x *= factor);
                dropped.iter_mut().zip(weights.iter()).for_each(|(factor, x)| *factor *= x);
            }
            let total = sum([weights, scores], |[weight, x]| weight * x);
            scores.iter_mut().zip(weights.iter()).for_each(|(x, weight)| *x = weight * (*x - total));
        }
    }
}

vector_fn! {
    /// The scores of one query, head after head, to weights, and what these make of the values of `seen` keys.
    fn mix_one_query(heads: &Heads<'_>, out: &mut [f32], weights: &mut [f32], places: Places<'_>, seen: usize) {
        for (head, weights) in weights.chunks_exact_mut(seen).enumerate() {
            let inverse = exponentials(weights, heads.bias_row(head), heads.visibility, 0);
            weights.iter_mut().for_each(|weight| *weight *= inverse);
        }
        out.fill(0.0);
        for key in 0..seen {
            let parts = out.chunks_exact_mut(heads.width).zip(heads.v.row(places.of(key)).chunks_exact(heads.width));
            for (head, (out, v)) in parts.enumerate() {
                let weight = weights[head * seen + key];
                v.chunks(LINE).for_each(fetch_ahead);
                out.iter_mut().zip(v).for_each(|(out, v)| *out += weight * v);
            }
        }
    }
}

/// Turns the scores of a query into the exponentials of what they are, with the bias, below their largest, and returns
/// the inverse of their sum.
#[inline(always)]
fn exponentials(scores: &mut [f32], bias: &[f32], visibility: &Visibility, query: usize) -> f32 {
    match bias {
        [bias] => scores.iter_mut().for_each(|x| *x += bias),
        bias => scores.iter_mut().zip(&bias[visibility.first_column(query)..]).for_each(|(x, bias)| *x += bias),
    }
    let max = largest(scores);
    scores.iter_mut().for_each(|x| *x = exp(*x - max));
    1.0 / sum([scores], |[x]| x)
}
