//! Runs in directories: what is in them, and that a run goes on from them to the same bits.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use sideburn_adapters::methods::{AdaLoraConfig, LoraConfig};
use sideburn_adapters::{Adapters, Key};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_testing::parameters;
use sideburn_train::{
    Evaluated, Observer, Restored, Run, RunDir, RunRecorder, Sample, StepRecord, Strategy, TrainConfig, TrainError,
    Trainer, evaluate_loss,
};
use tempfile::tempdir;

pub(super) const STEPS: u64 = 30;

fn base() -> T5 {
    let config = T5Config {
        vocab_size: 64,
        d_model: 16,
        d_kv: 4,
        d_ff: 32,
        num_layers: 1,
        num_heads: 4,
        dropout_rate: 0.2,
        ..T5Config::default()
    };
    T5::random(&config, Key::from_seed(7), &Device::flex().autodiff())
}

pub(super) fn with_lora() -> T5 {
    let mut model = base();
    let lora = LoraConfig { r: 4, lora_dropout: 0.1, ..LoraConfig::new(["q", "v"]) };
    model.attach("default", lora, Key::from_seed(8)).unwrap();
    model
}

/// Takes ranks away at steps 5 to 20.
fn with_adalora() -> T5 {
    let mut model = base();
    let adalora = AdaLoraConfig {
        init_r: 4,
        target_r: 2,
        tinit: 5,
        tfinal: 10,
        ..AdaLoraConfig::new(["q", "v"], STEPS as usize)
    };
    model.attach("default", adalora, Key::from_seed(8)).unwrap();
    model
}

pub(super) fn settings() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        gradient_accumulation_steps: 2,
        warmup_ratio: 0.1,
        eval_strategy: Strategy::Steps,
        eval_steps: 4,
        save_steps: 1,
        ..TrainConfig::new(STEPS)
    }
}

pub(super) fn batch(index: u64) -> Result<PromptBatch, Infallible> {
    let first = (index % 20) as u32;
    let rows = |first: u32| TokenRows::from_rows([[first, 6, 1].as_slice(), &[first + 1, 1]]).unwrap();
    Ok(PromptBatch::new(rows(5 + first), rows(30 + first)).unwrap())
}

fn evaluate(model: &T5) -> Result<Evaluated, Box<dyn std::error::Error + Send + Sync>> {
    let found = evaluate_loss(model, (50..53).map(batch), T5::token_losses)?;
    let sample = Sample { id: "test_0".into(), prediction: "tea".into(), reference: "Bob wants tea.".into() };
    Ok(Evaluated { samples: vec![sample], ..found })
}

/// Makes a run in a directory, or goes on with the one that is there. Returns whether it has come to its end.
pub(super) fn go(path: &Path, config: &TrainConfig, model: T5) -> Result<bool, TrainError> {
    go_watched(path, config, model, None::<StopAfter>)
}

fn go_watched(
    path: &Path,
    config: &TrainConfig,
    mut model: T5,
    watching: Option<impl Observer<T5>>,
) -> Result<bool, TrainError> {
    let directory =
        if path.join("config.toml").exists() { RunDir::open(path)? } else { RunDir::create(path, "seed = 42\n")? };
    let mut recorder = RunRecorder::new(directory, config, &model, "twenty batches").with_epochs(7);
    if config.eval_strategy != Strategy::No {
        recorder = recorder.evaluate(evaluate);
    }
    let Restored { state, damaged } = recorder.restore(&mut model)?;
    assert!(damaged.is_empty(), "{damaged:?}");
    let trainer = Trainer::new(config.clone())?.observe(watching).observe(&mut recorder);
    match state {
        Some(state) => trainer.resume(state, &mut model, batch, T5::token_losses)?,
        None => trainer.train(&mut model, batch, T5::token_losses)?,
    };
    recorder.finish(&model)
}

/// Ends a run, as a signal does.
struct StopAfter(u64);

