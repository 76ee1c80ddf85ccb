//! The gradients of all parameters of a model.

use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};
use sideburn_adapters::{AdaptedModel, parameters};
use sideburn_kernels::norm;

/// The gradients of the trained parameters of `model`, out of all that a backward pass has left.
pub(crate) fn of_parameters(model: &dyn AdaptedModel, mut all: Gradients) -> GradientsParams {
    let mut gradients = GradientsParams::new();
    for parameter in parameters(model) {
        // Burn panics if one is asked for that is not on the tape.
        if parameter.tensor.is_require_grad()
            && let Some(gradient) = parameter.tensor.val().grad_remove(&mut all)
        {
            gradients.register(parameter.id(), gradient);
        }
    }
    gradients
}

/// Adds gradients of parameters of `model` to a sum of them.
pub(crate) fn add(model: &dyn AdaptedModel, sum: &mut GradientsParams, mut gradients: GradientsParams) {
    if sum.is_empty() {
        *sum = gradients;
        return;
    }
    for parameter in parameters(model) {
        let id = parameter.id();
        if let Some(gradient) = gradients.remove::<2>(id) {
            let gradient = match sum.remove::<2>(id) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            sum.register(id, gradient);
        }
    }
}

/// The Euclidean norm of all gradients together, `[1]`, on the device; `None` if there is no gradient.
///
/// `torch.nn.utils.clip_grad_norm_`: the norm of the norms of the tensors.
pub(crate) fn global_norm(model: &dyn AdaptedModel, gradients: &GradientsParams) -> Option<Tensor<1>> {
    let gradient = |id| Some(gradients.get::<2>(id)?.inner().into());
    let all: Vec<_> = parameters(model).iter().filter_map(|parameter| gradient(parameter.id())).collect();
    (!all.is_empty()).then(|| norm(all))
}
