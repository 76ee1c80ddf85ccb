//! The same model on a GPU backend and on the CPU: a T5 forward pass, steps of LoRA, greedy decoding.
//!
//! Needs a GPU, or software that stands in for one (Mesa's lavapipe; for `vulkan`, of Mesa 26):
//! `cargo test --release -p sideburn --features wgpu gpu_parity`.

use std::convert::Infallible;

use burn::tensor::DType;
use sideburn::prelude::*;
use sideburn::train::{Optim, Run};

use sideburn_testing::{Golden, max_difference, values, written};

const FAMILIES: [&str; 2] = ["t5_gated_untied", "t5_relu_tied"];

/// The devices of the GPU backends that this test was built with.
fn gpus() -> impl Iterator<Item = Device> {
    let backends = sideburn::device::built_in().into_iter().filter(|backend| *backend != "flex");
    backends.map(|backend| parse_device(backend).unwrap())
}

#[test]
fn what_a_gpu_has_not_got_is_named() {
    use burn::tensor::FloatDType;
    use sideburn::device::{DeviceError, inspect, names, parse_device_in};
    for name in names().iter().filter(|name| *name != "flex") {
        let info = inspect(name).unwrap();
        println!("{info:?}");
        assert!(info.card.is_some() && info.tests.iter().all(|test| test.passed()), "{info:?}");
        let backend = name.split(':').next().unwrap();
        let error = parse_device(&format!("{backend}:99")).unwrap_err();
        assert!(matches!(error, DeviceError::NoSuchIndex { index: 99, .. }), "{error}");
        if !info.dtypes.contains(&"bf16") {
            let error = parse_device_in(name, FloatDType::BF16).unwrap_err().to_string();
            assert!(error.contains("has no bf16; it has f32"), "{error}");
        }
    }
}

#[test]
fn forward_pass() {
    for family in FAMILIES {
        let io = Golden::open(&format!("lora/{family}/io.safetensors"));
        let losses = |device: &Device| {
            let mut model = T5::from_dir(sideburn_testing::path(family), device).unwrap();
            model.load_adapter("default", sideburn_testing::path(&format!("lora/{family}"))).unwrap();
            values(model.token_losses(&io.batch(), &mut Pass::evaluate()).unwrap())
        };
        for gpu in gpus() {
            let difference = max_difference(&losses(&gpu), &losses(&Device::flex()));
            println!("{family}, {gpu:?}: token losses differ by at most {difference:e}");
            assert!(difference <= 5e-4, "{family}: token losses differ by {difference:e}");
        }
    }
}

#[test]
fn lora_steps() {
    for family in FAMILIES {
        let io = Golden::open(&format!("{family}/io.safetensors"));
        let run = |device: Device| {
            let mut model = T5::from_dir(sideburn_testing::path(family), &device.autodiff()).unwrap();
            model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(3)).unwrap();
            let config = TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(3) };
            let batches = |_| Ok::<_, Infallible>(io.batch());
            Trainer::new(config).unwrap().train(&mut model, batches, T5::token_losses).unwrap().losses()
        };
        for gpu in gpus() {
            for (found, expected) in run(gpu).iter().zip(run(Device::flex())) {
                println!("{family}: loss {found} on the GPU, {expected} on the CPU");
                assert!((found - expected).abs() <= 1e-4 * expected, "{family}: {found} is not {expected}");
            }
        }
    }
}

/// Rows of full columns, which lie in memory in the same way on a GPU, padded, and on the CPU, packed.
fn full_rows(config: &T5Config) -> PromptBatch {
    let ids = Key::from_seed(8);
    let rows = |part: u64, rows: u64| {
        let id = move |row: u64, column| ids.fold_in(part).below(32 * row + column, config.vocab_size as u64) as u32;
        let row = move |row: u64| (0..32).map(|column| id(row, column)).collect::<Vec<u32>>();
        TokenRows::from_rows((0..rows).map(row)).unwrap()
    };
    PromptBatch::new(rows(0, 3), rows(1, 3)).unwrap()
}

/// The losses of some steps of LoRA with dropout everywhere.
fn train(device: Device, family: &str, steps: u64) -> Vec<f64> {
    train_as(device, family, 8, TrainConfig::new(steps))
}