impl Observer<T5> for StopAfter {
    fn step(&mut self, record: &StepRecord, _: &Run<T5>, _: &T5) -> Result<sideburn_train::Control, TrainError> {
        Ok(if record.step + 1 == self.0 { sideburn_train::Control::Stop } else { sideburn_train::Control::GoOn })
    }
}

/// The files below a directory, but for those that are not the same in every run.
pub(super) fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => {
                found.extend(files(&entry.path()).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)))
            }
            false => {
                found.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        let file = to.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

fn steps_in(path: &Path) -> Vec<u64> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> =
        entries.filter_map(|name| name.strip_prefix("checkpoint-").map(|step| step.parse().unwrap())).collect();
    steps.sort_unstable();
    steps
}

/// The weights, the optimiser's state, the log and what is made of them are the same, whenever there was a break.
#[test]
fn a_run_goes_on_from_every_step_to_the_same_bits() {
    let every = |steps| (1..STEPS).step_by(steps);
    for (name, start, breaks) in
        [("lora", with_lora(), every(9)), ("adalora", with_adalora(), every(1)), ("full", base().unfreeze(), every(13))]
    {
        let directory = tempdir().unwrap();
        let whole = directory.path().join("whole");
        assert!(go(&whole, &settings(), start.clone()).unwrap());
        assert_eq!(steps_in(&whole), (1..=STEPS).collect::<Vec<_>>());
        let log = fs::read_to_string(whole.join("training.jsonl")).unwrap();
        assert_eq!(log.lines().filter(|line| line.contains("eval_perplexity")).count(), 8, "{log}");
        assert!(!log.contains("seconds"), "{log}");
        let last = |path: &Path| {
            let mut files = files(&path.join(format!("checkpoint-{STEPS}")));
            // The settings there are those that the run ended with.
            files.retain(|name, _| name.ends_with(".safetensors"));
            assert!(files.len() >= 2);
            files
        };
        let config = TrainConfig { save_steps: 50, ..settings() };
        for k in breaks {
            let broken = directory.path().join(format!("broken-{k}"));
            copy(&whole.join(format!("checkpoint-{k}")), &broken.join(format!("checkpoint-{k}")));
            for file in ["config.toml", "training.jsonl", "metrics.csv"] {
                fs::copy(whole.join(file), broken.join(file)).unwrap();
            }
            assert!(go(&broken, &config, start.clone()).unwrap());
            assert_eq!(fs::read_to_string(broken.join("training.jsonl")).unwrap(), log, "{name}, after {k} steps");
            assert_eq!(last(&broken), last(&whole), "{name}, after {k} steps");
            assert_eq!(files(&broken.join("final")), files(&whole.join("final")), "{name}, after {k} steps");
            let metrics = fs::read_to_string(broken.join("metrics.csv")).unwrap();
            assert_eq!(metrics.lines().filter(|line| line.contains(",loss,")).count() as u64, STEPS);
            assert_eq!(metrics.matches("step,metric,value").count(), 1);
        }
        // A run that is over stays as it is.
        let before = files(&whole);
        assert!(go(&whole, &settings(), start.clone()).unwrap());
        assert_eq!(files(&whole), before);
    }
}

#[test]
fn evaluation_changes_nothing() {
    let directory = tempdir().unwrap();
    let without = TrainConfig { eval_strategy: Strategy::No, save_strategy: Strategy::No, ..settings() };
    assert!(go(&directory.path().join("with"), &settings(), with_lora()).unwrap());
    assert!(go(&directory.path().join("without"), &without, with_lora()).unwrap());
    let [with, without] = ["with", "without"].map(|name| files(&directory.path().join(name).join("final")));
    assert_eq!(with, without);
    assert!(steps_in(&directory.path().join("without")).is_empty());
}

