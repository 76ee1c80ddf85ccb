//! The training loop.

use std::time::Instant;

use sideburn_adapters::{Adapters, ParameterReport};
use sideburn_batch::Batch;

use crate::ranks::{agree, agree_to_stop, check_run, check_weights, share_end};
use crate::{
    Alone, Control, Differentiate, Observer, OverRanks, Ranks, Run, RunInfo, RunState, StepRecord, TrainConfig,
    TrainError,
};

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

/// After so many steps each, ranks make sure that they still have the same weights.
const STEPS_BETWEEN_CHECKS: u64 = 100;

/// A loop over the steps of a [`Run`], with observers.
pub struct Trainer<'a, M> {
    config: TrainConfig,
    observers: Vec<Box<dyn Observer<M> + 'a>>,
    ranks: &'a dyn Ranks,
}

impl<'a, M: Adapters> Trainer<'a, M> {
    /// A run with these settings.
    ///
    /// # Errors
    /// If a setting means nothing.
    pub fn new(config: TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        Ok(Self { config, observers: Vec::new(), ranks: &Alone })
    }

    /// Tells `observer` of the run and of every step.
    pub fn observe(mut self, observer: impl Observer<M> + 'a) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Trains together with other ranks, each of which calls [`train`](Self::train) or [`resume`](Self::resume) with an equal
    /// model and equal batches. The micro-batches of a step are shared out among them ([`OverRanks`]), so that
    /// `gradient_accumulation_steps` is their number on all ranks together, and a run may be resumed with another number of
    /// ranks. Every rank makes the same update and ends with the same model. An error of one ends all; whoever has no error
    /// of its own is told whose it was.
    ///
    /// Observers are those of a rank. One that writes belongs to rank 0 alone; the others wait for it. One of any rank can
    /// stop the run. If an observer of rank 0 puts another model of the run in the place of the last at the end, all get that.
    pub fn over(mut self, ranks: &'a dyn Ranks) -> Self {
        self.ranks = ranks;
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
        let ranks = self.ranks;
        let token_losses = OverRanks::new(ranks, token_losses);
        let info = RunInfo {
            first_step: run.next_step(),
            max_steps: self.config.max_steps,
            parameters: ParameterReport::of(model),
        };
        check_run(ranks, run, model)?;
        let begun = first_to_stop(&mut self.observers, |observer| observer.begin(&info));
        let mut control = agree_to_stop(ranks, begun)?;
        let mut report = TrainReport::default();
        while !run.is_over() && control == Control::GoOn {
            let (step, started, count) = (run.next_step(), Instant::now(), self.config.gradient_accumulation_steps);
            let micro_batches = (step * count..(step + 1) * count)
                .map(|index| batches(index).map_err(|source| TrainError::Step { step, source: source.into() }))
                .collect();
            let micro_batches: Vec<B> = agree(ranks, micro_batches)?;
            let stepped = run.step(model, &micro_batches, &token_losses).and_then(|record| {
                // With the time that the data took.
                let record = StepRecord { seconds: started.elapsed().as_secs_f64(), ..record };
                report.steps.push(record);
                first_to_stop(&mut self.observers, |observer| observer.step(&record, run, model))
            });
            control = agree_to_stop(ranks, stepped)?;
            if run.next_step().is_multiple_of(STEPS_BETWEEN_CHECKS) {
                check_weights(ranks, run, model)?;
            }
        }
        check_weights(ranks, run, model)?;
        let steps = run.next_step();
        let ended = self.observers.iter_mut().try_for_each(|observer| observer.end(run, model));
        agree(ranks, ended)?;
        share_end(ranks, steps, run, model)?;
        Ok(report)
    }
}

/// Tells all observers of something; whether one of them wants to stop.
fn first_to_stop<'a, M>(
    observers: &mut [Box<dyn Observer<M> + 'a>],
    mut tell: impl FnMut(&mut (dyn Observer<M> + 'a)) -> Result<Control, TrainError>,
) -> Result<Control, TrainError> {
    let mut control = Control::GoOn;
    for observer in observers {
        if tell(&mut **observer)? == Control::Stop {
            control = Control::Stop;
        }
    }
    Ok(control)
}
