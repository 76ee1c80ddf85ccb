//! The gradients of all parameters together.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

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

/// The parameters that weight decay leaves alone, as `transformers.Trainer.get_decay_parameter_names` does: norms, and
/// whatever is called a bias, T5's table of relative position biases among them.
pub(crate) fn undecayed<M: Module>(model: &M) -> Vec<ParamId> {
    #[derive(Default)]
    struct Undecayed {
        path: Vec<String>,
        ids: Vec<ParamId>,
    }
    impl ModuleVisitor for Undecayed {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D == 1 || self.path.iter().any(|name| name.contains("bias")) {
                self.ids.push(param.id);
            }
        }
    }
    let mut visitor = Undecayed::default();
    model.visit(&mut visitor);
    visitor.ids
}