#[test]
fn an_evaluation_is_of_all_tokens_without_dropout() {
    let model = with_lora();
    let all = evaluate_loss(&model, (0..6).map(batch), T5::token_losses).unwrap();
    assert_eq!(all, evaluate_loss(&model, (0..6).map(batch), T5::token_losses).unwrap());
    let each: Vec<f64> =
        (0..6).map(|index| evaluate_loss(&model, [batch(index)], T5::token_losses).unwrap().metrics["loss"]).collect();
    // All have the same number of tokens.
    let mean = each.iter().sum::<f64>() / 6.0;
    assert!((all.metrics["loss"] - mean).abs() < 1e-6, "{} {mean}", all.metrics["loss"]);
    assert!((all.metrics["perplexity"] - mean.exp()).abs() < 1e-4);
    let nothing = evaluate_loss(&model, std::iter::empty::<Result<PromptBatch, Infallible>>(), T5::token_losses);
    assert_eq!(nothing.unwrap_err().to_string(), "the evaluation failed: there is nothing to evaluate");
}

#[test]
fn a_run_that_is_stopped_has_a_checkpoint_and_no_end() {
    let directory = tempdir().unwrap();
    let [path, whole] = ["run", "whole"].map(|name| directory.path().join(name));
    let config = TrainConfig { save_steps: 100, ..settings() };
    assert!(!go_watched(&path, &config, with_lora(), Some(StopAfter(7))).unwrap());
    assert_eq!(steps_in(&path), [7]);
    assert!(!path.join("final").exists());
    assert!(go(&path, &config, with_lora()).unwrap());
    assert!(go(&whole, &config, with_lora()).unwrap());
    assert_eq!(files(&path.join("final")), files(&whole.join("final")));
    assert_eq!(steps_in(&path), [7, STEPS]);
}

#[test]
fn the_best_model_is_kept_and_loaded() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("run");
    // The wrong way round, so that the first evaluation is the best: nothing gets better than before any training.
    let config = TrainConfig {
        eval_strategy: Strategy::Steps,
        load_best_model_at_end: true,
        metric_for_best_model: Some("eval_loss".into()),
        greater_is_better: Some(true),
        early_stopping_patience: Some(3),
        save_total_limit: Some(1),
        save_steps: 5,
        ..settings()
    };
    assert!(go(&path, &config, with_lora()).unwrap());
    // Evaluated after 4, 8, 12 and 16 steps.
    assert_eq!(steps_in(&path), [4, 16]);
    let last_line = fs::read_to_string(path.join("training.jsonl")).unwrap().lines().last().unwrap().to_owned();
    assert!(last_line.starts_with("{\"step\":15,\"eval_loss\":"), "{last_line}");
    assert!(last_line.contains("\"samples\":[{\"id\":\"test_0\",\"prediction\":\"tea\""), "{last_line}");
    assert_eq!(files(&path.join("final")), files(&path.join("best")));
    // What is loaded is what was there after 4 steps.
    let steps = directory.path().join("steps");
    go_watched(&steps, &config, with_lora(), Some(StopAfter(4))).unwrap();
    let adapter = |path: &Path| fs::read(path.join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(&steps.join("checkpoint-4/adapters/default")), adapter(&path.join("final")));
    // It is over, though not all steps are made.
    let before = files(&path);
    assert!(go(&path, &config, with_lora()).unwrap());
    assert_eq!(files(&path), before);
}

#[test]
fn epochs_end_where_the_data_does() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("run");
    // Seven micro-batches an epoch, two a step.
    let (eval_strategy, save_strategy) = (Strategy::Epoch, Strategy::Epoch);
    let config = TrainConfig { eval_strategy, save_strategy, max_steps: 15, ..settings() };
    assert!(go(&path, &config, with_lora()).unwrap());
    assert_eq!(steps_in(&path), [4, 7, 11, 14, 15]);
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_others() {
    let directory = tempdir().unwrap();
    let [path, whole] = ["run", "whole"].map(|name| directory.path().join(name));
    let config = TrainConfig { save_steps: 5, ..settings() };
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("checkpoint-10"), "in the way").unwrap();
    let error = go(&path, &config, with_lora()).unwrap_err().to_string();
    assert!(error.contains("checkpoint-10\" is in the way"), "{error}");
    assert!(path.join("checkpoint-5/manifest.json").exists());
    fs::remove_file(path.join("checkpoint-10")).unwrap();
    assert!(go(&path, &config, with_lora()).unwrap());
    assert!(go(&whole, &config, with_lora()).unwrap());
    assert_eq!(files(&path.join("checkpoint-30")), files(&whole.join("checkpoint-30")));
    assert_eq!(fs::read(path.join("training.jsonl")).unwrap(), fs::read(whole.join("training.jsonl")).unwrap());
}

