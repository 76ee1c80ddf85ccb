//! `sideburn quantize`.

use super::*;

#[test]
fn quantised_models_are_models() {
    let directory = tempdir().unwrap();
    let before = fs::metadata(golden(BASE).join("model.safetensors")).unwrap().len();
    for to in ["nf4", "fp4", "int8"] {
        let output = directory.path().join(to);
        let found = json(0, args!["quantize", "--model", golden(BASE), "--to", to, "--output", output]);
        assert_eq!((&found["packed"], &found["left"]), (&json!(32), &json!(5)));
        assert!(found["bytes"].as_u64().unwrap() < before, "{found}");
        let text = fs::read_to_string(output.join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["quantization_config"]["quant_method"], json!("bitsandbytes"));
        let model = AutoModel::from_dir(&output, &Device::flex()).unwrap();
        assert_eq!(model.linears().iter().filter(|(_, linear)| linear.weight().packed().is_some()).count(), 32);
    }
    // How the model writes is what the base has, to the byte.
    let base = directory.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(BASE).join(file), base.join(file)).unwrap();
    }
    let text = "{\"num_beams\":   3}";
    fs::write(base.join("generation_config.json"), text).unwrap();
    let output = directory.path().join("with generation");
    let found = json(0, args!["quantize", "--model", base, "--to", "nf4", "--output", output]);
    assert_eq!(found["copied"], json!(["generation_config.json"]));
    assert_eq!(fs::read_to_string(output.join("generation_config.json")).unwrap(), text);

    let fp4 = directory.path().join("fp4");
    let message = error(args!["quantize", "--model", fp4, "--to", "nf4", "--output", directory.path().join("again")]);
    assert_contains(&message, &["fp4", "config.json", "the model is quantised already"]);
    assert!(!directory.path().join("again").exists());
    let onto_itself = error(args!["quantize", "--model", fp4, "--to", "nf4", "--output", fp4]);
    assert_contains(&onto_itself, &["is the model itself"]);
}
