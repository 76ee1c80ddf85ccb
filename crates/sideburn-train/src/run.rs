//! A training run: what it is made of, and one step of it.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sideburn_adapters::{Adapters, BaseWeight, ParameterReport, TrainingHooks, Weight};
use sideburn_batch::Batch;
use sideburn_kernels::{OutOfMemory, Span};

use crate::differentiate::{Differentiate, Differentiated, StepInfo};
use crate::gradients::{add, global_norm, of_parameters};
use crate::optimizer::Optimizer;
use crate::{StepRecord, TrainConfig, TrainError};

/// A training run over a model, between two steps: its settings, how far it is, the optimiser, and what the methods of the
/// trained adapters remember.
///
/// A step is a function of the model, the run and the micro-batches, and of nothing else: no random state is carried from
/// one to the next. So a run that is [resumed](Self::resume) from its [state](Self::state) goes on as if it had never
/// stopped, to the last bit on the CPU.
///
/// [`Trainer`](crate::Trainer) is a loop over it. With a loop of your own:
///
/// ```
/// # use burn::tensor::Device;
/// # use sideburn_adapters::{Adapters, Key};
/// # use sideburn_adapters::methods::LoraConfig;
/// # use sideburn_batch::{PromptBatch, TokenRows};
/// # use sideburn_t5::{LanguageModel, T5, T5Config};
/// # let config = T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, ..T5Config::default() };
/// # let mut model = T5::random(&config, Key::from_seed(0), &Device::flex().autodiff());
/// # model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(0))?;
/// # let rows = || TokenRows::from_rows([[7, 8, 1]]);
/// # let batch = PromptBatch::new(rows()?, rows()?)?;
/// use sideburn_train::{Run, TrainConfig};
///
/// let mut run = Run::begin(&model, &TrainConfig::new(3))?;
/// while !run.is_over() {
///     let record = run.step(&mut model, std::slice::from_ref(&batch), &T5::token_losses)?;
///     println!("step {}: loss {}", record.step, record.loss);
/// }
/// run.finish(&mut model);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Run<M> {
    config: TrainConfig,
    /// The next step.
    step: u64,
    optimizer: Optimizer,
    hooks: TrainingHooks,
    /// Whether the weights before an update are kept in case that it must be taken back.
    keeps_copies: bool,
    /// What was there at the last step that gave a finite loss. An update shows to be bad in the loss of the next step.
    good: Option<(M, TrainingHooks)>,
}

/// What a run is, beside the weights of its model: what it needs to go on. Numbers of parameters are by their names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// The settings.
    pub config: TrainConfig,
    /// The next step, from 0.
    pub step: u64,
    /// What the optimiser remembers of each parameter that has been updated, by the names of PyTorch, `transformers` and
    /// bitsandbytes: `step`, the number of its updates, and of `adamw_torch` `exp_avg` and `exp_avg_sq`, of `adafactor`
    /// `exp_avg_sq_row [rows, 1]` and `exp_avg_sq_col [1, columns]`, or of a vector `exp_avg_sq`, of `lion_32bit` `state1`, of
    /// `sgd` with momentum `momentum_buffer`, of `adamw_bnb_8bit` `state1` and `state2`, and in 8 bits `absmax1` and `absmax2`.
    pub optimizer: BTreeMap<String, BTreeMap<String, TensorData>>,
    /// What the methods of adapters remember from step to step, by the names of the adapters.
    pub adapters: BTreeMap<String, BTreeMap<String, TensorData>>,
}

