//! The same model on a GPU backend and on the CPU: a T5 forward pass, one step of LoRA, greedy decoding.
//!
//! Needs a GPU, or software that stands in for one (Mesa's lavapipe, which takes `wgpu` but not `vulkan`):
//! `cargo test --release -p sideburn --features wgpu --test gpu_parity`.
#![cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]

use std::convert::Infallible;

use sideburn::prelude::*;

#[allow(dead_code)]
#[path = "../../../testdata/golden.rs"]
mod golden;
use golden::{Golden, max_difference, values};

const FAMILIES: [&str; 2] = ["t5_gated_untied", "t5_relu_tied"];

/// The devices of the GPU backends that this test was built with.
fn gpus() -> impl Iterator<Item = Device> {
    let backends = sideburn::device::built_in().into_iter().filter(|backend| *backend != "flex");
    backends.map(|backend| parse_device(backend).unwrap())
}

fn batch(io: &Golden) -> Seq2SeqBatch {
    let source = io.rows("input_ids", &io.mask_lengths("attention_mask"));
    Seq2SeqBatch::new(source, io.rows("labels", &io.label_lengths("labels"))).unwrap()
}

#[test]
fn forward_pass() {
    for family in FAMILIES {
        let io = Golden::open(&format!("lora/{family}/io.safetensors"));
        let losses = |device: &Device| {
            let mut model = T5::from_dir(golden::path(family), device).unwrap();
            load_adapter(&mut model, "default", golden::path(&format!("lora/{family}"))).unwrap();
            values(model.token_losses(&batch(&io), &mut Pass::evaluate()).unwrap())
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
            let mut model = T5::from_dir(golden::path(family), &device.autodiff()).unwrap();
            attach(&mut model, "default", LoraConfig::new(["q", "v"]), Key::from_seed(3)).unwrap();
            let config = TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(3) };
            let batches = |_| Ok::<_, Infallible>(batch(&io));
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

#[test]
fn dropout_follows_its_key() {
    let io = Golden::open("t5_gated_untied/io.safetensors");
    for gpu in gpus() {
        let mut model = T5::from_dir(golden::path("t5_gated_untied"), &gpu.clone().autodiff()).unwrap();
        load_adapter(&mut model, "default", golden::path("lora/t5_gated_untied")).unwrap();
        let x = Tensor::<2>::ones([64, 64], &gpu.clone().autodiff()).require_grad();
        let y = sideburn::kernels::dropout(x.clone(), 0.5, Key::from_seed(1));
        let gradient = x.grad(&y.clone().sum().backward()).unwrap();
        assert_eq!(values(gradient), values(y.inner()), "one mask in both directions");
        let again = |key: Key| values(sideburn::kernels::dropout(Tensor::<2>::ones([64, 64], &gpu), 0.5, key));
        assert_eq!(again(Key::from_seed(1)), again(Key::from_seed(1)));
        assert_ne!(again(Key::from_seed(1)), again(Key::from_seed(2)));
        let loss = model.token_losses(&batch(&io), &mut Pass::train(Key::from_seed(1))).unwrap().sum();
        assert!(loss.inner().into_scalar::<f32>().is_finite());
    }
}

#[test]
fn greedy_tokens() {
    for family in FAMILIES {
        let io = Golden::open(&format!("{family}/io.safetensors"));
        let config =
            GreedyConfig { max_new_tokens: 24, decoder_start_token_id: 0, eos_token_id: 1, no_repeat_ngram_size: 0 };
        let write = |device: &Device| {
            let model = T5::from_dir(golden::path(family), device).unwrap();
            greedy(model.start_decoding(batch(&io).source()).unwrap(), &config).unwrap()
        };
        for gpu in gpus() {
            assert_eq!(write(&gpu), write(&Device::flex()), "{family}");
        }
    }
}
