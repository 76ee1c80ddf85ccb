//! `sideburn train`: a run in a directory, from settings.

mod ranks;
mod settings;

use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use sideburn::adapters::methods::MethodRegistry;
use sideburn::data::{DataError, TokenizedSet, tokenize_cached};
use sideburn::eval::{Curve, curves_to_html};
use sideburn::files::{read_text, write_atomic};
use sideburn::nn::read_generation_config;
use sideburn::prelude::*;
use sideburn::train::{
    Control, Evaluated, Observer, Ranks, Restored, Run, RunDir, RunRecorder, Sample, StepRecord, Strategy, TrainError,
    evaluate_loss, share_state,
};
use sideburn::{ManyConfig, generate_many};

use crate::hub;
use crate::interrupt::stop_on_signals;
use crate::loading::with_progress;
use crate::report::{Finding, Report, in_line, shown, shown_in_line, tell};
use ranks::{agree, check_same, smallest_batch_size};
use settings::{Reporter, Settings};

/// How many of the summaries of an evaluation are in the log.
const SAMPLES: usize = 3;

/// Train an adapter, or a whole model, in a directory that a run goes on from
///
/// Without any flag, LoRA teaches the small T5 of the repository to summarise its sample of DialogSum. Settings are called as
/// in transformers' TrainingArguments; --print-config shows all. The directory has the settings (config.toml), a log
/// (training.jsonl, metrics.csv, report.html), checkpoints, and what was trained (best, final). After Ctrl-C, or a crash, --resume goes on
/// to the same result as without a break.
///
/// Built with the feature mpi and started by mpirun, several processes share the micro-batches of a step
/// (gradient_accumulation_steps) out; the first writes. See docs/scaling.md.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A TOML file of settings, such as the config.toml of another run
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// A setting, in the place of that of the file: learning_rate=1e-3, adapter.r=16
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The directory of the run, which must not have another
    #[arg(long, value_name = "DIR", default_value = "out/train", conflicts_with = "resume")]
    output: PathBuf,
    /// Go on with the run in this directory
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Print the settings as TOML, and do not train
    #[arg(long)]
    print_config: bool,
}

/// What became of a run.
#[derive(Serialize)]
pub(crate) struct Trained {
    directory: PathBuf,
    /// What was trained.
    adapter: PathBuf,
    steps: u64,
    trainable: u64,
    parameters: u64,
    /// The loss of the last step.
    loss: Option<f64>,
}

/// Settings that were asked for.
#[derive(Serialize)]
#[serde(transparent)]
struct Shown(Settings);