/// The same with a branch of this rank and other settings.
fn train_as(device: Device, family: &str, rank: usize, settings: TrainConfig) -> Vec<f64> {
    let config = T5Config::from_file(sideburn_testing::path(family).join("config.json")).unwrap();
    let config = T5Config { dropout_rate: 0.2, ..config };
    let mut model = T5::random(&config, Key::from_seed(4), &device.autodiff());
    let lora = LoraConfig { r: rank, lora_dropout: 0.3, ..LoraConfig::new(["q", "v"]) };
    model.attach("default", lora, Key::from_seed(3)).unwrap();
    let batches = |_| Ok::<_, Infallible>(full_rows(&config));
    let training = TrainConfig { learning_rate: 1e-2, ..settings };
    Trainer::new(training).unwrap().train(&mut model, batches, T5::token_losses).unwrap().losses()
}

#[test]
fn steps_with_dropout() {
    for family in FAMILIES {
        let expected = train(Device::flex(), family, 4);
        for gpu in gpus() {
            for (found, expected) in train(gpu, family, 4).iter().zip(&expected) {
                println!("{family}, with dropout: loss {found} on the GPU, {expected} on the CPU");
                assert!((found - expected).abs() <= 1e-5 * expected, "{family}: {found} is not {expected}");
            }
        }
    }
}

/// Moments in 8 bits, blocks that are run again in the backward pass, smoothed labels, and noise on embedded tokens.
#[test]
fn steps_with_other_settings() {
    let plain = TrainConfig::new(3);
    let settings = [
        // The factors of rank 64 are large enough. Where moments are rounded to codes, a last digit may decide between two.
        ("moments in 8 bits", 64, 5e-3, TrainConfig { optim: Optim::AdamwBnb8bit, ..plain.clone() }),
        ("blocks run again", 8, 1e-5, TrainConfig { gradient_checkpointing: true, ..plain.clone() }),
        ("smoothed labels", 8, 1e-5, TrainConfig { label_smoothing_factor: 0.1, ..plain.clone() }),
        ("noise", 8, 1e-5, TrainConfig { neftune_noise_alpha: Some(5.0), ..plain }),
    ];
    for (what, rank, tolerance, config) in settings {
        let expected = train_as(Device::flex(), FAMILIES[0], rank, config.clone());
        for gpu in gpus() {
            for (found, expected) in train_as(gpu, FAMILIES[0], rank, config.clone()).iter().zip(&expected) {
                println!("{what}: loss {found} on the GPU, {expected} on the CPU");
                assert!((found - expected).abs() <= tolerance * expected, "{what}: {found} is not {expected}");
            }
        }
    }
}

/// Linear layers in 4 bits, and the matrices beside them in 16.
#[test]
fn steps_over_packed_weights() {
    use sideburn::{nn::QuantizationConfig, weights::Dtype};
    let io = Golden::open(&format!("{}/io.safetensors", FAMILIES[0]));
    for dtype in [Dtype::F16, Dtype::BF16] {
        let run = |device: Device| {
            let quantization = QuantizationConfig { dtype: Some(dtype), ..Quantization::NF4.into() };
            let directory = sideburn_testing::path(FAMILIES[0]);
            let mut model = T5::from_dir_quantized(directory, quantization, &device.autodiff()).unwrap();
            model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(3)).unwrap();
            let config = TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(3) };
            let batches = |_| Ok::<_, Infallible>(io.batch());
            Trainer::new(config).unwrap().train(&mut model, batches, T5::token_losses).unwrap().losses()
        };
        let expected = run(Device::flex());
        for gpu in gpus() {
            // A GPU without this dtype holds them in `f32`, which is more exact.
            let is_there = gpu.supports_dtype(if dtype == Dtype::F16 { DType::F16 } else { DType::BF16 });
            let tolerance = if is_there { 1e-4 } else { 1e-2 };
            for (found, expected) in run(gpu).iter().zip(&expected) {
                println!("packed, {dtype:?} beside, there: {is_there}: loss {found} on the GPU, {expected} on the CPU");
                assert!((found - expected).abs() <= tolerance * expected, "{dtype:?}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn steps_are_few_launches() {
    use sideburn::kernels::{KernelMode, count_launches, set_kernel_mode};
    for gpu in gpus() {
        let [fused, composed] = [KernelMode::Fused, KernelMode::Composed].map(|mode| {
            set_kernel_mode(mode);
            // Kernels are tried out in the first steps.
            train(gpu.clone(), FAMILIES[0], 2);
            let launches = |steps| count_launches(&gpu, || train(gpu.clone(), FAMILIES[0], steps)).1;
            let (few, more) = (launches(1), launches(3));
            for (name, count) in &more {
                let per_step = (count - few.get(name).unwrap_or(&0)) as f64 / 2.0;
                if mode == KernelMode::Fused && per_step > 0.0 {
                    println!("{per_step:6} {name}");
                }
            }
            (more.values().sum::<usize>() - few.values().sum::<usize>()) / 2
        });
        set_kernel_mode(KernelMode::Fused);
        println!("launches in a step: {fused}, composed of primitives {composed}");
        assert!(2 * fused <= composed, "{fused} launches, of primitives {composed}");
    }
}

#[test]
fn greedy_tokens() {
    for family in FAMILIES {
        let io = Golden::open(&format!("{family}/io.safetensors"));
        let config = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(24) };
        let write = |device: &Device| {
            let model = T5::from_dir(sideburn_testing::path(family), device).unwrap();
            written(model.start_decoding(io.batch().prompts(), Pass::evaluate()).unwrap(), &config)
        };
        for gpu in gpus() {
            assert_eq!(write(&gpu), write(&Device::flex()), "{family}");
        }
    }
}

#[test]
fn memory_that_is_used_up_is_an_error_that_says_what_was_asked_for() {
    use sideburn::t5::T5Error;
    use sideburn::train::TrainError;
    // 8 GiB in one piece, as many elements as 32 bits can count.
    let losses = |model: &T5, batch: &PromptBatch, pass: &mut Pass| {
        let far = Tensor::<1>::empty([1usize << 31], &model.device().inner()).narrow(0, 0, 1);
        Ok::<_, T5Error>(model.token_losses(batch, pass)? + Tensor::from_inner(far))
    };
    let batch = Golden::open(&format!("{}/io.safetensors", FAMILIES[0])).batch();
    for gpu in gpus() {
        let mut model = T5::from_dir(sideburn_testing::path(FAMILIES[0]), &gpu.autodiff()).unwrap();
        model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(3)).unwrap();
        let mut run = Run::begin(&model, &TrainConfig::new(1)).unwrap();
        let error = run.step(&mut model, std::slice::from_ref(&batch), &losses).unwrap_err();
        println!("{error}");
        let TrainError::OutOfMemory { step: 0, memory } = error else { panic!("{error:?}") };
        assert!(memory.asked >= 1 << 33 && memory.taken.is_some_and(|taken| taken > 0), "{memory:?}");
    }
}

