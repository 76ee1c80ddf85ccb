//! Linear layers on the CPU: products over `gemm`, the low-rank branches by blocks of rows that stay in cache.

use std::ops::Range;

use burn::backend::tensor::IntTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::DType;
use rayon::prelude::*;

use super::dropout::masked;
use super::packed::{self, Packed};
use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::simd::{dots, vector_fn, vectorized};
use super::{Primitive, are_f32, contiguous, indices, matrix, values};
use crate::ops::adamw::in_dtype;
use crate::ops::linear::{
    Inputs, Kept, LayerGradients, Layers, LinearGradients, LinearKernels, LinearOp, Linears, LowRank, columns,
};
use crate::ops::matrix::Matrix;
use crate::runtime::memory::Buffer;

/// Rows that a task of the low-rank branches takes at once.
const BLOCK: usize = 256;

/// Rows of `x` up to which a product reads the weight as it lies instead of packing it first: then reading the weight
/// is all that costs.
const FEW: usize = 8;

/// The same for weights of more than 256 KiB: packing takes them out of the first caches and back, which made a product of 32 rows
/// take a quarter to a half longer.
const FEW_OF_LARGE: usize = 64;
const LARGE: usize = 1 << 16;

/// A layer whose tensors are in row-major order, with the rows that each of its branches is for.
type Layer = LinearOp<Primitive, Vec<usize>, Primitive>;
type Branch = LowRank<Primitive, Vec<usize>>;

impl LinearKernels for Flex {
    fn try_linears((x, layers): Layers<Flex>) -> Result<Primitive, Layers<Flex>> {
        if !are_f32([&x]) || !are_taken(&layers) {
            return Err((x, layers));
        }
        let (n, x) = (x.shape()[0], contiguous(x));
        let (layers, x) = (prepared(layers, n), matrix(&x));
        let width = columns(&layers).last().map_or(0, |columns| columns.end);
        let covered = layers.iter().all(|layer| layer.weight.is_some());
        let mut y = if covered { Buffer::new(n * width) } else { Buffer::zeros(n * width) };
        let parts = Parts::new(&mut y, n, width);
        let values: usize = weights(&layers).map(|(columns, weight)| columns.len() * weight.shape()[1]).sum();
        if n <= FEW || n <= FEW_OF_LARGE && values > LARGE {
            few_rows(parts, x, &layers);
        } else {
            for (columns, weight) in weights(&layers) {
                // SAFETY: nobody else writes yet.
                let y = unsafe { parts.part(0..n, columns) };
                product(y, x, weight.t(), 1.0, Before::Forgotten, Workers::All);
            }
        }
        packed::forward(parts, x, packed_weights(&layers));
        if branches(&layers).next().is_some() {
            blocks(n).for_each(|block| {
                for (columns, branch) in branches(&layers) {
                    branch.add_to(parts, block.clone(), columns, x);
                }
            });
        }
        Ok(y.into_tensor([n, width]))
    }

