//! `sideburn adapter inspect`.

use super::*;

#[test]
fn inspect_shows_configuration_and_norms() {
    let found = json(0, args!["adapter", "inspect", golden(ADAPTER), "--sites"]);
    for (field, expected) in [
        ("peft_type", json!("LORA")),
        ("base_model_name_or_path", json!("base/t5_gated_untied")),
        ("task_type", json!("SEQ_2_SEQ_LM")),
        ("peft_version", json!("0.21.2")),
        ("unsupported", Value::Null),
        ("ranks", json!([4])),
        ("sites", json!(12)),
        ("tensors", json!(24)),
        ("parameters", json!(6144)),
        ("bytes", json!(24576)),
    ] {
        assert_eq!(found[field], expected, "{field}");
    }

    // s B A of one site, formed for once: s is 8 / sqrt(4).
    let tensors = read(&golden(ADAPTER).join("adapter_model.safetensors"));
    let b = tensors[Q_B].to_f32().unwrap();
    let a = tensors[&Q_B.replace("lora_B", "lora_A")].to_f32().unwrap();
    let mut square = 0.0;
    for row in b.chunks(4) {
        for column in 0..64 {
            let element: f64 = (0..4).map(|k| f64::from(row[k]) * f64::from(a[k * 64 + column])).sum();
            square += (4.0 * element).powi(2);
        }
    }
    let sites = found["site_list"].as_array().unwrap();
    let site = sites.iter().find(|site| site["site"] == "encoder.block.0.layer.0.SelfAttention.q").unwrap();
    assert_eq!((&site["rank"], &site["scaling"]), (&json!(4), &json!(4.0)));
    assert!((site["norm"].as_f64().unwrap() / square.sqrt() - 1.0).abs() < 1e-9, "{site} is not {}", square.sqrt());
    let largest = sites.iter().map(|site| site["norm"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(found["updates"]["largest"], json!(largest));
    assert_eq!(found["norms"]["lora_A.weight"]["tensors"], json!(12));

    let text = run(args!["adapter", "inspect", golden(ADAPTER)]).stdout;
    assert_contains(&text, &["type          LORA\n", "parameters    6,144 in 24 tensors\n", "s B A "]);
    assert!(!text.contains("encoder.block.0"), "{text}");
}

#[test]
fn inspect_shows_every_method() {
    let sizes = |adapter: &str| {
        let found = json(0, args!["adapter", "inspect", golden(adapter)]);
        ["peft_type", "sites", "tensors"].map(|field| found[field].clone())
    };
    assert_eq!(sizes("adapters/ia3_default"), [json!("IA3"), json!(16), json!(16)]);
    assert_eq!(sizes("adapters/prefix_tuning"), [json!("PREFIX_TUNING"), json!(0), json!(1)]);
    assert_eq!(sizes("adapters/ln_tuning"), [json!("LN_TUNING"), json!(12), json!(12)]);
    assert_eq!(sizes("adapters/lora_modules_to_save_lm_head"), [json!("LORA"), json!(4), json!(9)]);
    assert_eq!(sizes("adapters/vera")[1], json!(10), "whatever can be loaded");

    let found = json(0, args!["adapter", "inspect", pickled().path()]);
    assert_eq!((&found["file"], &found["parameters"]), (&json!("adapter_model.bin"), &json!(6144)));
}

#[test]
fn inspect_says_what_is_not_supported() {
    let directory = changed(ADAPTER, |_| {});
    let config = directory.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"use_bdlora\": null", "\"use_bdlora\": {\"blocks\": 2}")).unwrap();
    let found = json(0, args!["adapter", "inspect", directory.path()]);
    assert_contains(found["unsupported"].as_str().unwrap(), &["adapter_config.json", "use_bdlora"]);
    assert_eq!(found["updates"], Value::Null, "what it adds to a weight is not known");
}

/// Of a method that nobody knows, with indices beside its numbers, as SHiRA has them.
#[test]
fn inspect_shows_what_it_does_not_know() {
    let directory = changed(ADAPTER, |tensors| {
        let site = Q_B.trim_end_matches("lora_B.weight");
        *tensors = BTreeMap::from([
            (format!("{site}shira_weight"), Tensor::from_f32(vec![3], &[3.0, 0.0, 4.0]).unwrap()),
            (format!("{site}shira_indices"), Tensor::new(Dtype::I32, vec![2, 3], vec![1; 24]).unwrap()),
        ]);
    });
    fs::write(directory.path().join("adapter_config.json"), r#"{"peft_type": "SHIRA", "r": 1}"#).unwrap();
    let found = json(0, args!["adapter", "inspect", directory.path(), "--sites"]);
    assert_contains(found["unsupported"].as_str().unwrap(), &["SHIRA"]);
    assert_eq!((&found["sites"], &found["tensors"], &found["parameters"]), (&json!(1), &json!(2), &json!(9)));
    assert_eq!(found["norms"]["shira_weight"]["largest"], json!(5.0));
    assert_eq!(found["without_norm"], json!({ "shira_indices": 1 }));
    assert_eq!(found["dtypes"], json!(["F32", "I32"]));
    let text = run(args!["adapter", "inspect", directory.path()]).stdout;
    assert_contains(&text, &["shira_weight   1         5.0000", "shira_indices  1         -"]);
}

#[test]
fn inspect_shows_the_half_that_can_be_read() {
    let directory = changed(ADAPTER, |_| {});
    let config = directory.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    for broken in ["{", "[]", r#"{"r": 8}"#] {
        fs::write(&config, broken).unwrap();
        let inspect = args!["adapter", "inspect", directory.path()];
        let found = run([inspect.clone(), args!["--json"]].concat());
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        assert_eq!((&found["tensors"], &found["peft_type"]), (&json!(24), &Value::Null), "{broken}");
        let said = [&found["problems"][0], &found["unsupported"]].map(|said| said.as_str().unwrap_or("")).concat();
        assert_contains(&said, &["adapter_config.json"]);
    }
    fs::remove_file(&config).unwrap();
    let found = run(args!["adapter", "inspect", directory.path()]);
    assert_eq!(found.code, 1);
    assert_contains(&found.stdout, &["UNREADABLE", "adapter_config.json", "6,144 in 24 tensors"]);

    fs::write(&config, text).unwrap();
    let file = directory.path().join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let found = json(1, args!["adapter", "inspect", directory.path()]);
    assert_eq!((&found["peft_type"], &found["tensors"]), (&json!("LORA"), &json!(0)));
    assert_contains(found["problems"][0].as_str().unwrap(), &["adapter_model.safetensors", "cut short"]);
    fs::remove_file(&file).unwrap();
    let found = json(1, args!["adapter", "inspect", directory.path()]);
    assert_contains(found["problems"][0].as_str().unwrap(), &["adapter_model.safetensors", "adapter_model.bin"]);
    assert_eq!(found["file"], Value::Null);
}

#[test]
fn inspect_refuses_what_is_no_adapter() {
    let message = error(args!["adapter", "inspect", golden(BASE)]);
    assert_contains(&message, &["error: ", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]);
    assert_contains(&error(args!["adapter", "inspect", "nowhere"]), &["nowhere"]);
}
