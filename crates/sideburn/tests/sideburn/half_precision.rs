//! A base in 16 bits, which it is where the device is configured to be, with adapters in `f32`.
//!
//! On a GPU: `cargo test --release -p sideburn --features wgpu half_precision`.

use std::process::Command;

use burn::tensor::{DType, DeviceConfig, FloatDType};
use sideburn::adapters::methods::{FullConfig, PrefixTuningConfig, PromptTuningConfig};
use sideburn::adapters::{AdapterError, AdapterMeta};
use sideburn::prelude::*;
use sideburn::train::Run;

use sideburn_testing::{Golden, values, written};

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

/// A forward pass of a base in 16 bits, and steps of methods that reach every kind of site, whose tensors are in `f32`.
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
    let device = device.autodiff();
    let base = T5::from_dir(sideburn_testing::path(FAMILY), &device).unwrap();
    let losses = base.token_losses(&batch, &mut Pass::evaluate()).unwrap();
    assert_eq!(losses.dtype(), DType::F32);
    let losses = values(losses);
    let mean = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64;
    println!("{backend}, {dtype:?}: loss {mean}, in f32 {reference}");
    assert!((mean - reference).abs() <= 0.01 * reference, "{mean} is not {reference}");

    // A head of an adapter's own, where the base has its embedding for one.
    let tied = T5::from_dir(sideburn_testing::path("t5_relu_tied"), &device).unwrap();
    let own_head = AdapterMeta { modules_to_save: vec!["lm_head".to_owned()], ..AdapterMeta::default() };
    for lora in [LoraConfig::new(["q", "lm_head"]), LoraConfig { meta: own_head, ..LoraConfig::new(["q", "v"]) }] {
        let mut model = tied.clone();
        model.attach("default", lora, Key::from_seed(3)).unwrap();
        let [before, after] = [&tied, &model].map(|model| {
            let losses = model.token_losses(&batch, &mut Pass::evaluate()).unwrap();
            values(losses.cast(DType::F32)).iter().sum::<f32>()
        });
        assert!((before - after).abs() < 0.01 * before, "{before} is not {after}");
    }

    let head = || AdapterMeta { modules_to_save: vec!["lm_head".to_owned()], ..AdapterMeta::default() };
    let lora = || LoraConfig::new(["q", "v"]);
    let key = Key::from_seed(3);
    let attached = |attach: &dyn Fn(&mut T5) -> Result<Vec<String>, AdapterError>| {
        let mut model = base.clone();
        attach(&mut model).unwrap();
        model
    };
    let models = [
        ("LoRA", attached(&|model| model.attach("default", lora(), key))),
        ("a head", attached(&|model| model.attach("default", LoraConfig { meta: head(), ..lora() }, key))),
        ("DoRA", attached(&|model| model.attach("default", LoraConfig { use_dora: true, ..lora() }, key))),
        ("prompt tuning", attached(&|model| model.attach("default", PromptTuningConfig::new(4), key))),
        ("prefix tuning", attached(&|model| model.attach("default", PrefixTuningConfig::new(4), key))),
        ("all weights", attached(&|model| model.attach("default", FullConfig::default(), key))),
    ];
    // A GPU tunes for the shapes of each, which takes software a minute or more.
    let count = if backend == "flex" { models.len() } else { 1 };
    for (name, mut model) in models.into_iter().take(count) {
        for (tensor, param) in model.adapter_tensors("default").unwrap() {
            assert_eq!(param.val().dtype(), DType::F32, "{name}: {tensor}");
        }
        let config = TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(3) };
        let mut run = Run::begin(&model, &config).unwrap();
        let batches = std::slice::from_ref(&batch);
        let trained: Vec<f64> =
            (0..3).map(|_| run.step(&mut model, batches, &T5::token_losses).unwrap().loss).collect();
        println!("{name}: {trained:?}");
        // Losses in 16 bits have three digits.
        assert!(trained[2] < trained[0], "{name}: {trained:?} do not fall");
        let moments = run.state(&model).moments;
        assert!(moments.values().all(|moments| moments.first.dtype() == DType::F32), "{name}");
        let decoding = model.start_decoding(batch.prompts(), Pass::evaluate()).unwrap();
        assert_eq!(written(decoding, &model.generation_config(3)).len(), batch.prompts().len(), "{name}");
    }
}
