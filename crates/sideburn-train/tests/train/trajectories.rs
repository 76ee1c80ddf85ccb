//! Twenty steps of training against `peft` and PyTorch, and the promises of determinism.

// How far the numbers are apart is worth seeing.
#![allow(clippy::print_stdout)]

use std::convert::Infallible;

use burn::module::Module;
use burn::tensor::Device;
use sideburn_adapters::methods::{LoraConfig, LoraInit, PTuningConfig, PrefixTuningConfig};
use sideburn_adapters::{Adapters, Key, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_falcon::Falcon;
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_train::{Differentiate, Schedule, StepInfo, TrainConfig, TrainReport, Trainer};

use sideburn_testing::{Golden, values};

fn batches(method: &str) -> Vec<PromptBatch> {
    let file = Golden::open(&format!("trajectory/{method}/batches.safetensors"));
    (0..4)
        .map(|index| {
            let mask = file.mask_lengths(&format!("attention_mask.{index}"));
            let source = file.rows(&format!("input_ids.{index}"), &mask);
            let labels = format!("labels.{index}");
            PromptBatch::new(source, file.rows(&labels, &file.label_lengths(&labels))).unwrap()
        })
        .collect()
}

/// The settings of the goldens.
fn settings() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-3,
        weight_decay: 0.01,
        max_grad_norm: 0.0,
        lr_scheduler_type: Schedule::Constant,
        ..TrainConfig::new(20)
    }
}

fn train<M: LanguageModel>(model: &mut M, config: TrainConfig, batches: &[PromptBatch]) -> TrainReport {
    let batch = |index: u64| Ok::<_, Infallible>(batches[index as usize % batches.len()].clone());
    Trainer::new(config).unwrap().train(model, batch, M::token_losses).unwrap()
}

/// Compares a run with the golden of `family` and `method`.
fn check(family: &str, method: &str, config: TrainConfig) -> T5 {
    let directory = format!("{family}__{method}");
    let mut model = T5::from_dir(sideburn_testing::path(family), &Device::flex().autodiff()).unwrap();
    let initial = sideburn_testing::path(&format!("trajectory/{directory}/initial_adapter"));
    match method {
        "full" => model = model.unfreeze(),
        // Of these the file has only what the trained networks make.
        "p_tuning" | "prefix_tuning_proj" => {
            if method == "p_tuning" {
                let encoder_hidden_size = Some(16);
                let config = PTuningConfig { encoder_hidden_size, ..PTuningConfig::new(5) };
                model.attach("default", config, Key::from_seed(0)).unwrap();
            } else {
                let (prefix_projection, encoder_hidden_size) = (true, Some(16));
                let config =
                    PrefixTuningConfig { prefix_projection, encoder_hidden_size, ..PrefixTuningConfig::new(5) };
                model.attach("default", config, Key::from_seed(0)).unwrap();
            }
            let file = Golden::open(&format!("trajectory/{directory}/initial.safetensors"));
            model.set_adapter_tensors("default", |name| Some(file.floats(name))).unwrap();
        }
        _ => model.load_adapter("default", initial).unwrap(),
    }
    let directory = format!("trajectory/{directory}");
    let of_batches = match &trajectory(&directory)["batches"] {
        serde_json::Value::String(file) => file.strip_suffix("/batches.safetensors").unwrap().to_owned(),
        _ => format!("{family}__{method}"),
    };
    check_run(&mut model, &directory, config, &batches(&of_batches));
    model
}

