//! The gradients of all parameters together.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use sideburn_adapters::{AdaptedModel, adapter_tensors};

/// The Euclidean norm of all gradients together, `[1]`, on the device; `None` if there is no gradient.
///
/// `torch.nn.utils.clip_grad_norm_`: the norm of the norms of the tensors.
pub(crate) fn global_norm<M: Module>(model: &M, gradients: &GradientsParams) -> Option<Tensor<1>> {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        squares: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.squares.push(gradient.square().sum());
            }
        }
    }
    let mut visitor = Squares { gradients, squares: Vec::new() };
    model.visit(&mut visitor);
    (!visitor.squares.is_empty()).then(|| Tensor::cat(visitor.squares, 0).sum().sqrt())
}

/// Multiplies every gradient by `factor`.
pub(crate) fn scale<M: Module>(model: &M, gradients: &mut GradientsParams, factor: f64) {
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, gradient.mul_scalar(self.factor));
            }
        }
    }
    model.visit(&mut Scale { gradients, factor });
}

/// The gradients of the tensors of all adapters.
pub(crate) fn adapter_gradients<M: AdaptedModel>(
    model: &M,
    gradients: &GradientsParams,
) -> HashMap<ParamId, Tensor<2>> {
    let adapters = model.adapters().list().iter();
    let tensors = adapters.flat_map(|entry| adapter_tensors(model, entry.name()).expect("an adapter of the list"));
    tensors.filter_map(|(_, param)| Some((param.id, gradients.get(param.id)?))).collect()
}
