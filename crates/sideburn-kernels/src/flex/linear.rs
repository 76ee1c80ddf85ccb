//! Linear layers on the CPU: products over `gemm`, the low-rank branches by blocks of rows that stay in cache.

use std::ops::Range;

use burn::backend::tensor::IntTensor;
use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;
use sideburn_batch::Dropout;

use super::dropout::masked;
use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::simd::{dots, vector_fn, vectorized};
use super::{Primitive, contiguous, is_fused, matrix, values};
use crate::ops::linear::{self, Inputs, Joined, JoinedBranch, LinearBackward, LinearGradients, LinearOps, Sites};
use crate::runtime::memory::Buffer;
use crate::runtime::profile::Span;

/// Rows that a task of the low-rank branches takes at once.
const BLOCK: usize = 256;

/// Rows of `x` up to which a product reads the weight as it lies instead of packing it first: then reading the weight is
/// all that costs.
const FEW: usize = 8;

impl LinearOps for Flex {
    fn linears(x: Primitive, sites: Sites<Flex>) -> Primitive {
        let _span = Span::new("linears");
        if !is_fused(&all(Some(&x), &sites)) {
            return linear::composed::<Flex>(&x, &sites);
        }
        let (x, given) = (contiguous(x), all_contiguous(sites));
        let wiring = &given.wiring;
        let n = x.shape()[0];
        let sites = joined(&given, n);
        let len = n * wiring.width();
        let mut y = if sites.iter().all(|site| site.weight.is_some()) { Buffer::new(len) } else { Buffer::zeros(len) };
        let parts = Parts::new(&mut y, n, wiring.width());
        let x = matrix(&x);
        if n <= FEW {
            few_rows(parts, x, &sites);
        } else {
            for (columns, weight) in sites.iter().filter_map(Site::base) {
                // SAFETY: nobody else writes yet.
                let y = unsafe { parts.part(0..n, columns) };
                product(y, x, matrix(weight).t(), 1.0, Before::Forgotten, Workers::All);
            }
        }
        if !given.factors.is_empty() {
            blocks(n).for_each(|block| {
                for (site, branch) in branches(&sites) {
                    branch.add_to(parts, block.clone(), site.columns.clone(), x);
                }
            });
        }
        y.into_tensor([n, wiring.width()])
    }
}

