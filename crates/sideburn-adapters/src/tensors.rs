//! Between parameters on a device and tensors in a file.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use sideburn_weights as weights;

/// The values of a parameter in `f32`, in row-major order.
pub(crate) fn from_param<const D: usize>(param: &Param<Tensor<D>>) -> weights::Tensor {
    let tensor = param.val();
    let shape = tensor.dims().to_vec();
    let values: Vec<f32> = tensor.cast(DType::F32).into_data().try_into_vec().expect("a tensor that was cast to f32");
    weights::Tensor::from_f32(shape, &values).expect("as many values as the shape of the tensor says")
}

/// A frozen parameter on `device` with `values` in row-major order.
pub(crate) fn frozen_param<const D: usize>(values: Vec<f32>, shape: &[usize], device: &Device) -> Param<Tensor<D>> {
    let tensor = Tensor::from_data(TensorData::new(values, shape.to_vec()), device);
    Param::initialized(ParamId::new(), tensor).no_grad()
}
