//! Attention on the CPU: a task for each row and head, or a few heads that look through one head of keys; a block of queries
//! at a time, scores in cache only.

use std::ops::Range;

use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;
use sideburn_batch::Dropout;

use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::rotary::turn;
use super::simd::{add_weighted, dots_in_cache, exp, fetch, largest, sum, vector_fn};
use super::{Primitive, are_f32, contiguous, matrix};
use crate::ops::attention::{AttentionKernels, Columns, Form, SelfForm, Visibility};
use crate::runtime::memory::Buffer;

/// Queries that a task takes at once.
const BLOCK: usize = 128;

/// Tasks that an attention is shared out in, where heads that look through one head of keys have to be parted for that.
const TASKS: usize = 64;

impl AttentionKernels for Flex {
    fn try_attention(inputs: [Primitive; 4], form: &Form) -> Result<Primitive, [Primitive; 4]> {
        if form.visibility.keys.scattered_row(0).is_some() && !reads_one_query(&form.visibility, form.dropout) {
            return Err(inputs);
        }
        let [q, k, v, bias] = in_order(inputs, [true, true, true, form.biased])?;
        Ok(Heads::of_matrices([&q, &k, &v], form.biased.then_some(&bias), form).forward())
    }

    fn try_attention_backward(
        inputs: [Primitive; 5],
        form: &Form,
        of_bias: bool,
    ) -> Result<[Primitive; 4], [Primitive; 5]> {
        let [q, k, v, bias, gradient] = in_order(inputs, [true, true, true, form.biased, true])?;
        let heads = Heads::of_matrices([&q, &k, &v], form.biased.then_some(&bias), form);
        let mut of_q = zeros_if(form.visibility.queries.has_padding(), &q);
        let [mut of_k, mut of_v] = [&k, &v].map(|x| zeros_if(form.visibility.keys.has_padding(), x));
        let out = [(&mut of_q, &q), (&mut of_k, &k), (&mut of_v, &v)]
            .map(|(out, x)| Parts::new(out, x.shape()[0], x.shape()[1]));
        let of_bias = heads.backward(matrix(&gradient), &out, of_bias).unwrap_or(bias);
        Ok([of_q.into_tensor(q.shape()), of_k.into_tensor(k.shape()), of_v.into_tensor(v.shape()), of_bias])
    }

    fn try_self_attention(inputs: [Primitive; 3], form: &SelfForm) -> Result<Primitive, [Primitive; 3]> {
        let [qkv, bias, cos_sin] = in_order(inputs, [true, form.form.biased, form.rotary])?;
        Ok(Heads::of_one([&qkv, &bias, &cos_sin], form).forward())
    }

    fn try_self_attention_backward(
        inputs: [Primitive; 4],
        form: &SelfForm,
        of_bias: bool,
    ) -> Result<[Primitive; 2], [Primitive; 4]> {
        let [qkv, bias, cos_sin, gradient] = in_order(inputs, [true, form.form.biased, form.rotary, true])?;
        let heads = Heads::of_one([&qkv, &bias, &cos_sin], form);
        let Visibility { queries, keys, .. } = &form.form.visibility;
        let mut of_qkv = zeros_if(queries.has_padding() || keys.has_padding(), &qkv);
        let of = Parts::new(&mut of_qkv, qkv.shape()[0], qkv.shape()[1]);
        let of_bias = heads.backward(matrix(&gradient), &[of; 3], of_bias).unwrap_or(bias);
        Ok([of_qkv.into_tensor(qkv.shape()), of_bias])
    }
}

/// Whether each row has one query, as decoding has them.
fn reads_one_query(visibility: &Visibility, dropout: Option<Dropout>) -> bool {
    visibility.queries.columns() == 1 && dropout.is_none()
}