/// A process whose Vulkan has no driver.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn no_driver_is_an_error_that_says_what_to_install() {
    let mut process = std::process::Command::new(std::env::current_exe().unwrap());
    for variable in ["VK_ICD_FILENAMES", "VK_DRIVER_FILES", "__EGL_VENDOR_LIBRARY_FILENAMES"] {
        process.env(variable, "/nowhere.json");
    }
    process.args(["gpu_parity::opened_without_a_driver", "--exact", "--ignored", "--nocapture"]);
    let output = process.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("`wgpu` finds no GPU here; `vulkaninfo --summary` lists those"), "{text}");
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn opened_without_a_driver() {
    println!("{}", parse_device("wgpu").unwrap_err());
}

/// Batches whose rows are of lengths of their own, in the memory that the first ones took: 120 steps, or as many as
/// `SIDEBURN_SOAK_STEPS` says.
#[test]
fn ragged_batches_take_no_more_memory() {
    let steps = std::env::var("SIDEBURN_SOAK_STEPS").map_or(120, |steps| steps.parse::<u64>().unwrap());
    let config = T5Config::from_file(sideburn_testing::path(FAMILIES[0]).join("config.json")).unwrap();
    let lengths = Key::from_seed(9);
    let batch = |step: u64| {
        let rows = |part: u64| {
            let length = |row: u64| 1 + lengths.fold_in(step).fold_in(part).below(row, 70) as usize;
            TokenRows::from_rows((0..3).map(|row| vec![7u32; length(row)])).unwrap()
        };
        PromptBatch::new(rows(0), rows(1)).unwrap()
    };
    for gpu in gpus() {
        let mut model = T5::random(&config, Key::from_seed(4), &gpu.clone().autodiff());
        model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(3)).unwrap();
        let mut run = Run::begin(&model, &TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(steps) }).unwrap();
        let mut taken = Vec::new();
        for step in 0..steps {
            run.step(&mut model, &[batch(step)], &T5::token_losses).unwrap();
            taken.push(gpu.memory_pool_usage().expect("a GPU tells what it has taken").bytes_reserved);
        }
        let most = |steps: std::ops::Range<usize>| *taken[steps].iter().max().unwrap() as f64;
        let third = taken.len() / 3;
        let (early, late) = (most(0..third), most(2 * third..taken.len()));
        let [first, last] = [early, late].map(|bytes| bytes / 1048576.0);
        println!("{gpu:?}: {first:.1} MiB in the first third of {steps} steps, {last:.1} in the last");
        assert!(late <= 1.1 * early, "{early} bytes in the first third of {steps} steps, {late} in the last");
    }
}
