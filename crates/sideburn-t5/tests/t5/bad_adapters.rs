//! Adapters from strangers that are not what they should be: each is refused with a message that says why, and the model
//! is as before. The readers of files have tests of their own in `sideburn-weights`, the registry in `registry.rs`, and
//! adapters cut short, of another base, of another rank or with values that are not finite in `registry.rs` and
//! `lora_goldens.rs`.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use sideburn_adapters::{AdaptedModel, Adapters, ParameterReport};
use sideburn_t5::T5;
use tempfile::{TempDir, tempdir};

use sideburn_testing::values;

const ADAPTER: &str = "adapters/lora_rslora";

fn base() -> T5 {
    T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap()
}

/// A copy of an adapter, with some fields of its configuration changed.
fn changed(adapter: &str, fields: &serde_json::Value) -> TempDir {
    let directory = tempdir().unwrap();
    let file = |name: &str| sideburn_testing::path(&format!("{adapter}/{name}"));
    let config = fs::read(file("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    fs::copy(file("adapter_model.safetensors"), directory.path().join("adapter_model.safetensors")).unwrap();
    directory
}

/// Loads an adapter that must be refused, and gives the error's text.
#[track_caller]
fn refused(model: &mut T5, name: &str, directory: &Path) -> String {
    let state = |model: &T5| {
        let names = model.adapters().list().iter().map(|entry| (entry.name().to_owned(), entry.is_active()));
        (names.collect::<Vec<_>>(), ParameterReport::of(model))
    };
    let before = state(model);
    let error = model.load_adapter(name, directory).expect_err("a bad adapter").to_string();
    assert_eq!(state(model), before, "{error}");
    error
}

#[test]
fn a_configuration_that_contradicts_its_tensors() {
    let json = |text: &str| serde_json::from_str(text).unwrap();
    for (adapter, fields, parts) in [
        (ADAPTER, r#"{"r": 3}"#, &["misshapen (24)", "lora_A.weight is [4, 64], the model has [3, 64]"] as &[&str]),
        (
            ADAPTER,
            r#"{"rank_pattern": {"decoder.*q": 2}}"#,
            &["misshapen (8)", "decoder.block.0", "the model has [2, 64]"],
        ),
        (ADAPTER, r#"{"use_dora": true}"#, &["missing (12)", "q.lora_magnitude_vector"]),
        ("adapters/lora_dora", r#"{"use_dora": false}"#, &["unexpected (", "lora_magnitude_vector"]),
        (ADAPTER, r#"{"lora_bias": true}"#, &["missing (12)", "q.lora_B.bias"]),
        (ADAPTER, r#"{"target_modules": ["q", "v", "o"]}"#, &["missing (12)", "o.lora_A.weight"]),
        (
            ADAPTER,
            r#"{"target_modules": ["q", "lm_head"]}"#,
            &["missing (3)", "lm_head.base_layer.weight", "unexpected (12)"],
        ),
        (ADAPTER, r#"{"layers_to_transform": [1]}"#, &["unexpected (12)", "encoder.block.0"]),
        (ADAPTER, r#"{"exclude_modules": ["v"]}"#, &["unexpected (12)", "v.lora_B.weight"]),
        (ADAPTER, r#"{"modules_to_save": ["lm_head"]}"#, &["missing (1)", "base_model.model.lm_head.weight"]),
        (ADAPTER, r#"{"trainable_token_indices": [1]}"#, &["missing (1)", "trainable_tokens_delta"]),
        (
            "adapters/ia3_default",
            r#"{"feedforward_modules": []}"#,
            &["misshapen (4)", "is [1, 128], the model has [64, 1]"],
        ),
        ("adapters/prompt_tuning", r#"{"num_virtual_tokens": 7}"#, &["misshapen (1)", "prompt_embeddings is ["]),
        (
            "adapters/prompt_tuning",
            r#"{"num_transformer_submodules": 1}"#,
            &["misshapen (1)", "prompt_embeddings is ["],
        ),
        ("adapters/prefix_tuning", r#"{"num_virtual_tokens": 1}"#, &["misshapen (1)", "prompt_embeddings is ["]),
        (
            "adapters/prefix_tuning",
            r#"{"peft_type": "PROMPT_TUNING", "encoder_hidden_size": null}"#,
            &["misshapen (1)", "prompt_embeddings is ["],
        ),
    ] {
        let directory = changed(adapter, &json(fields));
        let error = refused(&mut base(), "default", directory.path());
        let start = "adapter_model.safetensors: the tensors do not fit the model";
        for part in [start].iter().chain(parts) {
            assert!(error.contains(part), "{adapter} {fields}: {part:?} is not in: {error}");
        }
    }
    for (fields, part) in [
        (r#"{"modules_to_save": ["lm_haed"]}"#, "modules_to_save [\"lm_haed\"] names nothing in the model"),
        (r#"{"modules_to_save": ["lm_head", "score"]}"#, "modules_to_save [\"score\"] names nothing"),
        (r#"{"target_modules": ["query"]}"#, "target_modules [\"query\"] matches nothing in the model"),
        (r#"{"r": "8"}"#, "adapter_config.json: `r` is \"8\", expected a rank"),
        (r#"{"r": 1152921504606846976}"#, "adapter_config.json: `r` is 1152921504606846976, expected a rank"),
        (r#"{"r": 1e300}"#, "adapter_config.json: `r` is 1e+300, expected a rank"),
        (r#"{"use_bdlora": {"blocks": 2}}"#, "adapter_config.json: `use_bdlora` is {\"blocks\":2}, which this version"),
        (r#"{"peft_type": "../LORA"}"#, "adapter_config.json: `peft_type` is \"../LORA\", which this version"),
    ] {
        let directory = changed(ADAPTER, &json(fields));
        let error = refused(&mut base(), "default", directory.path());
        assert!(error.contains(part), "{fields}: {part:?} is not in: {error}");
    }
}

#[test]
fn a_hostile_pickle_is_not_run() {
    let directory = changed(ADAPTER, &serde_json::json!({}));
    fs::remove_file(directory.path().join("adapter_model.safetensors")).unwrap();
    let owned = directory.path().join("owned");
    let command = format!("touch {}", owned.display());
    // What `pickle.loads` would run: os.system("touch ...").
    for pickle in [
        format!("cos\nsystem\n(V{command}\ntR."),
        format!("cposix\nsystem\n(V{command}\ntR."),
        format!("(V{command}\nios\nsystem\n."),
        format!("cbuiltins\neval\n(V__import__('os').system('{command}')\ntR."),
        format!("Pmodule {command}\n."),
        format!("{}{}.", "(".repeat(1 << 18), "t".repeat(1 << 18)),
    ] {
        fs::write(directory.path().join("adapter_model.bin"), &pickle).unwrap();
        let error = refused(&mut base(), "default", directory.path());
        assert!(error.contains("adapter_model.bin"), "{error}");
        assert!(!owned.exists(), "{pickle}");
    }
}

#[test]
fn names_of_adapters_are_names_of_folders() {
    let mut model = base();
    let directory = sideburn_testing::path(ADAPTER);
    for name in ["", ".", "..", "../up", "a/b", "/etc", "a\\b", "C:\\a", "a\0b", "a\nb", "\u{7f}", &"ä".repeat(101)] {
        let error = refused(&mut model, name, &directory);
        assert!(error.starts_with("an adapter cannot be called"), "{error}");
    }
    model.load_adapter("größe 数 ✓", &directory).unwrap();
    let error = refused(&mut model, "größe 数 ✓", &directory);
    assert!(error.contains("already has an adapter called \"größe 数 ✓\"; choose another name"), "{error}");
    // A name that is allowed is a folder, and says nothing about the files in it.
    let parent = tempdir().unwrap();
    model.save_adapter("größe 数 ✓", parent.path().join("größe 数 ✓")).unwrap();
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    model.load_adapter("e\u{301}", parent.path().join("größe 数 ✓")).unwrap();
    model.load_adapter("\u{e9}", parent.path().join("größe 数 ✓")).unwrap();
    assert_eq!(model.adapters().list().len(), 3, "names are compared as they are written");
}

#[test]
fn a_swap_that_is_refused_changes_nothing() {
    let mut model = base();
    model.load_adapter("default", sideburn_testing::path(ADAPTER)).unwrap();
    let tensors = |model: &T5| -> Vec<Vec<f32>> {
        model.adapter_tensors("default").unwrap().into_values().map(|param| values(param.val())).collect()
    };
    let before = tensors(&model);

    let (nan, mut broken) = (tempdir().unwrap(), model.clone());
    // The last of all tensors, when the others have been read.
    let last = "base_model.model.encoder.block.1.layer.0.SelfAttention.v.lora_B.weight";
    broken.set_adapter_tensors("default", |name| (name == last).then(|| vec![f32::NEG_INFINITY; 256])).unwrap();
    broken.save_adapter("default", nan.path()).unwrap();
    let cut = changed(ADAPTER, &serde_json::json!({}));
    let file = cut.path().join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    for (directory, part) in [(nan, "element 0 of base_model.model.encoder.block.1"), (cut, "cut short")] {
        let error = model.swap_adapter("default", directory.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(tensors(&model), before, "{error}");
    }
}