/// The tensors, those that are used in row-major order, if these are `f32`.
fn in_order<const N: usize>(tensors: [Primitive; N], used: [bool; N]) -> Result<[Primitive; N], [Primitive; N]> {
    let mut are_used = used.into_iter();
    if !are_f32(tensors.iter().zip(used).filter(|(_, used)| *used).map(|(tensor, _)| tensor)) {
        return Err(tensors);
    }
    Ok(tensors.map(|tensor| if are_used.next() == Some(true) { contiguous(tensor) } else { tensor }))
}

/// Memory for a gradient, which is zero where there is padding.
fn zeros_if(padded: bool, x: &Primitive) -> Buffer {
    let size = x.shape().num_elements();
    if padded { Buffer::zeros(size) } else { Buffer::new(size) }
}

/// The inputs of an attention.
struct Heads<'a> {
    /// The matrices, which may be one, in which queries, keys and values are.
    parts: [Mat<'a>; 3],
    /// Where they are there.
    columns: [Columns; 3],
    bias: Option<Mat<'a>>,
    cos_sin: Option<Mat<'a>>,
    scale: f32,
    visibility: &'a Visibility,
    dropout: Option<Dropout>,
    width: usize,
    kv_heads: usize,
}

/// Keys that decoding looks at together: their sums do not wait for each other.
const KEYS: usize = 4;

/// How many keys ahead memory is asked for.
const AHEAD: usize = 8;

/// Rows that look at the same keys in one task of decoding, so that these are read once for all of them.
const ROWS: usize = 4;

/// Values that a task of decoding reads at least, where there are few: fewer take no longer than finding somebody to share them with.
const SHARED_FROM: usize = 98_304;