fn restored(path: &Path, config: &TrainConfig, model: &mut T5) -> Result<Restored, TrainError> {
    RunRecorder::new(RunDir::open(path)?, config, model, "twenty batches").restore(model)
}

/// Each file of a checkpoint damaged in every way that is told apart: at every byte of the small ones.
#[test]
fn a_damaged_checkpoint_is_told_from_a_good_one() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("run");
    let config = TrainConfig { save_steps: 50, ..settings() };
    let start = with_lora();
    go_watched(&path, &config, start.clone(), Some(StopAfter(4))).unwrap();
    let last = path.join("checkpoint-4");
    let restore = || {
        let mut model = start.clone();
        restored(&path, &config, &mut model).map(|restored| (restored.state.unwrap(), parameters(&model)))
    };
    let whole = restore().unwrap();
    let check = |what: &str, may_be_harmless: bool| match restore() {
        // Such as the line break at the end of the manifest.
        Ok(found) => assert!(may_be_harmless && found == whole, "{what}"),
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("checkpoint-4: the checkpoint cannot be used: "), "{what}: {error}");
        }
    };
    for (name, bytes) in files(&last) {
        let (file, is_manifest) = (last.join(&name), name == "manifest.json");
        let step = if is_manifest || name == "trainer_state.json" { 1 } else { bytes.len().div_ceil(20) };
        for length in (0..bytes.len()).step_by(step) {
            fs::write(&file, &bytes[..length]).unwrap();
            check(&format!("{name}, {length} bytes"), is_manifest);
        }
        for at in (0..bytes.len()).step_by(3 * step) {
            let mut other = bytes.clone();
            other[at] ^= 1 << (at % 8);
            fs::write(&file, other).unwrap();
            check(&format!("{name}, byte {at}"), is_manifest);
        }
        fs::remove_file(&file).unwrap();
        check(&format!("no {name}"), false);
        fs::write(&file, bytes).unwrap();
    }
    assert_eq!(restore().unwrap(), whole);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_used() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("run");
    let config = TrainConfig { save_steps: 2, ..settings() };
    go_watched(&path, &config, with_lora(), Some(StopAfter(4))).unwrap();
    for (name, bytes) in files(&path.join("checkpoint-4")) {
        let file = path.join("checkpoint-4").join(&name);
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        let Restored { state, damaged } = restored(&path, &config, &mut with_lora()).unwrap();
        assert_eq!(state.unwrap().step, 2, "{name}");
        let error = damaged[0].to_string();
        assert!(error.contains("checkpoint-4: the checkpoint cannot be used: ") && error.contains(&name), "{error}");
        fs::write(&file, bytes).unwrap();
    }
    // If all are damaged, the run does not begin anew in silence.
    for step in [2, 4] {
        fs::remove_file(path.join(format!("checkpoint-{step}/model.safetensors"))).unwrap();
    }
    let error = restored(&path, &config, &mut with_lora()).unwrap_err().to_string();
    assert!(error.contains("checkpoint-4") && error.contains("model.safetensors\" does not exist"), "{error}");
}

/// A damaged checkpoint does not count as one of those that are kept.
#[test]
fn the_last_good_checkpoint_is_never_removed() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("run");
    let config = TrainConfig { save_steps: 2, save_total_limit: Some(2), eval_strategy: Strategy::No, ..settings() };
    go_watched(&path, &config, with_lora(), Some(StopAfter(6))).unwrap();
    assert_eq!(steps_in(&path), [4, 6]);
    fs::write(path.join("checkpoint-6/trainer_state.json"), "{").unwrap();
    let mut model = with_lora();
    let mut recorder = RunRecorder::new(RunDir::open(&path).unwrap(), &config, &model, "twenty batches");
    let state = recorder.restore(&mut model).unwrap().state.unwrap();
    assert_eq!(state.step, 4);
    let trainer = Trainer::new(config.clone()).unwrap().observe(StopAfter(5)).observe(&mut recorder);
    trainer.resume(state, &mut model, batch, T5::token_losses).unwrap();
    recorder.finish(&model).unwrap();
    assert_eq!(steps_in(&path), [4, 5]);
    assert!(go(&path, &config, with_lora()).unwrap());
    assert_eq!(steps_in(&path), [28, 30]);
}

