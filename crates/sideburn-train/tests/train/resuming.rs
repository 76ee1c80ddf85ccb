//! A run that is resumed at any step goes on as if it had never stopped.

use std::convert::Infallible;

use burn::module::Module;
use burn::tensor::{Device, TensorData};
use sideburn_adapters::methods::{AdaLoraConfig, LoraConfig};
use sideburn_adapters::{Adapters, Key};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_testing::parameters;
use sideburn_train::{Control, JsonLinesLog, Observer, Run, RunState, StepRecord, TrainConfig, TrainError, Trainer};
use tempfile::tempdir;

const STEPS: u64 = 6;

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

fn with_lora() -> T5 {
    let mut model = base();
    let lora = LoraConfig { r: 4, lora_dropout: 0.1, ..LoraConfig::new(["q", "v"]) };
    model.attach("default", lora, Key::from_seed(8)).unwrap();
    model
}

/// Takes ranks away at steps 1 to 4.
fn with_adalora() -> T5 {
    let mut model = base();
    let adalora =
        AdaLoraConfig { init_r: 4, target_r: 2, tinit: 1, tfinal: 1, ..AdaLoraConfig::new(["q", "v"], STEPS as usize) };
    model.attach("default", adalora, Key::from_seed(8)).unwrap();
    model
}

fn settings() -> TrainConfig {
    let (gradient_accumulation_steps, warmup_steps) = (2, 2);
    TrainConfig { learning_rate: 1e-2, gradient_accumulation_steps, warmup_steps, ..TrainConfig::new(STEPS) }
}

fn batch(index: u64) -> Result<PromptBatch, Infallible> {
    let rows = |first: u32| TokenRows::from_rows([[first, 6, 1].as_slice(), &[first + 1, 1]]).unwrap();
    Ok(PromptBatch::new(rows(5 + index as u32), rows(30 + index as u32)).unwrap())
}

/// Keeps the model and the run after every step, as a checkpoint does: as text.
#[derive(Default)]
struct Keep {
    checkpoints: Vec<(T5, String)>,
}

impl Observer<T5> for Keep {
    fn step(&mut self, record: &StepRecord, run: &Run<T5>, model: &T5) -> Result<Control, TrainError> {
        assert_eq!(run.next_step(), record.step + 1);
        self.checkpoints.push((model.clone(), serde_json::to_string(&run.state(model)).unwrap()));
        Ok(Control::GoOn)
    }
}

#[test]
fn at_any_step_with_any_method() {
    for (name, start) in [("lora", with_lora()), ("adalora", with_adalora()), ("full", base().unfreeze())] {
        let mut keep = Keep::default();
        let mut model = start.clone();
        let trainer = Trainer::new(settings()).unwrap().observe(&mut keep);
        let report = trainer.train(&mut model, batch, T5::token_losses).unwrap();
        assert_ne!(parameters(&model), parameters(&start), "{name}");
        assert_eq!(keep.checkpoints.len() as u64, STEPS);
        for (after, (mut resumed, state)) in keep.checkpoints.into_iter().enumerate() {
            let state: RunState = serde_json::from_str(&state).unwrap();
            let trainer = Trainer::new(settings()).unwrap();
            let rest = trainer.resume(state, &mut resumed, batch, T5::token_losses).unwrap();
            let expected: Vec<f64> = report.losses()[after + 1..].to_vec();
            assert_eq!(rest.losses(), expected, "{name}, after step {after}");
            assert_eq!(parameters(&resumed), parameters(&model), "{name}, after step {after}");
        }
    }
}

