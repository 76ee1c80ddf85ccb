//! Where the gradient of a step comes from.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use sideburn_adapters::{AdaptedModel, Key, Pass};
use sideburn_kernels::{Span, on_workers};

use crate::gradients::{add, of_parameters};
use crate::{TrainConfig, TrainError};

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
        info: &StepInfo<'_>,
    ) -> Result<Differentiated, Box<dyn std::error::Error + Send + Sync>>;
}

/// What is known of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo<'a> {
    /// The settings of the run.
    pub config: &'a TrainConfig,
    /// The step, from 0.
    pub step: u64,
    /// The tokens that have a loss, in all micro-batches together.
    pub loss_tokens: usize,
    /// The number of the first micro-batch that is given, among those of the step.
    pub first_micro_batch: usize,
}

impl StepInfo<'_> {
    /// The pass of the micro-batch that is given at `index`, with what the settings say of it: dropout, label smoothing, noise,
    /// checkpoints. What it draws follows from the seed, the step, and the number of the micro-batch in the step. Go back from its
    /// loss by [`Pass::backward`].
    pub fn pass(&self, index: usize) -> Pass {
        let TrainConfig { seed, label_smoothing_factor, neftune_noise_alpha, gradient_checkpointing, .. } =
            *self.config;
        let key = Key::from_seed(seed).fold_in_name("step").fold_in(self.step);
        let pass = Pass::train(key.fold_in((self.first_micro_batch + index) as u64));
        let pass = pass.with_label_smoothing(label_smoothing_factor);
        let pass = neftune_noise_alpha.into_iter().fold(pass, Pass::with_neftune_noise);
        if gradient_checkpointing { pass.with_checkpoints() } else { pass }
    }
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
        info: &StepInfo<'_>,
    ) -> Result<Differentiated, Box<dyn std::error::Error + Send + Sync>> {
        let (mut gradients, mut losses) = (GradientsParams::new(), Vec::new());
        for (index, batch) in micro_batches.iter().enumerate() {
            let mut pass = info.pass(index);
            let forward = Span::new("forward");
            let sum = self(model, batch, &mut pass).map_err(Into::into)?.sum();
            losses.push(sum.clone().inner());
            drop(forward);
            let _backward = Span::new("backward");
            let mean = sum.div_scalar(info.loss_tokens as f64);
            if !mean.is_tracked() {
                return Err(TrainError::NothingFlows.into());
            }
            let parts = on_workers(&mean.device(), || pass.backward(&mean));
            let mut of_batch = GradientsParams::new();
            parts.into_iter().for_each(|part| add(model, &mut of_batch, of_parameters(model, part)));
            add(model, &mut gradients, of_batch);
        }
        Ok(Differentiated { losses, gradients })
    }
}