impl<'a> Heads<'a> {
    /// Of queries, keys and values in matrices of their own.
    fn of_matrices(parts: [&'a Primitive; 3], bias: Option<&'a Primitive>, form: &'a Form) -> Self {
        let parts = parts.map(matrix);
        let width = parts[0].shape()[1] / form.visibility.heads;
        let kv_heads = parts[1].shape()[1] / width;
        let together = form.visibility.heads / kv_heads;
        Self {
            parts,
            columns: [together, 1, 1].map(|heads| Columns { first: 0, stride: heads * width }),
            bias: bias.map(matrix),
            cos_sin: None,
            scale: 1.0,
            visibility: &form.visibility,
            dropout: form.dropout,
            width,
            kv_heads,
        }
    }

    /// Of queries, keys and values in one matrix, the bias, and the angles.
    fn of_one([qkv, bias, cos_sin]: [&'a Primitive; 3], form: &'a SelfForm) -> Self {
        let SelfForm { form: Form { visibility, biased, dropout }, projections, rotary } = form;
        let qkv = matrix(qkv);
        let width = projections.width(visibility.heads, qkv.shape()[1]);
        Self {
            parts: [qkv; 3],
            columns: projections.columns(visibility.heads, width),
            bias: biased.then(|| matrix(bias)),
            cos_sin: rotary.then(|| matrix(cos_sin)),
            scale: projections.scale as f32,
            visibility,
            dropout: *dropout,
            width,
            kv_heads: projections.kv_heads,
        }
    }

    /// How many heads look through one head of keys.
    fn together(&self) -> usize {
        self.visibility.heads / self.kv_heads
    }

    /// The columns of a head of the queries.
    fn of_queries(&self, head: usize) -> Range<usize> {
        let (Columns { first, stride }, together) = (self.columns[0], self.together());
        let start = first + head / together * stride + head % together * self.width;
        start..start + self.width
    }

    /// The columns of a head of the keys (part 1) or values (part 2).
    fn of_keys(&self, part: usize, kv_head: usize) -> Range<usize> {
        let Columns { first, stride } = self.columns[part];
        let start = first + kv_head * stride;
        start..start + self.width
    }

    /// The columns of a head in the output and its gradient.
    fn of_output(&self, head: usize) -> Range<usize> {
        head * self.width..(head + 1) * self.width
    }

    fn forward(&self) -> Primitive {
        let (tokens, columns) = (self.visibility.queries.tokens(), self.visibility.heads * self.width);
        let size = tokens * columns;
        let mut out = if self.visibility.queries.has_padding() { Buffer::zeros(size) } else { Buffer::new(size) };
        let parts = Parts::new(&mut out, tokens, columns);
        if reads_one_query(self.visibility, self.dropout) && self.cos_sin.is_none() {
            self.decode(parts);
        } else {
            self.each(|group| group.forward(parts));
        }
        out.into_tensor([tokens, columns])
    }

    /// Writes the gradients of queries, keys and values to where these are, and returns that of the bias if it is asked for.
    fn backward(&self, gradient: Mat<'_>, out: &[Parts<'_>; 3], of_bias: bool) -> Option<Primitive> {
        let of_bias = if of_bias { self.bias } else { None };
        let done = self.each(|group| group.backward(gradient, out, of_bias.is_some()));
        let chunks = self.chunks();
        if chunks > 1 {
            done.par_chunks(chunks).enumerate().for_each(|(index, chunks)| {
                let (row, kv_head) = (index / self.kv_heads, index % self.kv_heads);
                let mut sums = chunks.iter().filter_map(|done| done.of_keys.as_ref());
                let Some([mut of_k, mut of_v]) = sums.next().map(|first| first.each_ref().map(copy)) else { return };
                for [k, v] in sums {
                    of_k.iter_mut().zip(k.iter()).for_each(|(sum, x)| *sum += x);
                    of_v.iter_mut().zip(v.iter()).for_each(|(sum, x)| *sum += x);
                }
                self.write_of_keys(row, kv_head, of_k, &of_v, out);
            });
        }
        let [heads, width] = of_bias?.shape();
        let mut total = Buffer::zeros(heads * width);
        for (index, of_bias) in done.into_iter().flat_map(|done| done.of_biases).enumerate() {
            let head = index % heads;
            total[head * width..].iter_mut().zip(&of_bias).for_each(|(total, x)| *total += x);
        }
        Some(total.into_tensor([heads, width]))
    }

    /// Writes the gradients of a head of keys, which are still turned, and of its values.
    fn write_of_keys(&self, row: usize, kv_head: usize, mut of_k: Buffer, of_v: &Buffer, out: &[Parts<'_>; 3]) {
        let tokens = self.visibility.keys.row(row);
        if let Some(cos_sin) = self.cos_sin {
            turn_rows(&mut of_k, cos_sin.rows(tokens.clone()), 1.0, true);
        }
        for (part, values) in [(1, &of_k), (2, of_v)] {
            // SAFETY: nobody else writes the gradients of this row's head of keys.
            let mut out = unsafe { out[part].part(tokens.clone(), self.of_keys(part, kv_head)) };
            for (key, values) in values.chunks_exact(self.width).enumerate() {
                out.row(key).copy_from_slice(values);
            }
        }
    }

    /// Rows with one query each. Those that look at the same keys have a task together, or, where there are few, some of their heads
    /// have one.
    fn decode(&self, out: Parts<'_>) {
        let keys = &self.visibility.keys;
        let mut groups: Vec<Range<usize>> = Vec::new();
        for row in 0..self.visibility.queries.rows() {
            match groups.last_mut() {
                Some(group) if group.len() < ROWS && keys.is_same_row(group.start, row) => group.end = row + 1,
                _ => groups.push(row..row + 1),
            }
        }
        let values = 2 * keys.columns() * self.kv_heads * self.width;
        let parts = if groups.len() < 4 { (values / SHARED_FROM).clamp(1, self.kv_heads) } else { 1 };
        let each = self.kv_heads.div_ceil(parts);
        let task = |index: usize| {
            let first = index % parts * each;
            self.decode_rows(groups[index / parts].clone(), first..(first + each).min(self.kv_heads), out);
        };
        match groups.len() * parts {
            1 => task(0),
            tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
        }
    }

    /// Rows with one query each that look at the same keys: the heads that look through these heads of keys, all together, so that
    /// keys and values are read as they lie.
    fn decode_rows(&self, rows: Range<usize>, kv_heads: Range<usize>, out: Parts<'_>) {
        if kv_heads.is_empty() {
            return;
        }
        let (keys, together) = (&self.visibility.keys, self.together());
        let heads = kv_heads.start * together..kv_heads.end * together;
        let seen = self.visibility.seen(0, keys.lengths()[rows.start]);
        let places = match keys.scattered_row(rows.start) {
            Some(places) => Places::Scattered(places),
            None => Places::From(keys.row(rows.start).start),
        };
        let token = |row: usize| self.visibility.queries.row(row).start;
        let of_row = |row: usize| {
            let q = self.parts[0].row(token(row));
            heads.clone().map(move |head| &q[self.of_queries(head)])
        };
        let queries: Vec<&[f32]> = rows.clone().flat_map(of_row).collect();
        let mut weights = Buffer::new(queries.len() * seen);
        let mut mixed = Buffer::zeros(queries.len() * self.width);
        look(self, &mut mixed, &mut weights, &queries, heads.clone(), places, seen);
        let columns = heads.start * self.width..heads.end * self.width;
        for (row, mixed) in rows.zip(mixed.chunks_exact(columns.len())) {
            // SAFETY: each task has its own rows and heads.
            let mut out = unsafe { out.part(token(row)..token(row) + 1, columns.clone()) };
            out.row(0).copy_from_slice(mixed);
        }
    }

    /// Asks for what is looked at soon of a head of the keys (part 1) or values (part 2), the place of `key` being looked at now: a bit
    /// at a time, since no more than a few lines can be on their way.
    #[inline(always)]
    fn fetch(&self, part: usize, kv_head: usize, places: Places<'_>, key: usize, seen: usize) {
        for key in key + AHEAD..(key + AHEAD + KEYS).min(seen) {
            fetch(&self.parts[part].row(places.of(key))[self.of_keys(part, kv_head)]);
        }
    }

    /// The bias of a head.
    fn bias_row(&self, head: usize) -> Option<&'a [f32]> {
        self.bias.map(|bias| bias.rows(head..head + 1).row_major())
    }

    /// In how many tasks the heads that look through one head of keys are parted. It follows from the shapes alone.
    fn chunks(&self) -> usize {
        let wanted = TASKS.div_ceil(self.visibility.queries.rows() * self.kv_heads);
        self.together().div_ceil(self.heads_of_chunk(wanted))
    }

    /// The heads of each of so many tasks, or a few more in fewer tasks.
    fn heads_of_chunk(&self, chunks: usize) -> usize {
        self.together().div_ceil(chunks.clamp(1, self.together()))
    }

    /// Runs `task` for all heads of each row, those that look through one head of keys together or in chunks, in their order.
    fn each<R: Send>(&self, task: impl Fn(Group<'_>) -> R + Sync) -> Vec<R> {
        let Visibility { queries, keys, .. } = self.visibility;
        let (chunks, all) = (self.chunks(), self.together());
        let each = self.heads_of_chunk(chunks);
        // Short rows make small tasks, of which a few go together.
        let work = queries.columns() * keys.columns() * self.width * each;
        let together = ((1 << 16) / work.max(1)).clamp(1, 16);
        let group = |index: usize| {
            let (row, rest) = (index / (self.kv_heads * chunks), index % (self.kv_heads * chunks));
            let (kv_head, chunk) = (rest / chunks, rest % chunks);
            let first = kv_head * all + chunk * each;
            let tokens = keys.row(row);
            let part = |part: usize| self.parts[part].rows(tokens.clone()).columns(self.of_keys(part, kv_head));
            let (k, v) = (part(1), part(2));
            let turned = self.cos_sin.map(|cos_sin| turned(k, cos_sin.rows(tokens.clone()), 1.0));
            let k = turned.as_ref().map_or(k, |turned| Mat::new(turned, tokens.len(), self.width));
            task(Group { all: self, row, kv_head, heads: first..(first + each).min((kv_head + 1) * all), k, v })
        };
        let tasks = queries.rows() * self.kv_heads * chunks;
        (0..tasks).into_par_iter().with_min_len(together).map(group).collect()
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

fn copy(values: &Buffer) -> Buffer {
    let mut copy = Buffer::new(values.len());
    copy.copy_from_slice(values);
    copy
}

/// The rows of `x [tokens, width]`, turned by the angles of their tokens and multiplied by `scale`.
fn turned(x: Mat<'_>, cos_sin: Mat<'_>, scale: f32) -> Buffer {
    let [tokens, width] = x.shape();
    let mut out = Buffer::new(tokens * width);
    out.chunks_exact_mut(width).enumerate().for_each(|(token, out)| out.copy_from_slice(x.row(token)));
    turn_rows(&mut out, cos_sin, scale, false);
    out
}

fn turn_rows(rows: &mut [f32], cos_sin: Mat<'_>, scale: f32, back: bool) {
    let [_, width] = cos_sin.shape();
    rows.chunks_exact_mut(width).enumerate().for_each(|(token, row)| turn(row, cos_sin.row(token), scale, back));
}

/// Some heads of one row that look through one head of keys.
struct Group<'a> {
    all: &'a Heads<'a>,
    row: usize,
    kv_head: usize,
    heads: Range<usize>,
    /// `[keys, width]`, turned if there are angles.
    k: Mat<'a>,
    v: Mat<'a>,
}

/// One head of one row.
#[derive(Clone, Copy)]
struct Head<'a> {
    bias: Option<&'a [f32]>,
    visibility: &'a Visibility,
    dropout: Option<Dropout>,
    index: usize,
}

/// What a backward pass leaves of a [`Group`].
struct Done {
    /// The gradients of its row of the bias, of each head if they are asked for.
    of_biases: Vec<Vec<f32>>,
    /// What its heads add to the gradients of keys and values, if other groups have a part in them.
    of_keys: Option<[Buffer; 2]>,
}

impl Head<'_> {
    /// Where the elements of a query's row of weights begin in the mask.
    fn first_draw(&self, query: usize) -> usize {
        let (queries, keys) = (self.visibility.queries.columns(), self.visibility.keys.columns());
        (self.index * queries + query) * keys
    }
}

impl<'a> Group<'a> {
    fn head(&self, head: usize) -> Head<'a> {
        let Heads { visibility, dropout, .. } = *self.all;
        Head { bias: self.all.bias_row(head), visibility, dropout, index: self.row * visibility.heads + head }
    }

