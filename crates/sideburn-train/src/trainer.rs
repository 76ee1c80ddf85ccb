//! The training loop.

use std::time::Instant;

use burn::module::Param;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use sideburn_adapters::{AdaptedModel, Key, ParameterReport, Pass, Regimens, Weight};
use sideburn_batch::Batch;
use sideburn_kernels::{Span, on_workers};

use crate::gradients::global_norm;
use crate::optimizer::Optimizer;
use crate::{Observer, StepRecord, TrainConfig, TrainError};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What a run has to tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainReport {
    /// Every step, in order.
    pub steps: Vec<StepRecord>,
}

impl TrainReport {
    /// The loss of each step.
    pub fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|record| record.loss).collect()
    }
}

/// A training run that has not begun.
pub struct Trainer<'a> {
    config: TrainConfig,
    observers: Vec<Box<dyn Observer + 'a>>,
}

impl<'a> Trainer<'a> {
    /// A run with these settings.
    ///
    /// # Errors
    /// If a setting means nothing.
    pub fn new(config: TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        Ok(Self { config, observers: Vec::new() })
    }

    /// Tells `observer` of every step.
    pub fn observe(mut self, observer: impl Observer + 'a) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Trains `model`.
    ///
    /// `batches(i)` is micro-batch `i` of the run, counted over all steps; it must be a pure function of `i`.
    /// `token_losses` is the negative log-likelihood of each target token of a batch, in the given pass.
    ///
    /// What the methods of the trained adapters do in training is done, whichever they are ([`Regimens`]): their
    /// penalties are added to the loss, and at the end, an error included, each adapter becomes what its training has made
    /// of it. AdaLoRA takes ranks away in this way.
    ///
    /// # Errors
    /// If nothing can be trained, an adapter is not configured for such a run, the data, the model or an observer fails,
    /// or a loss or gradient is not finite.
    ///
    /// After a loss or gradient that is not finite, `model` has the last weights that gave a finite one: the update
    /// before the failing step is taken back. Where less than half of the model is trained, as with adapters, a copy of
    /// these weights is kept, and they are the very same. Otherwise a second copy of the model would be too dear, and the
    /// update is worked out again from the optimiser's moments: the weights are the same but for rounding, a few units in
    /// the last place of an element or of its update, whichever is larger. After any other error `model` has the weights
    /// of the last finished step.
    pub fn train<M, T, B, L, D, E>(
        mut self,
        model: &mut M,
        batches: B,
        token_losses: L,
    ) -> Result<TrainReport, TrainError>
    where
        M: AdaptedModel,
        T: Batch,
        B: Fn(u64) -> Result<T, D>,
        L: Fn(&M, &T, &mut Pass) -> Result<Tensor<1>, E>,
        D: Into<Source>,
        E: Into<Source>,
    {
        if !model.devices().iter().all(burn::tensor::Device::is_autodiff) {
            return Err(TrainError::NoAutodiff);
        }
        if ParameterReport::of(model).trainable == 0 {
            return Err(TrainError::NothingToTrain);
        }
        let mut regimens = Regimens::begin(model, self.config.max_steps)?;
        let report = self.run(model, &mut regimens, batches, token_losses);
        regimens.finish(model);
        report
    }

    fn run<M, T, B, L, D, E>(
        &mut self,
        model: &mut M,
        regimens: &mut Regimens,
        batches: B,
        token_losses: L,
    ) -> Result<TrainReport, TrainError>
    where
        M: AdaptedModel,
        T: Batch,
        B: Fn(u64) -> Result<T, D>,
        L: Fn(&M, &T, &mut Pass) -> Result<Tensor<1>, E>,
        D: Into<Source>,
        E: Into<Source>,
    {
        let mut optimizer = Optimizer::new(&self.config, model);
        let mut report = TrainReport::default();
        let keeps_copies = keeps_copies(model, regimens);
        // What was there at the last step that gave a finite loss. An update shows to be bad in the loss of the next step.
        let mut good = keeps_copies.then(|| (model.clone(), regimens.clone()));
        for step in 0..self.config.max_steps {
            let started = Instant::now();
            let micro_batches = self.micro_batches(step, &batches)?;
            let targets = micro_batches.iter().map(Batch::loss_tokens).sum();
            let Differentiated { numbers, gradients } =
                self.backward(model, step, (&micro_batches, targets), &token_losses, regimens)?;
            let before = keeps_copies.then(|| (model.clone(), regimens.clone()));
            let (learning_rate, scale) = (self.learning_rate(step), self.scale(&numbers));
            let update = Span::new("update");
            optimizer.step(model, &gradients, learning_rate, scale.clone());
            drop(update);
            // All of the step has been handed over. Only now is a GPU waited for.
            let Numbers { loss, penalty, grad_norm, scale } = match numbers.read(scale, step, targets) {
                Ok(numbers) => numbers,
                Err(error) => {
                    // This update has changed nothing. The one before it led here.
                    match good {
                        Some(good) => (*model, *regimens) = good,
                        None => optimizer.undo(model),
                    }
                    return Err(match broken_weight(model) {
                        Some(name) => TrainError::WeightNotFinite { step, name },
                        None => error,
                    });
                }
            };
            good = before;
            regimens.after_update(model, step, |id| Some(gradients.get::<2>(id)?.mul_scalar(scale)));

            let tokens = micro_batches.iter().map(|batch| batch.tokens()).sum();
            let seconds = started.elapsed().as_secs_f64();
            let record = StepRecord { step, loss, penalty, learning_rate, grad_norm, tokens, seconds };
            for observer in &mut self.observers {
                observer.step(&record)?;
            }
            report.steps.push(record);
        }
        Ok(report)
    }

    fn micro_batches<T, D: Into<Source>>(
        &self,
        step: u64,
        batches: impl Fn(u64) -> Result<T, D>,
    ) -> Result<Vec<T>, TrainError> {
        let first = step * self.config.gradient_accumulation_steps;
        (first..first + self.config.gradient_accumulation_steps)
            .map(|index| batches(index).map_err(|source| TrainError::Step { step, source: source.into() }))
            .collect()
    }

    /// The gradient of the mean loss over the `targets` target tokens of all micro-batches, and of what regimens add.
    fn backward<M: AdaptedModel, T, E: Into<Source>>(
        &self,
        model: &M,
        step: u64,
        (micro_batches, targets): (&[T], usize),
        token_losses: impl Fn(&M, &T, &mut Pass) -> Result<Tensor<1>, E>,
        regimens: &Regimens,
    ) -> Result<Differentiated, TrainError> {
        let key = Key::from_seed(self.config.seed).fold_in_name("step").fold_in(step);
        let mut accumulator = GradientsAccumulator::new();
        let mut losses = Vec::new();
        for (index, batch) in micro_batches.iter().enumerate() {
            let mut pass = Pass::train(key.fold_in(index as u64));
            let forward = Span::new("forward");
            let sum = token_losses(model, batch, &mut pass)
                .map_err(|source| TrainError::Step { step, source: source.into() })?
                .sum();
            losses.push(sum.clone().inner());
            drop(forward);
            let _backward = Span::new("backward");
            let mean = sum.div_scalar(targets as f64);
            let gradients = on_workers(&mean.device(), || mean.backward());
            accumulator.accumulate(model, GradientsParams::from_grads(gradients, model));
        }
        let penalty = regimens.penalty(model).map(|added| {
            let value = added.clone().inner();
            accumulator.accumulate(model, GradientsParams::from_grads(added.backward(), model));
            value
        });
        let gradients = accumulator.grads();
        let norm = global_norm(model, &gradients).ok_or(TrainError::NothingToTrain)?;
        let (count, penalised, dtype) = (losses.len(), penalty.is_some(), norm.dtype());
        let all = losses.into_iter().chain(penalty).chain([norm]).map(|number| number.cast(dtype)).collect();
        let numbers = Measured { all: Tensor::cat(all, 0), losses: count, penalised };
        Ok(Differentiated { numbers, gradients })
    }

    /// What gradients are multiplied by, `[1]`: clipping as `torch.nn.utils.clip_grad_norm_` has it, with its epsilon, and
    /// 0, which updates nothing, where a number is not finite.
    fn scale(&self, numbers: &Measured) -> Tensor<1> {
        let norm = numbers.norm();
        let most = self.config.max_grad_norm;
        let factor = if most > 0.0 { (norm + 1e-6).recip().mul_scalar(most).clamp_max(1.0) } else { norm.ones_like() };
        factor.mask_fill(numbers.all.clone().is_finite().all().bool_not(), 0.0)
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let TrainConfig { learning_rate, lr_scheduler_type, warmup_steps, max_steps, .. } = self.config;
        learning_rate * lr_scheduler_type.factor(step, warmup_steps, max_steps)
    }
}

/// What is computed of a step, which a GPU may still be at.
struct Differentiated {
    numbers: Measured,
    gradients: GradientsParams,
}

/// The numbers of a step, on the device.
struct Measured {
    /// The sum of the losses of each micro-batch, what regimens add to the loss, and the norm of the whole gradient.
    all: Tensor<1>,
    /// How many losses there are.
    losses: usize,
    /// Whether regimens add something.
    penalised: bool,
}

/// The numbers of a step, all finite.
struct Numbers {
    loss: f64,
    penalty: f64,
    grad_norm: f64,
    /// What gradients were multiplied by.
    scale: f64,
}

impl Measured {
    fn norm(&self) -> Tensor<1> {
        self.all.clone().narrow(0, self.losses + usize::from(self.penalised), 1)
    }

