//! Training with AdaLoRA against `peft`: losses, the ranks left after each step, and the files.

// How far the numbers are apart is worth seeing.
#![allow(clippy::print_stdout)]

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;

use burn::tensor::Device;
use sideburn_adapters::methods::{AdaLoraConfig, MethodRegistry};
use sideburn_adapters::{AdaptedModel, Adapters, Pass};
use sideburn_batch::PromptBatch;
use sideburn_t5::{LanguageModel, T5, T5Error};
use sideburn_train::{Schedule, TrainConfig, TrainError, Trainer};

use sideburn_testing::{Golden, values};

const TRAJECTORY: &str = "trajectory/t5_gated_untied__adalora";

fn batches() -> Vec<PromptBatch> {
    let file = Golden::open("trajectory/t5_gated_untied__lora/batches.safetensors");
    let batch = |index: usize| {
        let source = file.rows(&format!("input_ids.{index}"), &file.mask_lengths(&format!("attention_mask.{index}")));
        let labels = format!("labels.{index}");
        PromptBatch::new(source, file.rows(&labels, &file.label_lengths(&labels))).unwrap()
    };
    (0..4).map(batch).collect()
}

fn base() -> T5 {
    T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex().autodiff()).unwrap()
}

fn initial_model() -> T5 {
    let mut model = base();
    model.load_adapter("default", sideburn_testing::path(&format!("{TRAJECTORY}/initial_adapter"))).unwrap();
    model
}

fn settings(steps: u64) -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-3,
        weight_decay: 0.01,
        max_grad_norm: 0.0,
        lr_scheduler_type: Schedule::Constant,
        ..TrainConfig::new(steps)
    }
}

/// Ranks that are not zero in any `lora_E`.
fn ranks(model: &T5) -> usize {
    let tensors = model.adapter_tensors("default").unwrap();
    let e = tensors.into_iter().filter(|(name, _)| name.ends_with(".lora_E"));
    e.flat_map(|(_, param)| values(param.val())).filter(|value| *value != 0.0).count()
}

/// Relative, of all numbers together.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    assert_eq!(found.len(), expected.len());
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

fn pattern_of(directory: &Path) -> AdaLoraConfig {
    let method = MethodRegistry::peft().read_file(&directory.join("adapter_config.json")).unwrap();
    method.downcast_ref::<AdaLoraConfig>().unwrap().clone()
}

#[test]
fn as_peft_trains() {
    let text = std::fs::read_to_string(sideburn_testing::path(&format!("{TRAJECTORY}/trajectory.json"))).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (mut model, batches) = (initial_model(), batches());
    // What each step finds: the ranks that the one before has left.
    let found_ranks = RefCell::new(Vec::new());
    let token_losses = |model: &T5, batch: &PromptBatch, pass: &mut Pass| {
        found_ranks.borrow_mut().push(ranks(model));
        model.token_losses(batch, pass)
    };
    let batch = |index: u64| Ok::<_, Infallible>(batches[index as usize % 4].clone());
    let report = Trainer::new(settings(20)).unwrap().train(&mut model, batch, token_losses).unwrap();

    let mut worst = 0f64;
    for (step, record) in report.steps.iter().enumerate() {
        let expected = golden["losses"][step].as_f64().unwrap();
        worst = worst.max((record.loss + record.penalty - expected).abs() / expected);
    }
    println!("losses differ by at most {worst:e} relative");
    assert!(worst <= 1e-5, "losses differ by {worst:e}");
    let left: Vec<usize> = found_ranks.into_inner().into_iter().skip(1).chain([ranks(&model)]).collect();
    assert_eq!(golden["ranks"], serde_json::json!(left));

    // The adapter has only the ranks that are left, and so have its files.
    let saved = tempfile::tempdir().unwrap();
    model.save_adapter("default", saved.path()).unwrap();
    let directory = format!("{TRAJECTORY}/final_adapter");
    assert_eq!(pattern_of(saved.path()), pattern_of(&sideburn_testing::path(&directory)));
    let file = Golden::open(&format!("{directory}/adapter_model.safetensors"));
    let (mut found, mut stored) = (Vec::new(), Vec::new());
    let mut reloaded = base();
    reloaded.load_adapter("default", saved.path()).unwrap();
    for (name, param) in reloaded.adapter_tensors("default").unwrap() {
        assert_eq!(param.val().dims(), file.shape(&name)[..], "{name}");
        found.extend(values(param.val()));
        stored.extend(file.floats(&name));
    }
    let difference = distance(&found, &stored);
    println!("the adapter differs by {difference:e} relative after training");
    assert!(difference <= 1e-4, "the adapter differs by {difference:e}");

    // What is in memory computes what the files do.
    let losses = |model: &T5| values(model.token_losses(&batches[0], &mut Pass::evaluate()).unwrap());
    assert_eq!(losses(&model), losses(&reloaded));
}

#[test]
fn a_run_too_short_for_the_budget_is_refused() {
    let batch = |_| Ok::<_, Infallible>(batches()[0].clone());
    let train = |model: &mut T5| Trainer::new(settings(19)).unwrap().train(model, batch, T5::token_losses);
    let error = train(&mut initial_model()).unwrap_err().to_string();
    assert!(error.contains("`total_step` is 20") && error.contains("ranks would be left over"), "{error}");
    // The adapter that is not trained has no say.
    let mut model = initial_model();
    model.set_trainable(&[]).unwrap();
    assert!(matches!(train(&mut model).unwrap_err(), TrainError::NothingToTrain));
}

#[test]
fn a_run_that_stops_keeps_the_ranks_of_its_last_good_step() {
    let (batches, calls) = (batches(), RefCell::new(0));
    let batch = |index: u64| Ok::<_, Infallible>(batches[index as usize % 4].clone());
    // Step 5 finds what the update of step 4 has left; when it fails, that update is taken back.
    let seen = RefCell::new(Vec::new());
    let token_losses = |model: &T5, batch: &PromptBatch, pass: &mut Pass| -> Result<_, T5Error> {
        seen.borrow_mut().push(ranks(model));
        *calls.borrow_mut() += 1;
        let losses = model.token_losses(batch, pass)?;
        Ok(if *calls.borrow() == 6 { losses * f32::NAN } else { losses })
    };
    let mut model = initial_model();
    let error = Trainer::new(settings(20)).unwrap().train(&mut model, batch, token_losses).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 5, .. }), "{error}");
    let seen = seen.into_inner();
    assert_ne!(seen[4], seen[5], "the update that is taken back must have taken a rank");
    assert_eq!(ranks(&model), seen[4]);
    let config = model.adapters().get("default").unwrap().method().downcast_ref::<AdaLoraConfig>().unwrap().clone();
    assert_eq!(config.rank_pattern.values().flatten().filter(|kept| **kept).count(), seen[4]);
    let saved = tempfile::tempdir().unwrap();
    model.save_adapter("default", saved.path()).unwrap();
    base().load_adapter("again", saved.path()).unwrap();

    // Training can go on from there: what had ranks taken away begins with the rest.
    let batch = |index: u64| Ok::<_, Infallible>(batches[index as usize % 4].clone());
    Trainer::new(settings(20)).unwrap().train(&mut model, batch, T5::token_losses).unwrap();
    assert_eq!(ranks(&model), 8);
}
