//! Runs that must stop, and what they leave behind.

use std::convert::Infallible;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use sideburn_adapters::methods::LoraConfig;
use sideburn_adapters::{Adapters, Key, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_t5::{LanguageModel, T5, T5Config, T5Error};
use sideburn_testing::parameters;
use sideburn_train::{JsonLinesLog, StepRecord, TrainConfig, TrainError, Trainer};

fn small_model(device: &Device) -> T5 {
    let config =
        T5Config { vocab_size: 64, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 1, num_heads: 4, ..T5Config::default() };
    let mut model = T5::random(&config, Key::from_seed(7), device);
    model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(8)).unwrap();
    model
}

fn batch() -> PromptBatch {
    let rows = || TokenRows::from_rows([[5, 6, 1]]).unwrap();
    PromptBatch::new(rows(), rows()).unwrap()
}

fn batches(_: u64) -> Result<PromptBatch, Infallible> {
    Ok(batch())
}

/// Every factor of the adapter.
fn factors(model: &T5) -> Vec<f32> {
    let tensors = model.adapter_tensors("default").unwrap();
    tensors.into_values().flat_map(|x| x.val().into_data().iter::<f32>().collect::<Vec<_>>()).collect()
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_adapter() {
    let device = Device::flex().autodiff();
    let config = TrainConfig { learning_rate: 1e-2, ..TrainConfig::new(10) };
    // The schedule looks at the length of the run, which is the same in both.
    let steps = std::cell::Cell::new(0);
    let losses = |limit: u64| {
        let steps = &steps;
        steps.set(0);
        move |model: &T5, batch: &PromptBatch, pass: &mut Pass| -> Result<Tensor<1>, T5Error> {
            let step = steps.replace(steps.get() + 1);
            let losses = model.token_losses(batch, pass)?;
            Ok(if step == limit { losses * f32::NAN } else { losses })
        }
    };
    let mut model = small_model(&device);
    let error = Trainer::new(config.clone()).unwrap().train(&mut model, batches, losses(3)).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 3, what: "loss", .. }));
    assert!(error.to_string().starts_with("step 3: the loss is NaN; the model has the last weights"), "{error}");

    // The weights are those of step 2, the last that gave a finite loss: they differ from the start, and can be saved.
    let kept = factors(&model);
    assert_ne!(kept, factors(&small_model(&device)));
    assert!(kept.iter().all(|value| value.is_finite()));
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter("default", directory.path().join("adapter")).unwrap();
    let mut again = T5::random(model.config(), Key::from_seed(7), &device);
    again.load_adapter("default", directory.path().join("adapter")).unwrap();
    assert_eq!(factors(&again), kept);

    // A later step of the same run goes on from there.
    let mut longer = small_model(&device);
    Trainer::new(config).unwrap().train(&mut longer, batches, losses(4)).unwrap_err();
    assert_ne!(factors(&longer), kept);
}

/// Where most of the model is trained no copy is kept, and the last update is worked out again.
#[test]
fn an_update_of_the_whole_model_is_taken_back_but_for_rounding() {
    let device = Device::flex().autodiff();
    let base = || small_model(&device).without_adapters(T5::clone).unfreeze();
    let seen = std::cell::RefCell::new(Vec::new());
    let losses = |model: &T5, batch: &PromptBatch, pass: &mut Pass| -> Result<Tensor<1>, T5Error> {
        seen.borrow_mut().push(parameters(model));
        let losses = model.token_losses(batch, pass)?;
        Ok(if seen.borrow().len() == 4 { losses * f32::NAN } else { losses })
    };
    let (weight_decay, max_grad_norm, loraplus_lr_ratio) = (0.1, 0.5, 1.0);
    let config =
        TrainConfig { learning_rate: 1e-2, weight_decay, max_grad_norm, loraplus_lr_ratio, ..TrainConfig::new(10) };
    let mut model = base();
    let error = Trainer::new(config).unwrap().train(&mut model, batches, losses).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 3, what: "loss", .. }));
    let (seen, kept) = (seen.into_inner(), parameters(&model));
    let distance = |other: &[f32]| {
        assert_eq!(kept.len(), other.len());
        kept.iter().zip(other).map(|(a, b)| (a - b).abs() / (b.abs() + 1e-2)).fold(0f32, f32::max)
    };
    // Step 2 was the last that gave a finite loss; the update after it moved weights by as much as the learning rate.
    assert!(distance(&seen[3]) > 1e-3);
    assert!(distance(&seen[2]) < 4.0 * f32::EPSILON, "{:e}", distance(&seen[2]));
    // What was never updated has nothing to be taken back.
    let never = |model: &T5, batch: &PromptBatch, pass: &mut Pass| -> Result<Tensor<1>, T5Error> {
        Ok(model.token_losses(batch, pass)? * f32::NAN)
    };
    let mut model = base();
    Trainer::new(TrainConfig::new(2)).unwrap().train(&mut model, batches, never).unwrap_err();
    assert_eq!(parameters(&model), parameters(&base()));
}

#[test]
fn an_update_that_ruins_the_model_is_taken_back() {
    let device = Device::flex().autodiff();
    let mut model = small_model(&device);
    let config = TrainConfig { learning_rate: 3e38, ..TrainConfig::new(10) };
    let error = Trainer::new(config).unwrap().train(&mut model, batches, T5::token_losses).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    let losses = model.token_losses(&batch(), &mut Pass::evaluate()).unwrap();
    assert!(losses.sum().inner().into_scalar::<f32>().is_finite(), "what is kept must be of use");
}

