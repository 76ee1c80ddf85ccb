//! LoRA on T5 against `peft`: logits, gradients, target selection, parameter counts, and directories both ways.

// Each test says how far it is from the reference.
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Gradients, Tensor};
use sideburn_adapters::methods::{LnTuningConfig, LoraConfig};
use sideburn_adapters::{AdaptedModel, AdapterError, Adapters, Key, Method, ParameterReport, Pass, Targets};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_kernels::{KernelMode, kernel_mode};
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_weights::{SafetensorsFile, TensorSource};

use crate::logits::logits;
use sideburn_testing::{Cast, Golden, max_difference, relative_difference, values};

const FAMILIES: [&str; 2] = ["t5_gated_untied", "t5_relu_tied"];

fn adapted(family: &str, adapter: &str, device: &Device) -> T5 {
    let mut model = T5::from_dir(sideburn_testing::path(family), device).unwrap();
    model.load_adapter("default", sideburn_testing::path(adapter)).unwrap();
    model
}

#[test]
fn logits_and_loss() {
    for family in FAMILIES {
        let directory = format!("lora/{family}");
        let io = Golden::open(&format!("{directory}/io.safetensors"));
        let model = adapted(family, &directory, &Device::flex());
        let expected = io.floats("logits");
        let difference = max_difference(&logits(&model, &io), &expected);
        println!("{family}: logits differ by at most {difference:e}");
        // The composed forms sum in Burn's order, which is another on every kind of processor: 1.05e-4 with AVX2, where
        // PyTorch itself is 6.4e-5 from f64. They are held to what `sideburn verify` asks, 1e-4 of the logits' spread.
        let bound = if kernel_mode() == KernelMode::Fused { 1e-4 } else { 1e-4 * standard_deviation(&expected) };
        assert!(difference <= bound, "{family}: logits differ by {difference:e}, more than {bound:e}");
        let difference = relative_difference(&values(loss(&model, &io)), &io.floats("loss"));
        assert!(difference <= 1e-5, "{family}: loss differs by {difference:e}");
    }
}

fn standard_deviation(numbers: &[f32]) -> f32 {
    let mean = |numbers: &[f32]| numbers.iter().sum::<f32>() / numbers.len() as f32;
    let middle = mean(numbers);
    mean(&numbers.iter().map(|number| (number - middle).powi(2)).collect::<Vec<_>>()).sqrt()
}

fn loss(model: &T5, io: &Golden) -> Tensor<1> {
    let batch = io.batch();
    model.token_losses(&batch, &mut Pass::evaluate()).unwrap().mean()
}

/// The goldens' gradients were computed in f64, but for a few steps that `transformers` takes in f32. Ours, computed in
/// f64, must agree: that shows the formulas. Computed in f32 on these models, whose weights are enlarged so that every
/// path counts, PyTorch itself is up to 1.1e-5 away from them in the norm of the whole; ours may be twice that.
#[test]
fn gradients_in_f64_and_f32() {
    for family in FAMILIES {
        for (dtype, tolerance) in [(DType::F64, 1e-5), (DType::F32, 2.5e-5)] {
            let directory = format!("lora/{family}");
            let io = Golden::open(&format!("{directory}/io.safetensors"));
            let model = adapted(family, &directory, &Device::flex().autodiff()).map(&mut Cast(dtype));
            let (difference, _) = gradient_difference(&model, loss(&model, &io), &io);
            println!("{family}, {dtype:?}: gradients differ by {difference:e} relative");
            assert!(difference <= tolerance, "{family}, {dtype:?}: gradients differ by {difference:e}");
        }
    }
}

/// A model of the real size, on which f32 is good enough: PyTorch's gradient in f32 is 3.2e-6 away from the golden.
#[test]
fn lora_on_the_flan_t5_small_architecture() {
    let config = T5Config::from_file(sideburn_testing::path("flan_t5_small/config.json")).unwrap();
    let mut model = crate::formula::model(&config, &Device::flex().autodiff());
    let base_io = Golden::open("flan_t5_small/io.safetensors");
    let io = Golden::open("flan_t5_small/lora_io.safetensors");
    // More than one rank, and a scaling that is not 1.
    let lora = LoraConfig { r: 4, lora_alpha: 10.0, ..LoraConfig::new(["q", "v"]) };
    let directory = tempfile::tempdir().unwrap();
    crate::formula::write_adapter(&model, &lora, directory.path());
    model.load_adapter("default", directory.path()).unwrap();

    let every_16: Vec<f32> = logits(&model, &base_io).into_iter().step_by(16).collect();
    let difference = max_difference(&every_16, &io.floats("logits_every_16"));
    println!("flan-t5-small: logits differ by at most {difference:e}");
    assert!(difference <= 1e-4, "logits differ by {difference:e}");

    let loss = loss(&model, &base_io);
    let difference = relative_difference(&values(loss.clone()), &io.floats("loss"));
    println!("flan-t5-small: loss differs by {difference:e} relative");
    assert!(difference <= 1e-5, "loss differs by {difference:e}");

    let (difference, norm) = gradient_difference(&model, loss, &io);
    println!("flan-t5-small: gradients differ by {difference:e} relative");
    assert!(difference <= 1e-5, "gradients differ by {difference:e}");
    assert!((norm / f64::from(io.floats("grad_norm")[0]) - 1.0).abs() <= 1e-6, "all gradients are there: norm {norm}");
}

