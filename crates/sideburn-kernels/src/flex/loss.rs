//! Cross-entropy on the CPU: softmax rows in one pass, and the output head a chunk of classes at a time.

use std::ops::Range;

use burn::backend::tensor::IntTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::DType;
use rayon::prelude::*;

use super::packed::Packed;
use super::products::{Before, Mat, MatMut, Parts, Workers, product};
use super::simd::{exp, largest, sum, vectorized};
use super::{Primitive, are_f32, contiguous, indices, matrix, overwritable, values};
use crate::ops::loss::LossKernels;
use crate::runtime::memory::Buffer;

/// Rows of hidden states that a task takes.
const ROWS: usize = 128;
/// Classes that a task takes at once.
const CHUNK: usize = 512;
/// Tasks that there are at least, if there are classes enough: with few rows, the classes are shared out.
const TASKS: usize = 8;

/// Float tensors and the labels.
type Labelled<const N: usize> = ([Primitive; N], IntTensor<Flex>);

/// The floats in row-major order, and the classes of the labels.
fn row_major<const N: usize>((floats, labels): Labelled<N>) -> Result<([Primitive; N], Vec<usize>), Labelled<N>> {
    match super::row_major(floats) {
        Ok(floats) => Ok((floats, indices(labels))),
        Err(floats) => Err((floats, labels)),
    }
}

/// Whether a head is taken: its hidden states are in `f32`, its weight in that or in 16 bits.
fn is_head_taken(([hidden, weight], _): &Labelled<2>) -> bool {
    are_f32([hidden]) && matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// The hidden states and the weight in row-major order, and the classes of the labels.
fn head_inputs((floats, labels): Labelled<2>) -> ([Primitive; 2], Vec<usize>) {
    (floats.map(contiguous), indices(labels))
}

impl LossKernels for Flex {
    fn try_cross_entropy(inputs: Labelled<1>) -> Result<Primitive, Labelled<1>> {
        let ([logits], labels) = row_major(inputs)?;
        let classes = logits.shape()[1];
        let mut out = Buffer::new(labels.len());
        out.par_iter_mut().zip(values(&logits).par_chunks(classes)).zip(&labels).for_each(|((out, row), label)| {
            let (max, sum) = vectorized(|| softmax_normaliser(row));
            *out = max + sum.ln() - row[*label];
        });
        Ok(out.into_tensor([labels.len()]))
    }

    fn try_cross_entropy_backward(inputs: Labelled<2>) -> Result<Primitive, Labelled<2>> {
        let ([logits, gradient], labels) = row_major(inputs)?;
        let (classes, mut logits) = (logits.shape()[1], overwritable(logits));
        let rows = logits.storage_mut::<f32>().par_chunks_mut(classes);
        rows.zip(labels.par_iter().zip(values(&gradient))).for_each(|(row, (label, gradient))| {
            vectorized(|| {
                let (max, sum) = softmax_normaliser(row);
                let scale = gradient / sum;
                row.iter_mut().for_each(|logit| *logit = exp(*logit - max) * scale);
            });
            row[*label] -= gradient;
        });
        Ok(logits)
    }

    fn try_head(inputs: Labelled<2>, smoothing: f64) -> Result<Primitive, Labelled<2>> {
        if !is_head_taken(&inputs) {
            return Err(inputs);
        }
        let ([hidden, weight], labels) = head_inputs(inputs);
        Ok(Head::new(&hidden, &weight, &labels, smoothing).run(false).0)
    }

    fn try_head_and_gradient(inputs: Labelled<2>, smoothing: f64) -> Result<[Primitive; 2], Labelled<2>> {
        if !is_head_taken(&inputs) {
            return Err(inputs);
        }
        let ([hidden, weight], labels) = head_inputs(inputs);
        Ok(Head::new(&hidden, &weight, &labels, smoothing).run(true).into())
    }

    fn try_head_backward_weight(inputs: Labelled<3>, smoothing: f64) -> Result<Primitive, Labelled<3>> {
        let ([hidden, weight, gradient], labels) = row_major(inputs)?;
        Ok(Head::new(&hidden, &weight, &labels, smoothing).backward_weight(values(&gradient)))
    }
}

/// The largest logit, and the sum of `exp(logit - largest)`.
#[inline(always)]
fn softmax_normaliser(row: &[f32]) -> (f32, f32) {
    let max = largest(row);
    (max, sum([row], |[logit]| exp(logit - max)))
}

/// An output head with the labels of its rows.
struct Head<'a> {
    hidden: Mat<'a>,
    weight: Weight<'a>,
    labels: &'a [usize],
    smoothing: f32,
}