    fn try_linears_backward((inputs, gradient): Kept<Flex>) -> Result<LinearGradients<Flex>, Kept<Flex>> {
        if !are_f32(inputs.x.iter().chain([&gradient])) || !are_taken(&inputs.layers) {
            return Err((inputs, gradient));
        }
        let Inputs { x, layers, wanted } = inputs;
        let (n, x, gradient) = (gradient.shape()[0], x.map(contiguous), contiguous(gradient));
        let (layers, x, gradient) = (prepared(layers, n), x.as_ref().map(matrix), matrix(&gradient));

        let of_weights = layers.iter().zip(&wanted.layers).zip(columns(&layers)).map(|((layer, wanted), columns)| {
            let weight = layer.weight.as_ref().and_then(Matrix::floats).filter(|_| wanted.weight());
            weight.map(|weight| {
                let x = x.expect("it is kept for the gradients of weights");
                let shape = [columns.len(), x.shape()[1]];
                let mut of_weight = Buffer::new(shape[0] * shape[1]);
                let to = MatMut::new(&mut of_weight, shape[0], shape[1]);
                product(to, gradient.columns(columns).t(), x, 1.0, Before::Forgotten, Workers::All);
                in_dtype::<Flex>(of_weight.into_tensor(shape), weight.dtype())
            })
        });
        let of_weights: Vec<_> = of_weights.collect();

        let mut of_x = wanted.x.then(|| {
            let [_, input] = layers[0].dims();
            let mut of_x = Buffer::new(n * input);
            let mut before = Before::Forgotten;
            for (columns, weight) in weights(&layers) {
                let to = MatMut::new(&mut of_x, n, input);
                product(to, gradient.columns(columns), weight, 1.0, before, Workers::All);
                before = Before::Kept;
            }
            for (columns, weight) in packed_weights(&layers) {
                packed::backward(&mut of_x, gradient.columns(columns), &weight, before);
                before = Before::Kept;
            }
            if before == Before::Forgotten {
                of_x.fill(0.0);
            }
            (of_x, input)
        });

        let wanted_branches = || wanted.layers.iter().flat_map(|layer| &layer.branches).map(LowRank::factors);
        let mut totals: Vec<Option<[Buffer; 2]>> = branches(&layers).map(|_| None).collect();
        if of_x.is_some() && !totals.is_empty() || wanted_branches().any(|wanted| wanted) {
            let of_x = of_x.as_mut().map(|(of_x, input)| Parts::new(of_x, n, *input));
            let sums: Vec<Vec<Option<[Buffer; 2]>>> = blocks(n)
                .map(|block| {
                    let branch = |((columns, branch), wanted): ((Range<usize>, &Branch), bool)| {
                        branch.backward(block.clone(), x.filter(|_| wanted), gradient.columns(columns), of_x)
                    };
                    branches(&layers).zip(wanted_branches()).map(branch).collect()
                })
                .collect();
            // The blocks are the same and summed in the same order whatever the number of threads.
            for sums in sums {
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = match (total.take(), sum) {
                        (Some(total), Some(sum)) => Some(added(total, sum)),
                        (total, sum) => total.or(sum),
                    };
                }
            }
        }
        let mut totals = totals.into_iter();
        let of_layers = layers.iter().zip(&wanted.layers).zip(of_weights).map(|((layer, wanted), weight)| {
            let factors = layer.branches.iter().zip(&wanted.branches).zip(&mut totals);
            let branches = factors.map(|((LowRank { a, b, .. }, wanted), total)| {
                // A branch none of whose rows are there has gradients, too.
                let zeros = || [a, b].map(|factor| Buffer::zeros(values(factor).len()));
                let [of_a, of_b] = wanted.factors().then(|| total.unwrap_or_else(zeros))?;
                Some([of_a.into_tensor(a.shape()), of_b.into_tensor(b.shape())])
            });
            LayerGradients { weight, branches: branches.collect() }
        });
        let of_layers = of_layers.collect();
        let of_x = of_x.map(|(of_x, input)| of_x.into_tensor([n, input]));
        Ok(LinearGradients { x: of_x, layers: of_layers })
    }
}

/// Whether the kernels take layers: branches in `f32`, and weights in that or in 16 bits.
fn are_taken(layers: &Linears<Flex>) -> bool {
    let is_taken = |weight: &Primitive| matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16);
    layers.0.iter().all(|layer| {
        let factors = layer.branches.iter().flat_map(|branch| [&branch.a, &branch.b]);
        layer.weight.iter().filter_map(Matrix::floats).all(is_taken) && are_f32(factors)
    })
}

/// The layers of an operation on `n` rows.
fn prepared(layers: Linears<Flex>, n: usize) -> Vec<Layer> {
    layers.0.into_iter().map(|layer| layer.map(contiguous, |rows| ascending(rows, n), |codes| codes)).collect()
}

/// The rows that a branch is for.
fn ascending(rows: IntTensor<Flex>, n: usize) -> Vec<usize> {
    let rows = indices(rows);
    let fit = rows.is_sorted_by(|before, row| before < row) && rows.last().is_none_or(|last| *last < n);
    assert!(fit, "the rows of a branch must be ascending rows of x, each once");
    rows
}

