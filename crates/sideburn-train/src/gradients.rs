//! The gradients of all parameters together.

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use sideburn_kernels::{AnyRank, norm};

/// The Euclidean norm of all gradients together, `[1]`, on the device; `None` if there is no gradient.
///
/// `torch.nn.utils.clip_grad_norm_`: the norm of the norms of the tensors.
pub(crate) fn global_norm<M: Module>(model: &M, gradients: &GradientsParams) -> Option<Tensor<1>> {
    struct All<'a> {
        gradients: &'a GradientsParams,
        /// A parameter that stands in several places has one gradient.
        seen: HashSet<ParamId>,
        tensors: Vec<AnyRank>,
    }
    impl ModuleVisitor for All<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id)
                && self.seen.insert(param.id)
            {
                self.tensors.push(gradient.inner().into());
            }
        }
    }
    let mut visitor = All { gradients, seen: HashSet::new(), tensors: Vec::new() };
    model.visit(&mut visitor);
    (!visitor.tensors.is_empty()).then(|| norm(visitor.tensors))
}