/// What there is to print; nothing on ranks that do not write.
pub(crate) fn run(args: &Args) -> anyhow::Result<Option<Report>> {
    let ranks = sideburn::mpi::ranks()?;
    let ranks = &*ranks;
    let is_writer = ranks.rank() == 0;
    // Only the rank that writes need see the directory of the run.
    let resumed =
        agree(ranks, args.resume.as_ref().filter(|_| is_writer).map(RunDir::open).transpose().map_err(Into::into))?;
    let settings = agree(ranks, read_settings(args, ranks, resumed.as_ref()))?;
    if args.print_config {
        return Ok(is_writer.then(|| Report::new(Shown(settings))));
    }
    let finds_batch_size = settings.auto_find_batch_size;
    let Prepared { settings, data, mut model, fingerprint, generation } = agree(ranks, prepare(settings))?;
    let settings = if finds_batch_size { smallest_batch_size(ranks, settings)? } else { settings };
    if finds_batch_size && is_writer {
        let (examples, count) = (settings.per_device_train_batch_size, settings.training.gradient_accumulation_steps);
        tell!("micro-batches of {examples} fit; a step has {count}\n");
    }
    let (sampler, settings) = agree(ranks, resolve(settings, &data))?;
    let config = settings.training.clone();
    check_same(ranks, &settings, &fingerprint, &data.hash())?;
    let parameters = ParameterReport::of(&model);

    let path = args.resume.as_ref().unwrap_or(&args.output).clone();
    let resume = format!("sideburn train --resume {}", shown_in_line(&path));
    let record = || -> anyhow::Result<_> {
        let directory = match resumed {
            Some(directory) => directory,
            None => RunDir::create(&args.output, &settings.to_text())?,
        };
        let mut recorder =
            RunRecorder::over(directory, &config, fingerprint, data.hash()).with_epochs(sampler.batches_per_epoch());
        if config.eval_strategy != Strategy::No {
            recorder = recorder.evaluate(|model: &AutoModel| data.evaluate(model, &settings, &generation));
        }
        if settings.report_to.contains(&Reporter::Tensorboard) {
            recorder = recorder.with_tensorboard();
        }
        let Restored { state, damaged } = recorder.restore(&mut model)?;
        for error in damaged {
            tell!("warning: {}; the one before it is used\n", in_line(&error.to_string()));
        }
        Ok((recorder, state))
    };
    let recorded = agree(ranks, is_writer.then(record).transpose())?;
    let (mut recorder, state) = recorded.map_or((None, None), |(recorder, state)| (Some(recorder), state));
    let state = share_state(ranks, &mut model, state)?;
    let stop = Stop(stop_on_signals()?);
    let batches = |step| data.train.batch(&sampler.batch(step));
    let progress = is_writer.then(ProgressLine::new);
    let trainer = Trainer::new(config.clone())?.over(ranks).observe(progress).observe(recorder.as_mut()).observe(stop);
    let report = match state {
        Some(state) => trainer.resume(state, &mut model, batches, AutoModel::token_losses),
        None => trainer.train(&mut model, batches, AutoModel::token_losses),
    };
    let report =
        report.with_context(|| format!("the run ended before its end; what it has saved goes on with {resume}"))?;
    let Some(recorder) = recorder else { return Ok(None) };
    let is_complete = recorder.finish(&model)?;
    write_report(&path)?;
    if !is_complete {
        bail!("stopped; go on with {resume}");
    }
    if settings.adapter.is_empty() {
        ["best", "final"].iter().try_for_each(|name| complete(&data.model, &path.join(name)))?;
    }
    let last = report.steps.last();
    Ok(Some(Report::new(Trained {
        adapter: path.join("final"),
        directory: path,
        steps: last.map_or(settings.training.max_steps, |record| record.step + 1),
        trainable: parameters.trainable,
        parameters: parameters.all,
        loss: last.map(|record| record.loss),
    })))
}

/// The settings of the run, which are those of its directory if it goes on.
fn read_settings(args: &Args, ranks: &dyn Ranks, resumed: Option<&RunDir>) -> anyhow::Result<Settings> {
    let settings = match &args.resume {
        None => Settings::read(args.config.as_deref(), &args.set)?,
        Some(path) => {
            let text = ranks.broadcast(resumed.map(|directory| directory.settings().into()).unwrap_or_default())?;
            resume_settings(path, &String::from_utf8(text)?, &args.set)?
        }
    };
    settings.check()?;
    Ok(settings)
}

/// All that a run needs but its directory and the order of its examples.
struct Prepared {
    settings: Settings,
    data: Data,
    model: AutoModel,
    /// That of the base.
    fingerprint: String,
    generation: GenerationConfig,
}

fn prepare(settings: Settings) -> anyhow::Result<Prepared> {
    let data = Data::read(&settings)?;
    let mut model = open_model(&settings, &data.model)?;
    data.tokenizer.check_fits(model.vocab_size())?;
    let generation = read_generation_config(&settings.generation, model.default_generation_config());
    let generation = generation.map_err(anyhow::Error::msg).context("`generation`")?;
    let fingerprint = model.fingerprint();
    attach(&mut model, &settings)?;
    let settings = match settings.auto_find_batch_size {
        true => settings.with_found_batch_size(&model, &data.train)?,
        false => settings,
    };
    Ok(Prepared { settings, data, model, fingerprint, generation })
}

/// The order of examples, and the settings with nothing left open.
fn resolve(settings: Settings, data: &Data) -> anyhow::Result<(Box<dyn Sampler>, Settings)> {
    let sampler = settings.sampler(&data.train)?;
    let settings = settings.resolved(sampler.batches_per_epoch());
    settings.training.validate()?;
    Ok((sampler, settings))
}

