//! `sideburn plan`.

use super::*;

const LORA: &str = r#"{"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": TARGETS}"#;

fn lora(targets: &str) -> String {
    LORA.replace("TARGETS", targets)
}

fn plan(model: &Path, adapter: &str, more: Vec<std::ffi::OsString>) -> Value {
    let mut args = args!["plan", "--model", model, "--adapter", adapter, "--json"];
    args.extend(more);
    let run = run(args);
    // Whether it fits depends on the machine.
    assert!(run.code <= 1, "{}", run.stderr);
    let found: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(run.code == 0, found["fits"] != json!(false));
    found
}

#[test]
fn large_models_are_planned_without_their_weights() {
    let directory = tempdir().unwrap();
    // What is absent is as in Falcon-7B.
    let falcon = directory.path().join("config.json");
    fs::write(&falcon, r#"{"model_type": "falcon", "torch_dtype": "bfloat16"}"#).unwrap();
    let four = r#"["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]"#;
    let found = plan(&falcon, &lora(four), args!["--quantization", "nf4", "--batch", "1", "--seq", "128"]);
    assert_eq!(found["trainable"], json!(32_636_928));
    let gigabytes = |name: &str| found[name].as_f64().unwrap() / 1e9;
    // 6.62e9 elements of linear layers at 4.127 bits, and 65,024 x 4,544 embeddings of 2 bytes.
    assert!((3.40..3.43).contains(&gigabytes("base_packed_bytes")), "{found}");
    assert!((0.59..0.60).contains(&gigabytes("base_float_bytes")), "{found}");
    // The embedding is read first, and what comes then is smaller.
    assert!((4.0..4.7).contains(&gigabytes("loading_bytes")), "{found}");
    let peak = found["backends"][0]["peak_bytes"].as_f64().unwrap() / 1e9;
    assert!((5.0..7.0).contains(&peak), "{found}");

    let xxl = golden("flan_t5_xxl");
    let more = args!["--quantization", "int8", "--batch", "8", "--seq", "255", "--target-seq", "50"];
    let found = plan(&xxl, &lora(r#"["q", "v"]"#), more);
    assert_eq!(found["trainable"], json!(18_874_368));
    assert_eq!(found["adapter_bytes"], json!(4 * 18_874_368));
    // `wo` in f32 beside f16, or packed like the rest.
    let base = |more| {
        let found = plan(&xxl, &lora(r#"["q", "v"]"#), more);
        (found["base_packed_bytes"].as_f64().unwrap() + found["base_float_bytes"].as_f64().unwrap()) / 1e9
    };
    assert!((17.4..17.5).contains(&base(args!["--quantization", "int8", "--dtype", "float16"])));
    assert!((13.4..13.5).contains(&base(args!["--quantization", "int8", "--dtype", "bfloat16"])));
    assert!((11.3..11.6).contains(&base(args!["--quantization", "int8", "--dtype", "float16", "--pack-kept"])));
    // More rows take more, and floats more than integers.
    let peak = |more| plan(&xxl, &lora(r#"["q", "v"]"#), more)["backends"][0]["peak_bytes"].as_u64().unwrap();
    assert!(
        peak(args!["--quantization", "int8", "--batch", "1"]) < peak(args!["--quantization", "int8", "--batch", "16"])
    );
    assert!(
        peak(args!["--quantization", "int8", "--batch", "1"]) < peak(args!["--quantization", "none", "--batch", "1"])
    );
}

#[test]
fn a_plan_is_what_loading_gives() {
    let base = golden(BASE);
    for (to, packed) in [("nf4", Some("quant/t5_nf4_dq")), ("int8", Some("quant/t5_int8")), ("none", None)] {
        let found = plan(&base, golden(ADAPTER).to_str().unwrap(), args!["--quantization", to]);
        let directory = golden(packed.unwrap_or(BASE));
        let mut model = AutoModel::from_dir(&directory, &Device::flex()).unwrap();
        let bytes = model.base_bytes(None);
        assert_eq!(
            [&found["base_packed_bytes"], &found["base_float_bytes"]],
            [bytes.packed, bytes.floats].map(|x| json!(x)).each_ref()
        );
        model.load_adapter("default", golden(ADAPTER)).unwrap();
        assert_eq!(found["trainable"], json!(ParameterReport::of(&model).trainable));
        // What says itself how it is packed need not be told.
        assert_eq!(
            plan(&directory, golden(ADAPTER).to_str().unwrap(), args![])["base_packed_bytes"],
            json!(bytes.packed)
        );
    }
    // In 16 bits, and saved so: what config.json says is planned.
    let directory = tempdir().unwrap();
    let [half, packed] = ["half", "packed"].map(|name| directory.path().join(name));
    AutoModel::from_dir(&base, &Device::flex()).unwrap().save_dir(&half, Precision::Bf16).unwrap();
    let found = plan(&half, golden(ADAPTER).to_str().unwrap(), args!["--quantization", "nf4", "--dtype", "bfloat16"]);
    json(0, args!["quantize", "--model", half, "--to", "nf4", "--output", packed]);
    let bytes = AutoModel::from_dir(&packed, &Device::flex()).unwrap().base_bytes(None);
    for found in [found, plan(&packed, golden(ADAPTER).to_str().unwrap(), args![])] {
        assert_eq!(
            [&found["base_packed_bytes"], &found["base_float_bytes"]],
            [&json!(bytes.packed), &json!(bytes.floats)]
        );
    }
    let run = run(args!["plan", "--model", base, "--adapter", golden(ADAPTER)]);
    assert_contains(
        &run.stdout,
        &["base ", "0.0 MB packed", "optimiser", "peak on flex", "peak on wgpu, vulkan, metal, cuda"],
    );
}

#[test]
fn what_cannot_be_planned_is_told() {
    let base = golden(BASE);
    assert_contains(
        &error(args!["plan", "--model", "no-such-model"]),
        &["no-such-model is no directory here", "HF_HUB_OFFLINE"],
    );
    assert_contains(&error(args!["plan", "--model", base, "--batch", "0"]), &["--batch 0"]);
    assert_contains(&error(args!["plan", "--model", base, "--adapter", "{"]), &["--adapter is no JSON"]);
    assert_contains(&error(args!["plan", "--model", base, "--adapter", lora(r#"["nothing"]"#)]), &["[\"nothing\"]"]);
    assert_contains(
        &error(args!["plan", "--model", base, "--adapter", "{\"peft_type\": \"X\"}"]),
        &["`peft_type` is \"X\""],
    );
}
