//! The gate on a GPU: one launch each way, a vector of elements for each unit.

use burn::backend::TensorMetadata;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};
use sideburn_batch::Dropout;

use super::checked::checked;
use super::mask::{self, Mask};
use super::{Primitive, accepted, contiguous, element, fresh, shared_out, together};
use crate::ops::gate::{GELU_CUBIC, GateKernels, SQRT_2_OVER_PI};

impl GateKernels for CubeBackend {
    fn try_gelu_gate(gate_up: Primitive, dropout: Option<Dropout>) -> Result<Primitive, Primitive> {
        let gate_up = accepted([gate_up]).map_err(|[gate_up]| gate_up)?;
        let variant = (gate_up[0].dtype, dropout.is_some());
        checked("gelu_gate", variant, gate_up, |gate_up| {
            let [gate_up] = gate_up.map(by_rows);
            let [n, width] = [gate_up.shape()[0], gate_up.shape()[1] / 2];
            let (client, out, dtype) = (gate_up.client.clone(), fresh(&gate_up, [n, width]), element(&gate_up));
            let vector = together(width, &[&gate_up]);
            let (cubes, dim) = shared_out(&client, n * width / vector);
            // SAFETY: `out` has an element for each of the units that do not stop at once, which look up its row in a
            // tensor with as many rows, twice as wide.
            unsafe {
                gate_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    vector,
                    gate_up.into_tensor_arg(),
                    out.clone().into_tensor_arg(),
                    mask::argument(dropout),
                    dropout.is_some(),
                    dtype,
                );
            }
            out
        })
        .map_err(|[gate_up]| gate_up)
    }

    fn try_gelu_gate_backward(inputs: [Primitive; 2], dropout: Option<Dropout>) -> Result<Primitive, [Primitive; 2]> {
        let variant = (inputs[0].dtype, dropout.is_some());
        checked("gelu_gate_backward", variant, accepted(inputs)?, |inputs| {
            let [gate_up, gradient] = inputs.map(by_rows);
            let (client, dtype, shape) = (gate_up.client.clone(), element(&gate_up), gate_up.shape());
            let (out, width) = (fresh(&gate_up, shape.clone()), shape[1] / 2);
            let vector = together(width, &[&gate_up, &gradient]);
            let (cubes, dim) = shared_out(&client, shape[0] * width / vector);
            // SAFETY: as above, with two elements of `out` for each unit.
            unsafe {
                gate_backward_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    vector,
                    gate_up.into_tensor_arg(),
                    gradient.into_tensor_arg(),
                    out.clone().into_tensor_arg(),
                    mask::argument(dropout),
                    dropout.is_some(),
                    dtype,
                );
            }
            out
        })
    }
}

/// A matrix whose rows lie in memory as they are, wherever each begins: columns of a larger one are not copied.
fn by_rows(x: Primitive) -> Primitive {
    let [rows, columns] = [x.meta.shape()[0], x.meta.shape()[1]];
    let [stride, step] = [x.meta.strides()[0], x.meta.strides()[1]];
    if (step == 1 || columns == 1) && (stride >= columns || rows == 1) { x } else { contiguous(x) }
}

/// Where the vector at `position` of a matrix in row-major order is in one with the same columns whose rows begin
/// elsewhere.
#[cube]
fn place<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, position: usize, columns: usize) -> usize {
    let vectors = columns / N::value();
    (position / vectors) * (x.stride(0) / N::value()) + position % vectors
}

#[cube(launch_unchecked)]
fn gate_kernel<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<F, N>>,
    mask: Mask,
    #[comptime] drops: bool,
    #[define(F)] _dtype: ElemType,
) {
    let columns = out.shape(1);
    if ABSOLUTE_POS >= out.shape(0) * (columns / N::value()) {
        terminate!();
    }
    let gate = place(gate_up, ABSOLUTE_POS, columns);
    let x = Vector::<f32, N>::cast_from(gate_up[gate]);
    let up = Vector::<f32, N>::cast_from(gate_up[gate + columns / N::value()]);
    let y = x * gelu_sigmoid::<N>(x) * up;
    if comptime!(drops) {
        out[ABSOLUTE_POS] = Vector::cast_from(y * mask.of_vector::<N>(ABSOLUTE_POS));
    } else {
        out[ABSOLUTE_POS] = Vector::cast_from(y);
    }
}

#[cube(launch_unchecked)]
fn gate_backward_kernel<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    gradient: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<F, N>>,
    mask: Mask,
    #[comptime] drops: bool,
    #[define(F)] _dtype: ElemType,
) {
    let columns = out.shape(1) / 2;
    let vectors = columns / N::value();
    if ABSOLUTE_POS >= out.shape(0) * vectors {
        terminate!();
    }
    let gate = place(gate_up, ABSOLUTE_POS, columns);
    let x = Vector::<f32, N>::cast_from(gate_up[gate]);
    let up = Vector::<f32, N>::cast_from(gate_up[gate + vectors]);
    let mut g = Vector::<f32, N>::cast_from(gradient[place(gradient, ABSOLUTE_POS, columns)]);
    if comptime!(drops) {
        g *= mask.of_vector::<N>(ABSOLUTE_POS);
    }
    let sigmoid = gelu_sigmoid::<N>(x);
    let one = Vector::<f32, N>::new(1.0f32);
    let linear = Vector::<f32, N>::new(comptime!(2.0 * SQRT_2_OVER_PI as f32));
    let square = Vector::<f32, N>::new(comptime!((6.0 * GELU_CUBIC * SQRT_2_OVER_PI) as f32));
    let slope = sigmoid + x * sigmoid * (one - sigmoid) * (linear + square * x * x);
    let of_gate = ABSOLUTE_POS + ABSOLUTE_POS / vectors * vectors;
    out[of_gate + vectors] = Vector::cast_from(g * x * sigmoid);
    out[of_gate] = Vector::cast_from(g * slope * up);
}

/// `(1 + tanh(u)) / 2` with the `u` of the tanh approximation, as `1 / (1 + exp(-2 u))`: nothing cancels where the tanh
/// is near -1. Where the exponential would be infinite, it is merely large.
#[cube]
fn gelu_sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let linear = Vector::<f32, N>::new(comptime!(-2.0 * SQRT_2_OVER_PI as f32));
    let cubic = Vector::<f32, N>::new(comptime!((-2.0 * SQRT_2_OVER_PI * GELU_CUBIC) as f32));
    let one = Vector::<f32, N>::new(1.0f32);
    let inner = min(x * (linear + cubic * x * x), Vector::<f32, N>::new(80.0f32));
    one / (one + inner.exp())
}