/// The log of a run that is resumed is that of one that never stopped, whatever a killed process has left at its end.
#[test]
fn the_log_goes_on_where_the_run_does() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("log.jsonl");
    let steps = || -> Vec<(u64, f64)> {
        let text = std::fs::read_to_string(&path).unwrap();
        let record = |line: &str| serde_json::from_str::<StepRecord>(line).unwrap();
        text.lines().map(record).map(|record| (record.step, record.loss)).collect()
    };
    let mut keep = Keep::default();
    let trainer = Trainer::new(settings()).unwrap().observe(&mut keep).observe(JsonLinesLog::create(&path).unwrap());
    trainer.train(&mut with_lora(), batch, T5::token_losses).unwrap();
    let whole = steps();
    assert_eq!(whole.len() as u64, STEPS);

    let mut log = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut log, b"{\"step\": 6, \"lo").unwrap();
    let (mut model, state) = keep.checkpoints.swap_remove(2);
    let trainer = Trainer::new(settings()).unwrap().observe(JsonLinesLog::create(&path).unwrap());
    trainer.resume(serde_json::from_str(&state).unwrap(), &mut model, batch, T5::token_losses).unwrap();
    assert_eq!(steps(), whole);

    let trainer = Trainer::new(settings()).unwrap().observe(JsonLinesLog::create(&path).unwrap());
    trainer.train(&mut with_lora(), batch, T5::token_losses).unwrap();
    assert_eq!(steps(), whole, "a new run takes the place of the old one");
}

#[test]
fn moments_have_names_that_do_not_change() {
    let state = |mut model: T5| {
        let mut run = Run::begin(&model, &settings()).unwrap();
        run.step(&mut model, &[batch(0).unwrap()], &T5::token_losses).unwrap();
        run.state(&model)
    };
    let (first, again) = (state(with_lora()), state(with_lora()));
    assert_eq!(first, again);
    let name = "default:encoder.block.0.layer.0.SelfAttention.q.lora_A.weight";
    assert_eq!(first.optimizer[name]["step"].as_slice::<i64>().unwrap(), [1]);
    assert_eq!(first.optimizer.len(), 12, "{:?}", first.optimizer.keys());
    let full = state(base().unfreeze());
    assert!(full.optimizer.contains_key("shared.weight"), "{:?}", full.optimizer.keys());
    assert!(full.optimizer.contains_key("decoder.block.0.layer.2.DenseReluDense.wi.weight"));
}

#[test]
fn states_of_other_runs_are_refused() {
    let mut model = with_lora();
    let mut run = Run::begin(&model, &settings()).unwrap();
    run.step(&mut model, &[batch(0).unwrap()], &T5::token_losses).unwrap();
    let state = run.state(&model);
    let refused = |model: &T5, state: RunState| Run::resume(model, state).err().expect("an error").to_string();

    let error = refused(&base().unfreeze(), state.clone());
    assert!(error.contains("the model has no trained \"default:decoder.block.0"), "{error}");
    let mut other = base();
    other.attach("default", LoraConfig { r: 2, ..LoraConfig::new(["q", "v"]) }, Key::from_seed(8)).unwrap();
    let error = refused(&other, state.clone());
    assert!(error.contains("lora_A.weight has the shape [2, 16], its state \"exp_avg\" has [4, 16]"), "{error}");
    let adapters = [("default".to_owned(), [("x".to_owned(), [1.0f32].into())].into())].into();
    let error = refused(&model, RunState { adapters, ..state.clone() });
    assert!(error.contains("the training of the adapter \"default\" cannot go on"), "{error}");
    let layer = "encoder.block.0.layer.0.SelfAttention.q";
    for (name, data, said) in [
        ("q.lora_A.sensitivity".to_owned(), TensorData::from([1.0f32]), "the adapter has no layer \"q\""),
        ("q.kept".to_owned(), TensorData::from([true; 4]), "the adapter has no layer \"q\""),
        (format!("{layer}.lora_A.sensitivity"), TensorData::from([1.0f32]), "has the shape [1], expected [4, 16]"),
        (format!("{layer}.kept"), TensorData::from([true, false]), "has 2 ranks, the layer 4"),
        (format!("{layer}.kept"), TensorData::from([1.0f32; 4]), "holds no truth values"),
    ] {
        let adapters = [("default".to_owned(), [(name, data)].into())].into();
        let error = refused(&with_adalora(), RunState { adapters, optimizer: [].into(), ..state.clone() });
        assert!(error.contains(said), "{said:?} is not in: {error}");
    }

    let other = TrainConfig { seed: 1, ..settings() };
    let error = Trainer::new(other).unwrap().resume(state, &mut model, batch, T5::token_losses).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the run cannot go on with what it did not begin with: `seed` was 42 and is 1; begin another one"
    );
}