/// Every weight in `f32` with the columns of its layer among those of all.
fn weights(layers: &[Layer]) -> impl Iterator<Item = (Range<usize>, Mat<'_>)> {
    let weight = |(layer, columns): (_, _)| {
        let LinearOp { weight, .. }: &Layer = layer;
        let floats = weight.as_ref()?.floats().filter(|floats| floats.dtype() == DType::F32)?;
        Some((columns, matrix(floats)))
    };
    layers.iter().zip(columns(layers)).filter_map(weight)
}

/// Every other weight, packed or in 16 bits, with the columns of its layer among those of all.
fn packed_weights(layers: &[Layer]) -> impl Iterator<Item = (Range<usize>, Packed<'_>)> {
    let weight = |(layer, columns): (_, _)| {
        let LinearOp { weight, .. }: &Layer = layer;
        let weight = weight.as_ref()?;
        Some((columns, weight.packed().map(Packed::new).or_else(|| Packed::of_halves(weight.floats()?))?))
    };
    layers.iter().zip(columns(layers)).filter_map(weight)
}

/// Every branch with the columns of its layer among those of all.
fn branches(layers: &[Layer]) -> impl Iterator<Item = (Range<usize>, &Branch)> {
    let of_layer = |(layer, columns): (_, Range<usize>)| {
        let LinearOp { branches, .. }: &Layer = layer;
        branches.iter().map(move |branch| (columns.clone(), branch))
    };
    layers.iter().zip(columns(layers)).flat_map(of_layer)
}

fn added(mut total: [Buffer; 2], sum: [Buffer; 2]) -> [Buffer; 2] {
    for (total, sum) in total.iter_mut().zip(sum) {
        vectorized(|| total.iter_mut().zip(sum.iter()).for_each(|(total, x)| *total += x));
    }
    total
}

/// `y = x W^T` at each layer for a few rows: dot products of rows, with each row of a weight read once.
fn few_rows(y: Parts<'_>, x: Mat<'_>, layers: &[Layer]) {
    let [n, input] = x.shape();
    let all: usize = weights(layers).map(|(columns, _)| columns.len()).sum();
    if n == 0 || all == 0 {
        return;
    }
    // A task reads 192 KiB of a weight at least: less takes no longer than finding somebody to share it with.
    let tasks = (all * input / 49_152).clamp(1, rayon::current_num_threads() * 4);
    let count = all.div_ceil(tasks).next_multiple_of(TILE[1]);
    let tasks: Vec<_> = weights(layers)
        .flat_map(|(columns, weight)| {
            (0..columns.len()).step_by(count).map(move |first| {
                let rows = first..(first + count).min(columns.len());
                (columns.start + rows.start..columns.start + rows.end, weight.rows(rows))
            })
        })
        .collect();
    let task = |(columns, weight): (Range<usize>, Mat<'_>)| {
        // SAFETY: each task has its own columns.
        let mut y = unsafe { y.part(0..n, columns) };
        dots_of_rows(&mut y, x, weight);
    };
    match tasks.len() {
        1 => tasks.into_iter().for_each(task),
        _ => tasks.into_par_iter().for_each(task),
    }
}

/// Rows of `x`, and of a weight, that are multiplied at once: with so many, results stay in registers, and loading takes no longer
/// than multiplying.
const TILE: [usize; 2] = [4, 3];

