//! Configurations that `peft` writes for what is computed like another: each loads, and computes the same.

use std::fs;

use crate::logits::{common_logits as logits, logits_in};
use burn::tensor::Device;
use sideburn_adapters::methods::{FullConfig, Ia3Config, LoraConfig, PromptTuningConfig};
use sideburn_adapters::peft::{PeftDifference, read_adapter_json};
use sideburn_adapters::{AdaptedModel, AdapterError, Adapters, Key, Pass, TargetModules, Targets};
use sideburn_t5::T5;
use sideburn_testing::{Golden, max_difference, values};
use sideburn_weights::TensorSource;
use tempfile::{TempDir, tempdir};

const BASE: &str = "t5_gated_untied";
const ADAPTER: &str = "adapters/lora_rslora";

fn base(device: &Device) -> T5 {
    T5::from_dir(sideburn_testing::path(BASE), device).unwrap()
}

/// A copy of an adapter, with some fields of its configuration changed; what becomes null is left out.
fn changed(adapter: &str, fields: &str) -> TempDir {
    let directory = tempdir().unwrap();
    let mut config = read_adapter_json(sideburn_testing::path(adapter)).unwrap();
    let fields: serde_json::Value = serde_json::from_str(fields).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    config.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    let tensors = sideburn_testing::path(&format!("{adapter}/adapter_model.safetensors"));
    fs::copy(tensors, directory.path().join("adapter_model.safetensors")).unwrap();
    directory
}

fn with(directory: &std::path::Path) -> Result<T5, AdapterError> {
    let mut model = base(&Device::flex());
    model.load_adapter("default", directory)?;
    Ok(model)
}