impl<M: Adapters> Run<M> {
    /// Begins a run.
    ///
    /// # Errors
    /// If a setting means nothing, the model cannot be trained or nothing of it is, or an adapter is not configured for
    /// such a run.
    pub fn begin(model: &M, config: &TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        if !model.device().is_autodiff() {
            return Err(TrainError::NoAutodiff);
        }
        let ParameterReport { trainable, all } = ParameterReport::of(model);
        if trainable == 0 {
            return Err(TrainError::NothingToTrain);
        }
        let hooks = TrainingHooks::begin(model, config.max_steps)?;
        let optimizer = Optimizer::new(config, model);
        Ok(Self {
            config: config.clone(),
            step: 0,
            // They must be kept if something else than the optimiser writes to them, or it cannot take its update back.
            keeps_copies: trainable < all.div_ceil(2) || !hooks.is_empty() || !optimizer.can_undo(),
            optimizer,
            hooks,
            good: None,
        })
    }

    /// Goes on with a run whose [state](Self::state) was kept, over a model with the weights that it had then.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), and if the state is that of a run over another model.
    pub fn resume(model: &M, state: RunState) -> Result<Self, TrainError> {
        let mut run = Self::begin(model, &state.config)?;
        run.step = state.step;
        run.optimizer.restore(model, state.optimizer)?;
        run.hooks.restore(model, state.adapters)?;
        Ok(run)
    }

