//! Between parameters on a device and tensors in a file.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use sideburn_kernels::{Key, elements};
use sideburn_weights as weights;

/// The values of a tensor in `f32`, as a tensor of a shape with as many elements.
pub(crate) fn to_file<const D: usize>(tensor: Tensor<D>, shape: Vec<usize>) -> weights::Tensor {
    let values: Vec<f32> = tensor.cast(DType::F32).into_data().try_into_vec().expect("a tensor that was cast to f32");
    weights::Tensor::from_f32(shape, &values).expect("as many values as the shape of the tensor says")
}

/// A frozen parameter on `device` with these values.
pub(crate) fn frozen_param<const D: usize>(data: TensorData, device: &Device, dtype: DType) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), Tensor::from_data(data, (device, dtype))).no_grad()
}

/// What tensors of adapters are made in, whatever the base is in: so are their gradients and the optimiser's moments. What
/// an adapter adds to a base in another dtype is cast to that.
pub(crate) const ADAPTER_DTYPE: DType = DType::F32;

/// A tensor of an adapter with `values` in row-major order in the place of `before`, which trains if that did.
pub(crate) fn param_like<const D: usize>(
    before: &Param<Tensor<D>>,
    values: Vec<f32>,
    shape: &[usize],
) -> Param<Tensor<D>> {
    let data = TensorData::new(values, shape.to_vec());
    let tensor = Tensor::from_data(data, (&before.lazy_device(), ADAPTER_DTYPE));
    before.clone().transform_for_load(tensor, ParamId::new())
}

/// A tensor of an adapter whose element `i`, in row-major order, is `element(i)`, worked out when it is first needed.
pub(crate) fn lazy_adapter(
    shape: [usize; 2],
    device: &Device,
    element: impl Fn(u64) -> f32 + Send + Sync + 'static,
) -> Param<Tensor<2>> {
    lazy_tensor(shape, device, move |device| {
        let values = elements(shape.iter().product(), &element);
        Tensor::from_data(TensorData::new(values, shape), (device, ADAPTER_DTYPE))
    })
}

/// A trained parameter that `make` makes when it is first needed.
pub(crate) fn lazy_tensor<const D: usize>(
    shape: [usize; D],
    device: &Device,
    make: impl Fn(&Device) -> Tensor<D> + Send + Sync + 'static,
) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad: bool| make(device).set_require_grad(require_grad);
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}

/// A weight drawn from `N(0, deviation^2)` when it is first needed: counting the parameters of a model, or loading it
/// from a file, draws nothing.
pub fn random_weight<const D: usize>(shape: [usize; D], deviation: f64, key: Key, device: &Device) -> Param<Tensor<D>> {
    random_weight_in(shape, deviation, key, device, device.settings().float_dtype.into())
}

/// The same in this dtype.
pub(crate) fn random_weight_in<const D: usize>(
    shape: [usize; D],
    deviation: f64,
    key: Key,
    device: &Device,
    dtype: DType,
) -> Param<Tensor<D>> {
    lazy_tensor(shape, device, move |device| {
        let values = elements(shape.iter().product(), |index| (deviation * key.normal(index)) as f32);
        Tensor::from_data(TensorData::new(values, shape), (device, dtype))
    })
}

/// The tensor in another dtype.
pub(crate) fn in_dtype<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype { tensor } else { tensor.cast(dtype) }
}

/// Sets a parameter to train, or not.
///
/// One that is not initialised yet shares with its clones how it will be, and Burn would set these as well. So another takes
/// its place, which asks it for the values.
pub(crate) fn set_trainable(param: &mut Param<Tensor<2>>, trainable: bool) {
    if param.is_initialized() {
        *param = param.clone().set_require_grad(trainable);
    } else if is_trainable(param) != trainable {
        let (source, shape, device) = (param.clone(), param.lazy_shape(), param.lazy_device());
        let init = move |device: &Device, require_grad: bool| {
            let values = source.val();
            let values = if values.device().is_autodiff() { values.inner() } else { values };
            let values = values.to_device(&device.clone().inner());
            let values = if device.is_autodiff() { Tensor::from_inner(values) } else { values };
            values.set_require_grad(require_grad)
        };
        *param = Param::uninitialized(param.id, init, device, trainable, shape);
    }
}

/// Whether the parameter is set to train, also where its device does not differentiate or it is not initialised yet.
///
/// Burn keeps this setting to itself, but hands it on to a value that is loaded in the parameter's place.
pub(crate) fn is_trainable(param: &Param<Tensor<2>>) -> bool {
    let probe = Tensor::empty([1; 2], &param.lazy_device().autodiff());
    param.clone().transform_for_load(probe, param.id).is_require_grad()
}