/// The weight `[classes, d]` of a head.
#[derive(Clone, Copy)]
enum Weight<'a> {
    Floats(Mat<'a>),
    /// Floats in 16 bits, which are widened a few rows at a time.
    Halves(Packed<'a>),
}

impl<'a> Weight<'a> {
    fn new(weight: &'a Primitive) -> Self {
        Packed::of_halves(weight).map_or_else(|| Self::Floats(matrix(weight)), Self::Halves)
    }

    fn classes(&self) -> usize {
        match self {
            Self::Floats(floats) => floats.shape()[0],
            Self::Halves(halves) => halves.shape()[0],
        }
    }

    /// Some of its rows to multiply with, which may be widened into `store`.
    fn chunk<'s>(&'s self, classes: Range<usize>, store: &'s mut Option<Buffer>) -> Chunk<'s> {
        match self {
            Self::Halves(halves) if halves.is_in_bf16() => Chunk::InBf16(halves, classes),
            _ => Chunk::Floats(self.rows(classes, store)),
        }
    }

    /// Some of its rows: as they lie, or widened into `store`.
    fn rows<'s>(&self, range: Range<usize>, store: &'s mut Option<Buffer>) -> Mat<'s>
    where
        'a: 's,
    {
        match self {
            Self::Floats(floats) => floats.rows(range),
            Self::Halves(halves) => {
                let (rows, d) = (range.len(), halves.shape()[1]);
                let store = store.get_or_insert_with(|| Buffer::new(rows * d));
                halves.unpack_rows(range, 0..d, &mut store[..rows * d]);
                Mat::new(&store[..rows * d], rows, d)
            }
        }
    }
}

/// The weights of some classes.
enum Chunk<'a> {
    Floats(Mat<'a>),
    /// These rows of a weight whose products are in `bf16`.
    InBf16(&'a Packed<'a>, Range<usize>),
}

impl Chunk<'_> {
    /// Writes the logits of hidden states.
    fn logits(&self, to: MatMut<'_>, hidden: Mat<'_>) {
        match self {
            Self::Floats(weight) => product(to, hidden, weight.t(), 1.0, Before::Forgotten, Workers::One),
            Self::InBf16(weight, classes) => weight.product(to, hidden, classes.clone(), Workers::One, &mut None),
        }
    }

    /// Adds the weights of the classes, each times its factor.
    fn add_mixed(&self, to: MatMut<'_>, factors: Mat<'_>) {
        match self {
            Self::Floats(weight) => product(to, factors, *weight, 1.0, Before::Kept, Workers::One),
            Self::InBf16(weight, classes) => {
                let parts = [classes.clone(), 0..weight.shape()[1]];
                weight.product_back(to, factors, parts, Before::Kept, Workers::One, &mut None);
            }
        }
    }
}

/// What some classes contribute to a few rows: the state of softmaxes on their way.
struct Partial {
    /// The largest logit of each row so far.
    max: Vec<f32>,
    /// The sum of `exp(logit - max)` of each row.
    sum: Vec<f32>,
    /// The sum of all logits of each row, for smoothing.
    total: Vec<f32>,
    /// The sum of `exp(logit - max) * weight` of each row, `[rows, d]`, if gradients are wanted.
    mixed: Option<Buffer>,
}

