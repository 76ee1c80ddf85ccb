//! Norms of hidden states.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sideburn_adapters::{AdaptedVector, TokenPass};
use sideburn_kernels::rms_norm;

/// Scaling by the root mean square, without mean and bias (Zhang and Sennrich, 2019).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The scale, `[width]`.
    pub weight: AdaptedVector,
    epsilon: f64,
}

/// Scaling by the standard deviation around the mean, with a bias (Ba et al., 2016): `(x - mean) / sqrt(variance + epsilon)
/// * weight + bias`.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// The scale, `[width]`.
    pub weight: AdaptedVector,
    /// What is added, `[width]`.
    pub bias: AdaptedVector,
    epsilon: f64,
}

fn filled(width: usize, value: f64, device: &Device) -> AdaptedVector {
    AdaptedVector::new(Tensor::full([width], value, device))
}

impl RmsNorm {
    /// A norm whose weights are all `scale`.
    pub fn new(width: usize, scale: f64, epsilon: f64, device: &Device) -> Self {
        Self { weight: filled(width, scale, device), epsilon }
    }

    /// Norms each row of `x [n, width]` in the dtype of `x`, and gives it in that of the weight, as `T5LayerNorm` does.
    pub fn forward(&self, x: Tensor<2>, pass: &TokenPass<'_>) -> Tensor<2> {
        let (weight, inner) = (self.weight.value(pass), x.dtype());
        let dtype = weight.dtype();
        rms_norm(x, weight.cast(inner), self.epsilon).cast(dtype)
    }
}

impl LayerNorm {
    /// A norm whose weights are all 1, without a bias at first.
    pub fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: filled(width, 1.0, device), bias: filled(width, 0.0, device), epsilon }
    }

    /// Norms each row of `x [n, width]`.
    pub fn forward(&self, x: Tensor<2>, pass: &TokenPass<'_>) -> Tensor<2> {
        let centred = x.clone() - x.mean_dim(1);
        let variance = centred.clone().square().mean_dim(1);
        centred / (variance + self.epsilon).sqrt() * self.weight.value(pass).unsqueeze()
            + self.bias.value(pass).unsqueeze()
    }
}
