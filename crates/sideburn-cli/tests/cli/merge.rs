//! `sideburn adapter merge`.

use super::*;

#[test]
fn merged_models_are_models() {
    let directory = tempdir().unwrap();
    let base = directory.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(BASE).join(file), base.join(file)).unwrap();
    }
    fs::write(base.join("tokenizer.json"), "{}").unwrap();
    fs::write(base.join("notes.txt"), "not for the world").unwrap();
    let output = directory.path().join("deep/merged");

    let found = json(0, args!["adapter", "merge", golden(ADAPTER), "--base", base, "--output", output]);
    assert_eq!((&found["precision"], &found["copied"]), (&json!("f32"), &json!(["tokenizer.json"])));
    let drift = found["drift"].as_f64().unwrap();
    assert!((0.0..2e-4).contains(&drift), "{drift}");
    assert!(found["effect"].as_f64().unwrap() > 1.0, "{found}");
    let mut files: Vec<_> = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);

    // What peft computes with the adapter beside the base.
    let reference = adapter_reference(ADAPTER, directory.path());
    let verified = json(0, args!["verify", "--model", output, "--reference", reference, "--tolerance", "2e-4"]);
    assert_eq!(verified["passed"], json!(true));

    let merge = args!["adapter", "merge", golden(ADAPTER), "--base", base, "--output", output, "--precision", "bf16"];
    let rounded = json(0, merge)["drift"].as_f64().unwrap();
    assert!(rounded > 1e-2, "{rounded}");
    let dtypes = read(&output.join("model.safetensors"));
    assert!(dtypes.values().all(|tensor| tensor.dtype() == Dtype::BF16));
}

#[test]
fn what_cannot_be_merged_leaves_nothing_behind() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("merged");
    let merge = |adapter: &Path| error(args!["adapter", "merge", adapter, "--base", golden(BASE), "--output", output]);
    assert_contains(&merge(&golden("adapters/prompt_tuning")), &["cannot be merged"]);
    assert_contains(&merge(with_nan().path()), &["element 3", "NaN"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    let base = directory.path().join("base");
    fs::create_dir(&base).unwrap();
    let onto_itself = error(args!["adapter", "merge", golden(ADAPTER), "--base", base, "--output", base]);
    assert_contains(&onto_itself, &["is the base itself"]);
}