    /// Reads them: the one time in a step that a GPU is waited for.
    fn read(&self, scale: Tensor<1>, step: u64, targets: usize) -> Result<Numbers, TrainError> {
        let read = Tensor::cat(vec![self.all.clone(), scale], 0).into_data();
        let mut numbers = read.iter::<f64>();
        let mut next = || numbers.next().expect("as many numbers as were put together");
        let finite = |what, value: f64| {
            if value.is_finite() { Ok(value) } else { Err(TrainError::NotFinite { step, what, value }) }
        };
        let loss = finite("loss", (0..self.losses).map(|_| next()).sum::<f64>() / targets as f64)?;
        let penalty = if self.penalised { finite("penalty", next())? } else { 0.0 };
        Ok(Numbers { loss, penalty, grad_norm: finite("gradient norm", next())?, scale: next() })
    }
}

/// The first weight that is frozen, and so was as it is from the start, and holds something that is not finite.
fn broken_weight<M: AdaptedModel>(model: &M) -> Option<String> {
    fn is_finite<const D: usize>(param: &Param<Tensor<D>>) -> bool {
        let weight = param.val().inner();
        param.is_require_grad() || (weight.clone() - weight).sum().into_scalar::<f32>() == 0.0
    }
    let broken = |(name, weight): (String, Weight<'_>)| match weight {
        Weight::Linear(linear) => {
            let finite = is_finite(linear.weight()) && linear.bias().is_none_or(is_finite);
            (!finite).then(|| format!("{name}.weight"))
        }
        Weight::Vector(vector) => (!is_finite(vector.weight())).then_some(name),
        Weight::Table(table) => (!is_finite(table.weight())).then_some(name),
    };
    model.weights().into_iter().find_map(broken)
}

/// Whether the weights before an update are kept in case that it must be taken back. They must be if something else than
/// the optimiser writes to them.
fn keeps_copies<M: AdaptedModel>(model: &M, regimens: &Regimens) -> bool {
    let ParameterReport { trainable, all } = ParameterReport::of(model);
    trainable < all.div_ceil(2) || !regimens.is_empty()
}