impl<'a> Head<'a> {
    fn new(hidden: &'a Primitive, weight: &'a Primitive, labels: &'a [usize], smoothing: f64) -> Self {
        Self { hidden: matrix(hidden), weight: Weight::new(weight), labels, smoothing: smoothing as f32 }
    }

    /// The loss of each row and, if it is asked for, its gradient with respect to the hidden state.
    fn run(&self, gradient: bool) -> (Primitive, Primitive) {
        let [n, d] = [self.labels.len(), self.hidden.shape()[1]];
        let classes = self.weight.classes();
        let row_blocks = n.div_ceil(ROWS).max(1);
        // How the work is shared out is a function of the sizes alone, and so is how sums are rounded.
        let shares = TASKS.div_ceil(row_blocks).min(classes.div_ceil(CHUNK)).max(1);
        let share = classes.div_ceil(shares);
        let partials: Vec<Partial> = (0..row_blocks * shares)
            .into_par_iter()
            .with_max_len(1)
            .map(|task| {
                let (block, part) = (task / shares, task % shares);
                let rows = block * ROWS..((block + 1) * ROWS).min(n);
                self.partial(rows, (part * share).min(classes)..((part + 1) * share).min(classes), gradient)
            })
            .collect();

        let mut losses = Buffer::new(n);
        let mut of_hidden = Buffer::new(if gradient { n * d } else { 0 });
        let mut store = None;
        // The mean of the rows of the weight, which smoothing pulls to.
        let mean = (gradient && self.smoothing > 0.0).then(|| {
            let mut mean = vec![0f32; d];
            for class in 0..classes {
                let row = self.weight.rows(class..class + 1, &mut store).row(0);
                mean.iter_mut().zip(row).for_each(|(mean, w)| *mean += w / classes as f32);
            }
            mean
        });
        for row in 0..n {
            let parts = &partials[row / ROWS * shares..][..shares];
            let index = row % ROWS;
            let max = parts.iter().map(|part| part.max[index]).fold(f32::NEG_INFINITY, f32::max);
            // A NaN must not be hidden: it is in a sum, whatever the maximum.
            let scales: Vec<f32> = parts.iter().map(|part| (part.max[index] - max).exp()).collect();
            let sum: f32 = parts.iter().zip(&scales).map(|(part, scale)| part.sum[index] * scale).sum();
            let label = self.weight.rows(self.labels[row]..self.labels[row] + 1, &mut store).row(0);
            let logit = vectorized(|| super::simd::sum([self.hidden.row(row), label], |[x, w]| x * w));
            let normaliser = max + sum.ln();
            let total: f32 = parts.iter().map(|part| part.total[index]).sum();
            losses[row] = if self.smoothing > 0.0 {
                normaliser - (1.0 - self.smoothing) * logit - self.smoothing * total / classes as f32
            } else {
                normaliser - logit
            };
            if gradient {
                let out = &mut of_hidden[row * d..][..d];
                out.iter_mut().zip(label).for_each(|(out, w)| *out = (self.smoothing - 1.0) * w);
                if let Some(mean) = &mean {
                    out.iter_mut().zip(mean).for_each(|(out, mean)| *out -= self.smoothing * mean);
                }
                for (part, scale) in parts.iter().zip(&scales) {
                    let mixed = &part.mixed.as_ref().expect("gradients were asked for")[index * d..][..d];
                    out.iter_mut().zip(mixed).for_each(|(out, x)| *out += scale / sum * x);
                }
            }
        }
        let shape = if gradient { [n, d] } else { [0, d] };
        (losses.into_tensor([n]), of_hidden.into_tensor(shape))
    }

