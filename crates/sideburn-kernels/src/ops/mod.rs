//! The operations: each a function on tensors, a backend trait whose defaults are composed of Burn's primitives, and
//! the backward pass.
//!
//! A backend with kernels of its own implements the `..Kernels` trait of an operation. Its methods return the output,
//! or the inputs as they were where the kernel cannot be run, for another dtype say; [`fused`] then composes the
//! operation.

pub(crate) mod adamw;
pub(crate) mod adamw_8bit;
pub(crate) mod attention;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gate;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod many;
pub(crate) mod matmul;
pub(crate) mod matrix;
pub(crate) mod moment_8bit;
pub(crate) mod norm;
pub(crate) mod packed;
pub(crate) mod packed_products;
pub(crate) mod rotary;
pub(crate) mod tape;

use burn::tensor::{Int, Tensor};

use crate::runtime::mode::{KernelMode, kernel_mode};
use crate::runtime::profile::Span;
use crate::runtime::row_layout::is_cpu;

/// Runs `kernel`, or `composed` where the kernel returns its inputs or composed forms are to be run. In a profile the
/// operation has this name.
pub fn fused<I, O>(
    name: &'static str,
    inputs: I,
    kernel: impl FnOnce(I) -> Result<O, I>,
    composed: impl FnOnce(I) -> O,
) -> O {
    match kernel_mode() {
        KernelMode::Fused => fused_always(name, inputs, kernel, composed),
        KernelMode::Composed => fused_always(name, inputs, Err, composed),
    }
}

/// The same whether or not composed forms are to be run.
fn fused_always<I, O>(
    name: &'static str,
    inputs: I,
    kernel: impl FnOnce(I) -> Result<O, I>,
    composed: impl FnOnce(I) -> O,
) -> O {
    let _span = Span::new(name);
    kernel(inputs).unwrap_or_else(composed)
}

/// The same numbers, of which there is no gradient.
fn without_gradient(x: &Tensor<2>) -> Tensor<2> {
    // A leaf that is detached alone still asks for one.
    x.clone().detach().set_require_grad(false)
}

/// Panics unless all indices are below `count`, on the CPU. A GPU is not asked: it would have to be waited for.
fn assert_below(count: usize, indices: &Tensor<1, Int>, message: impl Fn(i64) -> String) {
    if !is_cpu(&indices.device()) {
        return;
    }
    for index in indices.to_data().iter::<i64>() {
        assert!(usize::try_from(index).is_ok_and(|index| index < count), "{}", message(index));
    }
}