#[test]
fn a_run_goes_on_with_what_it_began_with() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("run");
    go_watched(&path, &settings(), with_lora(), Some(StopAfter(2))).unwrap();
    let refused = |config: &TrainConfig, mut model: T5| restored(&path, config, &mut model).unwrap_err().to_string();
    let other = TrainConfig { learning_rate: 2e-2, weight_decay: 0.5, save_steps: 9, ..settings() };
    assert_eq!(
        refused(&other, with_lora()),
        "the run cannot go on with what it did not begin with: `learning_rate` was 0.01 and is 0.02, `weight_decay` was \
         0.0 and is 0.5; begin another one"
    );
    let config = base().config().clone();
    let mut other = T5::random(&config, Key::from_seed(9), &Device::flex().autodiff());
    other.attach("default", LoraConfig { r: 4, ..LoraConfig::new(["q", "v"]) }, Key::from_seed(8)).unwrap();
    let error = refused(&settings(), other);
    assert!(error.contains("the base model was v1-"), "{error}");
    let mut wider = base();
    wider.attach("default", LoraConfig { r: 5, ..LoraConfig::new(["q", "v"]) }, Key::from_seed(8)).unwrap();
    let error = refused(&settings(), wider);
    assert!(error.contains("lora_A.weight is (F32, [4, 16]), expected (F32, [5, 16])"), "{error}");
    let mut more = base();
    more.attach("default", LoraConfig { r: 4, ..LoraConfig::new(["q", "v", "k"]) }, Key::from_seed(8)).unwrap();
    let error = refused(&settings(), more);
    assert!(error.contains("which is trained"), "{error}");

    let model = with_lora();
    let data = RunRecorder::new(RunDir::open(&path).unwrap(), &settings(), &model, "other").restore(&mut with_lora());
    let error = data.unwrap_err().to_string();
    assert!(error.contains("the data was twenty batches and is other"), "{error}");

    let manifest = path.join("checkpoint-2/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let error = refused(&settings(), with_lora());
    assert!(error.contains("checkpoint-2: a checkpoint of format 2, and this release reads 1"), "{error}");
}

#[test]
fn a_directory_has_one_run_and_one_process() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("some/run");
    let error = RunDir::open(&path).unwrap_err().to_string();
    assert!(error.contains("there is no run in it"), "{error}");
    let held = RunDir::create(&path, "seed = 1\n").unwrap();
    assert_eq!(held.settings(), "seed = 1\n");
    let error = RunDir::open(&path).unwrap_err().to_string();
    let process = std::process::id();
    assert!(error.contains(&format!("another process has it, process {process};")), "{error}");
    drop(held);
    assert_eq!(fs::read_to_string(path.join(".lock")).unwrap(), "");
    let error = RunDir::create(&path, "seed = 2\n").unwrap_err().to_string();
    assert!(error.contains("there is a run in it already"), "{error}");
    // What a process leaves that was killed.
    fs::write(path.join(".lock"), "process 1\n").unwrap();
    fs::create_dir_all(path.join(".checkpoint-3.tmp-abc/adapter")).unwrap();
    fs::create_dir_all(path.join(".checkpoint-2.tmp-removed")).unwrap();
    fs::write(path.join(".tmp-xyz"), "half").unwrap();
    let again = RunDir::open(&path).unwrap();
    assert_eq!(again.settings(), "seed = 1\n");
    assert_eq!(files(&path).into_keys().collect::<Vec<_>>(), [".lock", "config.toml"]);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
}
