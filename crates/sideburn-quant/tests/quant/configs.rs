//! `quantization_config`.

use serde_json::{Value, json};
use sideburn_quant::{QuantType, Quantization, QuantizationConfig};

fn read(fields: Value) -> Result<Option<QuantizationConfig>, String> {
    QuantizationConfig::of_model(&json!({"quantization_config": fields})).map_err(|error| error.to_string())
}

#[test]
fn what_transformers_writes() {
    // Written by transformers 5.23.0 for NF4 with double quantisation.
    let written = json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes"
    });
    let config = read(written.clone()).unwrap().unwrap();
    assert_eq!(config, QuantizationConfig::from(Quantization::NF4));
    assert_eq!(config.to_json(), written);

    let config = read(QuantizationConfig::from(Quantization::INT8).to_json()).unwrap().unwrap();
    assert_eq!(config, QuantizationConfig::from(Quantization::INT8));
}

#[test]
fn defaults_are_those_of_transformers() {
    assert_eq!(QuantizationConfig::of_model(&json!({"model_type": "t5"})).unwrap(), None);
    assert_eq!(read(Value::Null).unwrap(), None);
    let fp4 = Quantization::FourBit { quant_type: QuantType::Fp4, block_size: 64, double_quant: false };
    assert_eq!(read(json!({"load_in_4bit": true})).unwrap(), Some(fp4.into()));
    let skipping = read(json!({"load_in_8bit": true, "llm_int8_threshold": 0, "llm_int8_skip_modules": ["lm_head"]}));
    let skipping = skipping.unwrap().unwrap();
    assert_eq!(skipping.quantization, Quantization::Int8 { threshold: 0.0 });
    assert_eq!(skipping.llm_int8_skip_modules, Some(vec!["lm_head".to_owned()]));
}

#[test]
fn other_methods_are_refused_by_name() {
    for (method, name) in [("gptq", "GPTQ"), ("awq", "AWQ"), ("hqq", "HQQ"), ("fp8", "FP8"), ("aqlm", "aqlm")] {
        let message = read(json!({"quant_method": method, "bits": 4})).unwrap_err();
        let expected =
            format!("says that the weights are quantised by {name}, which is not here; load the unquantised model");
        assert!(message.contains(&expected), "{message}");
    }
    let message = read(json!({"quant_method": "\u{1b}[2J"})).unwrap_err();
    assert!(message.contains(r"\u{1b}[2J"), "{message}");
}

#[test]
fn broken_ones_are_told() {
    for (fields, expected) in [
        (json!([]), "expected an object"),
        (json!({}), "`quant_method` is absent"),
        (json!({"quant_method": 4}), "`quant_method` is 4, expected a string"),
        (json!({"quant_method": "bitsandbytes"}), "of `load_in_4bit` and `load_in_8bit` neither is true, expected one"),
        (json!({"load_in_4bit": true, "load_in_8bit": true}), "both are true, expected one"),
        (json!({"load_in_4bit": "yes"}), "`load_in_4bit` is \"yes\", expected true or false"),
        (
            json!({"load_in_4bit": true, "bnb_4bit_quant_type": "int4"}),
            "`bnb_4bit_quant_type` is \"int4\", expected \"nf4\" or \"fp4\"",
        ),
        (
            json!({"load_in_8bit": true, "llm_int8_threshold": -1}),
            "`llm_int8_threshold` is -1, expected a number of at least 0",
        ),
        (
            json!({"load_in_8bit": true, "llm_int8_skip_modules": "lm_head"}),
            "`llm_int8_skip_modules` is \"lm_head\", expected a list of strings or null",
        ),
        (
            json!({"load_in_8bit": true, "llm_int8_has_fp16_weight": true}),
            "the weights are f16 and only multiplied in 8",
        ),
    ] {
        let message = read(fields).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}
