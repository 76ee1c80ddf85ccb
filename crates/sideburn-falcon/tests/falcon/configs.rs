//! Which configurations are read, and which are refused by field.

use burn::tensor::Device;
use sideburn_falcon::{Activation, Falcon, FalconConfig, LanguageModel};

fn read(text: &str) -> Result<FalconConfig, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    FalconConfig::from_file(&path).map_err(|error| {
        let message = error.to_string();
        message.split_once("config.json: ").map_or(message.clone(), |(_, reason)| reason.to_owned())
    })
}

fn with(fields: &str) -> Result<FalconConfig, String> {
    read(&format!(r#"{{"model_type": "falcon", {fields}}}"#))
}

#[test]
fn absent_fields_take_the_defaults_of_transformers() {
    assert_eq!(read(r#"{"model_type": "falcon", "unknown": [1]}"#), Ok(FalconConfig::default()));
    let seven = FalconConfig::default();
    assert_eq!((seven.kv_heads(), seven.head_width(), seven.feed_forward_width()), (1, 64, 18_176));
}

#[test]
fn published_configurations() {
    // What the notebook's model says; `num_kv_heads` counts for nothing there.
    let seven = with(
        r#""alibi": false, "apply_residual_connection_post_layernorm": false, "architectures": ["FalconForCausalLM"],
           "attention_dropout": 0.0, "bias": false, "hidden_size": 4544, "multi_query": true, "num_attention_heads": 71,
           "num_hidden_layers": 32, "num_kv_heads": 71, "parallel_attn": true, "vocab_size": 65024"#,
    )
    .unwrap();
    assert_eq!(FalconConfig { num_kv_heads: None, ..seven.clone() }, FalconConfig::default());
    assert_eq!(seven.kv_heads(), 1);
    let forty = with(
        r#""new_decoder_architecture": true, "num_kv_heads": 8, "num_attention_heads": 128, "hidden_size": 8192,
           "num_hidden_layers": 60, "parallel_attn": true, "multi_query": true, "vocab_size": 65024"#,
    )
    .unwrap();
    assert_eq!((forty.kv_heads(), forty.head_width()), (8, 64));
    let one_billion = with(
        r#""alibi": true, "bias": true, "multi_query": false, "parallel_attn": false, "hidden_size": 2048,
           "num_attention_heads": 32, "num_hidden_layers": 24, "vocab_size": 50304, "bos_token_id": 1,
           "eos_token_id": 2"#,
    )
    .unwrap();
    assert_eq!((one_billion.kv_heads(), one_billion.eos_token_id.as_slice()), (32, &[2][..]));
}

#[test]
fn null_is_read_as_in_python() {
    let config = with(
        r#""num_ln_in_parallel_attn": null, "num_kv_heads": null, "ffn_hidden_size": null, "bias": null, "alibi": null,
           "hidden_dropout": null, "rope_scaling": null, "pad_token_id": null, "eos_token_id": null, "bos_token_id": null"#,
    )
    .unwrap();
    assert_eq!(config, FalconConfig { eos_token_id: vec![], bos_token_id: None, ..FalconConfig::default() });
}

#[test]
fn angles_are_where_either_transformers_has_them() {
    let theta = |fields: &str| with(fields).map(|config| config.rope_theta);
    assert_eq!(theta(r#""rope_theta": 5000"#), Ok(5000.0));
    assert_eq!(theta(r#""rope_parameters": {"rope_type": "default", "rope_theta": 7.0}"#), Ok(7.0));
    assert_eq!(theta(r#""rope_theta": 5000.0, "rope_parameters": {"rope_theta": 7.0}"#), Ok(7.0));
    assert_eq!(theta(r#""rope_theta": 5000.0, "rope_parameters": {"rope_type": "default"}"#), Ok(5000.0));
    let scaled = theta(r#""rope_scaling": {"type": "linear", "factor": 2.0}"#).unwrap_err();
    assert_eq!(scaled, "`rope_scaling`: `type` is linear, expected default: angles are not scaled here");
    let scaled = theta(r#""rope_parameters": {"rope_type": "dynamic"}"#).unwrap_err();
    assert_eq!(scaled, "`rope_parameters`: `rope_type` is dynamic, expected default: angles are not scaled here");
    let partial = theta(r#""rope_parameters": {"partial_rotary_factor": 0.5}"#).unwrap_err();
    assert!(partial.contains("`partial_rotary_factor` is 0.5, expected 1"), "{partial}");
}

#[test]
fn other_architectures_are_named() {
    for (model_type, architecture, what) in [
        ("bert", "BertModel", "expected falcon"),
        ("RefinedWebModel", "RWForCausalLM", "as its authors first published it"),
        ("falcon_mamba", "FalconMambaForCausalLM", "which has no attention"),
        ("falcon_h1", "FalconH1ForCausalLM", "a hybrid with state spaces"),
        ("falcon", "FalconForSequenceClassification", "whose head classifies rows"),
    ] {
        let error =
            read(&format!(r#"{{"model_type": "{model_type}", "architectures": ["{architecture}"]}}"#)).unwrap_err();
        assert!(error.contains(what) && error.contains(architecture), "{what:?} is not in: {error}");
    }
    assert!(read("{}").unwrap_err().contains("(absent)"));
    assert_eq!(read("[]").unwrap_err(), "expected a JSON object");
}

#[test]
fn broken_configurations_are_refused_by_field() {
    let with = |fields: &str| with(fields).unwrap_err();
    assert_eq!(with(r#""num_hidden_layers": 0"#), "`num_hidden_layers` is 0, expected 1 to 1024");
    assert!(with(r#""num_attention_heads": 70"#).contains("is 70, expected a divisor of `hidden_size`, 4544"));
    assert!(with(r#""hidden_size": 9, "num_attention_heads": 3"#).contains("are 3 wide, expected an even number"));
    assert!(with(r#""new_decoder_architecture": true, "num_kv_heads": 2"#).contains("`num_kv_heads` is 2, expected a"));
    assert!(with(r#""multi_query": false, "num_kv_heads": 1"#).contains("without `new_decoder_architecture`"));
    let sequential = with(r#""new_decoder_architecture": true, "parallel_attn": false"#);
    assert!(sequential.contains("`parallel_attn` is false, expected true"), "{sequential}");
    assert!(with(r#""num_ln_in_parallel_attn": 2"#).contains("is 2, expected 1 or null"));
    let norms = with(r#""new_decoder_architecture": true, "num_ln_in_parallel_attn": 3"#);
    assert_eq!(norms, "`num_ln_in_parallel_attn` is 3, expected 1 or 2");
    assert!(with(r#""apply_residual_connection_post_layernorm": true"#).contains("is true, which no implementation"));
    assert!(with(r#""activation": "mish""#).contains("`activation` is mish, expected one of relu, gelu"));
    assert!(with(r#""hidden_dropout": 1.0"#).contains("`hidden_dropout` is 1, expected a probability"));
    assert!(with(r#""layer_norm_epsilon": 0"#).contains("`layer_norm_epsilon` is 0"));
    assert!(with(r#""rope_theta": -1"#).contains("`rope_theta` is -1, expected a positive number"));
    assert_eq!(with(r#""multi_query": 1"#), "`multi_query` is 1, expected true or false");
    assert_eq!(with(r#""num_kv_heads": "8""#), "`num_kv_heads` is \"8\", expected a whole number or null");
    assert!(with(r#""eos_token_id": 70000"#).contains("`eos_token_id` is 70000, but the vocabulary has 65024"));
}

#[test]
fn what_the_files_say_is_what_the_model_has() {
    let model = Falcon::from_dir(sideburn_testing::path("falcon/alibi_mqa"), &Device::flex()).unwrap();
    assert_eq!(model.config().activation, Activation::GeluNew);
    assert_eq!(model.config().feed_forward_width(), 80);
    let generation = model.default_generation_config();
    assert_eq!((generation.bos_token_id, generation.eos_token_id.as_slice()), (Some(2), &[1][..]));
    let model = Falcon::from_dir(sideburn_testing::path("falcon/one_norm"), &Device::flex()).unwrap();
    assert_eq!((model.config().rope_theta, model.config().tie_word_embeddings), (500.0, false));
}

#[test]
fn weights_that_do_not_fit_are_all_named() {
    let directory = tempfile::tempdir().unwrap();
    let from = |name: &str| sideburn_testing::path(&format!("falcon/mqa/{name}"));
    std::fs::copy(from("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(from("config.json")).unwrap();
    let write = |text: &str| std::fs::write(directory.path().join("config.json"), text).unwrap();
    write(&config.replace("\"bias\": false", "\"bias\": true"));
    let error = Falcon::from_dir(directory.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("missing (8): transformer.h.0.self_attention.query_key_value.bias"), "{error}");
    write(&config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"));
    let error = Falcon::from_dir(directory.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("transformer.h.1.mlp.dense_4h_to_h.weight"), "{error}");
}
