//! Cross-entropy on a GPU: a cube for each row of logits, and the output head some rows at a time.
//!
//! Rows are taken in blocks, and each block with all classes: two products and one kernel for a block, where
//! blocks of classes would need a kernel more for each, and smaller products.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::IntTensor;
use burn::tensor::{DType, Slice};
use burn_cubecl::cubecl::ir::{ElemType, IntKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};

use super::checked::checked;
use super::sums::{largest_of_cube, sum_of_cube};
use super::{Primitive, UNITS, contiguous, cube_each, element, fresh_of};
use crate::ops::loss::LossKernels;
use crate::ops::matmul::{product, product_with_transposed, transposed};

/// The most logits that are in memory at once, unless [`ROWS`] rows have more: what the cache of a large GPU holds.
const LOGITS: usize = 1 << 22;
/// What the rows of a block are a multiple of, so that products have no ragged edge.
const ROWS: usize = 64;

/// Float tensors and the labels.
type Labelled<const N: usize> = ([Primitive; N], IntTensor<CubeBackend>);

/// The tensors, if the kernels take them, the labels in row-major order.
fn accepted<const N: usize>((floats, labels): Labelled<N>) -> Result<Labelled<N>, Labelled<N>> {
    if integer(&labels).is_none() {
        return Err((floats, labels));
    }
    match super::accepted(floats) {
        Ok(floats) => Ok((floats, contiguous(labels))),
        Err(floats) => Err((floats, labels)),
    }
}

/// The same where the last of the tensors is a gradient of losses, which is in `f32`.
fn accepted_with_gradient<const N: usize>((floats, labels): Labelled<N>) -> Result<Labelled<N>, Labelled<N>> {
    let taken = floats[..N - 1].iter().all(|x| super::accepted([floats[0].clone(), x.clone()]).is_ok());
    if !taken || integer(&labels).is_none() {
        return Err((floats, labels));
    }
    Ok((floats, contiguous(labels)))
}

impl LossKernels for CubeBackend {
    fn try_cross_entropy(inputs: Labelled<1>) -> Result<Primitive, Labelled<1>> {
        checked("cross_entropy", inputs.0[0].dtype, accepted(inputs)?, |([logits], labels)| {
            let losses = losses_of(&logits);
            Softmax { labels, smoothing: 0.0 }.losses(&contiguous(logits), &losses, 0);
            losses
        })
    }

    fn try_cross_entropy_backward(inputs: Labelled<2>) -> Result<Primitive, Labelled<2>> {
        let inputs = accepted_with_gradient(inputs)?;
        checked("cross_entropy_backward", inputs.0[0].dtype, inputs, |([logits, gradient], labels)| {
            let logits = contiguous(logits);
            let logits = if logits.can_mut() && logits.is_nonoverlapping() { logits } else { logits.copy() };
            Softmax { labels, smoothing: 0.0 }.gradients(&logits, &contiguous(gradient), 0);
            logits
        })
    }

    fn try_head(inputs: Labelled<2>, smoothing: f64) -> Result<Primitive, Labelled<2>> {
        checked("head", inputs.0[0].dtype, accepted(inputs)?, |([hidden, weight], labels)| {
            let losses = losses_of(&hidden);
            let softmax = Softmax { labels, smoothing };
            for (first, hidden) in blocks(&hidden, &weight) {
                softmax.losses(&logits(hidden, &weight), &losses, first);
            }
            losses
        })
    }

    fn try_head_and_gradient(inputs: Labelled<2>, smoothing: f64) -> Result<[Primitive; 2], Labelled<2>> {
        checked("head_and_gradient", inputs.0[0].dtype, accepted(inputs)?, |([hidden, weight], labels)| {
            let losses = losses_of(&hidden);
            let softmax = Softmax { labels, smoothing };
            let of_block = |(first, hidden)| {
                let logits = logits(hidden, &weight);
                softmax.losses_and_gradients(&logits, &losses, first);
                product::<CubeBackend>(logits, weight.clone())
            };
            let mut of_hidden: Vec<Primitive> = blocks(&hidden, &weight).into_iter().map(of_block).collect();
            let of_hidden = match of_hidden.len() {
                1 => of_hidden.remove(0),
                _ => CubeBackend::float_cat(of_hidden, 0),
            };
            [losses, of_hidden]
        })
    }

    fn try_head_backward_weight(inputs: Labelled<3>, smoothing: f64) -> Result<Primitive, Labelled<3>> {
        let inputs = accepted_with_gradient(inputs)?;
        checked("head_backward_weight", inputs.0[0].dtype, inputs, |([hidden, weight, gradient], labels)| {
            let (softmax, gradient) = (Softmax { labels, smoothing }, contiguous(gradient));
            let of_block = |(first, hidden): (usize, Primitive)| {
                let logits = logits(hidden.clone(), &weight);
                softmax.gradients(&logits, &gradient, first);
                product::<CubeBackend>(transposed::<CubeBackend>(logits), hidden)
            };
            let of_blocks = blocks(&hidden, &weight).into_iter().map(of_block);
            of_blocks.reduce(CubeBackend::float_add).expect("a tensor with elements has a block")
        })
    }
}

/// A place in `f32` for the loss of each row.
fn losses_of(rows: &Primitive) -> Primitive {
    fresh_of(rows, [rows.shape()[0]], DType::F32)
}