/// `y[i][j]` is the dot product of row `i` of `x`, of which there are few, and row `j` of `weight`, each row of which
/// is fetched once.
fn dots_of_rows(y: &mut MatMut<'_>, x: Mat<'_>, weight: Mat<'_>) {
    let ([n, _], [out, _]) = (x.shape(), weight.shape());
    if n == 1 {
        // Fetching takes longer than multiplying, and a single stream is fetched faster than three.
        for j in 0..out {
            [[y.row(0)[j]]] = dots([x.row(0)], [weight.row(j)]);
        }
        return;
    }
    for j in (0..out).step_by(TILE[1]) {
        let columns = (out - j).min(TILE[1]);
        // A tile at the edge computes its last column several times.
        let of_weight: [&[f32]; TILE[1]] = std::array::from_fn(|column| weight.row(j + column.min(columns - 1)));
        let mut i = 0;
        while i < n {
            let row = |index: usize| x.row(i + index);
            let mut write = |products: &[[f32; TILE[1]]]| {
                for (row, products) in products.iter().enumerate() {
                    y.row(i + row)[j..j + columns].copy_from_slice(&products[..columns]);
                }
                products.len()
            };
            i += match n - i {
                1 => write(&dots([row(0)], of_weight)),
                2 | 3 => write(&dots([row(0), row(1)], of_weight)),
                _ => write(&dots::<{ TILE[0] }, _>(std::array::from_fn(row), of_weight)),
            };
        }
    }
}

/// Rows of a matrix.
enum Rows<'a> {
    /// One after the other.
    Range(Range<usize>),
    /// Here and there.
    List(&'a [usize]),
}

impl Rows<'_> {
    fn len(&self) -> usize {
        match self {
            Rows::Range(range) => range.len(),
            Rows::List(list) => list.len(),
        }
    }

    /// These rows of `matrix`: as they lie, or gathered in `store`.
    fn of<'m>(&self, matrix: Mat<'m>, store: &'m mut Option<Buffer>) -> Mat<'m> {
        match self {
            Rows::Range(range) => matrix.rows(range.clone()),
            Rows::List(list) => {
                let width = matrix.shape()[1];
                let store = store.insert(Buffer::new(list.len() * width));
                for (out, row) in store.chunks_exact_mut(width.max(1)).zip(*list) {
                    out.copy_from_slice(matrix.row(*row));
                }
                Mat::new(store, list.len(), width)
            }
        }
    }

    /// Adds `left right`, times the elements of `factors` if there are any, to these rows of some columns.
    ///
    /// # Safety
    /// No element of them may be in use elsewhere.
    unsafe fn add(&self, to: Parts<'_>, columns: Range<usize>, [left, right]: [Mat<'_>; 2], factors: Option<&[f32]>) {
        if let (Rows::Range(range), None) = (self, factors) {
            // SAFETY: promised by the caller.
            let to = unsafe { to.part(range.clone(), columns) };
            return product(to, left, right, 1.0, Before::Kept, Workers::One);
        }
        let (size, width) = (self.len(), columns.len());
        let mut wide = Buffer::new(size * width);
        let out = MatMut::new(&mut wide, size, width);
        product(out, left, right, 1.0, Before::Forgotten, Workers::One);
        for (index, wide) in wide.chunks_exact(width.max(1)).enumerate() {
            let row = match self {
                Rows::Range(range) => range.start + index,
                Rows::List(list) => list[index],
            };
            // SAFETY: promised by the caller.
            let mut to = unsafe { to.part(row..row + 1, columns.clone()) };
            match factors {
                Some(factors) => add_masked(to.row(0), wide, &factors[index * width..]),
                None => to.row(0).iter_mut().zip(wide).for_each(|(to, x)| *to += x),
            }
        }
    }
}

impl Branch {
    /// Those of its rows that are in the block, and how many come before.
    fn rows_in(&self, block: Range<usize>) -> (Rows<'_>, usize) {
        let Some(rows) = &self.rows else { return (Rows::Range(block.clone()), block.start) };
        let [first, end] = [block.start, block.end].map(|edge| rows.partition_point(|row| *row < edge));
        let rows = match &rows[first..end] {
            [only] => Rows::Range(*only..only + 1),
            [start, .., last] if last - start + 1 == end - first => Rows::Range(*start..last + 1),
            list => Rows::List(list),
        };
        (rows, first)
    }