    /// Blocks of queries, each with the number of keys that they see: the first query, how many, how many keys.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<'a> {
        let visibility = self.all.visibility;
        let (queries, keys) = (visibility.queries.row(self.row).len(), visibility.keys.row(self.row).len());
        (0..queries).step_by(BLOCK).map(move |first| {
            let count = BLOCK.min(queries - first);
            (first, count, visibility.seen(first + count - 1, keys))
        })
    }

    /// The queries of a block, turned into `room` if there are angles, and what scores are multiplied by then.
    fn queries<'b>(&'b self, head: usize, first: usize, count: usize, room: &'b mut Option<Buffer>) -> (Mat<'b>, f32) {
        let start = self.all.visibility.queries.row(self.row).start + first;
        let q = self.all.parts[0].rows(start..start + count).columns(self.all.of_queries(head));
        match self.all.cos_sin {
            None => (q, self.all.scale),
            Some(cos_sin) => {
                let room = room.insert(turned(q, cos_sin.rows(start..start + count), self.all.scale));
                (Mat::new(room, count, self.all.width), 1.0)
            }
        }
    }

    /// The exponentials of a block's scores below their largest, `[count, keys]`, and the inverse of each row's sum.
    fn exponentials(
        &self,
        head: Head<'_>,
        (q, scale): (Mat<'_>, f32),
        out: &mut [f32],
        inverse: &mut [f32],
        (first, count, keys): (usize, usize, usize),
    ) {
        let k = self.k.rows(0..keys);
        product(MatMut::new(out, count, keys), q, k.t(), scale, Before::Forgotten, Workers::One);
        exponentials_of_block(head, out, inverse, first, keys);
    }

    fn forward(&self, out: Parts<'_>) {
        let ([keys, _], tokens) = (self.k.shape(), self.all.visibility.queries.row(self.row));
        let mut scores = Buffer::new(BLOCK.min(tokens.len()) * keys);
        let mut factors = self.all.dropout.map(|_| Buffer::new(keys));
        let (mut inverse, mut room) = ([0f32; BLOCK], None);
        for (index, block @ (first, count, keys)) in
            self.heads.clone().flat_map(|head| self.blocks().map(move |block| (head, block)))
        {
            let (head, scores) = (self.head(index), &mut scores[..count * keys]);
            self.exponentials(head, self.queries(index, first, count, &mut room), scores, &mut inverse, block);
            if let (Some(dropout), Some(factors)) = (head.dropout, &mut factors) {
                drop_of_block(head, dropout, scores, factors, first, keys);
            }
            let rows = tokens.start + first..tokens.start + first + count;
            // SAFETY: each task has its own row and heads, and its blocks have rows of their own.
            let mut out = unsafe { out.part(rows, self.all.of_output(index)) };
            let scores = Mat::new(scores, count, keys);
            product(out.by_ref(), scores, self.v.rows(0..keys), 1.0, Before::Forgotten, Workers::One);
            for (index, inverse) in inverse[..count].iter().enumerate() {
                out.row(index).iter_mut().for_each(|x| *x *= inverse);
            }
        }
    }

    /// Writes the gradients of the queries, and of the keys and values if no other group has a part in them.
    fn backward(&self, gradient: Mat<'_>, out: &[Parts<'_>; 3], of_bias: bool) -> Done {
        let (all, [keys, width]) = (self.all, self.k.shape());
        let (tokens, key_tokens) = (all.visibility.queries.row(self.row), all.visibility.keys.row(self.row));
        let is_whole = self.heads.len() == all.together();
        // Sums that are turned back, or that others add to, are taken apart from their place.
        let mut local = (!is_whole || all.cos_sin.is_some()).then(|| [(); 2].map(|()| Buffer::zeros(keys * width)));
        let [mut of_k, mut of_v] = match &mut local {
            Some(local) => local.each_mut().map(|sums| MatMut::new(sums, keys, width)),
            None => [1, 2].map(|part| {
                // SAFETY: no other group has a part in the gradients of this row's head of keys.
                let mut of = unsafe { out[part].part(key_tokens.clone(), all.of_keys(part, self.kv_head)) };
                (0..keys).for_each(|key| of.row(key).fill(0.0));
                of
            }),
        };
        let size = BLOCK.min(tokens.len()) * keys;
        let [mut weights, mut scores] = [(); 2].map(|()| Buffer::new(size));
        let mut dropped = all.dropout.map(|_| Buffer::new(size));
        let (mut inverse, mut room) = ([0f32; BLOCK], None);
        let mut of_biases = Vec::new();
        for index in self.heads.clone() {
            let head = self.head(index);
            let gradient = gradient.rows(tokens.clone()).columns(all.of_output(index));
            let mut bias_sums = head.bias.filter(|_| of_bias).map(|bias| vec![0f32; bias.len()]);
            for block @ (first, count, keys) in self.blocks() {
                let (weights, scores) = (&mut weights[..count * keys], &mut scores[..count * keys]);
                let mut dropped = dropped.as_deref_mut().map(|dropped| &mut dropped[..count * keys]);
                let (q, scale) = self.queries(index, first, count, &mut room);
                self.exponentials(head, (q, scale), weights, &mut inverse, block);
                let gradient = gradient.rows(first..first + count);
                let v = self.v.rows(0..keys).t();
                product(MatMut::new(scores, count, keys), gradient, v, 1.0, Before::Forgotten, Workers::One);
                softmax_backward_of_block(head, weights, scores, dropped.as_deref_mut(), &inverse, first, keys);
                let mixed = Mat::new(dropped.as_deref().unwrap_or(weights), count, keys);
                product(of_v.by_ref().first_rows(keys), mixed.t(), gradient, 1.0, Before::Kept, Workers::One);
                let matrix = Mat::new(scores, count, keys);
                product(of_k.by_ref().first_rows(keys), matrix.t(), q, scale, Before::Kept, Workers::One);
                self.write_of_queries(index, first, matrix, &out[0]);
                if let Some(sums) = &mut bias_sums {
                    for (index, scores) in scores.chunks_exact(keys).enumerate() {
                        let seen = all.visibility.seen(first + index, keys);
                        let sums = &mut sums[all.visibility.first_column(first + index)..];
                        sums.iter_mut().zip(&scores[..seen]).for_each(|(sum, x)| *sum += x);
                    }
                }
            }
            of_biases.extend(bias_sums);
        }
        if is_whole && let Some([of_k, of_v]) = local.take() {
            all.write_of_keys(self.row, self.kv_head, of_k, &of_v, out);
        }
        Done { of_biases, of_keys: local }
    }

    /// Writes the gradient of a block of queries, from that of their scores `[count, keys]`.
    fn write_of_queries(&self, head: usize, first: usize, scores: Mat<'_>, out: &Parts<'_>) {
        let ([count, keys], all) = (scores.shape(), self.all);
        let start = all.visibility.queries.row(self.row).start + first;
        // SAFETY: each task has its own row and heads, and its blocks have rows of their own.
        let mut of_q = unsafe { out.part(start..start + count, all.of_queries(head)) };
        let k = self.k.rows(0..keys);
        let Some(cos_sin) = all.cos_sin else {
            return product(of_q, scores, k, all.scale, Before::Forgotten, Workers::One);
        };
        let mut turned = Buffer::new(count * all.width);
        product(MatMut::new(&mut turned, count, all.width), scores, k, 1.0, Before::Forgotten, Workers::One);
        turn_rows(&mut turned, cos_sin.rows(start..start + count), all.scale, true);
        for (query, turned) in turned.chunks_exact(all.width).enumerate() {
            of_q.row(query).copy_from_slice(turned);
        }
    }
}

