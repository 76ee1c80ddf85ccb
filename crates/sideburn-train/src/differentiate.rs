//! Where the gradient of a step comes from.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use sideburn_adapters::{AdaptedModel, Key, Pass};
use sideburn_kernels::{Span, on_workers};

use crate::TrainError;
use crate::gradients::{add, of_parameters};

/// Works out the gradient of a step: the seam for several devices, each with some of the micro-batches.
///
/// A function from model, batch and pass to the loss of each token, such as `T5::token_losses`, is one: micro-batches run
/// one after the other on the model's own device.
pub trait Differentiate<M, B> {
    /// The losses of the micro-batches, and the gradient of their sum divided by the number of tokens that have one.
    ///
    /// # Errors
    /// Those of the model.
    fn gradient(
        &self,
        model: &M,
        micro_batches: &[B],
        info: &StepInfo,
    ) -> Result<Differentiated, Box<dyn std::error::Error + Send + Sync>>;
}

/// What is known of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo {
    /// The step, from 0.
    pub step: u64,
    /// The tokens that have a loss, in all micro-batches together.
    pub loss_tokens: usize,
    /// What the random draws of the step follow from: those of micro-batch `i` from `key.fold_in(i)`.
    pub key: Key,
}

/// What a step comes to before its update.
#[derive(Debug)]
pub struct Differentiated {
    /// The sum of the losses of each micro-batch, `[1]`, without an autodiff graph.
    pub losses: Vec<Tensor<1>>,
    /// The gradient of the sum of all losses divided by the number of tokens that have one.
    pub gradients: GradientsParams,
}

impl<M, B, L, E> Differentiate<M, B> for L
where
    M: AdaptedModel,
    L: Fn(&M, &B, &mut Pass) -> Result<Tensor<1>, E>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn gradient(
        &self,
        model: &M,
        micro_batches: &[B],
        info: &StepInfo,
    ) -> Result<Differentiated, Box<dyn std::error::Error + Send + Sync>> {
        let (mut gradients, mut losses) = (GradientsParams::new(), Vec::new());
        for (index, batch) in micro_batches.iter().enumerate() {
            let mut pass = Pass::train(info.key.fold_in(index as u64));
            let forward = Span::new("forward");
            let sum = self(model, batch, &mut pass).map_err(Into::into)?.sum();
            losses.push(sum.clone().inner());
            drop(forward);
            let _backward = Span::new("backward");
            let mean = sum.div_scalar(info.loss_tokens as f64);
            if !mean.is_tracked() {
                return Err(TrainError::NothingFlows.into());
            }
            let all = on_workers(&mean.device(), || mean.backward());
            add(model, &mut gradients, of_parameters(model, all));
        }
        Ok(Differentiated { losses, gradients })
    }
}
