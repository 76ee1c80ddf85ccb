//! The linear layer with adapter slots.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use sideburn_kernels::Key;

use crate::{LoraLayer, Pass};

/// A linear layer that adapters can attach to: a *site*.
///
/// `y = x W^T + b + sum_a s_a (dropout(x) A_a^T) B_a^T`
///
/// over the attached adapters `a`. The weight of an adapted layer is never formed. A frozen weight takes no part in the
/// autodiff graph except to carry the gradient on to `x`.
///
/// # Shapes
/// `weight [out, in]` and `bias [out]` as PyTorch stores them; `x [n, in]` gives `[n, out]`.
#[derive(Module, Debug)]
pub struct AdaptedLinear {
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
    adapters: Vec<LoraLayer>,
}

impl AdaptedLinear {
    /// A layer whose weight `[out, in]` is drawn from `N(0, deviation^2)` with `key`, when it is first needed.
    pub fn random(out: usize, input: usize, deviation: f64, key: Key, device: &Device) -> Self {
        Self { weight: random_weight([out, input], deviation, key, device), bias: None, adapters: Vec::new() }
    }

    /// A layer around existing weights, which are trainable until they are frozen.
    ///
    /// # Panics
    /// If the bias is not as long as the weight has rows.
    pub fn from_weights(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        if let Some(bias) = &bias {
            assert_eq!(bias.dims()[0], weight.dims()[0], "a bias needs one entry for each row of the weight");
        }
        Self { weight: Param::from_tensor(weight), bias: bias.map(Param::from_tensor), adapters: Vec::new() }
    }

    /// Applies the layer and its adapters to `x [n, in]`.
    pub fn forward(&self, x: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let mut y = x.clone().matmul(self.weight.val().transpose());
        if let Some(bias) = &self.bias {
            y = y + bias.val().unsqueeze();
        }
        for adapter in &self.adapters {
            y = y + adapter.forward(x.clone(), pass);
        }
        y
    }

    /// `[out, in]`, without initialising the weight.
    pub fn shape(&self) -> [usize; 2] {
        let shape = self.weight.lazy_shape();
        [shape[0], shape[1]]
    }

    /// Where the weight is, or will be initialised.
    pub fn device(&self) -> Device {
        self.weight.lazy_device()
    }

    /// The base weight, `[out, in]`.
    pub fn weight(&self) -> &Param<Tensor<2>> {
        &self.weight
    }

    /// The bias, `[out]`, if the layer has one.
    pub fn bias(&self) -> Option<&Param<Tensor<1>>> {
        self.bias.as_ref()
    }

    /// The bias, to be replaced.
    pub(crate) fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        self.bias.as_mut()
    }

    /// The base weight, to be replaced.
    pub fn weight_mut(&mut self) -> &mut Param<Tensor<2>> {
        &mut self.weight
    }

    /// The attached adapters, in the order in which they were attached.
    pub fn adapters(&self) -> &[LoraLayer] {
        &self.adapters
    }

    /// The adapter of that name.
    pub fn adapter(&self, name: &str) -> Option<&LoraLayer> {
        self.adapters.iter().find(|adapter| adapter.name() == name)
    }

    pub(crate) fn attach(&mut self, adapter: LoraLayer) {
        self.adapters.push(adapter);
    }

    pub(crate) fn adapter_mut(&mut self, name: &str) -> Option<&mut LoraLayer> {
        self.adapters.iter_mut().find(|adapter| adapter.name() == name)
    }
}

/// A weight drawn from `N(0, deviation^2)` when it is first needed: counting the parameters of a model, or loading it
/// from a file, draws nothing.
pub fn random_weight<const D: usize>(shape: [usize; D], deviation: f64, key: Key, device: &Device) -> Param<Tensor<D>> {
    lazy_weight(shape, device, move |index| (deviation * key.normal(index)) as f32)
}

/// A weight whose element `i`, in row-major order, is `element(i)`, worked out when it is first needed.
pub(crate) fn lazy_weight<const D: usize>(
    shape: [usize; D],
    device: &Device,
    element: impl Fn(u64) -> f32 + Send + Sync + 'static,
) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad: bool| {
        let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(&element).collect();
        Tensor::from_data(TensorData::new(values, shape), device).set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}