vector_fn! {
    /// Turns the scores of a block of queries into exponentials; see [`exponentials`].
    fn exponentials_of_block(head: Head<'_>, scores: &mut [f32], inverse: &mut [f32], first: usize, keys: usize) {
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
    fn drop_of_block(head: Head<'_>, dropout: Dropout, weights: &mut [f32], factors: &mut [f32], first: usize, keys: usize) {
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
        head: Head<'_>,
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
    /// What the `queries` of some rows, each with these heads, make of the `seen` keys that all of them look at, `[rows, heads, width]`,
    /// added to `out`; `weights [rows, heads, seen]` are overwritten.
    fn look(
        all: &Heads<'_>,
        out: &mut [f32],
        weights: &mut [f32],
        queries: &[&[f32]],
        heads: Range<usize>,
        places: Places<'_>,
        seen: usize,
    ) {
        let (count, whole) = (heads.len(), seen / KEYS * KEYS);
        for key in (0..whole).step_by(KEYS) {
            add_scores::<KEYS>(all, weights, queries, heads.clone(), places, key, seen);
        }
        for key in whole..seen {
            add_scores::<1>(all, weights, queries, heads.clone(), places, key, seen);
        }
        for (index, weights) in weights.chunks_exact_mut(seen).enumerate() {
            let inverse = exponentials(weights, all.bias_row(heads.start + index % count), all.visibility, 0);
            weights.iter_mut().for_each(|weight| *weight *= inverse);
        }
        for key in (0..whole).step_by(KEYS) {
            add_values::<KEYS>(all, out, weights, heads.clone(), places, key, seen);
        }
        for key in whole..seen {
            add_values::<1>(all, out, weights, heads.clone(), places, key, seen);
        }
    }
}

/// Writes the scores of `N` keys from `key` on, two rows at a time.
#[inline(always)]
fn add_scores<const N: usize>(
    all: &Heads<'_>,
    weights: &mut [f32],
    queries: &[&[f32]],
    heads: Range<usize>,
    places: Places<'_>,
    key: usize,
    seen: usize,
) {
    let count = heads.len();
    let keys: [&[f32]; N] = std::array::from_fn(|index| all.parts[1].row(places.of(key + index)));
    for (index, head) in heads.enumerate() {
        let kv_head = head / all.together();
        if N == KEYS && head % all.together() == 0 {
            all.fetch(1, kv_head, places, key, seen);
        }
        let keys = keys.map(|k| &k[all.of_keys(1, kv_head)]);
        let mut write = |row: usize, scores: [f32; N]| {
            let weights = &mut weights[(row * count + index) * seen + key..][..N];
            weights.iter_mut().zip(scores).for_each(|(weight, score)| *weight = all.scale * score);
        };
        let rows = queries.len() / count;
        for row in (0..rows - rows % 2).step_by(2) {
            let [first, second] =
                dots_in_cache([queries[row * count + index], queries[(row + 1) * count + index]], keys);
            write(row, first);
            write(row + 1, second);
        }
        if rows % 2 == 1 {
            let [scores] = dots_in_cache([queries[(rows - 1) * count + index]], keys);
            write(rows - 1, scores);
        }
    }
}

/// Adds the values of `N` keys from `key` on, one after the other, each times its weight, to two rows at a time.
#[inline(always)]
fn add_values<const N: usize>(
    all: &Heads<'_>,
    out: &mut [f32],
    weights: &[f32],
    heads: Range<usize>,
    places: Places<'_>,
    key: usize,
    seen: usize,
) {
    let (count, width) = (heads.len(), all.width);
    let values: [&[f32]; N] = std::array::from_fn(|index| all.parts[2].row(places.of(key + index)));
    for (index, head) in heads.enumerate() {
        let kv_head = head / all.together();
        if N == KEYS && head % all.together() == 0 {
            all.fetch(2, kv_head, places, key, seen);
        }
        let values = values.map(|v| &v[all.of_keys(2, kv_head)]);
        let weights = |row: usize| {
            let weights = &weights[(row * count + index) * seen + key..][..N];
            std::array::from_fn(|key| weights[key])
        };
        for (pair, out) in out.chunks_mut(2 * count * width).enumerate() {
            let (first, second) = out.split_at_mut(count * width);
            let first = &mut first[index * width..][..width];
            match second {
                [] => add_weighted([first], [weights(2 * pair)], values),
                second => {
                    let second = &mut second[index * width..][..width];
                    add_weighted([first, second], [weights(2 * pair), weights(2 * pair + 1)], values);
                }
            }
        }
    }
}

/// Turns the scores of a query into the exponentials of what they are, with the bias, below their largest, and returns
/// the inverse of their sum.
#[inline(always)]
fn exponentials(scores: &mut [f32], bias: Option<&[f32]>, visibility: &Visibility, query: usize) -> f32 {
    if let Some(bias) = bias {
        scores.iter_mut().zip(&bias[visibility.first_column(query)..]).for_each(|(x, bias)| *x += bias);
    }
    let max = largest(scores);
    scores.iter_mut().for_each(|x| *x = exp(*x - max));
    1.0 / sum([scores], |[x]| x)
}
