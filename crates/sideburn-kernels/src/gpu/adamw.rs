//! AdamW and the sum of squares on a GPU.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::{CubeBackend, cubecl};

use super::sums::sum_of_cube;
use super::{Primitive, UNITS, accepted, contiguous, cube_each, element, fresh, fresh_of, shared_out, together};
use crate::ops::adamw::{AdamWStep, Coefficients, OptimizerKernels, in_dtype};

/// Cubes that share a sum over a large tensor, and the elements that make one large.
const CUBES: usize = 256;
const LARGE: usize = 1 << 16;

impl OptimizerKernels for CubeBackend {
    fn try_step(inputs: [Primitive; 4], scale: &Primitive, step: &AdamWStep) -> Result<[Primitive; 3], [Primitive; 4]> {
        let [parameter, gradient, first, second] = accepted(inputs)?;
        let [first, second] = [first, second].map(overwritable);
        let [parameter, gradient] = [parameter, gradient].map(contiguous);
        let scale = in_dtype::<CubeBackend>(scale.clone(), DType::F32);
        // Whoever trains may keep the weights before an update: then these are left as they are.
        let in_place = parameter.can_mut() && parameter.is_nonoverlapping();
        let out = if in_place { None } else { Some(fresh(&parameter, parameter.shape())) };
        let (client, dtype, count) = (parameter.client.clone(), element(&parameter), parameter.shape().num_elements());
        let vector = together(count, &[&parameter, &gradient, &first, &second]);
        let (cubes, dim) = shared_out(&client, count / vector);
        // SAFETY: all buffers have an element for each of the units that do not stop at once, and nothing else holds
        // those that are written to.
        unsafe {
            adamw_kernel::launch_unchecked(
                &client,
                cubes,
                dim,
                vector,
                gradient.into_buffer_arg(),
                parameter.clone().into_buffer_arg(),
                match &out {
                    Some(out) => out.clone().into_buffer_arg(),
                    None => parameter.as_tensor_alias(1).into_buffer_arg(),
                },
                first.clone().into_buffer_arg(),
                second.clone().into_buffer_arg(),
                scale.into_buffer_arg(),
                argument(step.coefficients()),
                dtype,
            );
        }
        Ok([out.unwrap_or(parameter), first, second])
    }

    fn try_square_sum(x: Primitive) -> Result<Primitive, Primitive> {
        let [x] = accepted([x]).map_err(|[x]| x)?.map(contiguous);
        let is_large = x.shape().num_elements() >= LARGE;
        Ok(if is_large { sums(sums(x, CUBES, true), 1, false) } else { sums(x, 1, true) })
    }
}

/// The tensor in row-major order, to be written to: itself if nothing else holds it.
fn overwritable(x: Primitive) -> Primitive {
    let x = contiguous(x);
    if x.can_mut() && x.is_nonoverlapping() { x } else { x.copy() }
}

#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    keep: f32,
    rate: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    unbias1: f32,
    unbias2: f32,
    epsilon: f32,
}

fn argument(k: Coefficients) -> NumbersLaunch {
    NumbersLaunch::new(k.keep, k.rate, k.beta1, k.rest1, k.beta2, k.rest2, k.unbias1, k.unbias2, k.epsilon)
}

#[cube(launch_unchecked)]
fn adamw_kernel<F: Float, N: Size>(
    gradient: &[Vector<F, N>],
    parameter: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    first: &mut [Vector<F, N>],
    second: &mut [Vector<F, N>],
    scale: &[f32],
    k: Numbers,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= parameter.len() {
        terminate!();
    }
    if scale[0] > 0.0 {
        let g = Vector::<f32, N>::cast_from(gradient[ABSOLUTE_POS]) * Vector::new(scale[0]);
        let p = Vector::<f32, N>::cast_from(parameter[ABSOLUTE_POS]);
        let m = Vector::<f32, N>::cast_from(first[ABSOLUTE_POS]);
        let v = Vector::<f32, N>::cast_from(second[ABSOLUTE_POS]);
        let m = m * Vector::new(k.beta1) + g * Vector::new(k.rest1);
        let v = v * Vector::new(k.beta2) + g * g * Vector::new(k.rest2);
        let root = v.sqrt() * Vector::new(k.unbias2) + Vector::new(k.epsilon);
        let update = m * Vector::new(k.unbias1) / root;
        first[ABSOLUTE_POS] = Vector::cast_from(m);
        second[ABSOLUTE_POS] = Vector::cast_from(v);
        out[ABSOLUTE_POS] = Vector::cast_from(p * Vector::new(k.keep) - update * Vector::new(k.rate));
    } else {
        out[ABSOLUTE_POS] = parameter[ABSOLUTE_POS];
    }
}

/// The sums that `cubes` cubes take over all elements, or over their squares.
fn sums(x: Primitive, cubes: usize, squares: bool) -> Primitive {
    let (client, out) = (x.client.clone(), fresh_of(&x, [cubes], DType::F32));
    let (count, dim) = cube_each(&client, cubes);
    let dtype = element(&x);
    // SAFETY: cubes beyond those that have a sum stop at once, and units stay within the elements.
    unsafe {
        sums_kernel::launch_unchecked(
            &client,
            count,
            dim,
            x.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            squares,
            dtype,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn sums_kernel<F: Float>(x: &[F], out: &mut [f32], #[comptime] squares: bool, #[define(F)] _dtype: ElemType) {
    let cubes = out.len();
    if CUBE_POS >= cubes {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    let mut index = CUBE_POS * UNITS + UNIT_POS as usize;
    while index < x.len() {
        let x = f32::cast_from(x[index]);
        if comptime!(squares) {
            sum += x * x;
        } else {
            sum += x;
        }
        index += cubes * UNITS;
    }
    let total = sum_of_cube(sum, &mut shared);
    if UNIT_POS == 0 {
        out[CUBE_POS] = total;
    }
}
