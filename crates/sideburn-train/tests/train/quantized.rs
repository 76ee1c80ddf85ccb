//! Twenty steps of QLoRA against `peft` and bitsandbytes.

// How far the numbers are apart is worth seeing.
#![allow(clippy::print_stdout)]

use std::convert::Infallible;

use burn::tensor::Device;
use sideburn_adapters::Adapters;
use sideburn_t5::{LanguageModel, T5};
use sideburn_testing::{Golden, goldens, path};
use sideburn_train::{Schedule, TrainConfig, Trainer};

#[test]
fn qlora_steps() {
    let batch = Golden::open("t5_gated_untied/io.safetensors").batch();
    for entry in goldens("quant") {
        let mut model = T5::from_dir(path(&entry.path), &Device::flex().autodiff()).unwrap();
        model.load_adapter("default", path(&entry.path).join("initial_adapter")).unwrap();
        let config = TrainConfig {
            learning_rate: 1e-3,
            weight_decay: 0.01,
            max_grad_norm: 0.0,
            lr_scheduler_type: Schedule::Constant,
            ..TrainConfig::new(20)
        };
        let next = |_| Ok::<_, Infallible>(batch.clone());
        let report = Trainer::new(config).unwrap().train(&mut model, next, T5::token_losses).unwrap();

        let text = std::fs::read_to_string(path(&entry.path).join("trajectory.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let losses: Vec<f64> = serde_json::from_value(golden["losses"].clone()).unwrap();
        assert_eq!((report.steps.len(), losses.len()), (20, 20));
        let mut worst = 0f64;
        for (step, (record, expected)) in report.steps.iter().zip(losses).enumerate() {
            let difference = (record.loss - expected).abs() / expected;
            worst = worst.max(difference);
            assert!(difference <= 1e-3, "{}, step {step}: {} is not {expected}", entry.path, record.loss);
        }
        println!("{}: losses differ by at most {worst:e} relative", entry.path);
    }
}
