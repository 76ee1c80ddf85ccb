//! What is kept of a run while it goes, and evaluation.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use sideburn_adapters::{Adapters, Precision, parameters};
use sideburn_files::{AtomicDir, read_text};

use crate::checkpoint::{self, Best, Identity, TrainerState};
use crate::observe::StepLines;
use crate::run_dir::{self, RunDir};
use crate::settings::nearest;
use crate::tensorboard::EventFile;
use crate::{
    Control, Evaluated, JsonLinesLog, Observer, Run, RunInfo, RunState, StepRecord, Strategy, TrainConfig, TrainError,
};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Keeps a run in its [directory](RunDir): an [`Observer`] that logs steps, evaluates the model, and writes checkpoints, when
/// the settings say so.
///
/// ```
/// # use std::convert::Infallible;
/// # use std::error::Error;
/// # use std::path::Path;
/// # use sideburn_batch::PromptBatch;
/// # use sideburn_t5::{LanguageModel, T5};
/// use sideburn_train::{RunDir, RunRecorder, Strategy, TrainConfig, Trainer, evaluate_loss};
///
/// /// Begins a run, or goes on with one.
/// fn train(mut model: T5, batch: &PromptBatch, path: &Path) -> Result<(), Box<dyn Error>> {
///     let eval_strategy = Strategy::Steps;
///     let config = TrainConfig { eval_strategy, eval_steps: 2, save_steps: 2, ..TrainConfig::new(6) };
///     let directory = if path.exists() { RunDir::open(path)? } else { RunDir::create(path, "max_steps = 6")? };
///     let batches = |_| Ok::<_, Infallible>(batch.clone());
///     let mut recorder = RunRecorder::new(directory, &config, &model, "one batch")
///         .evaluate(|model: &T5| Ok(evaluate_loss(model, (0..1).map(batches), T5::token_losses)?));
///     let state = recorder.restore(&mut model)?.state;
///     let trainer = Trainer::new(config)?.observe(&mut recorder);
///     match state {
///         Some(state) => trainer.resume(state, &mut model, batches, T5::token_losses)?,
///         None => trainer.train(&mut model, batches, T5::token_losses)?,
///     };
///     recorder.finish(&model)?;
///     Ok(())
/// }
/// # use burn::tensor::Device;
/// # use sideburn_adapters::{Adapters, Key};
/// # use sideburn_adapters::methods::LoraConfig;
/// # use sideburn_batch::TokenRows;
/// # use sideburn_t5::T5Config;
/// # let config = T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, ..T5Config::default() };
/// # let mut model = T5::random(&config, Key::from_seed(0), &Device::flex().autodiff());
/// # model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(0)).unwrap();
/// # let rows = || TokenRows::from_rows([[7, 8, 1]]).unwrap();
/// # let batch = PromptBatch::new(rows(), rows()).unwrap();
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("run");
/// # train(model.clone(), &batch, &path).unwrap();
/// # train(model, &batch, &path).unwrap();
/// # for name in ["config.toml", "training.jsonl", "metrics.csv", "checkpoint-6", "best", "final/adapter_config.json"] {
/// #     assert!(path.join(name).exists(), "{name}");
/// # }
/// ```
pub struct RunRecorder<'a, M> {
    directory: RunDir,
    config: TrainConfig,
    identity: Identity,
    batches_per_epoch: Option<u64>,
    evaluate: Option<Evaluate<'a, M>>,
    with_tensorboard: bool,
    files: Option<Files>,
    best: Option<Best>,
    evaluations_since_best: u64,
    /// The step of the last checkpoint.
    saved: Option<u64>,
    /// Whether the run has come to its end.
    complete: bool,
}

type Evaluate<'a, M> = Box<dyn FnMut(&M) -> Result<Evaluated, Source> + 'a>;

struct Files {
    log: JsonLinesLog,
    metrics: StepLines,
    events: Option<EventFile>,
}

impl Files {
    /// Writes numbers of a step.
    fn numbers<'a>(
        &mut self,
        step: u64,
        numbers: impl IntoIterator<Item = (&'a str, f64)> + Clone,
    ) -> Result<(), TrainError> {
        let lines = numbers.clone().into_iter().map(|(name, value)| format!("{step},{name},{value}"));
        self.metrics.write(lines.collect::<Vec<_>>().join("\n"))?;
        self.events.as_mut().map_or(Ok(()), |events| events.add(step, numbers))
    }
}