#[test]
fn an_infinite_gradient_stops_the_run_before_the_update() {
    let device = Device::flex().autodiff();
    let mut model = small_model(&device);
    let before = factors(&model);
    // The loss is zero, and the slope of the root there is infinite.
    let steep = |model: &T5, batch: &PromptBatch, pass: &mut Pass| -> Result<Tensor<1>, T5Error> {
        let losses = model.token_losses(batch, pass)?;
        Ok((losses.clone() - losses.detach()).sqrt())
    };
    let error = Trainer::new(TrainConfig::new(2)).unwrap().train(&mut model, batches, steep).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 0, what: "gradient norm", .. }), "{error}");
    assert_eq!(factors(&model), before);
}

/// Makes the first matrix of a model NaN.
struct Spoil(bool);

impl ModuleMapper for Spoil {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.0 || D != 2 {
            return param;
        }
        self.0 = true;
        param.map(|weight| weight * f32::NAN)
    }
}

#[test]
fn a_broken_base_is_not_blamed_on_the_learning_rate() {
    let mut model = small_model(&Device::flex().autodiff()).map(&mut Spoil(false));
    let error = Trainer::new(TrainConfig::new(2)).unwrap().train(&mut model, batches, T5::token_losses).unwrap_err();
    assert!(matches!(&error, TrainError::WeightNotFinite { step: 0, name } if name == "shared.weight"), "{error}");
    assert!(error.to_string().contains("no learning rate mends that"), "{error}");
}

#[test]
fn models_that_cannot_be_trained_are_refused() {
    let train = |mut model: T5| Trainer::new(TrainConfig::new(1)).unwrap().train(&mut model, batches, T5::token_losses);
    let error = train(small_model(&Device::flex())).unwrap_err();
    assert!(matches!(error, TrainError::NoAutodiff), "{error}");
    let error = train(small_model(&Device::flex().autodiff()).no_grad()).unwrap_err();
    assert!(error.to_string().starts_with("no parameter is trainable; attach an adapter"), "{error}");
}

#[test]
fn errors_of_data_and_model_name_the_step() {
    let device = Device::flex().autodiff();
    let mut model = small_model(&device);
    let failing = |index: u64| if index == 2 { Err("the disk is gone") } else { Ok(batch()) };
    let error = Trainer::new(TrainConfig::new(5)).unwrap().train(&mut model, failing, T5::token_losses).unwrap_err();
    assert_eq!(error.to_string(), "step 2: the disk is gone");
    let rows = TokenRows::from_rows([[64, 1]]).unwrap();
    let unknown = PromptBatch::new(rows.clone(), rows).unwrap();
    let batches = |_| Ok::<_, Infallible>(unknown.clone());
    let error = Trainer::new(TrainConfig::new(5)).unwrap().train(&mut model, batches, T5::token_losses).unwrap_err();
    assert!(error.to_string().starts_with("step 0: token id 64 is outside the vocabulary of 64"), "{error}");
}

#[test]
fn settings_that_mean_nothing_are_refused_by_name() {
    let error = |config: TrainConfig| Trainer::<T5>::new(config).err().expect("a bad setting").to_string();
    let settings = TrainConfig::new(1);
    assert!(error(TrainConfig { learning_rate: -1.0, ..settings.clone() }).starts_with("`learning_rate` is -1,"));
    assert!(error(TrainConfig { adam_beta2: 1.0, ..settings.clone() }).starts_with("`adam_beta2` is 1,"));
    assert!(error(TrainConfig { weight_decay: f64::NAN, ..settings.clone() }).starts_with("`weight_decay` is NaN,"));
    let accumulation = TrainConfig { gradient_accumulation_steps: 0, ..settings };
    assert!(error(accumulation).starts_with("`gradient_accumulation_steps` is 0, expected at least 1"));
}

#[test]
fn the_log_has_a_line_for_each_step() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("training.jsonl");
    let mut model = small_model(&Device::flex().autodiff());
    let trainer = Trainer::new(TrainConfig::new(3)).unwrap().observe(JsonLinesLog::create(&path).unwrap());
    let report = trainer.train(&mut model, batches, T5::token_losses).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let records: Vec<StepRecord> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let written: Vec<String> = report.steps.iter().map(|step| serde_json::to_string(step).unwrap()).collect();
    assert!(text.lines().eq(written));
    assert_eq!(records.iter().map(|record| (record.step, record.tokens)).collect::<Vec<_>>(), [(0, 6), (1, 6), (2, 6)]);

    let error = JsonLinesLog::create(path.join("log.jsonl")).unwrap_err().to_string();
    assert!(error.contains("training.jsonl/log.jsonl: the log cannot be written"), "{error}");
}

/// An adapter can be trainable and not active, and a merged one is part of the base.
#[test]
fn what_takes_no_part_in_the_loss_is_not_trained() {
    let with_two = || {
        let mut model = small_model(&Device::flex().autodiff());
        model.attach("a", LoraConfig::new(["q"]), Key::from_seed(1)).unwrap();
        model.attach("b", LoraConfig::new(["q"]), Key::from_seed(1)).unwrap();
        model
    };
    let (mut idle, mut merged) = (with_two(), with_two());
    idle.set_trainable(&["a"]).unwrap();
    merged.merge().unwrap();
    for model in [&mut idle, &mut merged] {
        let error = Trainer::new(TrainConfig::new(1)).unwrap().train(model, batches, T5::token_losses).unwrap_err();
        assert!(error.to_string().contains("nothing that is trainable takes part in the loss"), "{error}");
    }
}