/// The settings of a run that goes on: those that it began with, but for such as may change.
fn resume_settings(directory: &Path, text: &str, flags: &[String]) -> anyhow::Result<Settings> {
    let path = directory.join("config.toml");
    let begun = Settings::default().with_text(text).with_context(|| shown_in_line(&path))?;
    for flag in flags {
        let name = flag.split('=').next().unwrap_or_default().trim();
        ensure!(
            TrainConfig::MAY_CHANGE.contains(&name),
            "--set {}: a run goes on with the settings that it began with, but for {}; begin another one with --config {}",
            in_line(flag),
            TrainConfig::MAY_CHANGE.join(", "),
            shown_in_line(&path)
        );
    }
    begun.with_flags(flags)
}

fn open_model(settings: &Settings, directory: &Path) -> anyhow::Result<AutoModel> {
    let device = parse_device(&settings.device)?.autodiff();
    with_progress(directory, || Ok(AutoModel::from_dir(directory, &device)?))
}

/// Sets what is trained to train.
fn attach(model: &mut AutoModel, settings: &Settings) -> anyhow::Result<()> {
    if settings.adapter.is_empty() {
        *model = model.clone().unfreeze();
        return Ok(());
    }
    let method = MethodRegistry::peft().read(&Value::Object(settings.adapter.clone())).context("`adapter`")?;
    model.attach_read("default", method, Key::from_seed(settings.training.seed)).context("`adapter`")?;
    Ok(())
}

/// The model that is trained, and what it is shown.
struct Data {
    model: PathBuf,
    tokenizer: Tokenizer,
    train: TokenizedSet,
    /// What it is evaluated by, if it is.
    validation: Option<(Vec<Example>, TokenizedSet)>,
}

impl Data {
    fn read(settings: &Settings) -> anyhow::Result<Self> {
        let asset = |name: &str| -> anyhow::Result<PathBuf> {
            let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets")).join(name);
            ensure!(
                path.is_dir(),
                "the model and the data that come with the repository are not on this machine; set `model` and `data`"
            );
            Ok(path)
        };
        let model = settings.model.as_deref().map_or_else(|| asset("t5-mini"), hub::model)?;
        let tokenizer = Tokenizer::from_dir(&model)?;
        let directory = settings.data.clone().map_or_else(|| asset("dialogsum-sample"), Ok)?;
        let dataset = settings.dataset()?;
        let limits =
            Limits { max_source_length: settings.max_source_length, max_target_length: settings.max_target_length };
        let read = |split| -> Result<_, DataError> { Ok(dataset.read(&directory, split)?.examples) };
        let tokens = |examples: &[Example]| match &settings.token_cache {
            Some(cache) => tokenize_cached(cache, examples, &tokenizer, &dataset.template, limits, |_| ()),
            None => tokenize(examples, &tokenizer, &dataset.template, limits),
        };
        let mut train = read(Split::Train)?;
        if let Some(subsample) = settings.subsample {
            let chosen = subsample.indices(train.len(), settings.training.seed).context("`subsample`")?;
            train = chosen.into_iter().map(|index| train[index].clone()).collect();
        }
        let train = tokens(&train)?;
        ensure!(!train.is_empty(), "{}: there is no example to train on", shown_in_line(&directory));
        let validation = match settings.training.eval_strategy {
            Strategy::No => None,
            _ => {
                let examples = read(Split::Validation).context(
                    "`eval_strategy` is set, and there is nothing to evaluate by; give a validation split, or set \
                     `eval_strategy` to \"no\"",
                )?;
                ensure!(!examples.is_empty(), "{}: the validation split is empty", shown_in_line(&directory));
                let set = tokens(&examples)?;
                Some((examples, set))
            }
        };
        Ok(Self { model, tokenizer, train, validation })
    }

    /// A short text that tells these examples, as the model sees them, from others.
    fn hash(&self) -> String {
        let sequences = self.train.examples.iter().flat_map(|example| [&example.prompt, &example.target]);
        let tokens = sequences.flat_map(|ids| ids.iter().map(|id| u64::from(*id) + 1).chain([0]));
        format!("v1-{:016x}", tokens.fold(Key::from_seed(0), Key::fold_in).start())
    }

