//! The gated activation of T5 1.1's feed-forward layer.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
#[cfg(feature = "gpu")]
use burn::tensor::Shape;
use burn::tensor::Tensor;
use sideburn_batch::Dropout;

use super::dropout::{DropoutOps, drop};
use super::fused;
use super::linear::parts;
use super::tape::record;

/// `dropout(gelu(gate) * up)` with the tanh approximation of GELU (`gelu_new` of `transformers`): the inside of T5
/// 1.1's feed-forward layer (Shazeer, 2020).
///
/// # Shapes
/// `gate_up [n, 2 * d]`, `gate` in the first `d` columns and `up` in the others, as
/// [`adapted_linears`](crate::adapted_linears) gives them, makes `[n, d]`.
///
/// # Panics
/// If the number of columns is odd.
pub fn gelu_gate(gate_up: Tensor<2>, dropout: Option<Dropout>) -> Tensor<2> {
    assert!(gate_up.dims()[1].is_multiple_of(2), "{} columns do not make a gate and as many others", gate_up.dims()[1]);
    Tensor::from_dispatch(Dispatch::gelu_gate(gate_up.into_dispatch(), dropout))
}

/// `sqrt(2 / pi)`, of the tanh approximation of GELU (Hendrycks and Gimpel, 2016, section 2).
pub(crate) const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
/// The cubic coefficient of the same approximation.
pub(crate) const GELU_CUBIC: f64 = 0.044_715;

/// The gate on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait GateOps: DropoutOps {
    /// See [`gelu_gate`].
    #[fusion(dtype = gate_up, shape = half_as_wide(gate_up))]
    fn gelu_gate(gate_up: FloatTensor<Self>, dropout: Option<Dropout>) -> FloatTensor<Self> {
        composed::<Self>(gate_up, dropout)
    }

    /// Its gradient.
    #[fusion(dtype = gate_up, shape = gate_up)]
    fn gelu_gate_backward(
        gate_up: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self> {
        composed_backward::<Self>([gate_up, gradient], dropout)
    }
}

/// [`GateOps`] by kernels: of `gate_up`; of `gate_up` and the gradient.
pub(crate) trait GateKernels: DropoutOps {
    fn try_gelu_gate(gate_up: FloatTensor<Self>, _: Option<Dropout>) -> Result<FloatTensor<Self>, FloatTensor<Self>> {
        Err(gate_up)
    }

    fn try_gelu_gate_backward(
        inputs: [FloatTensor<Self>; 2],
        _: Option<Dropout>,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }
}

impl<B: GateKernels> GateOps for B {
    fn gelu_gate(gate_up: FloatTensor<B>, dropout: Option<Dropout>) -> FloatTensor<B> {
        fused("gelu_gate", gate_up, |x| B::try_gelu_gate(x, dropout), |x| composed::<B>(x, dropout))
    }

    fn gelu_gate_backward(
        gate_up: FloatTensor<B>,
        gradient: FloatTensor<B>,
        dropout: Option<Dropout>,
    ) -> FloatTensor<B> {
        fused(
            "gelu_gate_backward",
            [gate_up, gradient],
            |x| B::try_gelu_gate_backward(x, dropout),
            |x| composed_backward::<B>(x, dropout),
        )
    }
}

#[cfg(feature = "gpu")]
fn half_as_wide(gate_up: &Shape) -> Shape {
    Shape::new([gate_up[0], gate_up[1] / 2])
}

/// `tanh(sqrt(2 / pi) (x + 0.044715 x^3))`.
fn tanh_term<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let square = B::float_mul(x.clone(), x.clone());
    let inner = B::float_add_scalar(B::float_mul_scalar(square, GELU_CUBIC.into()), 1.0.into());
    B::float_tanh(B::float_mul_scalar(B::float_mul(inner, x), SQRT_2_OVER_PI.into()))
}

fn composed<B: DropoutOps>(gate_up: FloatTensor<B>, dropout: Option<Dropout>) -> FloatTensor<B> {
    let [gate, up] = parts::<B, 2>(&gate_up);
    drop::<B>(gated::<B>(gate, up), dropout)
}

fn gated<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let tanh = tanh_term::<B>(gate.clone());
    let half = B::float_mul_scalar(B::float_mul(gate, B::float_add_scalar(tanh, 1.0.into())), 0.5.into());
    B::float_mul(half, up)
}

/// `gelu'(x) = (1 + t) / 2 + x (1 - t^2) / 2 * sqrt(2 / pi) (1 + 3 * 0.044715 x^2)` with the tanh term `t`.
fn composed_backward<B: DropoutOps>(
    [gate_up, gradient]: [FloatTensor<B>; 2],
    dropout: Option<Dropout>,
) -> FloatTensor<B> {
    let ([gate, up], gradient) = (parts::<B, 2>(&gate_up), drop::<B>(gradient, dropout));
    let tanh = tanh_term::<B>(gate.clone());
    let square = B::float_mul(gate.clone(), gate.clone());
    let inner = B::float_add_scalar(
        B::float_mul_scalar(square, (3.0 * GELU_CUBIC * SQRT_2_OVER_PI).into()),
        SQRT_2_OVER_PI.into(),
    );
    let sech_square = B::float_add_scalar(B::float_neg(B::float_mul(tanh.clone(), tanh.clone())), 1.0.into());
    let curved = B::float_mul(B::float_mul(gate.clone(), sech_square), inner);
    let slope = B::float_mul_scalar(B::float_add(B::float_add_scalar(tanh, 1.0.into()), curved), 0.5.into());
    let of_up = gated::<B>(gate, gradient.clone());
    B::float_cat(vec![B::float_mul(B::float_mul(slope, up), gradient), of_up], 1)
}

impl<B: GateOps, C: CheckpointStrategy> GateOps for Autodiff<B, C> {
    fn gelu_gate(gate_up: FloatTensor<Self>, dropout: Option<Dropout>) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [gate_up],
            |[gate_up]| (B::gelu_gate(gate_up.clone(), dropout), (gate_up, dropout)),
            |(gate_up, dropout), gradient, _| [Some(B::gelu_gate_backward(gate_up, gradient, dropout))],
        )
    }
}