/// The norm of the error of all gradients together, over the norm of the golden gradient; and the latter.
fn gradient_difference(model: &T5, loss: Tensor<1>, io: &Golden) -> (f64, f64) {
    let gradients = loss.backward();
    let (mut squared_error, mut squared_norm, mut compared) = (0.0, 0.0, 0);
    for (site, linear) in model.linears() {
        assert!(linear.weight().dense().grad(&gradients).is_none(), "{site}: the base must not be differentiated");
    }
    for (name, param) in model.adapter_tensors("default").unwrap() {
        let expected = io.floats(&format!("grad.{name}"));
        let found = gradient(param, &gradients);
        squared_error += found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        squared_norm += expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        compared += 1;
    }
    assert_eq!(compared, io.names().iter().filter(|name| name.starts_with("grad.")).count());
    ((squared_error / squared_norm).sqrt(), squared_norm.sqrt())
}

fn gradient(param: &Param<Tensor<2>>, gradients: &Gradients) -> Vec<f32> {
    values(param.val().grad(gradients).expect("a gradient").cast(DType::F32))
}

#[test]
fn every_way_to_choose_sites() {
    let io = Golden::open("lora/t5_gated_untied/io.safetensors");
    for variant in ["lora_targets_list7", "lora_targets_regex", "lora_all_linear", "lora_targets_fullpath"] {
        let directory = format!("lora/variants/{variant}");
        let model = adapted("t5_gated_untied", &directory, &Device::flex());
        let expected = Golden::open(&format!("{directory}/io.safetensors")).floats("logits");
        let difference = max_difference(&logits(&model, &io), &expected);
        println!("{variant}: logits differ by at most {difference:e}");
        assert!(difference <= 1e-4, "{variant}: logits differ by {difference:e}");
    }
}

#[test]
fn what_is_saved_is_what_was_loaded() {
    let saved = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let (original, copy) = (sideburn_testing::path(&format!("lora/{family}")), saved.path().join(family));
        let mut model = T5::from_dir(sideburn_testing::path(family), &Device::flex()).unwrap();
        model.load_adapter("default", &original).unwrap();
        model.save_adapter("default", &copy).unwrap();

        let file =
            |directory: &std::path::Path| SafetensorsFile::open(directory.join("adapter_model.safetensors")).unwrap();
        let (before, after) = (file(&original), file(&copy));
        assert!(before.names().eq(after.names()));
        for name in before.names() {
            assert_eq!(before.read(name).unwrap(), after.read(name).unwrap(), "{name}");
        }
        let mut again = T5::from_dir(sideburn_testing::path(family), &Device::flex()).unwrap();
        again.load_adapter("default", &copy).unwrap();
        let config = |model: &T5| model.adapters().get("default").unwrap().method().to_json();
        assert_eq!(config(&again), config(&model));
    }
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let io = Golden::open("lora/t5_gated_untied/io.safetensors");
    let base = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let mut model = base.clone();
    let config = LoraConfig { r: 4, lora_alpha: 16.0, lora_dropout: 0.1, ..LoraConfig::new(["q", "v"]) };
    let sites = model.attach("default", config.clone(), Key::from_seed(1)).unwrap();
    assert_eq!(sites.len(), 12);
    assert_eq!(logits(&model, &io), logits(&base, &io), "B is zero");
    assert!(base.linears().iter().all(|(_, linear)| linear.slots().len() == 0), "the original is not touched");

    // A is uniform in ±1 / sqrt(in), as `kaiming_uniform_(a=sqrt(5))` draws it.
    let tensors = model.adapter_tensors("default").unwrap();
    let a: Vec<f32> =
        tensors.iter().filter(|(name, _)| name.contains("lora_A")).flat_map(|(_, a)| values(a.val())).collect();
    let bound = 1.0 / 64f32.sqrt();
    assert!(a.iter().all(|value| value.abs() <= bound));
    let variance = a.iter().map(|value| value * value).sum::<f32>() / a.len() as f32;
    assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "variance {variance}");
}

