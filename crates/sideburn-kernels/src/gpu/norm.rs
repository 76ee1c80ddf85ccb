//! The norm on a GPU: a cube for each row, which is read twice, the second time from cache.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};

use super::checked::checked;
use super::sums::{sum_of_cube, sum_rows};
use super::{Primitive, UNITS, accepted, contiguous, cube_each, element, fresh, fresh_of};
use crate::ops::norm::NormKernels;

/// Rows whose gradients of the weight a cube sums.
const ROWS: usize = 16;

impl NormKernels for CubeBackend {
    fn try_rms_norm(inputs: [Primitive; 2], epsilon: f64) -> Result<Primitive, [Primitive; 2]> {
        checked("rms_norm", inputs[0].dtype, accepted(inputs)?, |inputs| {
            let [x, weight] = inputs.map(contiguous);
            let (client, out, dtype, rows) = (x.client.clone(), fresh(&x, x.shape()), element(&x), x.shape()[0]);
            let (cubes, dim) = cube_each(&client, rows);
            // SAFETY: cubes beyond the rows stop at once, and units stay within the width of a row.
            unsafe {
                norm_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    x.into_buffer_arg(),
                    weight.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    rows as u32,
                    epsilon as f32,
                    dtype,
                );
            }
            out
        })
    }

    fn try_backward_x(inputs: [Primitive; 3], epsilon: f64) -> Result<Primitive, [Primitive; 3]> {
        checked("rms_norm_backward_x", inputs[0].dtype, accepted(inputs)?, |inputs| {
            let [x, weight, gradient] = inputs.map(contiguous);
            let (client, out, dtype, rows) = (x.client.clone(), fresh(&x, x.shape()), element(&x), x.shape()[0]);
            let (cubes, dim) = cube_each(&client, rows);
            // SAFETY: as above.
            unsafe {
                backward_x_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    x.into_buffer_arg(),
                    weight.into_buffer_arg(),
                    gradient.into_buffer_arg(),
                    out.clone().into_buffer_arg(),
                    rows as u32,
                    epsilon as f32,
                    dtype,
                );
            }
            out
        })
    }

    fn try_backward_weight(inputs: [Primitive; 2], epsilon: f64) -> Result<Primitive, [Primitive; 2]> {
        checked("rms_norm_backward_weight", inputs[0].dtype, accepted(inputs)?, |inputs| {
            let [x, gradient] = inputs.map(contiguous);
            let (client, dtype) = (x.client.clone(), element(&x));
            let [rows, width] = [x.shape()[0], x.shape()[1]];
            let blocks = rows.div_ceil(ROWS);
            let partial = fresh_of(&x, [blocks, width], DType::F32);
            let (cubes, dim) = cube_each(&client, blocks);
            let like = x.clone();
            // SAFETY: cubes beyond the blocks stop at once, and units stay within the rows of a block and their width.
            unsafe {
                backward_weight_kernel::launch_unchecked(
                    &client,
                    cubes,
                    dim,
                    x.into_buffer_arg(),
                    gradient.into_buffer_arg(),
                    partial.clone().into_buffer_arg(),
                    rows as u32,
                    width as u32,
                    epsilon as f32,
                    dtype,
                );
            }
            sum_rows(partial, &like, [width])
        })
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)` of the row that begins at `start`.
#[cube]
fn inverse_rms<F: Float>(x: &[F], start: usize, width: usize, epsilon: f32, shared: &mut Shared<[f32]>) -> f32 {
    let mut squares = 0.0f32;
    let mut column = UNIT_POS as usize;
    while column < width {
        let x = f32::cast_from(x[start + column]);
        squares += x * x;
        column += UNITS;
    }
    let total = sum_of_cube(squares, shared);
    1.0f32 / f32::sqrt(total / f32::cast_from(width as u32) + epsilon)
}

#[cube(launch_unchecked)]
fn norm_kernel<F: Float>(x: &[F], weight: &[F], out: &mut [F], rows: u32, epsilon: f32, #[define(F)] _dtype: ElemType) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let width = weight.len();
    let start = CUBE_POS * width;
    let inverse = inverse_rms::<F>(x, start, width, epsilon, &mut shared);
    let mut column = UNIT_POS as usize;
    while column < width {
        let y = f32::cast_from(x[start + column]) * inverse * f32::cast_from(weight[column]);
        out[start + column] = F::cast_from(y);
        column += UNITS;
    }
}

/// With `r = 1 / rms(x)` and `g = gradient * weight`: `r g - r^3 x mean(g x)`.
#[cube(launch_unchecked)]
fn backward_x_kernel<F: Float>(
    x: &[F],
    weight: &[F],
    gradient: &[F],
    out: &mut [F],
    rows: u32,
    epsilon: f32,
    #[define(F)] _dtype: ElemType,
) {
    if CUBE_POS >= rows as usize {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let width = weight.len();
    let start = CUBE_POS * width;
    let inverse = inverse_rms::<F>(x, start, width, epsilon, &mut shared);
    let mut products = 0.0f32;
    let mut column = UNIT_POS as usize;
    while column < width {
        let g = f32::cast_from(gradient[start + column]) * f32::cast_from(weight[column]);
        products += g * f32::cast_from(x[start + column]);
        column += UNITS;
    }
    let product = sum_of_cube(products, &mut shared);
    let pull = product / f32::cast_from(width as u32) * inverse * inverse;
    let mut column = UNIT_POS as usize;
    while column < width {
        let g = f32::cast_from(gradient[start + column]) * f32::cast_from(weight[column]);
        out[start + column] = F::cast_from(inverse * (g - f32::cast_from(x[start + column]) * pull));
        column += UNITS;
    }
}

/// What a block of rows contributes to the gradient of the weight.
#[cube(launch_unchecked)]
fn backward_weight_kernel<F: Float>(
    x: &[F],
    gradient: &[F],
    partial: &mut [f32],
    rows: u32,
    width: u32,
    epsilon: f32,
    #[define(F)] _dtype: ElemType,
) {
    let width = width as usize;
    let first = CUBE_POS * ROWS;
    if first >= rows as usize {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut inverses = Shared::<[f32]>::new_slice(ROWS);
    let count = min(ROWS, rows as usize - first);
    for row in 0..count {
        let inverse = inverse_rms::<F>(x, (first + row) * width, width, epsilon, &mut shared);
        if UNIT_POS == 0 {
            inverses[row] = inverse;
        }
    }
    sync_cube();
    let mut column = UNIT_POS as usize;
    while column < width {
        let mut sum = 0.0f32;
        for row in 0..count {
            let at = (first + row) * width + column;
            sum += f32::cast_from(x[at]) * inverses[row] * f32::cast_from(gradient[at]);
        }
        partial[CUBE_POS * width + column] = sum;
        column += UNITS;
    }
}