impl LinearBackward for Flex {
    fn linears_backward(inputs: &Inputs<Flex>, gradient: Primitive) -> LinearGradients<Flex> {
        let _span = Span::new("linears_backward");
        let Inputs { x, sites, wanted } = inputs;
        let mut tensors = all(x.as_ref(), sites);
        tensors.push(&gradient);
        if !is_fused(&tensors) {
            return linear::composed_backward::<Flex>(inputs, gradient);
        }
        let (x, gradient, given) = (x.clone().map(contiguous), contiguous(gradient), all_contiguous(sites.clone()));
        let (n, wiring, factors) = (gradient.shape()[0], &given.wiring, &given.factors);
        let sites = joined(&given, n);
        let (x, gradient) = (x.as_ref().map(matrix), matrix(&gradient));

        let of_weights = sites.iter().zip(wiring.of_sites(&wanted.weights)).filter_map(|(site, wanted)| {
            let gradient = gradient.columns(site.columns.clone());
            Some(wanted?.then(|| {
                let x = x.expect("it is kept for the gradients of weights");
                let shape = [site.columns.len(), x.shape()[1]];
                let mut of_weight = Buffer::new(shape[0] * shape[1]);
                let to = MatMut::new(&mut of_weight, shape[0], shape[1]);
                product(to, gradient.t(), x, 1.0, Before::Forgotten, Workers::All);
                of_weight.into_tensor(shape)
            }))
        });
        let of_weights = of_weights.collect();

        let mut of_x = wanted.x.then(|| {
            let input = sites[0].input();
            let mut of_x = Buffer::new(n * input);
            let mut before = Before::Forgotten;
            for (columns, weight) in sites.iter().filter_map(Site::base) {
                let to = MatMut::new(&mut of_x, n, input);
                product(to, gradient.columns(columns), matrix(weight), 1.0, before, Workers::All);
                before = Before::Kept;
            }
            if before == Before::Forgotten {
                of_x.fill(0.0);
            }
            (of_x, input)
        });

        let wanted_branches: Vec<bool> = wanted.branches().collect();
        let mut totals: Vec<Option<[Buffer; 2]>> = wanted_branches.iter().map(|_| None).collect();
        if of_x.is_some() && !factors.is_empty() || wanted_branches.contains(&true) {
            let of_x = of_x.as_mut().map(|(of_x, input)| Parts::new(of_x, n, *input));
            let sums: Vec<Vec<Option<[Buffer; 2]>>> = blocks(n)
                .map(|block| {
                    let branch = |((site, branch), wanted): ((&Site<'_>, &Branch<'_>), &bool)| {
                        let gradient = gradient.columns(site.columns.clone());
                        branch.backward(block.clone(), x.filter(|_| *wanted), gradient, of_x)
                    };
                    branches(&sites).zip(&wanted_branches).map(branch).collect()
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
        let of_factors =
            totals.into_iter().zip(factors.chunks(2)).zip(wanted_branches).map(|((total, pair), wanted)| {
                // A branch none of whose rows are there has gradients, too.
                let zeros = || [&pair[0], &pair[1]].map(|factor| Buffer::zeros(values(factor).len()));
                let [of_a, of_b] = wanted.then(|| total.unwrap_or_else(zeros))?;
                Some([of_a.into_tensor(pair[0].shape()), of_b.into_tensor(pair[1].shape())])
            });
        let of_factors = of_factors.collect();
        let of_x = of_x.map(|(of_x, input)| of_x.into_tensor([n, input]));
        LinearGradients { x: of_x, weights: of_weights, factors: of_factors }
    }
}

fn all<'a>(x: Option<&'a Primitive>, sites: &'a Sites<Flex>) -> Vec<&'a Primitive> {
    x.into_iter().chain(&sites.weights).chain(&sites.factors).collect()
}

fn all_contiguous(sites: Sites<Flex>) -> Sites<Flex> {
    let list = |list: Vec<Primitive>| list.into_iter().map(contiguous).collect();
    Sites { weights: list(sites.weights), factors: list(sites.factors), ..sites }
}

fn added(mut total: [Buffer; 2], sum: [Buffer; 2]) -> [Buffer; 2] {
    for (total, sum) in total.iter_mut().zip(sum) {
        vectorized(|| total.iter_mut().zip(sum.iter()).for_each(|(total, x)| *total += x));
    }
    total
}

/// A site: its columns among those of all, its base layer and its branches.
struct Site<'a> {
    columns: Range<usize>,
    weight: Option<&'a Primitive>,
    branches: Vec<Branch<'a>>,
}

impl<'a> Site<'a> {
    fn base(&self) -> Option<(Range<usize>, &'a Primitive)> {
        Some((self.columns.clone(), self.weight?))
    }

    /// The width of what it sees.
    fn input(&self) -> usize {
        let seen = self.weight.or_else(|| self.branches.first().map(|branch| branch.a));
        seen.expect("a site has a base layer or a branch").shape()[1]
    }
}

/// The sites of an operation on `n` rows, whose tensors are contiguous.
fn joined(sites: &Sites<Flex>, n: usize) -> Vec<Site<'_>> {
    let rows = sites.rows.iter().map(|rows| ascending(rows, n));
    let joined = sites.wiring.join(&sites.weights, &sites.factors, rows).into_iter().zip(sites.wiring.columns());
    let site = |(Joined { weight, branches, .. }, columns)| Site {
        columns,
        weight,
        branches: branches.into_iter().map(Branch::new).collect(),
    };
    joined.map(site).collect()
}

/// The rows that a branch is for.
fn ascending(rows: &IntTensor<Flex>, n: usize) -> Vec<usize> {
    let rows: Vec<usize> = rows.clone().into_data().iter::<i64>().map(|row| row as usize).collect();
    let fit = rows.is_sorted_by(|before, row| before < row) && rows.last().is_none_or(|last| *last < n);
    assert!(fit, "the rows of a branch must be ascending rows of x, each once");
    rows
}

/// Every branch with its site.
fn branches<'b, 'a>(sites: &'b [Site<'a>]) -> impl Iterator<Item = (&'b Site<'a>, &'b Branch<'a>)> {
    sites.iter().flat_map(|site| site.branches.iter().map(move |branch| (site, branch)))
}