/// The name that kernels have for a dtype of labels.
fn integer(labels: &Primitive) -> Option<ElemType> {
    match labels.dtype {
        DType::I32 => Some(ElemType::Int(IntKind::I32)),
        DType::I64 => Some(ElemType::Int(IntKind::I64)),
        _ => None,
    }
}

/// The hidden states in blocks, each with its first row.
fn blocks(hidden: &Primitive, weight: &Primitive) -> Vec<(usize, Primitive)> {
    let ([rows, width], classes) = ([hidden.shape()[0], hidden.shape()[1]], weight.shape()[0]);
    let size = (LOGITS / classes / ROWS).max(1) * ROWS;
    if rows <= size {
        return vec![(0, hidden.clone())];
    }
    let block = |first: usize| {
        let range = [Slice::from(first..(first + size).min(rows)), Slice::from(0..width)];
        (first, CubeBackend::float_slice(hidden.clone(), &range))
    };
    (0..rows).step_by(size).map(block).collect()
}

fn logits(hidden: Primitive, weight: &Primitive) -> Primitive {
    contiguous(product_with_transposed::<CubeBackend>(hidden, weight.clone()))
}

/// Below any logit, and finite.
const LOWEST: f32 = -1e30;

/// What turns logits into losses, or into their gradients where they lie.
struct Softmax {
    labels: Primitive,
    smoothing: f64,
}

impl Softmax {
    fn losses(&self, logits: &Primitive, losses: &Primitive, first: usize) {
        self.launch(logits, losses, first, [true, false, false]);
    }

    /// The gradients, in the place of the logits, of the sum of the losses.
    fn losses_and_gradients(&self, logits: &Primitive, losses: &Primitive, first: usize) {
        self.launch(logits, losses, first, [true, true, false]);
    }

    /// The gradients from those of the losses.
    fn gradients(&self, logits: &Primitive, of_losses: &Primitive, first: usize) {
        self.launch(logits, of_losses, first, [false, true, true]);
    }

    /// `first` is the row of the first logits among `of_rows` and the labels.
    fn launch(&self, logits: &Primitive, of_rows: &Primitive, first: usize, what: [bool; 3]) {
        let [rows, _] = [logits.shape()[0], logits.shape()[1]];
        let client = logits.client.clone();
        let (cubes, dim) = cube_each(&client, rows);
        let types = [element(logits), integer(&self.labels).expect("a dtype that the kernel takes")];
        // SAFETY: cubes beyond the rows stop at once, units stay within the classes, and a label is compared only.
        unsafe {
            softmax_kernel::launch_unchecked(
                &client,
                cubes,
                dim,
                logits.clone().into_tensor_arg(),
                self.labels.clone().into_buffer_arg(),
                of_rows.clone().into_buffer_arg(),
                first as u32,
                self.smoothing as f32,
                what[0],
                what[1],
                what[2],
                self.smoothing > 0.0,
                types,
            );
        }
    }
}

/// For each row `max + ln(sum(exp(logit - max)))`, from which its loss follows and, in the place of its logits,
/// `gradient * (softmax(logits) - (1 - smoothing) one_hot(label) - smoothing / classes)`.
#[cube(launch_unchecked)]
fn softmax_kernel<F: Float, I: Int>(
    logits: &mut Tensor<F>,
    labels: &[I],
    of_rows: &mut [f32],
    first: u32,
    smoothing: f32,
    #[comptime] writes_loss: bool,
    #[comptime] writes_gradient: bool,
    #[comptime] has_gradient: bool,
    #[comptime] smooths: bool,
    #[define(F, I)] _types: [ElemType; 2],
) {
    if CUBE_POS >= logits.shape(0) {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let classes = logits.shape(1);
    let start = CUBE_POS * classes;
    let row = first as usize + CUBE_POS;
    let label = u32::cast_from(labels[row]) as usize;

    // Each unit keeps the running maximum of its own classes, the sum below it, and the sum of the logits.
    let mut highest = f32::new(LOWEST);
    let mut below = 0.0f32;
    let mut total = 0.0f32;
    let mut of_label = 0.0f32;
    let mut class = UNIT_POS as usize;
    while class < classes {
        let x = f32::cast_from(logits[start + class]);
        let higher = max(highest, x);
        below = below * f32::exp(highest - higher) + f32::exp(x - higher);
        highest = higher;
        total += x;
        if class == label {
            of_label = x;
        }
        class += UNITS;
    }
    let largest = largest_of_cube(highest, &mut shared);
    let sum = sum_of_cube(below * f32::exp(highest - largest), &mut shared);

    if comptime!(writes_loss) {
        let mut pull = (1.0f32 - smoothing) * sum_of_cube(of_label, &mut shared);
        if comptime!(smooths) {
            pull += smoothing * (sum_of_cube(total, &mut shared) / f32::cast_from(classes as u32));
        }
        if UNIT_POS == 0 {
            of_rows[row] = largest + f32::ln(sum) - pull;
        }
    }
    if comptime!(writes_gradient) {
        let mut scale = 1.0f32;
        if comptime!(has_gradient) {
            scale = of_rows[row];
        }
        let of_each = smoothing / f32::cast_from(classes as u32);
        let mut class = UNIT_POS as usize;
        while class < classes {
            let weight = f32::exp(f32::cast_from(logits[start + class]) - largest) / sum;
            let target = select(class == label, 1.0f32 - smoothing, 0.0f32) + of_each;
            logits[start + class] = F::cast_from(scale * (weight - target));
            class += UNITS;
        }
    }
}
