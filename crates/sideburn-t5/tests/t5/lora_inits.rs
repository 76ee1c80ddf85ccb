//! LoRA that begins as a part of the base weight, PiSSA and OLoRA, against `peft`.

// Each test says how far it is from the reference.
#![allow(clippy::print_stdout)]

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use sideburn_adapters::methods::{LoraConfig, LoraInit, MethodRegistry};
use sideburn_adapters::{AdaptedModel, AdapterError, Adapters, Combination, Key, ParameterReport, Pass, Targets};
use sideburn_t5::{LanguageModel, T5};

use crate::logits::common_logits as logits;
use sideburn_testing::{Golden, max_difference, relative_difference, values};

const SITES: [&str; 2] = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.2.DenseReluDense.wo"];
const PISSA: LoraInit = LoraInit::Pissa { iterations: None };
const INITS: [(&str, LoraInit); 2] = [("pissa", PISSA), ("olora", LoraInit::Olora)];
const CHANGED: &str = "adapters/init/pissa/changed_adapter";

fn base(device: &Device) -> T5 {
    T5::from_dir(sideburn_testing::path("t5_gated_untied"), device).unwrap()
}

fn config(init_lora_weights: LoraInit) -> LoraConfig {
    LoraConfig { r: 4, lora_alpha: 8.0, init_lora_weights, ..LoraConfig::new(Targets::from(SITES)) }
}

/// A model on which an adapter was attached just now.
fn fresh(init: LoraInit, seed: u64, device: &Device) -> T5 {
    let mut model = base(device);
    model.attach("default", config(init), Key::from_seed(seed)).unwrap();
    model
}

/// The model with an adapter that `peft` has trained, or changed at random.
fn changed() -> T5 {
    let mut model = base(&Device::flex());
    model.load_adapter("default", sideburn_testing::path(CHANGED)).unwrap();
    model
}

fn tensor(model: &T5, site: &str, name: &str) -> Tensor<2> {
    model.adapter_tensors("default").unwrap()[&format!("base_model.model.{site}.{name}")].val()
}

fn weight(model: &T5, site: &str) -> Tensor<2> {
    model.linears().into_iter().find(|(name, _)| name == site).unwrap().1.weight().dense()
}

fn read(golden: &Golden, name: &str) -> Tensor<2> {
    Tensor::from_data(TensorData::new(golden.floats(name), golden.shape(name)), &Device::flex())
}

fn assert_near(found: Tensor<2>, expected: Tensor<2>, tolerance: f32, what: &str) {
    let difference = relative_difference(&values(found), &values(expected));
    println!("{what} differs by {difference:e} relative");
    assert!(difference <= tolerance, "{what} differs by {difference:e}");
}

/// Compares with the logits that `peft` computes, where `exact` takes singular values in f64.
fn assert_logits(model: &T5, golden: &str, what: &str) {
    let expected = Golden::open(&format!("adapters/init/pissa/{golden}.safetensors")).floats("logits");
    let difference = max_difference(&logits(model), &expected);
    println!("{what}: logits differ by at most {difference:e}");
    assert!(difference <= 1e-4, "{what}: logits differ by {difference:e}");
}

#[test]
fn parts_of_the_base() {
    for (name, init) in INITS {
        let golden = Golden::open(&format!("adapters/init/{name}/init.safetensors"));
        let model = fresh(init, 0, &Device::flex());
        for site in SITES {
            let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|factor| tensor(&model, site, factor));
            let [first_a, first_b] = ["initial_A", "initial_B"].map(|factor| tensor(&model, site, factor));
            assert_eq!(values(a.clone()), values(first_a.clone()));
            assert_eq!(values(b.clone()), values(first_b.clone()));
            let [golden_a, golden_b] = ["A", "B"].map(|factor| read(&golden, &format!("{site}.lora_{factor}")));
            assert_near(
                b.matmul(a.clone()),
                golden_b.matmul(golden_a.clone()),
                1e-5,
                &format!("{name}: B A of {site}"),
            );
            let residual = weight(&model, site) - first_b.matmul(first_a).mul_scalar(2.0);
            let expected = read(&golden, &format!("{site}.residual"));
            assert_near(residual, expected, 1e-5, &format!("{name}: what is left of {site}"));
            // Each rank has a sign of its own.
            let signs = (a.clone() * golden_a.clone()).sum_dim(1).sign();
            assert_near(a * signs, golden_a, 5e-5, &format!("{name}: A of {site}"));
        }
    }
}

