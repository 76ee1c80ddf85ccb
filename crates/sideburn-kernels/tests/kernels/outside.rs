//! An operation from outside of the crate: what is public of it is enough for one with kernels and a backward pass.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor, TensorData};
use sideburn_kernels::{KernelMode, fused, kernel_mode, record};

use crate::loops::{check, numbers};

/// `max(x, 0)^2` (So et al., 2021).
fn squared_relu(x: Tensor<1>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::squared_relu(x.into_dispatch()))
}

#[backend_extension(Flex, Autodiff)]
trait SquaredReluOps: Backend {
    fn squared_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::<Self>(x)
    }

    fn squared_relu_backward(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        composed_backward::<Self>(x, gradient)
    }
}

trait SquaredReluKernels: Backend {
    fn try_squared_relu(x: FloatTensor<Self>) -> Result<FloatTensor<Self>, FloatTensor<Self>> {
        Err(x)
    }
}

impl<B: SquaredReluKernels> SquaredReluOps for B {
    fn squared_relu(x: FloatTensor<B>) -> FloatTensor<B> {
        fused("squared_relu", x, B::try_squared_relu, composed::<B>)
    }
}

fn composed<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let positive = B::float_clamp_min(x, 0.0.into());
    B::float_mul(positive.clone(), positive)
}

fn composed_backward<B: Backend>(x: FloatTensor<B>, gradient: FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(B::float_mul_scalar(B::float_clamp_min(x, 0.0.into()), 2.0.into()), gradient)
}

/// How often the kernel ran.
static RUNS: AtomicUsize = AtomicUsize::new(0);

impl SquaredReluKernels for Flex {
    fn try_squared_relu(x: FloatTensor<Flex>) -> Result<FloatTensor<Flex>, FloatTensor<Flex>> {
        if x.dtype() != DType::F32 {
            return Err(x);
        }
        RUNS.fetch_add(1, Ordering::Relaxed);
        let shape = x.shape();
        let squares = x.into_data().iter::<f32>().map(|x| x.max(0.0).powi(2)).collect::<Vec<f32>>();
        Ok(FloatTensor::<Flex>::from_data(TensorData::new(squares, shape)))
    }
}

impl<B: SquaredReluOps, C: CheckpointStrategy> SquaredReluOps for Autodiff<B, C> {
    fn squared_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [x],
            |[x]| (B::squared_relu(x.clone()), x),
            |x, gradient, _| [Some(B::squared_relu_backward(x, gradient))],
        )
    }
}

#[test]
fn an_operation_from_outside_has_a_kernel_and_a_backward_pass() {
    let before = RUNS.load(Ordering::Relaxed);
    let loops = |x: &[Vec<f64>]| x[0].iter().map(|x| x.max(0.0).powi(2)).collect();
    // Once in `f32`, by the kernel, and once in `f64`, which it does not take.
    check(&[numbers(1, 100)], loops, |x| squared_relu(x[0].clone()));
    let runs = if kernel_mode() == KernelMode::Fused { 1 } else { 0 };
    assert_eq!(RUNS.load(Ordering::Relaxed) - before, runs);
}