    /// Goes through some of the classes for some of the rows.
    fn partial(&self, rows: Range<usize>, classes: Range<usize>, gradient: bool) -> Partial {
        let (size, d) = (rows.len(), self.hidden.shape()[1]);
        let (hidden, mut store) = (self.hidden.rows(rows), None);
        let mut partial = Partial {
            max: vec![f32::NEG_INFINITY; size],
            sum: vec![0.0; size],
            total: vec![0.0; size],
            mixed: gradient.then(|| Buffer::zeros(size * d)),
        };
        let mut logits = Buffer::new(size * CHUNK.min(classes.len()));
        let end = classes.end;
        for first in classes.step_by(CHUNK) {
            let count = CHUNK.min(end - first);
            let logits = &mut logits[..size * count];
            let weight = self.weight.chunk(first..first + count, &mut store);
            weight.logits(MatMut::new(logits, size, count), hidden);
            vectorized(|| {
                for (row, logits) in logits.chunks_exact_mut(count).enumerate() {
                    let before = partial.max[row];
                    let max = largest(logits).max(before);
                    // Where every logit so far is minus infinity, nothing is to be scaled.
                    let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
                    if self.smoothing > 0.0 {
                        partial.total[row] += sum([logits], |[x]| x);
                    }
                    logits.iter_mut().for_each(|x| *x = exp(*x - shift));
                    let scale = if max > before { (before - shift).exp() } else { 1.0 };
                    partial.sum[row] = partial.sum[row] * scale + sum([logits], |[x]| x);
                    partial.max[row] = max;
                    if let Some(mixed) = &mut partial.mixed
                        && scale != 1.0
                    {
                        mixed[row * d..][..d].iter_mut().for_each(|x| *x *= scale);
                    }
                }
            });
            if let Some(mixed) = &mut partial.mixed {
                weight.add_mixed(MatMut::new(mixed, size, d), Mat::new(logits, size, count));
            }
        }
        partial
    }

    /// The gradient of the weight, with logits worked out once more: each task has some of the classes.
    fn backward_weight(&self, gradient: &[f32]) -> Primitive {
        let [n, d] = [self.labels.len(), self.hidden.shape()[1]];
        let (Weight::Floats(weight), hidden) = (self.weight, self.hidden) else { unreachable!("it is in `f32`") };
        let classes = weight.shape()[0];
        // The logarithm of each row's normaliser, from its plain loss.
        let losses = Head { smoothing: 0.0, ..*self }.run(false).0;
        let normalisers: Vec<f32> = (0..n)
            .map(|row| {
                let label = weight.row(self.labels[row]);
                let logit = sum([hidden.row(row), label], |[x, w]| x * w);
                values(&losses)[row] + logit
            })
            .collect();
        let mut of_weight = Buffer::new(classes * d);
        let parts = Parts::new(&mut of_weight, classes, d);
        (0..classes.div_ceil(CHUNK)).into_par_iter().with_max_len(1).for_each(|chunk| {
            let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(classes);
            // SAFETY: each task has rows of its own.
            let mut out = unsafe { parts.part(range.clone(), 0..d) };
            let mut logits = Buffer::new(ROWS.min(n) * range.len());
            for first in (0..n).step_by(ROWS) {
                let rows = first..(first + ROWS).min(n);
                let logits = &mut logits[..rows.len() * range.len()];
                let hidden = hidden.rows(rows.clone());
                let to = MatMut::new(logits, rows.len(), range.len());
                product(to, hidden, weight.rows(range.clone()).t(), 1.0, Before::Forgotten, Workers::One);
                for (row, logits) in rows.clone().zip(logits.chunks_exact_mut(range.len())) {
                    let (normaliser, gradient) = (normalisers[row], gradient[row]);
                    let smoothed = self.smoothing / classes as f32;
                    vectorized(|| {
                        logits.iter_mut().for_each(|x| *x = (exp(*x - normaliser) - smoothed) * gradient);
                    });
                    if range.contains(&self.labels[row]) {
                        logits[self.labels[row] - range.start] -= (1.0 - self.smoothing) * gradient;
                    }
                }
                let before = if first == 0 { Before::Forgotten } else { Before::Kept };
                let logits = Mat::new(logits, rows.len(), range.len());
                product(out.by_ref(), logits.t(), hidden, 1.0, before, Workers::One);
            }
        });
        of_weight.into_tensor([classes, d])
    }
}