#[test]
fn nothing_changes_at_first_and_the_factors_alone_train() {
    let device = Device::flex().autodiff();
    let before = logits(&base(&Device::flex()));
    for init in [PISSA, LoraInit::Olora, LoraInit::Pissa { iterations: Some(2) }] {
        let model = fresh(init, 0, &device);
        assert_eq!(logits(&model), before, "{init:?}: A and B are as they were, so that nothing is added");
        let report = ParameterReport::of(&model);
        assert_eq!(report.trainable, 4 * (64 + 64 + 64 + 128));

        let io = Golden::open("lora/t5_gated_untied/io.safetensors");
        let batch = io.batch();
        let gradients = model.token_losses(&batch, &mut Pass::evaluate()).unwrap().mean().backward();
        for site in SITES {
            assert!(weight(&model, site).grad(&gradients).is_none(), "the base is frozen");
            for (name, trains) in
                [("lora_A.weight", true), ("lora_B.weight", true), ("initial_A", false), ("initial_B", false)]
            {
                let gradient = tensor(&model, site, name).grad(&gradients);
                assert_eq!(gradient.is_some_and(|gradient| values(gradient.abs().max())[0] > 0.0), trains, "{name}");
            }
        }
    }
}

#[test]
fn a_trained_adapter_is_read_written_and_merged() {
    let mut model = changed();
    assert_logits(&model, "exact", "read");
    // `peft` takes the part out of the base that it finds in f32, 8e-6 off.
    let golden = Golden::open("adapters/init/pissa/init.safetensors");
    let mut in_f32 = model.clone();
    in_f32
        .set_adapter_tensors("default", |name| {
            let (site, factor) = name.strip_prefix("base_model.model.")?.rsplit_once(".initial_")?;
            Some(golden.floats(&format!("{site}.lora_{factor}")))
        })
        .unwrap();
    assert_logits(&in_f32, "io", "read, with the part that peft takes out");

    let saved = tempfile::tempdir().unwrap();
    model.save_adapter("default", saved.path()).unwrap();
    let file = |path: &Path| std::fs::read(path.join("adapter_model.safetensors")).unwrap();
    let config = |path: &Path| MethodRegistry::peft().read_file(&path.join("adapter_config.json")).unwrap().to_json();
    assert_eq!(config(saved.path()), config(&sideburn_testing::path(CHANGED)));
    assert_eq!(config(saved.path())["init_lora_weights"], "pissa");
    let mut again = base(&Device::flex());
    again.load_adapter("default", saved.path()).unwrap();
    assert_eq!(logits(&again), logits(&model));
    again.save_adapter("default", saved.path().join("again")).unwrap();
    assert_eq!(file(saved.path()), file(&saved.path().join("again")));

    let unmerged = logits(&model);
    model.merge().unwrap();
    assert_logits(&model, "exact", "merged");
    for site in SITES {
        let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|factor| tensor(&model, site, factor));
        let expected = read(&golden, &format!("{site}.residual")) + b.matmul(a).mul_scalar(2.0);
        assert_near(weight(&model, site), expected, 1e-5, &format!("merged {site}"));
    }
    model.unmerge().unwrap();
    assert_eq!(logits(&model), unmerged);
    assert_eq!(values(weight(&model, SITES[0])), values(weight(&base(&Device::flex()), SITES[0])));
}

#[test]
fn plain_lora_of_twice_the_rank() {
    let mut model = changed();
    model.to_plain_lora("default", "plain").unwrap();
    model.combine("half", &[("default", 0.5)], Combination::Cat).unwrap();
    assert!(
        model.adapters().get("default").unwrap().is_active() && !model.adapters().get("plain").unwrap().is_active()
    );
    model.set_active(&["plain"]).unwrap();
    assert_logits(&model, "exact", "converted");

    let saved = tempfile::tempdir().unwrap();
    model.save_adapter("plain", saved.path()).unwrap();
    let golden = sideburn_testing::path("adapters/init/pissa/converted_adapter");
    let config = |path: &Path| MethodRegistry::peft().read_file(&path.join("adapter_config.json")).unwrap().to_json();
    assert_eq!(config(saved.path()), config(&golden));
    let golden = Golden::open("adapters/init/pissa/converted_adapter/adapter_model.safetensors");
    let tensors = model.adapter_tensors("plain").unwrap();
    assert!(golden.names().iter().eq(tensors.keys()));
    for site in SITES {
        let names = ["A", "B"].map(|factor| format!("base_model.model.{site}.lora_{factor}.weight"));
        let [a, b] = names.each_ref().map(|name| tensors[name].val());
        let [golden_a, golden_b] = names.map(|name| read(&golden, &name));
        assert_near(b.matmul(a), golden_b.matmul(golden_a), 1e-5, &format!("B A of {site}"));
    }

    // Others can be made of it as well.
    model.set_active(&["half"]).unwrap();
    let half = logits(&model);
    model.combine("of plain", &[("plain", 0.5)], Combination::Cat).unwrap();
    model.set_active(&["of plain"]).unwrap();
    assert_eq!(logits(&model), half);
}