/// What a run of a golden came to.
fn trajectory(directory: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(sideburn_testing::path(&format!("{directory}/trajectory.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Compares a run with the golden in this folder.
fn check_run<M: LanguageModel>(model: &mut M, directory: &str, config: TrainConfig, batches: &[PromptBatch]) {
    let (golden, tolerance) = (trajectory(directory), sideburn_testing::golden(directory).tolerance);
    let numbers = |name: &str| -> Vec<f64> { serde_json::from_value(golden[name].clone()).unwrap() };
    let report = train(model, config, batches);
    assert!(["losses", "grad_norms", "lrs"].iter().all(|name| numbers(name).len() == 20));

    let mut worst = 0f64;
    for (step, (record, expected)) in report.steps.iter().zip(numbers("losses")).enumerate() {
        let difference = (record.loss - expected).abs() / expected;
        worst = worst.max(difference);
        assert!(difference <= tolerance, "{directory}, step {step}: {} is not {expected}", record.loss);
    }
    println!("{directory}: losses differ by at most {worst:e} relative");
    for (record, expected) in report.steps.iter().zip(numbers("grad_norms")) {
        let difference = (record.grad_norm - expected).abs() / expected;
        assert!(difference <= 10.0 * tolerance, "{directory}: norm {} is not {expected}", record.grad_norm);
    }
    for (record, expected) in report.steps.iter().zip(numbers("lrs")) {
        assert!(
            (record.learning_rate - expected).abs() <= 1e-12,
            "{directory}: {} is not {expected}",
            record.learning_rate
        );
    }
    assert_eq!(report.steps.len(), 20);
}

fn check_final_adapter<M: LanguageModel>(model: &M, directory: &str) {
    let file = Golden::open(&format!("{directory}/final.safetensors"));
    // AdamW moves an element by about the learning rate whatever the size of its gradient, so that single elements whose
    // gradient is next to nothing may go either way.
    let (mut squared_error, mut squared_norm) = (0.0, 0.0);
    for (name, param) in model.adapter_tensors("default").unwrap() {
        for (found, expected) in values(param.val()).into_iter().zip(file.floats(&name)) {
            squared_error += f64::from(found - expected).powi(2);
            squared_norm += f64::from(expected).powi(2);
        }
    }
    let difference = (squared_error / squared_norm).sqrt();
    println!("{directory}: the adapter differs by {difference:e} relative after training");
    assert!(difference <= 2e-4, "{directory}: the adapter differs by {difference:e} after training");
}

#[test]
fn other_methods() {
    for method in
        ["lora_rslora", "lora_dora", "ia3", "prompt_tuning", "prefix_tuning", "prefix_tuning_proj", "p_tuning"]
    {
        let model = check("t5_gated_untied", method, settings());
        check_final_adapter(&model, &format!("trajectory/t5_gated_untied__{method}"));
    }
}

#[test]
fn lora_plus() {
    let config = TrainConfig { loraplus_lr_ratio: 16.0, ..settings() };
    check("t5_gated_untied", "lora_plus", config);
}

#[test]
fn lora_on_both_families() {
    for family in ["t5_gated_untied", "t5_relu_tied"] {
        let model = check(family, "lora", settings());
        check_final_adapter(&model, &format!("trajectory/{family}__lora"));
    }
}

#[test]
fn clipping_and_a_linear_schedule_with_warm_up() {
    let config = TrainConfig { max_grad_norm: 1.0, warmup_steps: 5, lr_scheduler_type: Schedule::Linear, ..settings() };
    let model = check("t5_gated_untied", "lora_clip1_warmup5_linear", config);
    check_final_adapter(&model, "trajectory/t5_gated_untied__lora_clip1_warmup5_linear");
}

#[test]
fn accumulation_is_weighted_by_target_tokens() {
    let config = TrainConfig { gradient_accumulation_steps: 2, ..settings() };
    let model = check("t5_gated_untied", "lora_accum2", config);
    check_final_adapter(&model, "trajectory/t5_gated_untied__lora_accum2");
}

/// Fifty steps with label smoothing, and with noise on the embedded tokens, which the golden draws as a run does.
#[test]
fn label_smoothing_and_noise() {
    let text = std::fs::read_to_string(sideburn_testing::path("optimizers/losses.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tolerance = sideburn_testing::golden("optimizers").tolerance;
    let (max_steps, batches) = (50, batches("t5_gated_untied__lora"));
    for (name, config) in [
        ("label_smoothing", TrainConfig { label_smoothing_factor: 0.1, max_steps, ..settings() }),
        ("neftune", TrainConfig { neftune_noise_alpha: Some(5.0), max_steps, ..settings() }),
    ] {
        let device = Device::flex().autodiff();
        let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &device).unwrap();
        let initial = sideburn_testing::path("trajectory/t5_gated_untied__lora/initial_adapter");
        model.load_adapter("default", initial).unwrap();
        let report = train(&mut model, config, &batches);
        let numbers = |of: &str| -> Vec<f64> { serde_json::from_value(golden[name][of].clone()).unwrap() };
        let expected = numbers("losses").into_iter().zip(numbers("grad_norms"));
        assert_eq!(report.steps.len(), 50);
        let mut worst = 0f64;
        for (record, (loss, norm)) in report.steps.iter().zip(expected) {
            let difference = (record.loss - loss).abs() / loss;
            worst = worst.max(difference);
            assert!(difference <= tolerance, "{name}, step {}: {} is not {loss}", record.step, record.loss);
            let difference = (record.grad_norm - norm).abs() / norm;
            assert!(difference <= 10.0 * tolerance, "{name}: norm {} is not {norm}", record.grad_norm);
        }
        println!("{name}: losses differ by at most {worst:e} relative");
    }
}

/// A head with an adapter makes its logits first: the losses are those of the head with the adapter merged.
#[test]
fn label_smoothing_of_an_adapted_head() {
    let device = Device::flex();
    let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &device).unwrap();
    let lora = LoraConfig { init_lora_weights: LoraInit::Random, ..LoraConfig::new(["lm_head"]) };
    model.attach("default", lora, Key::from_seed(8)).unwrap();
    let (batch, mut pass) = (&batches("t5_gated_untied__lora")[0], Pass::evaluate().with_label_smoothing(0.1));
    let adapted = values(model.token_losses(batch, &mut pass).unwrap());
    let plain = values(model.token_losses(batch, &mut Pass::evaluate()).unwrap());
    model.merge().unwrap();
    let merged = values(model.token_losses(batch, &mut pass).unwrap());
    assert!(sideburn_testing::relative_difference(&adapted, &merged) <= 1e-5);
    assert!(sideburn_testing::relative_difference(&adapted, &plain) > 1e-2, "it was smoothed");
}

#[test]
fn full_fine_tuning() {
    check("t5_gated_untied", "full", settings());
}

/// Rows of different lengths, of which only the answers have a loss: the multi-query model, whole and by LoRA, and the one
/// with grouped heads.
#[test]
fn decoders_alone() {
    for (base, method) in [("mqa", "lora"), ("new_gqa", "lora"), ("mqa", "full")] {
        let directory = format!("falcon/trajectory/{base}__{method}");
        let base = sideburn_testing::path(&format!("falcon/{base}"));
        let mut model = Falcon::from_dir(base, &Device::flex().autodiff()).unwrap();
        match method {
            "full" => model = model.unfreeze(),
            _ => {
                let initial = sideburn_testing::path(&format!("{directory}/initial_adapter"));
                model.load_adapter("default", initial).unwrap();
            }
        }
        let file = Golden::open(&format!("{directory}/batches.safetensors"));
        let batches: Vec<PromptBatch> = (0..4).map(|index| file.prompts_and_answers(&format!(".{index}"))).collect();
        check_run(&mut model, &directory, settings(), &batches);
        if method == "lora" {
            check_final_adapter(&model, &directory);
        }
    }
}

fn small_model(device: &Device) -> T5 {
    let config = T5Config {
        vocab_size: 64,
        d_model: 16,
        d_kv: 4,
        d_ff: 32,
        num_layers: 2,
        num_heads: 4,
        dropout_rate: 0.2,
        ..T5Config::default()
    };
    let mut model = T5::random(&config, Key::from_seed(7), device);
    model.attach("default", small_lora(), Key::from_seed(8)).unwrap();
    model
}

fn small_lora() -> LoraConfig {
    LoraConfig { r: 4, lora_alpha: 8.0, lora_dropout: 0.1, ..LoraConfig::new(["q", "v"]) }
}

/// Two micro-batches of different lengths, and the same rows in one batch.
fn split_and_whole() -> (Vec<PromptBatch>, PromptBatch) {
    let rows = |rows: &[&[u32]]| TokenRows::from_rows(rows).unwrap();
    let sources: [&[u32]; 3] = [&[5, 6, 7, 8, 1], &[9, 1], &[10, 11, 12, 1]];
    let targets: [&[u32]; 3] = [&[20, 1], &[21, 22, 23, 24, 25, 1], &[26, 27, 1]];
    let batch =
        |range: std::ops::Range<usize>| PromptBatch::new(rows(&sources[range.clone()]), rows(&targets[range])).unwrap();
    (vec![batch(0..1), batch(1..3)], batch(0..3))
}

#[test]
fn accumulating_is_the_same_as_a_larger_batch() {
    let (micro_batches, whole) = split_and_whole();
    let device = Device::flex().autodiff();
    let run = |accumulation: u64, batches: &[PromptBatch]| {
        // Dropout draws differ between the two, so it is off.
        let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &device).unwrap();
        model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(8)).unwrap();
        let config = TrainConfig { gradient_accumulation_steps: accumulation, ..settings() };
        train(&mut model, config, batches).losses()
    };
    for (a, b) in run(2, &micro_batches).iter().zip(run(1, &[whole])) {
        assert!((a - b).abs() <= 1e-5 * b, "{a} is not {b}");
    }
}

/// Eight rows of different lengths as one batch, as two of four, and as eight of one: the same gradient.
#[test]
fn gradients_do_not_depend_on_how_rows_are_shared_out() {
    let key = Key::from_seed(5);
    let row = |row: u64, most: u64| -> Vec<u32> {
        let key = key.fold_in(row).fold_in(most);
        let ids = (1..2 + key.below(0, most)).map(|at| 2 + key.below(at, 250) as u32);
        ids.chain([1]).collect()
    };
    let config = settings();
    for model in [None, Some(LoraConfig { init_lora_weights: LoraInit::Random, ..LoraConfig::new(["q", "v", "wo"]) })] {
        let shape = T5Config {
            vocab_size: 256,
            d_model: 64,
            d_kv: 16,
            d_ff: 128,
            num_layers: 2,
            num_heads: 4,
            dropout_rate: 0.0,
            ..T5Config::default()
        };
        let base = T5::random(&shape, Key::from_seed(7), &Device::flex().autodiff());
        let model = match model {
            None => base.unfreeze(),
            Some(lora) => {
                let mut model = base;
                model.attach("default", lora, Key::from_seed(8)).unwrap();
                model
            }
        };
        let gradients = |rows_of_a_batch: u64| {
            let rows = |first: u64, most: u64| {
                TokenRows::from_rows((first..first + rows_of_a_batch).map(|at| row(at, most))).unwrap()
            };
            let batch = |first: u64| PromptBatch::new(rows(first, 20), rows(first, 9)).unwrap();
            let batches: Vec<PromptBatch> = (0..8).step_by(rows_of_a_batch as usize).map(batch).collect();
            let loss_tokens = batches.iter().map(|batch| batch.targets().tokens()).sum();
            let info = StepInfo { config: &config, step: 0, loss_tokens, first_micro_batch: 0 };
            let found = T5::token_losses.gradient(&model, &batches, &info).unwrap();
            let all = sideburn_adapters::parameters(&model);
            let of = |parameter: &sideburn_adapters::Parameter<'_>| found.gradients.get::<2>(parameter.id());
            all.iter().filter_map(of).map(values).collect::<Vec<Vec<f32>>>()
        };
        let whole = gradients(8);
        assert!(whole.len() > 10);
        // Relative to the whole gradient, as a step sees it.
        let norm = |of: &[Vec<f32>]| of.iter().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for rows in [4, 1] {
            let parts = gradients(rows);
            let less = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f32>>();
            let difference: Vec<Vec<f32>> = parts.iter().zip(&whole).map(less).collect();
            let relative = norm(&difference) / norm(&whole);
            println!("batches of {rows}: the gradient differs by {relative:e} relative");
            assert!(relative <= 1e-6, "batches of {rows}: {relative:e}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let (batches, _) = split_and_whole();
    let run = |seed: u64, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = small_model(&Device::flex().autodiff());
            let losses = train(&mut model, TrainConfig { seed, ..settings() }, &batches).losses();
            let directory = tempfile::tempdir().unwrap();
            model.save_adapter("default", directory.path()).unwrap();
            (losses, std::fs::read(directory.path().join("adapter_model.safetensors")).unwrap())
        })
    };
    assert_eq!(run(1, 1), run(1, 1));
    assert_eq!(run(1, 1), run(1, 3));
    assert_ne!(run(1, 1), run(2, 1), "dropout must follow the seed");
}