#[test]
fn parameter_counts_from_configurations_alone() {
    let text = std::fs::read_to_string(sideburn_testing::path("parameter_counts.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in ["flan_t5_small", "flan_t5_base", "flan_t5_xxl"] {
        let config = T5Config::from_file(sideburn_testing::path(&format!("{name}/config.json"))).unwrap();
        // 11 billion parameters are counted, and none of them is made.
        let mut model = T5::random(&config, Key::from_seed(0), &Device::flex());
        let r = expected[name]["r"].as_u64().unwrap() as usize;
        model.attach("default", LoraConfig { r, ..LoraConfig::new(["q", "v"]) }, Key::from_seed(0)).unwrap();
        let report = ParameterReport::of(&model);
        assert_eq!(report.trainable, expected[name]["trainable"].as_u64().unwrap(), "{name}");
        assert_eq!(report.all, expected[name]["all"].as_u64().unwrap(), "{name}");
        println!("{name} r {r}: {report}");
    }
}

#[test]
fn dropout_is_on_in_training_only_and_follows_its_key() {
    let io = Golden::open("lora/t5_gated_untied/io.safetensors");
    let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let config = LoraConfig { lora_dropout: 0.3, ..LoraConfig::new(["q", "v"]) };
    model.attach("default", config.clone(), Key::from_seed(1)).unwrap();
    // A trained adapter in place of the fresh one, whose branch is zero.
    let mut trained = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let weights = sideburn_testing::path("lora/t5_gated_untied/adapter_model.safetensors");
    std::fs::copy(weights, directory.path().join("adapter_model.safetensors")).unwrap();
    let config = LoraConfig { r: 8, lora_alpha: 16.0, ..config };
    std::fs::write(directory.path().join("adapter_config.json"), config.to_json().to_string()).unwrap();
    trained.load_adapter("default", directory.path()).unwrap();

    let batch = io.batch();
    let losses = |pass: &mut Pass| values(trained.token_losses(&batch, pass).unwrap());
    let key = Key::from_seed(5);
    assert_eq!(losses(&mut Pass::evaluate()), losses(&mut Pass::evaluate()));
    assert_eq!(losses(&mut Pass::train(key)), losses(&mut Pass::train(key)));
    assert_ne!(losses(&mut Pass::train(key)), losses(&mut Pass::train(key.fold_in(1))));
    assert_ne!(losses(&mut Pass::train(key)), losses(&mut Pass::evaluate()));
}

/// Loads an adapter directory made of a changed configuration and the golden's weights.
fn load_with(model: &mut T5, change: impl FnOnce(&mut LoraConfig)) -> Result<(), AdapterError> {
    let directory = tempfile::tempdir().unwrap();
    let weights = sideburn_testing::path("lora/t5_gated_untied/adapter_model.safetensors");
    std::fs::copy(weights, directory.path().join("adapter_model.safetensors")).unwrap();
    let mut config = LoraConfig { r: 8, lora_alpha: 16.0, ..LoraConfig::new(["q", "v"]) };
    change(&mut config);
    std::fs::write(directory.path().join("adapter_config.json"), config.to_json().to_string()).unwrap();
    model.load_adapter("default", directory.path())
}

/// The text of the error.
fn refusal(change: impl FnOnce(&mut LoraConfig)) -> String {
    let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let before = ParameterReport::of(&model);
    let error = load_with(&mut model, change).unwrap_err().to_string();
    assert_eq!(ParameterReport::of(&model), before, "a refused adapter leaves nothing behind");
    error
}

#[test]
fn adapters_that_do_not_fit_are_refused_with_the_full_list() {
    let rank = refusal(|config| config.r = 4);
    assert!(
        rank.contains("misshapen (24)") && rank.contains("lora_A.weight is [8, 64], the model has [4, 64]"),
        "{rank}"
    );
    let missing = refusal(|config| config.targets = ["q", "v", "k"].into());
    assert!(missing.contains("missing (12)") && missing.contains("SelfAttention.k.lora_A.weight"), "{missing}");
    let unexpected = refusal(|config| config.targets = ["q"].into());
    assert!(unexpected.contains("unexpected (12)") && unexpected.contains("SelfAttention.v.lora_B"), "{unexpected}");
    let unmatched = refusal(|config| config.targets = ["query"].into());
    assert!(unmatched.contains("[\"query\"]") && unmatched.contains("EncDecAttention.o"), "{unmatched}");
    let zero = refusal(|config| config.r = 0);
    assert!(zero.contains("adapter_config.json: `r` is 0"), "{zero}");
}

/// `peft` is content if one name matches.
#[test]
fn names_that_nothing_has_are_for_new_adapters_only_an_error() {
    let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let more = || Targets::from(["q", "v", "query_key_value"]);
    let error = model.attach("new", LoraConfig::new(more()), Key::from_seed(0)).unwrap_err().to_string();
    assert!(error.contains("target_modules [\"query_key_value\"] matches nothing in the model"), "{error}");
    assert!(error.contains("among: shared, encoder.block.0.layer.0.SelfAttention.q, "), "{error}");
    let norms = LnTuningConfig { targets: ["layer_norm", "ln_f"].into(), ..LnTuningConfig::default() };
    let error = model.attach("new", norms, Key::from_seed(0)).unwrap_err().to_string();
    assert!(error.contains("[\"ln_f\"]") && error.contains("among: encoder.block.0.layer.0.layer_norm, "), "{error}");

    load_with(&mut model, |config| config.targets = more()).unwrap();
    let method = model.adapters().get("default").unwrap().method().clone();
    assert_eq!(method.targets().unwrap().unmatched(&model.outline()), ["query_key_value"]);
    let plain = adapted("t5_gated_untied", "lora/t5_gated_untied", &Device::flex());
    let report = ParameterReport::of(&model);
    assert_eq!(report, ParameterReport::of(&plain), "what is adapted is the same");
    // And it is saved as it came.
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter("default", directory.path()).unwrap();
    let mut again = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    again.load_adapter("default", directory.path()).unwrap();
    assert_eq!(ParameterReport::of(&again), report);
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let config = T5Config { num_layers: 2, d_model: 32, vocab_size: 256, ..T5Config::default() };
    let mut model = T5::random(&config, Key::from_seed(0), &Device::flex());
    let error = model.load_adapter("default", sideburn_testing::path("lora/t5_gated_untied")).unwrap_err();
    assert!(matches!(error, AdapterError::TensorsDoNotFit { .. }));
    let text = error.to_string();
    assert!(text.contains("[8, 64], the model has [8, 32]"), "{text}");
}

#[test]
fn broken_adapter_files_are_refused() {
    let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut load = || model.load_adapter("default", directory.path()).unwrap_err().to_string();
    assert!(load().contains("adapter_config.json\" does not exist"));
    let config = directory.path().join("adapter_config.json");
    std::fs::write(&config, "{").unwrap();
    assert!(load().contains("EOF"));
    std::fs::copy(sideburn_testing::path("lora/t5_gated_untied/adapter_config.json"), &config).unwrap();
    assert!(load().contains("adapter_model.safetensors"));
    let bytes = std::fs::read(sideburn_testing::path("lora/t5_gated_untied/adapter_model.safetensors")).unwrap();
    std::fs::write(directory.path().join("adapter_model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    let error = load();
    assert!(error.contains(&bytes.len().to_string()) && error.contains(&(bytes.len() - 1).to_string()), "{error}");
}

#[test]
fn an_adapter_that_cannot_be_written_or_does_not_exist() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "").unwrap();
    let model = adapted("t5_gated_untied", "lora/t5_gated_untied", &Device::flex());
    let error = model.save_adapter("default", directory.path().join("file/adapter")).unwrap_err().to_string();
    assert!(error.contains("file"), "{error}");
    let error = model.save_adapter("other", directory.path().join("adapter")).unwrap_err().to_string();
    assert_eq!(error, "the model has no adapter called \"other\"; it has [\"default\"]");
    let mut model = model;
    let error = model.attach("default", LoraConfig::new(["q"]), Key::from_seed(0)).unwrap_err().to_string();
    assert!(error.starts_with("the model already has an adapter called \"default\""), "{error}");
}

#[test]
fn token_ids_outside_the_vocabulary_are_refused() {
    let model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
    let rows = TokenRows::from_rows([[5, 256, 1]]).unwrap();
    let error = model.encode(&rows, &mut Pass::evaluate()).unwrap_err().to_string();
    assert!(error.starts_with("token id 256 is outside the vocabulary of 256"), "{error}");
    let good = TokenRows::from_rows([[5, 1]]).unwrap();
    let batch = PromptBatch::new(good, rows).unwrap();
    assert!(model.token_losses(&batch, &mut Pass::evaluate()).is_err(), "labels are checked too");
}
