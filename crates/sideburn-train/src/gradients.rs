//! The gradients of all parameters together.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use sideburn_kernels::square_sum;

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
                self.squares.push(square_sum(gradient.inner()));
            }
        }
    }
    let mut visitor = Squares { gradients, squares: Vec::new() };
    model.visit(&mut visitor);
    (!visitor.squares.is_empty()).then(|| Tensor::cat(visitor.squares, 0).sum().sqrt())
}