/// What a run directory had to go on from.
#[derive(Debug, Default)]
pub struct Restored {
    /// The run as it was at the last good checkpoint; none if there is no checkpoint yet.
    pub state: Option<RunState>,
    /// Checkpoints after it that are damaged, and in which way.
    pub damaged: Vec<TrainError>,
}

/// A line about an evaluation.
#[derive(Serialize)]
struct EvaluationLine<'a> {
    step: u64,
    #[serde(flatten)]
    metrics: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    samples: &'a [crate::Sample],
}

impl<'a, M: Adapters> RunRecorder<'a, M> {
    /// Keeps a run with these settings over `model`, as it is before any training, in `directory`. `data` says over which
    /// data, such as a hash of it: a run goes on only if it says the same.
    pub fn new(directory: RunDir, config: &TrainConfig, model: &M, data: impl Into<String>) -> Self {
        Self::over(directory, config, model.fingerprint(), data)
    }

    /// The same for a model of which the [`fingerprint`](Adapters::fingerprint) before any training is known.
    pub fn over(
        directory: RunDir,
        config: &TrainConfig,
        fingerprint: impl Into<String>,
        data: impl Into<String>,
    ) -> Self {
        Self {
            directory,
            config: config.clone(),
            identity: Identity { model: fingerprint.into(), data: data.into() },
            batches_per_epoch: None,
            evaluate: None,
            with_tensorboard: false,
            files: None,
            best: None,
            evaluations_since_best: 0,
            saved: None,
            complete: false,
        }
    }

    /// Evaluates the model by `evaluate`. It is given the model as it is trained, and has to see to it that nothing is
    /// drawn: [`evaluate_loss`](crate::evaluate_loss) does.
    pub fn evaluate(mut self, evaluate: impl FnMut(&M) -> Result<Evaluated, Source> + 'a) -> Self {
        self.evaluate = Some(Box::new(evaluate));
        self
    }

    /// Says how many micro-batches make an epoch, for settings that go by epochs.
    pub fn with_epochs(mut self, batches_per_epoch: usize) -> Self {
        self.batches_per_epoch = Some(batches_per_epoch as u64);
        self
    }

    /// Writes the numbers of steps and evaluations for TensorBoard, too, as `events.out.tfevents`.
    pub fn with_tensorboard(mut self) -> Self {
        self.with_tensorboard = true;
        self
    }

    /// Where the run is kept.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fills `model` from the last checkpoint that is as it was written, and gives the state to go on from.
    ///
    /// # Errors
    /// If all checkpoints are damaged, or the last good one is that of another model, other data or other settings, or of a
    /// release that wrote them in another way.
    pub fn restore(&mut self, model: &mut M) -> Result<Restored, TrainError> {
        let mut damaged = Vec::new();
        for step in checkpoint::steps_in(self.path())?.into_iter().rev() {
            let path = checkpoint::path_of(self.path(), step);
            let state = match checkpoint::open(&path) {
                Err(error @ (TrainError::Checkpoint { .. } | TrainError::File(_))) => {
                    damaged.push(error);
                    continue;
                }
                state => state?,
            };
            self.config.check_same(&state.config)?;
            self.check_identity(&state.identity)?;
            let loaded = checkpoint::load(&path, &state, model)?;
            (self.best, self.evaluations_since_best) = (state.best, state.evaluations_since_best);
            self.saved = Some(step);
            return Ok(Restored { state: Some(loaded), damaged });
        }
        match damaged.is_empty() {
            true => Ok(Restored::default()),
            false => Err(damaged.swap_remove(0)),
        }
    }

    fn check_identity(&self, of_run: &Identity) -> Result<(), TrainError> {
        let mut differences = Vec::new();
        for (what, was, is) in
            [("the base model", &of_run.model, &self.identity.model), ("the data", &of_run.data, &self.identity.data)]
        {
            if was != is {
                differences.push(format!("{what} was {was} and is {is}"));
            }
        }
        if differences.is_empty() { Ok(()) } else { Err(TrainError::OtherRun { differences }) }
    }

