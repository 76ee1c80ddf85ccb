//! Sums that the units of a cube take together, in an order that the size of the cube alone decides.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;

use super::{Primitive, UNITS, element, fresh, shared_out};

const _: () = assert!(UNITS.is_power_of_two());

/// The sum of what the units bring, for all of them. `shared` has a place for each unit.
#[cube]
pub(super) fn sum_of_cube(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    of_cube(value, shared, false)
}

/// The largest of what the units bring, for all of them.
#[cube]
pub(super) fn largest_of_cube(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    of_cube(value, shared, true)
}

#[cube]
fn of_cube(value: f32, shared: &mut Shared<[f32]>, #[comptime] largest: bool) -> f32 {
    // What was here before has been read.
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    #[unroll]
    for halving in 0..comptime!(UNITS.ilog2()) {
        let half = comptime!(UNITS as u32 >> (halving + 1));
        if UNIT_POS < half {
            let (own, other) = (shared[UNIT_POS as usize], shared[(UNIT_POS + half) as usize]);
            if comptime!(largest) {
                shared[UNIT_POS as usize] = max(own, other);
            } else {
                shared[UNIT_POS as usize] = own + other;
            }
        }
        sync_cube();
    }
    shared[0]
}

/// The sum over the rows of a matrix in `f32`, row after row, in the dtype of `like` and of this shape.
pub(super) fn sum_rows(rows: Primitive, like: &Primitive, shape: impl Into<burn::tensor::Shape>) -> Primitive {
    let (client, out) = (rows.client.clone(), fresh(like, shape));
    let columns = rows.meta.shape()[1];
    let (cubes, dim) = shared_out(&client, columns);
    let (dtype, count) = (element(like), rows.meta.shape()[0] as u32);
    // SAFETY: `out` has an element for each column, and there is a unit for each that does not stop at once.
    unsafe {
        sum_rows_kernel::launch_unchecked(
            &client,
            cubes,
            dim,
            rows.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            count,
            dtype,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn sum_rows_kernel<F: Float>(rows: &[f32], out: &mut [F], count: u32, #[define(F)] _dtype: ElemType) {
    let columns = out.len();
    if ABSOLUTE_POS >= columns {
        terminate!();
    }
    let mut sum = 0.0f32;
    for row in 0..count {
        sum += rows[row as usize * columns + ABSOLUTE_POS];
    }
    out[ABSOLUTE_POS] = F::cast_from(sum);
}
