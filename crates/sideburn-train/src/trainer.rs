//! The training loop.

use std::time::Instant;

use sideburn_adapters::{Adapters, ParameterReport};
use sideburn_batch::Batch;

use crate::{Control, Differentiate, Observer, Run, RunInfo, RunState, StepRecord, TrainConfig, TrainError};

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

/// A loop over the steps of a [`Run`], with observers.
pub struct Trainer<'a, M> {
    config: TrainConfig,
    observers: Vec<Box<dyn Observer<M> + 'a>>,
}

impl<'a, M: Adapters> Trainer<'a, M> {
    /// A run with these settings.
    ///
    /// # Errors
    /// If a setting means nothing.
    pub fn new(config: TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        Ok(Self { config, observers: Vec::new() })
    }

    /// Tells `observer` of the run and of every step.
    pub fn observe(mut self, observer: impl Observer<M> + 'a) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Trains `model`.
    ///
    /// `batches(i)` is micro-batch `i` of the run, counted over all steps; it must be a pure function of `i`.
    /// `token_losses` is the negative log-likelihood of each token of a batch that has one, in the given pass; or another
    /// way to the gradient ([`Differentiate`]).
    ///
    /// What the methods of the trained adapters do in training is done, whichever they are
    /// ([`TrainingHooks`](sideburn_adapters::TrainingHooks)): their penalties are added to the loss, and at the end, an error
    /// included, each adapter becomes what its training has made of it. AdaLoRA takes ranks away in this way.
    ///
    /// # Errors
    /// If nothing can be trained, an adapter is not configured for such a run, the data, the model or an observer fails,
    /// or a loss or gradient is not finite.
    ///
    /// After a loss or gradient that is not finite, `model` has the last weights that gave a finite one: the update
    /// before the failing step is taken back. Where less than half of the model is trained, as with adapters, or another
    /// optimiser than `adamw_torch` trains it, a copy of these weights is kept, and they are the very same. Otherwise a second
    /// copy of the model would be too dear, and the update is worked out again from AdamW's moments: the weights are the same but for rounding, a few units in
    /// the last place of an element or of its update, whichever is larger. The first step after a run is resumed has no
    /// update before it, and leaves the weights as they were. After any other error `model` has the weights of the last
    /// finished step.
    pub fn train<B, D>(
        self,
        model: &mut M,
        batches: impl Fn(u64) -> Result<B, D>,
        token_losses: impl Differentiate<M, B>,
    ) -> Result<TrainReport, TrainError>
    where
        B: Batch,
        D: Into<Source>,
    {
        let run = Run::begin(model, &self.config)?;
        self.go_on(run, model, batches, token_losses)
    }

    /// Goes on with a run that was at `state`, over a model that has the weights of then. What comes of it is what would
    /// have come of the run without a break.
    ///
    /// # Errors
    /// As [`train`](Self::train), and if the state is that of another model, or of a run with other settings. Those that say
    /// only what is logged, evaluated and kept, and when, may be others.
    pub fn resume<B, D>(
        self,
        state: RunState,
        model: &mut M,
        batches: impl Fn(u64) -> Result<B, D>,
        token_losses: impl Differentiate<M, B>,
    ) -> Result<TrainReport, TrainError>
    where
        B: Batch,
        D: Into<Source>,
    {
        self.config.check_same(&state.config)?;
        let run = Run::resume(model, RunState { config: self.config.clone(), ..state })?;
        self.go_on(run, model, batches, token_losses)
    }

    fn go_on<B, D>(
        mut self,
        mut run: Run<M>,
        model: &mut M,
        batches: impl Fn(u64) -> Result<B, D>,
        token_losses: impl Differentiate<M, B>,
    ) -> Result<TrainReport, TrainError>
    where
        B: Batch,
        D: Into<Source>,
    {
        let result = self.steps(&mut run, model, batches, token_losses);
        run.finish(model);
        result
    }

    fn steps<B, D>(
        &mut self,
        run: &mut Run<M>,
        model: &mut M,
        batches: impl Fn(u64) -> Result<B, D>,
        token_losses: impl Differentiate<M, B>,
    ) -> Result<TrainReport, TrainError>
    where
        B: Batch,
        D: Into<Source>,
    {
        let info = RunInfo {
            first_step: run.next_step(),
            max_steps: self.config.max_steps,
            parameters: ParameterReport::of(model),
        };
        let mut control = Control::GoOn;
        for observer in &mut self.observers {
            if observer.begin(&info)? == Control::Stop {
                control = Control::Stop;
            }
        }
        let mut report = TrainReport::default();
        while !run.is_over() && control == Control::GoOn {
            let (step, started, count) = (run.next_step(), Instant::now(), self.config.gradient_accumulation_steps);
            let micro_batches: Vec<B> = (step * count..(step + 1) * count)
                .map(|index| batches(index).map_err(|source| TrainError::Step { step, source: source.into() }))
                .collect::<Result<_, _>>()?;
            let record = run.step(model, &micro_batches, &token_losses)?;
            // With the time that the data took.
            let record = StepRecord { seconds: started.elapsed().as_secs_f64(), ..record };
            for observer in &mut self.observers {
                if observer.step(&record, run, model)? == Control::Stop {
                    control = Control::Stop;
                }
            }
            report.steps.push(record);
        }
        self.observers.iter_mut().try_for_each(|observer| observer.end(run, model))?;
        Ok(report)
    }
}
