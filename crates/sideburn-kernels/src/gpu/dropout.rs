//! Dropout on a GPU: one launch, a vector of elements for each unit.

use burn::backend::TensorMetadata;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};
use sideburn_batch::Dropout;

use super::checked::checked;
use super::mask::{self, Mask};
use super::{Primitive, accepted, contiguous, element, fresh, shared_out, together};
use crate::ops::dropout::DropoutKernels;

impl DropoutKernels for CubeBackend {
    fn try_dropout(x: Primitive, dropout: Dropout) -> Result<Primitive, Primitive> {
        let x = accepted([x]).map_err(|[x]| x)?;
        checked("dropout", x[0].dtype, x, |x| {
            let [x] = x.map(contiguous);
            let (client, out, dtype) = (x.client.clone(), fresh(&x, x.shape()), element(&x));
            let count = x.shape().num_elements();
            let vector = together(count, &[&x]);
            let (cubes, dim) = shared_out(&client, count / vector);
            // SAFETY: both buffers have an element for each of the units that do not stop at once.
            unsafe {
                dropout_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    vector,
                    x.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    mask::argument(Some(dropout)),
                    dtype,
                );
            }
            out
        })
        .map_err(|[x]| x)
    }

    fn try_add_dropout(inputs: [Primitive; 2], dropout: Dropout) -> Result<Primitive, [Primitive; 2]> {
        checked("add_dropout", inputs[0].dtype, accepted(inputs)?, |inputs| {
            let [residual, x] = inputs.map(contiguous);
            let (client, out, dtype) = (x.client.clone(), fresh(&x, x.shape()), element(&x));
            let count = x.shape().num_elements();
            let vector = together(count, &[&residual, &x]);
            let (cubes, dim) = shared_out(&client, count / vector);
            // SAFETY: all buffers have an element for each of the units that do not stop at once.
            unsafe {
                add_dropout_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    vector,
                    residual.into_buffer_arg(),
                    x.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    mask::argument(Some(dropout)),
                    dtype,
                );
            }
            out
        })
    }
}

#[cube(launch_unchecked)]
fn dropout_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    mask: Mask,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    out[ABSOLUTE_POS] = Vector::cast_from(x * mask.of_vector::<N>(ABSOLUTE_POS));
}

#[cube(launch_unchecked)]
fn add_dropout_kernel<F: Float, N: Size>(
    residual: &[Vector<F, N>],
    x: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    mask: Mask,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    let residual = Vector::<f32, N>::cast_from(residual[ABSOLUTE_POS]);
    out[ABSOLUTE_POS] = Vector::cast_from(residual + x * mask.of_vector::<N>(ABSOLUTE_POS));
}