/// `y = x W^T` at each site for a few rows: dot products of rows, with each row of a weight read once.
fn few_rows(y: Parts<'_>, x: Mat<'_>, sites: &[Site<'_>]) {
    let [n, input] = x.shape();
    let all: usize = sites.iter().filter_map(Site::base).map(|(columns, _)| columns.len()).sum();
    if n == 0 || all == 0 {
        return;
    }
    // A task reads 192 KiB of a weight at least: less takes no longer than finding somebody to share it with.
    let tasks = (all * input / 49_152).clamp(1, rayon::current_num_threads() * 4);
    let count = all.div_ceil(tasks);
    let tasks: Vec<_> = sites
        .iter()
        .filter_map(Site::base)
        .flat_map(|(columns, weight)| {
            let weight = matrix(weight);
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

/// `y[i][j]` is the dot product of row `i` of `x`, of which there are few, and row `j` of `weight`, each row of which is
/// fetched once.
fn dots_of_rows(y: &mut MatMut<'_>, x: Mat<'_>, weight: Mat<'_>) {
    let [n, _] = x.shape();
    let rows: [&[f32]; FEW] = std::array::from_fn(|row| if row < n { x.row(row) } else { &[] });
    let (rows, _) = rows.split_at(n);
    let ((eights, _), (fours, rest)) = (rows.as_chunks::<8>(), rows.as_chunks::<4>());
    for j in 0..weight.shape()[0] {
        let weight = weight.row(j);
        let mut write = |first: usize, products: &[f32]| {
            products.iter().enumerate().for_each(|(index, product)| y.row(first + index)[j] = *product);
        };
        match eights {
            [rows] => write(0, &dots(*rows, weight)),
            _ => {
                fours.iter().enumerate().for_each(|(index, rows)| write(4 * index, &dots(*rows, weight)));
                rest.iter().enumerate().for_each(|(index, row)| write(4 * fours.len() + index, &dots([*row], weight)));
            }
        }
    }
}

/// A low-rank branch.
struct Branch<'a> {
    a: &'a Primitive,
    b: &'a Primitive,
    scale: f32,
    dropout: Option<Dropout>,
    /// Its rows, if it is not for all.
    rows: Option<Vec<usize>>,
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

impl<'a> Branch<'a> {
    fn new(joined: JoinedBranch<&'a Primitive, Vec<usize>>) -> Self {
        let JoinedBranch { a, b, rows, numbers } = joined;
        Self { a, b, rows, scale: numbers.scale as f32, dropout: numbers.dropout }
    }

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
        product(to, x, matrix(self.a).t(), self.scale, Before::Forgotten, Workers::One);
        // SAFETY: the block is the caller's.
        unsafe { rows.add(y, columns, [Mat::new(&narrow, size, r), matrix(self.b).t()], None) };
    }

    /// In a block of rows, which is the caller's alone: adds the gradient of the input to `of_x`, and returns those of `A`
    /// and `B` if there is an `x`.
    fn backward(
        &self,
        block: Range<usize>,
        x: Option<Mat<'_>>,
        gradient: Mat<'_>,
        of_x: Option<Parts<'_>>,
    ) -> Option<[Buffer; 2]> {
        let (rows, before) = self.rows_in(block);
        let (size, [r, input], out) = (rows.len(), dims(self.a), gradient.shape()[1]);
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
        product(to, gradient, matrix(self.b), self.scale, Before::Forgotten, Workers::One);
        let outer = Mat::new(&outer, size, r);
        if let Some(of_x) = of_x {
            // SAFETY: the block is the caller's.
            unsafe { rows.add(of_x, 0..input, [outer, matrix(self.a)], factors.as_deref()) };
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
        product(to, x, matrix(self.a).t(), self.scale, Before::Forgotten, Workers::One);
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
