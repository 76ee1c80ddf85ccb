//! Linear layers on the CPU: products over `gemm`, the low-rank branch by blocks of rows that stay in cache.

use std::ops::Range;

use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;
use sideburn_batch::Key;

use super::elementwise::Mask;
use super::memory::Buffer;
use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::simd::{dots, vector_fn, vectorized};
use super::{Primitive, contiguous, is_fused, matrix, values};
use crate::linear::{self, LinearOps};
use crate::profile::Span;

/// Rows that a task of the low-rank branch takes at once.
const BLOCK: usize = 256;

/// Rows of `x` up to which a product reads the weight as it lies instead of packing it first: then reading the weight is
/// all that costs.
const FEW: usize = 8;

impl LinearOps for Flex {
    fn linear_forward(x: Primitive, weight: Primitive) -> Primitive {
        let _span = Span::new("linear_forward");
        if !is_fused(&[&x, &weight]) {
            return Flex::float_matmul(x, Flex::float_transpose(weight));
        }
        let (x, weight) = (contiguous(x), contiguous(weight));
        let ([n, _], [out, _]) = (dims(&x), dims(&weight));
        let mut y = Buffer::new(n * out);
        forward(&mut y, matrix(&x), &weight);
        y.into_tensor([n, out])
    }

    fn linear_backward_x(weight: Primitive, gradient: Primitive) -> Primitive {
        let _span = Span::new("linear_backward_x");
        if !is_fused(&[&weight, &gradient]) {
            return Flex::float_matmul(gradient, weight);
        }
        let (weight, gradient) = (contiguous(weight), contiguous(gradient));
        let ([n, _], [_, input]) = (dims(&gradient), dims(&weight));
        let mut of_x = Buffer::new(n * input);
        let out = MatMut::new(&mut of_x, n, input);
        product(out, matrix(&gradient), matrix(&weight), 1.0, Before::Forgotten, Workers::All);
        of_x.into_tensor([n, input])
    }

    fn linear_backward_weight(x: Primitive, gradient: Primitive) -> Primitive {
        let _span = Span::new("linear_backward_weight");
        if !is_fused(&[&x, &gradient]) {
            return Flex::float_matmul(Flex::float_transpose(gradient), x);
        }
        let (x, gradient) = (contiguous(x), contiguous(gradient));
        let ([_, input], [_, out]) = (dims(&x), dims(&gradient));
        let mut of_weight = Buffer::new(out * input);
        let to = MatMut::new(&mut of_weight, out, input);
        product(to, matrix(&gradient).t(), matrix(&x), 1.0, Before::Forgotten, Workers::All);
        of_weight.into_tensor([out, input])
    }

    fn low_rank(x: Primitive, a: Primitive, b: Primitive, scale: f64, probability: f64, key: Key) -> Primitive {
        let _span = Span::new("low_rank");
        if !is_fused(&[&x, &a, &b]) {
            return linear::composed_low_rank::<Flex>(x, a, b, scale, probability, key);
        }
        let [x, a, b] = [x, a, b].map(contiguous);
        let ([n, _], [out, _]) = (dims(&x), dims(&b));
        let mut y = Buffer::zeros(n * out);
        Branch { a: &a, b: &b, scale, mask: Mask::new(probability, key) }.add_to(&mut y, &x);
        y.into_tensor([n, out])
    }