    /// Ends the record of a run: writes what was trained to `final/`, if the run has come to its end, and says whether it has.
    /// `model` is as [`Trainer::train`](crate::Trainer::train) has left it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(self, model: &M) -> Result<bool, TrainError> {
        if self.complete {
            save_trained(model, &self.path().join("final"))?;
        }
        Ok(self.complete)
    }

    fn files(&mut self) -> Result<&mut Files, TrainError> {
        if self.files.is_none() {
            let log = JsonLinesLog::create(self.path().join("training.jsonl"))?;
            let metrics = StepLines::open(&self.path().join("metrics.csv"), "step,metric,value\n")?;
            self.files = Some(Files { log, metrics, events: None });
        }
        Ok(self.files.as_mut().expect("they were just opened"))
    }

    /// Whether something is due after so many steps.
    fn is_due(&self, strategy: Strategy, every: u64, steps: u64) -> bool {
        match strategy {
            Strategy::No => false,
            _ if steps == self.config.max_steps => true,
            Strategy::Steps => steps.is_multiple_of(every),
            Strategy::Epoch => self.batches_per_epoch.is_some_and(|batches| {
                let epoch = |steps: u64| steps * self.config.gradient_accumulation_steps / batches;
                epoch(steps) > epoch(steps - 1)
            }),
        }
    }

    /// Evaluates the model, and says whether it is better than all before.
    fn evaluate_now(&mut self, run: &Run<M>, model: &M) -> Result<bool, TrainError> {
        let Some(evaluate) = &mut self.evaluate else { return Ok(false) };
        let (steps, started) = (run.next_step(), Instant::now());
        let step = steps - 1;
        let Evaluated { metrics, samples } = evaluate(model).map_err(|source| TrainError::Step { step, source })?;
        let seconds = started.elapsed().as_secs_f64();
        let (name, greater_is_better) = self.config.best_metric();
        let Some(metric) = metrics.get(name).copied() else {
            return Err(TrainError::UnknownMetric {
                metric: name.to_owned(),
                known: metrics.keys().cloned().collect(),
                nearest: nearest(name, metrics.keys().map(String::as_str)).map(str::to_owned),
            });
        };
        let metrics: BTreeMap<String, f64> =
            metrics.into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect();
        let files = self.files()?;
        let numbers = metrics.iter().map(|(name, value)| (name.as_str(), *value));
        files.numbers(step, numbers.chain([("eval_seconds", seconds)]))?;
        files.log.write(&EvaluationLine { step, metrics, samples: &samples })?;
        let threshold = self.config.early_stopping_threshold;
        let gain = |best: f64| if greater_is_better { metric - best } else { best - metric };
        // What is not a number is better than nothing.
        let gain = self.best.map_or(if metric.is_nan() { f64::NAN } else { f64::INFINITY }, |best| gain(best.metric));
        self.evaluations_since_best = if gain > threshold { 0 } else { self.evaluations_since_best + 1 };
        if gain > 0.0 {
            self.best = Some(Best { metric, global_step: steps });
            save_trained(&run.finished(model), &self.path().join("best"))?;
        }
        Ok(gain > 0.0)
    }

    fn save(&mut self, run: &Run<M>, model: &M) -> Result<(), TrainError> {
        let steps = run.next_step();
        // What is in a checkpoint is in the log.
        let files = self.files()?;
        files.log.sync()?;
        files.metrics.sync()?;
        let state = TrainerState {
            global_step: steps,
            config: self.config.clone(),
            identity: self.identity.clone(),
            best: self.best,
            evaluations_since_best: self.evaluations_since_best,
        };
        checkpoint::write(&checkpoint::path_of(self.path(), steps), model, run, &state)?;
        self.saved = Some(steps);
        // Those after this one are damaged, since the run went on from before them.
        let (mut older, newer): (Vec<u64>, Vec<u64>) = checkpoint::steps_in(self.path())?
            .into_iter()
            .filter(|step| *step != steps)
            .partition(|step| *step < steps);
        let kept = self.config.save_total_limit.map_or(usize::MAX, |limit| limit as usize - 1);
        older.truncate(older.len().saturating_sub(kept));
        older.retain(|step| self.best.is_none_or(|best| best.global_step != *step));
        older.into_iter().chain(newer).try_for_each(|step| run_dir::remove(&checkpoint::path_of(self.path(), step)))
    }

    fn is_out_of_patience(&self) -> bool {
        self.config.early_stopping_patience.is_some_and(|patience| self.evaluations_since_best >= patience)
    }
}

