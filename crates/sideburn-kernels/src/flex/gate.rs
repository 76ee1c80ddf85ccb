//! The gate on the CPU: one pass over memory, shared out by rows.

use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;
use sideburn_batch::Dropout;

use super::dropout::{drop_in_place, masked};
use super::simd::{exp, vector_fn};
use super::{Primitive, row_major, rows_per_task, values};
use crate::ops::gate::{GELU_CUBIC, GateKernels, SQRT_2_OVER_PI};
use crate::runtime::memory::Buffer;

impl GateKernels for Flex {
    fn try_gelu_gate(gate_up: Primitive, dropout: Option<Dropout>) -> Result<Primitive, Primitive> {
        let [gate_up] = row_major([gate_up]).map_err(|[gate_up]| gate_up)?;
        let [n, width] = [gate_up.shape()[0], gate_up.shape()[1] / 2];
        let mut out = Buffer::new(n * width);
        let rows = rows_per_task(width);
        let tasks =
            out.par_chunks_mut((rows * width).max(1)).zip(values(&gate_up).par_chunks((2 * rows * width).max(1)));
        tasks.enumerate().for_each(|(task, (out, gate_up))| {
            for (out, gate_up) in out.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
                let (gate, up) = gate_up.split_at(width);
                gate_row(out, gate, up);
            }
            if let Some(dropout) = dropout {
                drop_in_place(out, dropout, task * rows * width);
            }
        });
        Ok(out.into_tensor([n, width]))
    }

    fn try_gelu_gate_backward(inputs: [Primitive; 2], dropout: Option<Dropout>) -> Result<Primitive, [Primitive; 2]> {
        let [gate_up, gradient] = row_major(inputs)?;
        let (shape, width) = (gate_up.shape(), gate_up.shape()[1] / 2);
        let mut out = Buffer::new(values(&gate_up).len());
        let rows = rows_per_task(width);
        let wide = (2 * rows * width).max(1);
        let tasks = out.par_chunks_mut(wide).zip(values(&gate_up).par_chunks(wide));
        let tasks = tasks.zip(values(&gradient).par_chunks((rows * width).max(1)));
        tasks.enumerate().for_each(|(task, ((out, gate_up), gradient))| {
            let each = out.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
            for (row, ((out, gate_up), gradient)) in each.zip(gradient.chunks_exact(width)).enumerate() {
                let ((gate, up), (of_gate, of_up)) = (gate_up.split_at(width), out.split_at_mut(width));
                match dropout {
                    None => of_up.copy_from_slice(gradient),
                    Some(dropout) => masked(of_up, gradient, dropout, (task * rows + row) * width),
                }
                gate_backward_of_row(of_gate, of_up, gate, up);
            }
        });
        Ok(out.into_tensor(shape))
    }
}

// A row at a time, as slices that are arguments are known not to overlap: else these loops are not vectorised.

vector_fn! {
    /// A row of the gate.
    fn gate_row(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * gelu_sigmoid(*gate) * up;
        }
    }
}

vector_fn! {
    /// The gradients of a row of the gate; that of its output stands in `of_up`.
    fn gate_backward_of_row(of_gate: &mut [f32], of_up: &mut [f32], gate: &[f32], up: &[f32]) {
        const LINEAR: f32 = 2.0 * SQRT_2_OVER_PI as f32;
        const SQUARE: f32 = (6.0 * GELU_CUBIC * SQRT_2_OVER_PI) as f32;
        for (((of_gate, of_up), x), up) in of_gate.iter_mut().zip(of_up).zip(gate).zip(up) {
            let (gradient, sigmoid) = (*of_up, gelu_sigmoid(*x));
            let slope = sigmoid + x * sigmoid * (1.0 - sigmoid) * (LINEAR + SQUARE * x * x);
            *of_up = gradient * x * sigmoid;
            *of_gate = gradient * slope * up;
        }
    }
}

/// `(1 + tanh(u)) / 2` with the `u` of the tanh approximation, as `1 / (1 + exp(-2 u))`: nothing cancels where the tanh
/// is near -1.
#[inline(always)]
fn gelu_sigmoid(x: f32) -> f32 {
    const LINEAR: f32 = -2.0 * SQRT_2_OVER_PI as f32;
    const CUBIC: f32 = (-2.0 * SQRT_2_OVER_PI * GELU_CUBIC) as f32;
    1.0 / (1.0 + exp(x * (LINEAR + CUBIC * x * x)))
}