#[test]
fn what_only_says_how_factors_began_changes_nothing() {
    let expected = logits(&with(&sideburn_testing::path(ADAPTER)).unwrap());
    for fields in [
        r#"{"init_lora_weights": "mica"}"#,
        r#"{"init_lora_weights": "MiCA"}"#,
        r#"{"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}}"#,
        r#"{"init_lora_weights": "orthogonal"}"#,
        r#"{"corda_config": {"corda_method": "ipm"}, "lora_ga_config": {"direction": "ArB2r"}}"#,
        r#"{"loftq_config": {"loftq_bits": 4}}"#,
        r#"{"merge_weights": true, "enable_lora": null, "peft_version": "0.3.0"}"#,
        r#"{"target_modules": "(?!lm_head).*\\.[qv]\\Z"}"#,
        r#"{"exclude_modules": "(?=lm_head).*"}"#,
    ] {
        let model = with(changed(ADAPTER, fields).path()).unwrap_or_else(|error| panic!("{fields}: {error}"));
        assert_eq!(logits(&model), expected, "{fields}");
    }
    for init in ["loftq", "corda", "lora_ga"] {
        let error = with(changed(ADAPTER, &format!(r#"{{"init_lora_weights": "{init}"}}"#)).path()).unwrap_err();
        assert!(error.to_string().contains("`init_lora_weights` is"), "{error}");
    }
}

#[test]
fn patterns_that_are_not_taken_name_their_field() {
    for (fields, part) in [
        (r#"{"target_modules": "(?<"}"#, "target_modules \"(?<\" is not a regular expression"),
        (r#"{"exclude_modules": "["}"#, "exclude_modules \"[\" is not a regular expression"),
        (r#"{"rank_pattern": {"(": 2}}"#, "rank_pattern \"(\" is not a regular expression"),
        (r#"{"alpha_pattern": {")": 2}}"#, "alpha_pattern \")\" is not a regular expression"),
        (
            r#"{"rank_pattern": {"(?=e)(\\w*\\.?)*(\\w*\\.?)*(\\w*\\.?)*(\\w*\\.?)*!": 2}}"#,
            "takes more than 100000 steps",
        ),
    ] {
        let error = with(changed(ADAPTER, fields).path()).unwrap_err().to_string();
        assert!(error.contains(part), "{fields}: {error}");
    }
}

#[test]
fn dora_leaves_rows_of_zeros_alone() {
    let mut model = base(&Device::flex().autodiff());
    for (name, site) in model.linears_mut() {
        if name.ends_with(".q") {
            let weight = site.weight().dense();
            let zeros = weight.clone().narrow(0, 0, 3).zeros_like();
            let weight = weight.slice_assign([0..3, 0..site.shape()[1]], zeros);
            site.weight_mut().replace(weight);
        }
    }
    let expected = logits(&model);
    let config = LoraConfig { use_dora: true, r: 4, ..LoraConfig::new(["q"]) };
    model.attach("dora", config, Key::from_seed(1)).unwrap();
    let scale = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    let difference = max_difference(&logits(&model), &expected) / scale;
    assert!(difference <= 1e-5, "a new adapter changes the logits by {difference:e} relative");

    let batch = Golden::open("lora/t5_gated_untied/io.safetensors");
    let source = batch.source();
    let gradients = model.encode(&source, &mut Pass::evaluate()).unwrap().hidden.square().sum().backward();
    let mut moved = 0;
    for (name, param) in model.adapter_tensors("dora").unwrap() {
        let Some(gradient) = param.val().grad(&gradients) else { continue };
        let gradient = values(gradient);
        assert!(gradient.iter().all(|value| value.is_finite()), "{name}");
        moved += usize::from(name.contains("lora_B") && gradient.iter().any(|value| *value != 0.0));
    }
    assert_eq!(moved, 2, "the second factors of the encoder");
    model.merge().unwrap();
    let difference = max_difference(&logits(&model), &expected) / scale;
    assert!(difference <= 1e-5, "merging changes the logits by {difference:e} relative");
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_made() {
    let mut model = base(&Device::flex());
    let refused = |model: &mut T5, error: AdapterError| {
        assert!(model.adapters().list().is_empty());
        error.to_string()
    };
    for r in [1 << 40, usize::MAX] {
        let error = model.attach("a", LoraConfig { r, ..LoraConfig::new(["q"]) }, Key::from_seed(0)).unwrap_err();
        let error = refused(&mut model, error);
        assert!(error.contains(&format!("`r` is {r}, expected a rank of at least 1")), "{error}");
    }
    let config = LoraConfig { r: 1_000_000, ..LoraConfig::new(["q"]) };
    let error = model.attach("a", config, Key::from_seed(0)).unwrap_err();
    let error = refused(&mut model, error);
    let start = "the adapter would have 768000000 elements, 64000000 of them in encoder.block.";
    assert!(error.starts_with(start) && error.contains("at most 268435456 can be"), "{error}");
    for tokens in [1 << 40, usize::MAX] {
        let error = model.attach("a", PromptTuningConfig::new(tokens), Key::from_seed(0)).unwrap_err();
        let error = refused(&mut model, error);
        assert!(error.contains(&format!("`num_virtual_tokens` is {tokens}, expected a number from 1")), "{error}");
    }
}

#[test]
fn folders_without_an_adapter_say_where_one_is() {
    let directory = tempdir().unwrap();
    let error = |path: &std::path::Path| with(path).unwrap_err().to_string();
    let path = directory.path();
    assert!(error(path).contains("adapter_config.json\" does not exist"), "{}", error(path));
    fs::write(path.join("config.json"), "{}").unwrap();
    assert!(error(path).ends_with("this is a model and no adapter"), "{}", error(path));
    assert!(error(&path.join("config.json")).contains("this is a file; name the folder"));
    assert!(error(&path.join("nothing")).ends_with("there is no such folder with an adapter_config.json"));
    let hub = error("somebody/flan-t5-lora".as_ref());
    assert!(hub.contains("hf download somebody/flan-t5-lora --local-dir FOLDER"), "{hub}");
    let deeper = path.join("summaries");
    fs::create_dir(&deeper).unwrap();
    fs::write(deeper.join("adapter_config.json"), "{}").unwrap();
    assert!(error(path).contains("there is one in") && error(path).ends_with("summaries"), "{}", error(path));
}

#[test]
fn an_unknown_method_lists_those_there_are() {
    let error = with(changed(ADAPTER, r#"{"peft_type": "SHIRA"}"#).path()).unwrap_err().to_string();
    assert!(
        error.contains("`peft_type` is \"SHIRA\", which this version does not have; it has ADALORA, FULL"),
        "{error}"
    );
}

#[test]
fn the_task_is_told_of_an_encoder_decoder() {
    let mut model = base(&Device::flex());
    model.attach("a", LoraConfig::new(["q"]), Key::from_seed(0)).unwrap();
    let directory = tempdir().unwrap();
    model.save_adapter("a", directory.path()).unwrap();
    assert_eq!(read_adapter_json(directory.path()).unwrap()["task_type"], "SEQ_2_SEQ_LM");
}

#[test]
fn what_peft_makes_otherwise_is_told_when_it_is_saved() {
    let differences = |base: &str, attach: &dyn Fn(&mut T5)| {
        let mut model = T5::from_dir(sideburn_testing::path(base), &Device::flex()).unwrap();
        attach(&mut model);
        model.save_adapter("a", tempdir().unwrap().path()).unwrap()
    };
    let lora = |targets: [&'static str; 2], trainable_token_indices: Vec<usize>| {
        move |model: &mut T5| {
            let config =
                LoraConfig { trainable_token_indices: trainable_token_indices.clone(), ..LoraConfig::new(targets) };
            drop(model.attach("a", config, Key::from_seed(0)).unwrap());
        }
    };
    let full = |model: &mut T5| drop(model.attach("a", FullConfig::default(), Key::from_seed(0)).unwrap());
    assert_eq!(differences(BASE, &lora(["q", "v"], Vec::new())), []);
    assert_eq!(differences(BASE, &full), [PeftDifference::NoSuchMethod { peft_type: "FULL" }]);
    let unread = PeftDifference::UnreadEmbedding {
        embedding: "shared",
        read: vec!["encoder.embed_tokens", "decoder.embed_tokens"],
    };
    assert!(unread.to_string().starts_with("in `peft` the layers read encoder.embed_tokens and decoder.embed_tokens,"));
    assert_eq!(differences(BASE, &lora(["q", "shared"], Vec::new())), [unread]);
    let taken = PeftDifference::HeadTakenForEmbedding { head: "lm_head" };
    assert_eq!(differences(BASE, &lora(["q", "v"], vec![3])), [taken]);
    assert_eq!(differences("t5_relu_tied", &lora(["q", "v"], vec![3])), []);
    let first = |model: &mut T5| {
        let targets = Targets { layers_to_transform: Some(vec![0]), ..["k"].into() };
        drop(model.attach("a", Ia3Config { targets, ..Ia3Config::default() }, Key::from_seed(0)).unwrap());
    };
    let field = PeftDifference::NoSuchField { peft_type: "IA3", field: "layers_to_transform" };
    assert_eq!(differences(BASE, &first), [field]);
}

/// A copy of an adapter with more tensors, each made of the base's embedding and head.
fn with_embeddings(fields: &str, change: impl Fn(&str, Vec<f32>) -> Vec<f32>, rows: Option<usize>) -> TempDir {
    let directory = changed(ADAPTER, fields);
    let base = base(&Device::flex());
    let [all, width] = base.linears().into_iter().find(|(name, _)| name == "lm_head").unwrap().1.shape();
    let path = directory.path().join("adapter_model.safetensors");
    let file = sideburn_weights::StateDict::open(directory.path(), "adapter_model").unwrap();
    let mut tensors: std::collections::BTreeMap<_, _> =
        file.names().map(|name| (name.to_owned(), file.read(name).unwrap())).collect();
    drop(file);
    let model =
        sideburn_weights::SafetensorsFile::open(sideburn_testing::path(BASE).join("model.safetensors")).unwrap();
    for place in ["shared", "lm_head"] {
        let mut values = change(place, model.read_f32(&format!("{place}.weight")).unwrap());
        let rows = rows.unwrap_or(all);
        values.resize(rows * width, 0.0);
        let tensor = sideburn_weights::Tensor::from_f32(vec![rows, width], &values).unwrap();
        tensors.insert(format!("base_model.model.{place}.weight"), tensor);
    }
    sideburn_weights::write_safetensors(path, tensors, None).unwrap();
    directory
}

#[test]
fn embeddings_in_the_file_are_read() {
    let plain = logits(&with(&sideburn_testing::path(ADAPTER)).unwrap());
    let equal = with(with_embeddings("{}", |_, values| values, None).path()).unwrap();
    assert_eq!(logits(&equal), plain);
    assert!(equal.adapters().get("default").unwrap().carried().is_empty());

    let moved = |place: &str, mut values: Vec<f32>| {
        if place == "shared" {
            values.iter_mut().for_each(|value| *value *= 1.5);
        }
        values
    };
    let directory = with_embeddings("{}", moved, None);
    let model = with(directory.path()).unwrap();
    assert_eq!(model.adapters().get("default").unwrap().carried(), ["shared"]);
    let found = logits(&model);
    assert!(max_difference(&found, &plain) > 0.1);
    // With an embedding of its own it cannot be active beside another.
    let mut pair = with(&sideburn_testing::path(ADAPTER)).unwrap();
    pair.load_adapter("other", sideburn_testing::path(ADAPTER)).unwrap();
    pair.set_active(&["default", "other"]).unwrap();
    let before = logits(&pair);
    let error = pair.swap_adapter("default", directory.path()).unwrap_err();
    assert!(matches!(error, AdapterError::CannotCombine { .. }), "{error}");
    assert_eq!(logits(&pair), before);
    // It is saved with the adapter, and worked into the base by merging.
    let saved = tempdir().unwrap();
    model.save_adapter("default", saved.path()).unwrap();
    assert_eq!(logits(&with(saved.path()).unwrap()), found);
    let mut merged = model.clone();
    merged.merge().unwrap();
    assert!(max_difference(&logits(&merged), &found) < 1e-3);

    let error = with(with_embeddings("{}", |_, values| values, Some(260)).path()).unwrap_err();
    assert!(matches!(error, AdapterError::OtherVocabulary { found: 260, .. }), "{error}");
    assert!(error.to_string().contains("model.resize_token_embeddings(260)"), "{error}");
}

#[test]
fn a_copy_that_no_layer_reads_is_not_trained() {
    let moved = |_: &str, mut values: Vec<f32>| {
        values.iter_mut().for_each(|value| *value *= 1.5);
        values
    };
    let directory = with_embeddings(r#"{"modules_to_save": ["shared", "lm_head"]}"#, moved, None);
    let both = logits(&with(directory.path()).unwrap());
    let head = |place: &str, values: Vec<f32>| if place == "lm_head" { moved(place, values) } else { values };
    let directory = with_embeddings(r#"{"modules_to_save": ["lm_head"]}"#, head, None);
    assert_eq!(both, logits(&with(directory.path()).unwrap()), "`shared` has no effect, as in peft");

    let mut model = base(&Device::flex());
    let mut config = LoraConfig::new(["q"]);
    config.meta.modules_to_save = vec!["shared".to_owned()];
    let error = model.attach("a", config, Key::from_seed(0)).unwrap_err().to_string();
    assert!(error.contains("shared has no effect in `peft`: no layer reads its copy"), "{error}");
}

/// `modules_to_save: [embed_tokens]` of `peft`: each half has an embedding of its own, and the tied head that of the base.
#[test]
fn halves_with_embeddings_of_their_own_compute_what_peft_does() {
    let folder = sideburn_testing::path("embed_tokens");
    let io = Golden::open("embed_tokens/io.safetensors");
    let base = T5::from_dir(&folder, &Device::flex()).unwrap();
    let mut model = base.clone();
    model.load_adapter("default", folder.join("adapter")).unwrap();
    let found = logits_in(&model, &io, Pass::evaluate());
    let difference = max_difference(&found, &io.floats("logits"));
    assert!(difference < 1e-4, "{difference:e}");
    let tensors = model.adapter_tensors("default").unwrap();
    let [encoder, decoder] = ["encoder", "decoder"]
        .map(|half| values(tensors[&format!("base_model.model.{half}.embed_tokens.weight")].val()));
    assert!(max_difference(&encoder, &decoder) > 1e-3, "the halves have been trained apart");

    let saved = tempdir().unwrap();
    assert_eq!(model.save_adapter("default", saved.path()).unwrap(), []);
    let mut again = base.clone();
    again.load_adapter("default", saved.path()).unwrap();
    assert_eq!(logits_in(&again, &io, Pass::evaluate()), found);
    let mut rows = base.clone();
    rows.load_adapter("default", saved.path()).unwrap();
    rows.set_active(&[]).unwrap();
    let pass = Pass::evaluate().with_adapters([Some("default"), None, Some("default")]);
    let (mixed, plain) = (logits_in(&rows, &io, pass), logits_in(&rows, &io, Pass::evaluate()));
    let row = found.len() / 3;
    assert!(max_difference(&mixed[..row], &found[..row]) < 1e-4, "the first row has the adapter");
    assert!(max_difference(&mixed[row..2 * row], &plain[row..2 * row]) < 1e-4, "the second row has none");
    let error = model.merge().unwrap_err().to_string();
    assert!(error.contains("cannot be merged into encoder.embed_tokens: other parts of the model read"), "{error}");
}

/// LoRA on what the halves read, and on a head that is the embedding: each adds its product to what is there.
#[test]
fn factors_at_the_names_of_an_embedding() {
    let base = T5::from_dir(sideburn_testing::path("embed_tokens"), &Device::flex()).unwrap();
    let io = Golden::open("embed_tokens/io.safetensors");
    let plain = logits_in(&base, &io, Pass::evaluate());
    let noise = |name: &str, length: usize| -> Vec<f32> {
        let key = Key::from_seed(5).fold_in_name(name);
        (0..length as u64).map(|index| 0.3 * key.normal(index) as f32).collect()
    };
    for (targets, tensors) in [
        (vec!["embed_tokens"], vec!["encoder.embed_tokens.lora_embedding_A", "decoder.embed_tokens.lora_embedding_B"]),
        (vec!["decoder.embed_tokens"], vec!["decoder.embed_tokens.lora_embedding_A"]),
        (vec!["lm_head"], vec!["lm_head.lora_A.weight", "lm_head.lora_B.weight", "lm_head.base_layer.weight"]),
    ] {
        let mut model = base.clone();
        let names = targets.iter().map(|name| (*name).to_owned()).collect();
        let config = LoraConfig { r: 3, ..LoraConfig::new(TargetModules::Names(names)) };
        model.attach("a", config, Key::from_seed(0)).unwrap();
        assert_eq!(logits_in(&model, &io, Pass::evaluate()), plain, "{targets:?}: a new adapter changes nothing");
        let shapes = model.adapter_tensors("a").unwrap();
        for tensor in tensors {
            assert!(
                shapes.contains_key(&format!("base_model.model.{tensor}")),
                "{tensor} is not in {:?}",
                shapes.keys()
            );
        }
        let lengths: std::collections::BTreeMap<_, _> =
            shapes.iter().map(|(name, param)| (name.clone(), param.lazy_shape().num_elements())).collect();
        let moved = |name: &str| name.contains("lora_").then(|| noise(name, lengths[name]));
        model.set_adapter_tensors("a", moved).unwrap();
        let found = logits_in(&model, &io, Pass::evaluate());
        assert!(max_difference(&found, &plain) > 1e-2, "{targets:?} does nothing");
        let saved = tempdir().unwrap();
        model.save_adapter("a", saved.path()).unwrap();
        let mut again = base.clone();
        again.load_adapter("b", saved.path()).unwrap();
        assert_eq!(logits_in(&again, &io, Pass::evaluate()), found, "{targets:?}");
        assert!(matches!(model.merge(), Err(AdapterError::CannotMerge { .. })), "{targets:?}");
    }
}

#[test]
fn modules_to_save_are_named_by_their_ends() {
    let mut model = base(&Device::flex());
    let mut config = LoraConfig::new(["q"]);
    config.meta.modules_to_save = vec!["layer_norm".to_owned()];
    model.attach("a", config, Key::from_seed(0)).unwrap();
    let norms: Vec<_> = model.adapter_tensors("a").unwrap().into_keys().filter(|name| name.contains("norm")).collect();
    let expected = model.weights().into_iter().map(|(name, _)| name).filter(|name| name.contains("norm"));
    let mut expected: Vec<_> = expected.map(|name| format!("base_model.model.{name}")).collect();
    expected.sort();
    assert_eq!(norms, expected, "`final_layer_norm` among them, as in peft");
}
