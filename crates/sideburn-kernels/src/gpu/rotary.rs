//! Rotary positions on a GPU: one launch, a unit for each pair.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};

use super::checked::checked;
use super::{Primitive, accepted, contiguous, element, fresh, shared_out};
use crate::ops::adamw::in_dtype;
use crate::ops::rotary::RotaryKernels;

impl RotaryKernels for CubeBackend {
    fn try_rotary([x, cos_sin]: [Primitive; 2], back: bool) -> Result<Primitive, [Primitive; 2]> {
        let x = match accepted([x]) {
            Ok([x]) => x,
            Err([x]) => return Err([x, cos_sin]),
        };
        checked("rotary", x.dtype, [x, cos_sin], |[x, cos_sin]| {
            let cos_sin = contiguous(in_dtype::<CubeBackend>(cos_sin, DType::F32));
            let (client, out, dtype) = (x.client.clone(), fresh(&x, x.shape()), element(&x));
            let (pairs, width) = (x.shape().num_elements() / 2, cos_sin.shape()[1]);
            let (cubes, dim) = shared_out(&client, pairs);
            // SAFETY: units beyond the pairs stop at once, and each token has angles for the pairs of a head.
            unsafe {
                rotary_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    x.into_tensor_arg(),
                    cos_sin.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    pairs as u32,
                    width as u32,
                    if back { -1.0 } else { 1.0 },
                    dtype,
                );
            }
            out
        })
    }
}

#[cube(launch_unchecked)]
fn rotary_kernel<F: Float>(
    x: &Tensor<F>,
    cos_sin: &[f32],
    out: &mut [F],
    pairs: u32,
    width: u32,
    sign: f32,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= pairs as usize {
        terminate!();
    }
    let (width, columns) = (width as usize, x.shape(1));
    let half = width / 2;
    let token = ABSOLUTE_POS / (columns / 2);
    let of_token = ABSOLUTE_POS % (columns / 2);
    let pair = of_token % half;
    let column = of_token / half * width + pair;
    let (line, step) = (token * x.stride(0), x.stride(1));
    let a = f32::cast_from(x[line + column * step]);
    let b = f32::cast_from(x[line + (column + half) * step]);
    let cos = cos_sin[token * width + pair];
    let sin = cos_sin[token * width + half + pair] * sign;
    out[token * columns + column] = F::cast_from(a * cos - b * sin);
    out[token * columns + column + half] = F::cast_from(b * cos + a * sin);
}
