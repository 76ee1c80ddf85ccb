//! The feed-forward layer.

use burn::module::Module;
use burn::tensor::Tensor;
use sideburn_adapters::{AdaptedLinear, TokenPass, forward_together};
use sideburn_kernels::gelu_gate;

use crate::Activation;

/// `outer(dropout(f(inner x)))`, or gated `outer(dropout(f(gate x) * up x))` (Shazeer, 2020).
///
/// # Shapes
/// `inner [[wide, width]]`, or gate and up; `outer [width, wide]`.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// The first projection; where there is a gate, the gate and what it lets through.
    pub inner: Vec<AdaptedLinear>,
    /// The second projection.
    pub outer: AdaptedLinear,
    #[module(skip)]
    activation: Activation,
    dropout: f64,
}

impl FeedForward {
    /// A layer of one inner projection, or of two, the first of which is the gate.
    ///
    /// # Panics
    /// If there are none or more.
    pub fn new(inner: Vec<AdaptedLinear>, outer: AdaptedLinear, activation: Activation, dropout: f64) -> Self {
        assert!(matches!(inner.len(), 1 | 2), "{} inner projections, expected one, or a gate and one", inner.len());
        Self { inner, outer, activation, dropout }
    }

    /// Applies the layer to each row of `x [n, width]`; the output is in the dtype of the outer projection.
    pub fn forward(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        let hidden = match (self.inner.as_slice(), self.activation) {
            ([gate, up], Activation::GeluNew) => {
                let gate_up = forward_together([gate, up], x, pass);
                gelu_gate(gate_up, pass.next_dropout(self.dropout))
            }
            ([gate, up], activation) => {
                let [gate, up] = halves(forward_together([gate, up], x, pass));
                pass.dropout(activation.apply(gate) * up, self.dropout)
            }
            (inner, activation) => {
                let hidden = activation.apply(inner[0].forward(x, pass));
                pass.dropout(hidden, self.dropout)
            }
        };
        self.outer.forward(hidden.cast(self.outer.dtype()), pass)
    }
}

/// Two matrices that lie side by side.
fn halves(x: Tensor<2>) -> [Tensor<2>; 2] {
    let width = x.dims()[1] / 2;
    [0, 1].map(|part| x.clone().narrow(1, part * width, width))
}
