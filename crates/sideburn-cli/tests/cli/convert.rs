//! `sideburn adapter convert`.

use super::*;

#[test]
fn converted_adapters_have_the_same_tensors() {
    let (from, to) = (pickled(), tempdir().unwrap());
    let found = json(0, args!["adapter", "convert", from.path(), "--output", to.path()]);
    assert_eq!(found["tensors"], json!(24));
    let file = |directory: &Path| read(&directory.join("adapter_model.safetensors"));
    assert_eq!(file(to.path()), file(&golden(ADAPTER)));
    // In place, and once more.
    for _ in 0..2 {
        assert_eq!(run(args!["adapter", "convert", from.path(), "--output", from.path()]).code, 0);
    }
    assert_eq!(file(from.path()), file(&golden(ADAPTER)));
}

#[test]
fn convert_refuses_what_is_no_adapter() {
    let (from, to) = (pickled(), tempdir().unwrap());
    fs::copy(golden("torch/module.pt"), from.path().join("adapter_model.bin")).unwrap();
    let convert = || error(args!["adapter", "convert", from.path(), "--output", to.path()]);
    assert_contains(&convert(), &["adapter_model.bin", "nothing of this one was run"]);
    fs::write(from.path().join("adapter_config.json"), "{}").unwrap();
    fs::copy(golden("torch/lora_rslora.bin"), from.path().join("adapter_model.bin")).unwrap();
    assert_contains(&convert(), &["adapter_config.json", "peft_type"]);
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}
