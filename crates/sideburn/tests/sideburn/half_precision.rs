//! A base in 16 bits, which it is where the device is configured to be, with adapters in `f32`.
//!
//! On a GPU: `cargo test --release -p sideburn --features wgpu half_precision`.

use std::path::Path;
use std::process::Command;

use burn::tensor::{DType, DeviceConfig, FloatDType};
use sideburn::adapters::methods::{FullConfig, PrefixTuningConfig, PromptTuningConfig};
use sideburn::adapters::{AdapterError, AdapterMeta};
use sideburn::prelude::*;
use sideburn::train::Run;

use sideburn_testing::{Golden, values, written};

const FAMILY: &str = "t5_gated_untied";

/// Tells [`steps`] and [`large`] which backend they are about, and in which dtype.
const BACKEND: &str = "SIDEBURN_TEST_BACKEND";
const DTYPE: &str = "SIDEBURN_TEST_DTYPE";

/// Runs an ignored test for a backend in a process of its own, since a device can be configured once in a process, before
/// anything has used it. Gives what it prints.
fn run(test: &str, backend: &str, dtype: &str) -> String {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args([&format!("half_precision::{test}"), "--exact", "--ignored", "--nocapture"]);
    process.env(BACKEND, backend).env(DTYPE, dtype);
    let output = process.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{backend}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{backend}: nothing was tested: {text}");
    text.into_owned()
}

#[test]
fn a_model_in_16_bits_trains() {
    for backend in sideburn::device::built_in() {
        print!("{}", run("steps", backend, ""));
    }
}

/// `wo` of T5 gives what is beyond `f16`, and stays in `f32`.
#[test]
fn what_is_beyond_f16_stays_finite() {
    let losses = |backend: &str, dtype: &str| {
        let text = run("large", backend, dtype);
        let losses = text.lines().find_map(|line| line.strip_prefix("LOSSES "))?.to_owned();
        Some(losses.split(' ').map(|loss| loss.parse().unwrap()).collect::<Vec<f32>>())
    };
    let expected = losses("flex", "f32").expect("the CPU has f32");
    for backend in sideburn::device::built_in() {
        let Some(found) = losses(backend, "f16") else { continue };
        println!("{backend}: losses {found:?}, in f32 {expected:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 0.02 * expected, "{backend}: {found} is not {expected}");
        }
    }
}

/// The losses of 20 steps of LoRA over dialogues, on a CPU in `bf16`: those of `f32`, but for a hundredth.
#[test]
fn a_cpu_in_bf16_has_the_losses_of_f32() {
    let losses = |dtype: &str| -> Vec<f64> {
        let text = run("twenty_steps", "flex", dtype);
        let losses = text.lines().find_map(|line| line.strip_prefix("LOSSES ")).expect("a line of losses");
        losses.split(' ').map(|loss| loss.parse().unwrap()).collect()
    };
    let [expected, found] = ["f32", "bf16"].map(losses);
    assert!(expected.len() == 20 && expected[19] < 0.9 * expected[0], "{expected:?}");
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 0.01 * expected, "{found} is not {expected}");
    }
    assert_ne!(found, expected, "something is rounded");
}

/// Twenty steps of LoRA on the small T5 that comes with the repository.
#[test]
#[ignore = "run by the test above, in processes of their own"]
fn twenty_steps() {
    let mut device = parse_device("flex").unwrap();
    if std::env::var(DTYPE).expect("a dtype") == "bf16" {
        device.configure(DeviceConfig::default().float_dtype(FloatDType::BF16)).unwrap();
    }
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    let mut model = T5::from_dir(assets.join("t5-mini"), &device.autodiff()).unwrap();
    model
        .attach("default", LoraConfig { lora_alpha: 64.0, r: 32, ..LoraConfig::new(["q", "v"]) }, Key::from_seed(3))
        .unwrap();
    let dialogsum = Dataset::dialogsum();
    let examples = dialogsum.read(assets.join("dialogsum-sample"), Split::Train).unwrap().examples;
    let tokenizer = Tokenizer::from_dir(assets.join("t5-mini")).unwrap();
    let set = tokenize(&examples[..160], &tokenizer, &dialogsum.template, Limits::default()).unwrap();
    let batch = |examples: &[TokenizedExample]| {
        let rows = |ids: fn(&TokenizedExample) -> &Vec<u32>| TokenRows::from_rows(examples.iter().map(ids)).unwrap();
        PromptBatch::new(rows(|example| &example.prompt), rows(|example| &example.target)).unwrap()
    };
    let mut run = Run::begin(&model, &TrainConfig { learning_rate: 4e-3, ..TrainConfig::new(20) }).unwrap();
    let losses = set
        .examples
        .chunks(8)
        .map(|examples| run.step(&mut model, &[batch(examples)], &T5::token_losses).unwrap().loss.to_string());
    println!("LOSSES {}", losses.collect::<Vec<_>>().join(" "));
}

/// The losses of a model with a large `wo`, and two steps.
#[test]
#[ignore = "run by the test above, in processes of their own"]
fn large() {
    let backend = std::env::var(BACKEND).expect("the test above names a backend");
    let mut device = parse_device(&backend).unwrap();
    let is_half = std::env::var(DTYPE).expect("a dtype") == "f16";
    let (dtype, configured) = if is_half { (DType::F16, FloatDType::F16) } else { (DType::F32, FloatDType::F32) };
    if !device.supports_dtype(dtype) {
        println!("{backend}: no {dtype:?}");
        return;
    }
    device.configure(DeviceConfig::default().float_dtype(configured)).unwrap();
    let batch = Golden::open(&format!("{FAMILY}/io.safetensors")).batch();
    let mut model = T5::from_dir(sideburn_testing::path(FAMILY), &device.autodiff()).unwrap();
    let mut kept = 0;
    for (name, linear) in model.linears_mut() {
        if name.ends_with("wo") {
            assert_eq!(linear.dtype(), DType::F32, "{name}");
            let large = linear.weight().dense() * 3e5;
            linear.weight_mut().replace(large);
            kept += 1;
        } else {
            // A CPU holds weights in 16 bits and computes in 32.
            assert_eq!(linear.dtype(), if backend == "flex" { DType::F32 } else { dtype }, "{name}");
        }
    }
    assert!(kept > 0);
    let losses = values(model.token_losses(&batch, &mut Pass::evaluate()).unwrap());
    println!("LOSSES {}", losses.iter().map(f32::to_string).collect::<Vec<_>>().join(" "));

    model.attach("default", LoraConfig::new(["q", "v", "wo"]), Key::from_seed(3)).unwrap();
    let mut run = Run::begin(&model, &TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(2) }).unwrap();
    for _ in 0..2 {
        let step = run.step(&mut model, std::slice::from_ref(&batch), &T5::token_losses).unwrap();
        assert!(step.loss.is_finite() && step.grad_norm.is_finite(), "{step:?}");
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
        let optimizer = run.state(&model).optimizer;
        assert!(optimizer.values().all(|state| state["exp_avg"].dtype() == DType::F32), "{name}");
        let decoding = model.start_decoding(batch.prompts(), Pass::evaluate()).unwrap();
        assert_eq!(written(decoding, &model.generation_config(3)).len(), batch.prompts().len(), "{name}");
    }
}