    /// The loss over the whole validation split, and the scores of what the model writes for some of it.
    fn evaluate(
        &self,
        model: &AutoModel,
        settings: &Settings,
        generation: &GenerationConfig,
    ) -> Result<Evaluated, Box<dyn std::error::Error + Send + Sync>> {
        let (examples, set) = self.validation.as_ref().ok_or("there is no validation split")?;
        let all: Vec<usize> = (0..set.len()).collect();
        let batches = all.chunks(settings.per_device_eval_batch_size).map(|indices| set.batch(indices));
        let mut found = evaluate_loss(model, batches, AutoModel::token_losses)?;
        if !settings.predict_with_generate {
            return Ok(found);
        }
        let count = settings.max_predict_samples.min(set.len());
        let chosen: Vec<usize> = (0..count).map(|number| number * set.len() / count).collect();
        let prompts: Vec<&Vec<u32>> = chosen.iter().map(|index| &set.examples[*index].prompt).collect();
        let config = ManyConfig::new(generation.clone());
        let written = generate_many(model, &self.tokenizer, &prompts, &config, |_| ControlFlow::Continue(()));
        let mut predictions = Vec::new();
        for texts in written {
            predictions.push(texts?.swap_remove(0));
        }
        let examples: Vec<Example> = chosen.iter().map(|index| examples[*index].clone()).collect();
        let rouge = RougeScorer::all().with_stemmer(true);
        for scored in Score::score(&rouge, &examples, &predictions)? {
            let told: Vec<f64> = scored.values.into_iter().flatten().collect();
            found.metrics.insert(scored.name, told.iter().sum::<f64>() / told.len() as f64);
        }
        let sample = |(example, prediction): (&Example, &String)| Sample {
            id: example.id.clone(),
            prediction: prediction.clone(),
            reference: example.targets.first().cloned().unwrap_or_default(),
        };
        found.samples = examples.iter().zip(&predictions).take(SAMPLES).map(sample).collect();
        Ok(found)
    }
}

/// Writes the numbers of a run as a page of curves.
fn write_report(run: &Path) -> anyhow::Result<()> {
    let mut curves: Vec<Curve> = Vec::new();
    for line in read_text(run.join("metrics.csv"), u64::MAX)?.lines().skip(1) {
        let mut fields = line.splitn(3, ',');
        let (Some(step), Some(name), Some(value)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (Ok(step), Ok(value)) = (step.parse(), value.parse()) else { continue };
        match curves.iter_mut().find(|curve| curve.name == name) {
            Some(curve) => curve.points.push((step, value)),
            None => curves.push(Curve { name: name.to_owned(), points: vec![(step, value)] }),
        }
    }
    Ok(write_atomic(run.join("report.html"), curves_to_html(&shown(run), &curves).as_bytes())?)
}

/// Puts the files of a model beside weights, so that they are a model directory.
fn complete(model: &Path, directory: &Path) -> anyhow::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(model)? {
        let name = entry?.file_name();
        let is_of_model = name.to_str().is_some_and(|name| {
            (name.ends_with(".json") && !name.ends_with(".index.json"))
                || name.ends_with(".model")
                || name == "merges.txt"
        });
        if is_of_model {
            write_atomic(directory.join(&name), &fs::read(model.join(&name)).with_context(|| shown(model))?)?;
        }
    }
    Ok(())
}

/// Ends a run after a step when a signal has come.
struct Stop(Arc<AtomicBool>);

impl<M> Observer<M> for Stop {
    fn step(&mut self, _: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        Ok(if self.0.load(Ordering::Relaxed) { Control::Stop } else { Control::GoOn })
    }
}

impl Finding for Shown {}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_text())
    }
}

impl Finding for Trained {}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directory, adapter, steps, trainable, parameters, loss, .. } = self;
        writeln!(f, "{}", ParameterReport { trainable: *trainable, all: *parameters })?;
        let loss = loss.map_or_else(String::new, |loss| format!(", loss {loss:.4}"));
        writeln!(f, "{steps} steps{loss}\n{}\n{}", shown(adapter), shown(directory))
    }
}