#[test]
fn randomised_iteration() {
    let factors = |rounds, seed| {
        let model = fresh(LoraInit::Pissa { iterations: Some(rounds) }, seed, &Device::flex());
        SITES.map(|site| ["lora_A.weight", "lora_B.weight"].map(|name| values(tensor(&model, site, name))))
    };
    assert_eq!(factors(2, 1), factors(2, 1), "a function of the key");
    assert_ne!(factors(2, 1), factors(2, 2));
    // The singular values of a random matrix are near to each other; what counts is how much of it is found.
    let size = |model: &T5, site| {
        let product = tensor(model, site, "lora_B.weight").matmul(tensor(model, site, "lora_A.weight"));
        f64::from(values(product.square().sum())[0].sqrt())
    };
    let [exact, model, better] =
        [None, Some(2), Some(100)].map(|iterations| fresh(LoraInit::Pissa { iterations }, 1, &Device::flex()));
    for site in SITES {
        let shares = [&model, &better].map(|model| size(model, site) / size(&exact, site));
        println!("{site}: {shares:?} of the leading part is found");
        assert!((0.9..1.0).contains(&shares[0]) && (0.999..1.000_001).contains(&shares[1]), "{site}: {shares:?}");
    }

    // What was drawn is in no file.
    let directory = tempfile::tempdir().unwrap();
    let error = model.save_adapter("default", directory.path().join("saved")).unwrap_err().to_string();
    assert!(error.contains("`init_lora_weights` is \"pissa_niter_2\"") && error.contains("`to_plain_lora`"), "{error}");
    assert!(!directory.path().join("saved").exists());
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let content = std::fs::read(sideburn_testing::path(CHANGED).join(file)).unwrap();
        std::fs::write(directory.path().join(file), content).unwrap();
    }
    let path = directory.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("\"pissa\"", "\"pissa_niter_16\"");
    std::fs::write(&path, text).unwrap();
    let error = base(&Device::flex()).load_adapter("default", directory.path()).unwrap_err();
    assert!(
        matches!(&error, AdapterError::InFile { source, .. } if matches!(**source, AdapterError::NotStorable { .. }))
    );
    assert!(error.to_string().contains("path_initial_model_for_weight_conversion"), "{error}");

    let mut model = model;
    model.to_plain_lora("default", "plain").unwrap();
    model.save_adapter("plain", directory.path().join("saved")).unwrap();
    let mut loaded = base(&Device::flex());
    loaded.load_adapter("default", directory.path().join("saved")).unwrap();
    let difference = max_difference(&logits(&loaded), &logits(&base(&Device::flex())));
    assert!(difference <= 1e-4, "an adapter that was not trained changes nothing: {difference:e}");
}

#[test]
fn what_cannot_be() {
    let refused = |config: LoraConfig| {
        base(&Device::flex()).attach("default", config, Key::from_seed(0)).unwrap_err().to_string()
    };
    for (_, init) in INITS {
        let config = || config(init);
        let targets = |name: &str| Targets::from([name]);
        for (config, expected) in [
            (LoraConfig { use_dora: true, ..config() }, "expected another one, where DoRA"),
            (LoraConfig { lora_bias: true, ..config() }, "expected another one, where DoRA or a bias"),
            (LoraConfig { r: 65, ..config() }, "SelfAttention.q, which is [64, 64], expected at most the smaller"),
            (LoraConfig { lora_alpha: -1.0, ..config() }, "expected a positive scaling"),
            (LoraConfig { targets: targets("shared"), ..config() }, "the embedding shared, expected linear layers"),
            (LoraConfig { targets: targets("lm_head"), ..config() }, "the output head lm_head, expected other layers"),
        ] {
            let error = refused(config);
            assert!(error.contains(expected), "{error}");
        }
    }

    let mut model = changed();
    let plain = tempfile::tempdir().unwrap();
    model.attach("plain", config(LoraInit::Default), Key::from_seed(0)).unwrap();
    model.save_adapter("plain", plain.path()).unwrap();
    let error = model.swap_adapter("default", plain.path()).unwrap_err().to_string();
    assert!(error.contains("another configuration"), "{error}");
    model.swap_adapter("default", sideburn_testing::path("adapters/init/pissa/initial_adapter")).unwrap();
    let error = model.to_plain_lora("plain", "new").unwrap_err().to_string();
    assert!(error.contains("no other adapter can be made of \"plain\": it is plain LoRA already"), "{error}");
}
