//! A whole model in 16 bits, which it is where the device is configured to be: a T5 forward pass and steps of LoRA.
//!
//! On a GPU: `cargo test --release -p sideburn --features wgpu half_precision`.

use std::convert::Infallible;

use burn::tensor::{DType, DeviceConfig, FloatDType};
use sideburn::prelude::*;

use sideburn_testing::{Golden, values};

const FAMILY: &str = "t5_gated_untied";

#[test]
fn a_model_in_16_bits_trains() {
    let io = Golden::open(&format!("{FAMILY}/io.safetensors"));
    let batch = io.batch();
    let reference = f64::from(io.floats("loss")[0]);
    for backend in sideburn::device::built_in() {
        let mut device = parse_device(backend).unwrap();
        // WGSL has no `bf16`, and some GPUs have no `f16`. A device can be configured once in a process.
        let Some(dtype) = [FloatDType::BF16, FloatDType::F16].into_iter().find(|dtype| device.supports_dtype(*dtype))
        else {
            println!("{backend}: no floats of 16 bits");
            continue;
        };
        device.configure(DeviceConfig::default().float_dtype(dtype)).unwrap();
        let mut model = T5::from_dir(sideburn_testing::path(FAMILY), &device.autodiff()).unwrap();
        attach(&mut model, "default", LoraConfig::new(["q", "v"]), Key::from_seed(3)).unwrap();
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
}