    /// `y += scale * dropout(x) A^T B^T` in a block of rows, which is the caller's alone, and in these columns.
    fn add_to(&self, y: Parts<'_>, block: Range<usize>, columns: Range<usize>, x: Mat<'_>) {
        let (rows, before) = self.rows_in(block);
        let (size, r, input) = (rows.len(), self.a.shape()[0], x.shape()[1]);
        if size == 0 {
            return;
        }
        let (mut gathered, mut dropped) = (None, self.dropout.map(|_| Buffer::new(size * input)));
        let x = rows.of(x, &mut gathered);
        let x = match (&mut dropped, self.dropout) {
            (Some(dropped), Some(dropout)) => {
                masked(dropped, x.row_major(), dropout, before * input);
                Mat::new(dropped, size, input)
            }
            _ => x,
        };
        let mut narrow = Buffer::new(size * r);
        let to = MatMut::new(&mut narrow, size, r);
        product(to, x, matrix(&self.a).t(), self.scale as f32, Before::Forgotten, Workers::One);
        // SAFETY: the block is the caller's.
        unsafe { rows.add(y, columns, [Mat::new(&narrow, size, r), matrix(&self.b).t()], None) };
    }

    /// In a block of rows, which is the caller's alone: adds the gradient of the input to `of_x`, and returns those of
    /// `A` and `B` if there is an `x`.
    fn backward(
        &self,
        block: Range<usize>,
        x: Option<Mat<'_>>,
        gradient: Mat<'_>,
        of_x: Option<Parts<'_>>,
    ) -> Option<[Buffer; 2]> {
        let (rows, before) = self.rows_in(block);
        let (size, [r, input], out) = (rows.len(), dims(&self.a), gradient.shape()[1]);
        if size == 0 {
            return None;
        }
        let mut factors = self.dropout.map(|_| Buffer::new(size * input));
        if let (Some(factors), Some(dropout)) = (&mut factors, self.dropout) {
            vectorized(|| dropout.factors(before * input, factors));
        }
        let (mut gathered, mut gathered_x) = (None, None);
        let gradient = rows.of(gradient, &mut gathered);
        let mut outer = Buffer::new(size * r);
        let to = MatMut::new(&mut outer, size, r);
        product(to, gradient, matrix(&self.b), self.scale as f32, Before::Forgotten, Workers::One);
        let outer = Mat::new(&outer, size, r);
        if let Some(of_x) = of_x {
            // SAFETY: the block is the caller's.
            unsafe { rows.add(of_x, 0..input, [outer, matrix(&self.a)], factors.as_deref()) };
        }
        let x = rows.of(x?, &mut gathered_x);
        let x = match &mut factors {
            None => x,
            Some(factors) => {
                vectorized(|| factors.iter_mut().zip(x.row_major()).for_each(|(factor, x)| *factor *= x));
                Mat::new(factors, size, input)
            }
        };
        let mut inner = Buffer::new(size * r);
        let to = MatMut::new(&mut inner, size, r);
        product(to, x, matrix(&self.a).t(), self.scale as f32, Before::Forgotten, Workers::One);
        let (mut of_a, mut of_b) = (Buffer::new(r * input), Buffer::new(out * r));
        product(MatMut::new(&mut of_a, r, input), outer.t(), x, 1.0, Before::Forgotten, Workers::One);
        let inner = Mat::new(&inner, size, r);
        product(MatMut::new(&mut of_b, out, r), gradient.t(), inner, 1.0, Before::Forgotten, Workers::One);
        Some([of_a, of_b])
    }
}

fn dims(x: &Primitive) -> [usize; 2] {
    x.shape().as_slice().try_into().expect("a matrix")
}

/// The blocks of `n` rows that tasks take.
fn blocks(n: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let block = move |index: usize| index * BLOCK..((index + 1) * BLOCK).min(n);
    (0..n.div_ceil(BLOCK).max(1)).into_par_iter().map(block).with_max_len(1)
}

vector_fn! {
    /// `to += x * factors`.
    fn add_masked(to: &mut [f32], x: &[f32], factors: &[f32]) {
        to.iter_mut().zip(x).zip(factors).for_each(|((to, x), factor)| *to += x * factor);
    }
}
