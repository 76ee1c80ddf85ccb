//! A whole model in 16 bits, which it is where the device is configured to be: a T5 forward pass and steps of LoRA.
//!
//! On a GPU: `cargo test --release -p sideburn --features wgpu half_precision`.

use std::convert::Infallible;
use std::process::Command;

use burn::tensor::{DType, DeviceConfig, FloatDType};
use sideburn::prelude::*;

use sideburn_testing::{Golden, values};

const FAMILY: &str = "t5_gated_untied";

/// Tells [`steps`] which backend it is about.
const BACKEND: &str = "SIDEBURN_TEST_BACKEND";

/// A device can be configured once in a process, before anything has used it: each backend has one of its own.
#[test]
fn a_model_in_16_bits_trains() {
    for backend in sideburn::device::built_in() {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["half_precision::steps", "--exact", "--ignored", "--nocapture"]).env(BACKEND, backend);
        let output = process.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{backend}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("1 passed"), "{backend}: nothing was tested: {text}");
        print!("{text}");
    }
}

/// A forward pass and three steps of LoRA in 16 bits.
#[test]
#[ignore = "run by the test above, in processes of their own"]
fn steps() {
    let backend = std::env::var(BACKEND).expect("the test above names a backend");
    let io = Golden::open(&format!("{FAMILY}/io.safetensors"));
    let batch = io.batch();
    let reference = f64::from(io.floats("loss")[0]);
    let mut device = parse_device(&backend).unwrap();
    // WGSL has no `bf16`, and some GPUs have no `f16`.
    let Some(dtype) = [FloatDType::BF16, FloatDType::F16].into_iter().find(|dtype| device.supports_dtype(*dtype))
    else {
        println!("{backend}: no floats of 16 bits");
        return;
    };
    device.configure(DeviceConfig::default().float_dtype(dtype)).unwrap();
    let mut model = T5::from_dir(sideburn_testing::path(FAMILY), &device.autodiff()).unwrap();
    model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(3)).unwrap();
    let losses = model.token_losses(&batch, &mut Pass::evaluate()).unwrap();
    assert_eq!(losses.dtype(), DType::from(dtype));
    let losses = values(losses.cast(DType::F32));
    let mean = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64;
    let config = TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(3) };
    let batches = |_| Ok::<_, Infallible>(batch.clone());
    let trained = Trainer::new(config).unwrap().train(&mut model, batches, T5::token_losses).unwrap().losses();
    println!("{backend}, {dtype:?}: loss {mean}, in f32 {reference}; then {trained:?}");
    assert!((mean - reference).abs() <= 0.01 * reference, "{mean} is not {reference}");
    assert!(trained.is_sorted_by(|before, after| after < before), "{trained:?} do not fall");
}