impl<M: Adapters> Observer<M> for RunRecorder<'_, M> {
    fn begin(&mut self, info: &RunInfo) -> Result<Control, TrainError> {
        let by_epoch = [("eval_strategy", self.config.eval_strategy), ("save_strategy", self.config.save_strategy)];
        for (field, strategy) in by_epoch {
            if strategy == Strategy::Epoch && self.batches_per_epoch.is_none() {
                let message = format!("`{field}` is \"epoch\", and nothing says how long one is (`with_epochs`)");
                return Err(TrainError::Contradiction { message });
            }
        }
        if self.config.eval_strategy != Strategy::No && self.evaluate.is_none() {
            let message = "`eval_strategy` is set, and there is nothing to evaluate by: give a validation split, or set \
                           `eval_strategy` to \"no\"";
            return Err(TrainError::Contradiction { message: message.to_owned() });
        }
        let files = self.files()?;
        files.log.keep_steps(info.first_step)?;
        files.metrics.keep_steps(info.first_step, |line| {
            let number = line.split(|byte| *byte == b',').next()?;
            str::from_utf8(number).ok()?.parse().ok()
        })?;
        if self.with_tensorboard {
            let path = self.path().join("events.out.tfevents");
            let mut events = EventFile::create(&path)?;
            // Those of the steps that are made; records of others cannot be cut off.
            for line in read_text(self.path().join("metrics.csv"), u64::MAX)?.lines().skip(1) {
                let mut fields = line.split(',');
                if let (Some(Ok(step)), Some(name), Some(Ok(value))) =
                    (fields.next().map(str::parse), fields.next(), fields.next().map(str::parse))
                {
                    events.add(step, [(name, value)])?;
                }
            }
            self.files()?.events = Some(events);
        }
        Ok(if self.is_out_of_patience() { Control::Stop } else { Control::GoOn })
    }

    fn step(&mut self, record: &StepRecord, run: &Run<M>, model: &M) -> Result<Control, TrainError> {
        let steps = run.next_step();
        if steps.is_multiple_of(self.config.logging_steps) || run.is_over() {
            let StepRecord { step, loss, penalty, learning_rate, grad_norm, tokens, seconds } = *record;
            let files = self.files()?;
            files.log.write(record)?;
            let speed = tokens as f64 / seconds.max(1e-9);
            let numbers = [
                ("loss", Some(loss)),
                ("penalty", Some(penalty).filter(|penalty| *penalty != 0.0)),
                ("learning_rate", Some(learning_rate)),
                ("grad_norm", Some(grad_norm)),
                ("seconds", Some(seconds)),
                ("tokens_per_second", Some(speed)),
                ("resident_bytes", resident_bytes()),
            ];
            files.numbers(step, numbers.into_iter().filter_map(|(name, value)| Some((name, value?))))?;
        }
        let TrainConfig { eval_strategy, eval_steps, save_strategy, save_steps, load_best_model_at_end, .. } =
            self.config;
        let is_best = self.is_due(eval_strategy, eval_steps, steps) && self.evaluate_now(run, model)?;
        if self.is_due(save_strategy, save_steps, steps) || (is_best && load_best_model_at_end) {
            self.save(run, model)?;
        }
        Ok(if self.is_out_of_patience() { Control::Stop } else { Control::GoOn })
    }

    fn end(&mut self, run: &mut Run<M>, model: &mut M) -> Result<(), TrainError> {
        self.complete = run.is_over() || self.is_out_of_patience();
        let is_kept = self.config.save_strategy != Strategy::No || !self.complete;
        if is_kept && self.saved != Some(run.next_step()) && run.next_step() > 0 {
            self.save(run, model)?;
        }
        if let Some(best) = self.best.filter(|_| self.complete && self.config.load_best_model_at_end)
            && best.global_step != run.next_step()
        {
            let path = checkpoint::path_of(self.path(), best.global_step);
            let state = checkpoint::open(&path)?;
            let state = checkpoint::load(&path, &state, model)?;
            *run = Run::resume(model, state)?;
        }
        Ok(())
    }
}

/// Writes what is trained of a model: an adapter as peft reads it, several by their names below `path`; the base as a file of
/// weights.
fn save_trained<M: Adapters>(model: &M, path: &Path) -> Result<(), TrainError> {
    let adapters = checkpoint::trained_adapters(model)?;
    for name in &adapters {
        model.save_adapter(name, if adapters.len() == 1 { path.to_owned() } else { path.join(name) })?;
    }
    if parameters(model).iter().any(|parameter| parameter.is_trainable() && parameter.adapter.is_none()) {
        let staged = AtomicDir::create(path)?;
        model.save_base(staged.path().join("model.safetensors"), Precision::F32)?;
        staged.commit()?;
    }
    Ok(())
}

/// The main memory of this process; where the system says.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}