    /// What the run needs to go on, beside the weights of `model`, which it is over.
    pub fn state(&self, model: &M) -> RunState {
        RunState {
            config: self.config.clone(),
            step: self.step,
            optimizer: self.optimizer.state(model),
            adapters: self.hooks.state(),
        }
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The next step, from 0.
    pub fn next_step(&self) -> u64 {
        self.step
    }

    /// Whether all steps are made.
    pub fn is_over(&self) -> bool {
        self.step >= self.config.max_steps
    }

    /// Makes one step over these micro-batches: the gradient of the mean loss over all their tokens that have one, clipping,
    /// the optimiser at the scheduled rate.
    ///
    /// # Errors
    /// If the model fails, or a loss or gradient is not finite; see [`Trainer::train`](crate::Trainer::train) for what the
    /// model has then.
    pub fn step<B: Batch>(
        &mut self,
        model: &mut M,
        micro_batches: &[B],
        token_losses: &impl Differentiate<M, B>,
    ) -> Result<StepRecord, TrainError> {
        let (step, started) = (self.step, Instant::now());
        let loss_tokens = micro_batches.iter().map(Batch::loss_tokens).sum();
        let info = StepInfo { config: &self.config, step, loss_tokens, first_micro_batch: 0 };
        let differentiated =
            token_losses.gradient(model, micro_batches, &info).map_err(|source| TrainError::Step { step, source })?;
        let (numbers, gradients) = self.measure(model, differentiated)?;
        let before = self.keeps_copies.then(|| (model.clone(), self.hooks.clone()));
        let (learning_rate, scale) = (self.config.learning_rate_at(step), self.scale(&numbers));
        let update = Span::new("update");
        self.optimizer.step(model, &gradients, learning_rate, scale.clone());
        drop(update);
        // All of the step has been handed over. Only now is a GPU waited for.
        let Numbers { loss, penalty, grad_norm, scale } = match numbers.read(scale, &info) {
            Ok(numbers) => numbers,
            // Nothing more can be asked of it.
            Err(error @ (TrainError::Device { .. } | TrainError::OutOfMemory { .. })) => return Err(error),
            Err(error) => {
                // This update has changed nothing. The one before it led here.
                match self.good.take() {
                    Some(good) => (*model, self.hooks) = good,
                    None => self.optimizer.undo(model),
                }
                return Err(match broken_weight(model) {
                    Some(name) => TrainError::WeightNotFinite { step, name },
                    None => error,
                });
            }
        };
        self.good = before;
        self.hooks.after_update(model, step, |id| Some(gradients.get::<2>(id)?.mul_scalar(scale)));
        self.step += 1;
        let tokens = micro_batches.iter().map(Batch::tokens).sum();
        let seconds = started.elapsed().as_secs_f64();
        Ok(StepRecord { step, loss, penalty, learning_rate, grad_norm, tokens, seconds })
    }

    /// Ends the run, whatever ended it: each adapter becomes what its training has made of it. AdaLoRA takes ranks away in
    /// this way.
    pub fn finish(self, model: &mut M) {
        self.hooks.finish(model);
    }

    /// The model as [`finish`](Self::finish) would leave it, if the run ended here.
    pub fn finished(&self, model: &M) -> M {
        let mut finished = model.clone();
        self.hooks.clone().finish(&mut finished);
        finished
    }

    /// The gradient with that of what methods add to the loss, and the numbers of the step.
    fn measure(
        &self,
        model: &M,
        Differentiated { losses, gradients }: Differentiated,
    ) -> Result<(Measured, GradientsParams), TrainError> {
        let mut gradients = gradients;
        let penalty = self.hooks.penalty(model).map(|added| {
            let value = added.clone().inner();
            add(model, &mut gradients, of_parameters(model, added.backward()));
            value
        });
        let norm = global_norm(model, &gradients).ok_or(TrainError::NothingToTrain)?;
        let (count, penalised, dtype) = (losses.len(), penalty.is_some(), norm.dtype());
        let all = losses.into_iter().chain(penalty).chain([norm]).map(|number| number.cast(dtype)).collect();
        Ok((Measured { all: Tensor::cat(all, 0), losses: count, penalised }, gradients))
    }

    /// What gradients are multiplied by, `[1]`: clipping as `torch.nn.utils.clip_grad_norm_` has it, with its epsilon, and
    /// 0, which updates nothing, where a number is not finite.
    fn scale(&self, numbers: &Measured) -> Tensor<1> {
        let norm = numbers.norm();
        let most = self.config.max_grad_norm;
        let factor = if most > 0.0 { (norm + 1e-6).recip().mul_scalar(most).clamp_max(1.0) } else { norm.ones_like() };
        factor.mask_fill(numbers.all.clone().is_finite().all().bool_not(), 0.0)
    }
}

/// The numbers of a step, on the device.
struct Measured {
    /// The sum of the losses of each micro-batch, what methods add to the loss, and the norm of the whole gradient.
    all: Tensor<1>,
    /// How many losses there are.
    losses: usize,
    /// Whether methods add something.
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
    fn read(
        &self,
        scale: Tensor<1>,
        &StepInfo { step, loss_tokens, .. }: &StepInfo<'_>,
    ) -> Result<Numbers, TrainError> {
        let read = Tensor::cat(vec![self.all.clone(), scale], 0).try_into_data();
        let read = read.map_err(|source| match OutOfMemory::of(&source.to_string(), &self.all.device()) {
            Some(memory) => TrainError::OutOfMemory { step, memory },
            None => TrainError::Device { step, source: source.into() },
        })?;
        let mut numbers = read.iter::<f64>();
        let mut next = || numbers.next().expect("as many numbers as were put together");
        let finite = |what, value: f64| {
            if value.is_finite() { Ok(value) } else { Err(TrainError::NotFinite { step, what, value }) }
        };
        let loss = finite("loss", (0..self.losses).map(|_| next()).sum::<f64>() / loss_tokens as f64)?;
        let penalty = if self.penalised { finite("penalty", next())? } else { 0.0 };
        Ok(Numbers { loss, penalty, grad_norm: finite("gradient norm", next())?, scale: next() })
    }
}

/// The first weight that is frozen, and so was as it is from the start, and holds something that is not finite.
fn broken_weight<M: Adapters>(model: &M) -> Option<String> {
    let is_broken = |weight: &BaseWeight| {
        // What is packed was finite when it was packed.
        if weight.packed().is_some() || weight.is_trainable() {
            return false;
        }
        let floats = weight.operand().dense().inner();
        (floats.clone() - floats).sum().into_scalar::<f32>() != 0.0
    };
    let broken = |(name, weight): (String, Weight<'_>)| {
        weight.tensors(&name).find(|(_, weight)| is_broken(weight)).map(|(name, _)| name)
    };
    model.weights().into_iter().find_map(broken)
}