    fn low_rank_backward_x(
        a: Primitive,
        b: Primitive,
        gradient: Primitive,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> Primitive {
        let _span = Span::new("low_rank_backward_x");
        if !is_fused(&[&a, &b, &gradient]) {
            return linear::composed_low_rank_backward_x::<Flex>(a, b, gradient, scale, probability, key);
        }
        let [a, b, gradient] = [a, b, gradient].map(contiguous);
        let ([n, _], [_, input]) = (dims(&gradient), dims(&a));
        let mut of_x = Buffer::zeros(n * input);
        let branch = Branch { a: &a, b: &b, scale, mask: Mask::new(probability, key) };
        branch.backward(None, &gradient, Some(&mut of_x));
        of_x.into_tensor([n, input])
    }

    fn low_rank_backward_factors(
        x: Primitive,
        a: Primitive,
        b: Primitive,
        gradient: Primitive,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> (Primitive, Primitive) {
        let _span = Span::new("low_rank_backward_factors");
        if !is_fused(&[&x, &a, &b, &gradient]) {
            return linear::composed_low_rank_backward_factors::<Flex>(x, a, b, gradient, scale, probability, key);
        }
        let [x, a, b, gradient] = [x, a, b, gradient].map(contiguous);
        let branch = Branch { a: &a, b: &b, scale, mask: Mask::new(probability, key) };
        let [of_a, of_b] = branch.backward(Some(&x), &gradient, None).expect("there is an x");
        (of_a.into_tensor(a.shape()), of_b.into_tensor(b.shape()))
    }

    fn adapted_linear(
        x: Primitive,
        weight: Primitive,
        a: Primitive,
        b: Primitive,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> Primitive {
        let _span = Span::new("adapted_linear");
        if !is_fused(&[&x, &weight, &a, &b]) {
            return linear::composed_adapted_linear::<Flex>(x, weight, a, b, scale, probability, key);
        }
        let [x, weight, a, b] = [x, weight, a, b].map(contiguous);
        let ([n, _], [out, _]) = (dims(&x), dims(&weight));
        let mut y = Buffer::new(n * out);
        forward(&mut y, matrix(&x), &weight);
        Branch { a: &a, b: &b, scale, mask: Mask::new(probability, key) }.add_to(&mut y, &x);
        y.into_tensor([n, out])
    }

    fn adapted_linear_backward(
        x: Primitive,
        weight: Primitive,
        a: Primitive,
        b: Primitive,
        gradient: Primitive,
        scale: f64,
        probability: f64,
        key: Key,
    ) -> (Primitive, Primitive, Primitive) {
        let _span = Span::new("adapted_linear_backward");
        if !is_fused(&[&x, &weight, &a, &b, &gradient]) {
            let inputs = [x, weight, a, b];
            return linear::composed_adapted_linear_backward::<Flex>(inputs, gradient, scale, probability, key);
        }
        let [x, weight, a, b, gradient] = [x, weight, a, b, gradient].map(contiguous);
        let [n, input] = dims(&x);
        let mut of_x = Buffer::new(n * input);
        let out = MatMut::new(&mut of_x, n, input);
        product(out, matrix(&gradient), matrix(&weight), 1.0, Before::Forgotten, Workers::All);
        let branch = Branch { a: &a, b: &b, scale, mask: Mask::new(probability, key) };
        let [of_a, of_b] = branch.backward(Some(&x), &gradient, Some(&mut of_x)).expect("there is an x");
        (of_x.into_tensor([n, input]), of_a.into_tensor(a.shape()), of_b.into_tensor(b.shape()))
    }
}

fn dims(x: &Primitive) -> [usize; 2] {
    x.shape().as_slice().try_into().expect("a matrix")
}

/// `y = x weight^T`.
pub(super) fn forward(y: &mut [f32], x: Mat<'_>, weight: &Primitive) {
    let [out, input] = dims(weight);
    let n = y.len() / out.max(1);
    if n <= FEW && input > 0 {
        return few_rows(y, x, values(weight), input);
    }
    product(MatMut::new(y, n, out), x, matrix(weight).t(), 1.0, Before::Forgotten, Workers::All);
}

/// The same for a few rows: dot products of rows, with each row of the weight read once.
fn few_rows(y: &mut [f32], x: Mat<'_>, weight: &[f32], input: usize) {
    let out = weight.len() / input;
    let x = x.row_major();
    let n = x.len() / input;
    // A task reads 192 KiB of the weight at least: less takes no longer than finding somebody to share it with.
    let tasks = (weight.len() / 49_152).clamp(1, rayon::current_num_threads() * 4);
    let rows = out.div_ceil(tasks).max(1);
    let parts = Parts::new(y, n, out);
    weight.par_chunks(rows * input).enumerate().for_each(|(task, weight)| {
        let first = task * rows;
        // SAFETY: each task has its own columns.
        let mut y = unsafe { parts.part(0..n, first..first + weight.len() / input) };
        dots_of_rows(&mut y, x, weight, input);
    });
}

/// `y[i][j]` is the dot product of row `i` of `x` and row `j` of `weight`, each row of which is fetched once.
fn dots_of_rows(y: &mut MatMut<'_>, x: &[f32], weight: &[f32], input: usize) {
    let n = x.len() / input;
    let row = |row: usize| &x[row * input..][..input];
    for (j, weight) in weight.chunks_exact(input).enumerate() {
        let mut write = |first: usize, products: &[f32]| {
            products.iter().enumerate().for_each(|(index, product)| y.row(first + index)[j] = *product);
            first + products.len()
        };
        let mut i = 0;
        while i < n {
            i = match n - i {
                8.. => write(i, &dots(std::array::from_fn::<_, 8, _>(|index| row(i + index)), weight)),
                4.. => write(i, &dots(std::array::from_fn::<_, 4, _>(|index| row(i + index)), weight)),
                _ => write(i, &dots([row(i)], weight)),
            };
        }
    }
}

/// A low-rank branch.
struct Branch<'a> {
    a: &'a Primitive,
    b: &'a Primitive,
    scale: f64,
    mask: Option<Mask>,
}

impl Branch<'_> {
    /// `y += scale * dropout(x) A^T B^T`.
    fn add_to(&self, y: &mut [f32], x: &Primitive) {
        let ([n, input], [out, r]) = (dims(x), dims(self.b));
        let (x, y) = (matrix(x), Parts::new(y, n, out));
        blocks(n).for_each(|rows| {
            let size = rows.len();
            let mut narrow = Buffer::new(size * r);
            let mut dropped = self.mask.map(|_| Buffer::new(size * input));
            let x = match (&mut dropped, self.mask) {
                (Some(dropped), Some(mask)) => masked(dropped, mask, x.rows(rows.clone()), rows.start * input, input),
                _ => x.rows(rows.clone()),
            };
            let scale = self.scale as f32;
            product(MatMut::new(&mut narrow, size, r), x, matrix(self.a).t(), scale, Before::Forgotten, Workers::One);
            // SAFETY: each task has its own rows.
            let y = unsafe { y.part(rows, 0..out) };
            product(y, Mat::new(&narrow, size, r), matrix(self.b).t(), 1.0, Before::Kept, Workers::One);
        });
    }

    /// Adds the gradient of the input to `of_x`, and returns those of `A` and `B` if there is an `x`.
    fn backward(&self, x: Option<&Primitive>, gradient: &Primitive, of_x: Option<&mut [f32]>) -> Option<[Buffer; 2]> {
        let ([n, out], [r, input]) = (dims(gradient), dims(self.a));
        let gradient = matrix(gradient);
        let of_x = of_x.map(|of_x| Parts::new(of_x, n, input));
        let scale = self.scale as f32;
        let sums: Vec<Option<[Buffer; 2]>> = blocks(n)
            .map(|rows| {
                let size = rows.len();
                let mut factors = self.mask.map(|_| Buffer::new(size * input));
                if let (Some(factors), Some(mask)) = (&mut factors, self.mask) {
                    vectorized(|| mask.factors(rows.start * input, factors));
                }
                let gradient = gradient.rows(rows.clone());
                let mut outer = Buffer::new(size * r);
                let to = MatMut::new(&mut outer, size, r);
                product(to, gradient, matrix(self.b), scale, Before::Forgotten, Workers::One);
                let outer = Mat::new(&outer, size, r);
                if let Some(of_x) = of_x {
                    // SAFETY: each task has its own rows.
                    let mut of_x = unsafe { of_x.part(rows.clone(), 0..input) };
                    match &factors {
                        None => product(of_x, outer, matrix(self.a), 1.0, Before::Kept, Workers::One),
                        Some(factors) => {
                            let mut wide = Buffer::new(size * input);
                            let to = MatMut::new(&mut wide, size, input);
                            product(to, outer, matrix(self.a), 1.0, Before::Forgotten, Workers::One);
                            vectorized(|| {
                                for row in 0..size {
                                    let (wide, factors) = (&wide[row * input..], &factors[row * input..]);
                                    let of_x = of_x.row(row).iter_mut();
                                    of_x.zip(wide)
                                        .zip(factors)
                                        .for_each(|((of_x, wide), factor)| *of_x += wide * factor);
                                }
                            });
                        }
                    }
                }
                let x = matrix(x?).rows(rows.clone());
                let x = match &mut factors {
                    None => x,
                    Some(factors) => {
                        vectorized(|| factors.iter_mut().zip(x.row_major()).for_each(|(factor, x)| *factor *= x));
                        Mat::new(factors, size, input)
                    }
                };
                let mut inner = Buffer::new(size * r);
                let to = MatMut::new(&mut inner, size, r);
                product(to, x, matrix(self.a).t(), scale, Before::Forgotten, Workers::One);
                let (mut of_a, mut of_b) = (Buffer::new(r * input), Buffer::new(out * r));
                product(MatMut::new(&mut of_a, r, input), outer.t(), x, 1.0, Before::Forgotten, Workers::One);
                let inner = Mat::new(&inner, size, r);
                product(MatMut::new(&mut of_b, out, r), gradient.t(), inner, 1.0, Before::Forgotten, Workers::One);
                Some([of_a, of_b])
            })
            .collect();
        // The blocks are the same and summed in the same order whatever the number of threads.
        let mut sums = sums.into_iter().flatten();
        let mut total = sums.next()?;
        for sum in sums {
            for (total, sum) in total.iter_mut().zip(sum) {
                vectorized(|| total.iter_mut().zip(sum.iter()).for_each(|(total, x)| *total += x));
            }
        }
        Some(total)
    }
}

/// The blocks of `n` rows that tasks take.
fn blocks(n: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let block = move |index: usize| index * BLOCK..((index + 1) * BLOCK).min(n);
    (0..n.div_ceil(BLOCK).max(1)).into_par_iter().map(block).with_max_len(1)
}

/// `x` times the factors of `mask` from `first` on, in `out`.
fn masked<'a>(out: &'a mut [f32], mask: Mask, x: Mat<'_>, first: usize, columns: usize) -> Mat<'a> {
    masked_values(out, mask, x.row_major(), first);
    let rows = out.len() / columns.max(1);
    Mat::new(out, rows, columns)
}

vector_fn! {
    /// `x` times the factors of `mask` from `first` on.
    fn masked_values(out: &mut [f32], mask: Mask, x: &[f32], first: usize) {
        mask.factors(first, out);
        out.iter_mut().zip(x).for_each(|(out, x)| *out *= x);
    }
}
