//! Directories of adapters: both formats of tensors, the fingerprint of the base, and the model card.

use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::Device;
use sideburn_adapters::methods::{Ia3Config, LoraConfig};
use sideburn_adapters::peft::AdapterDir;
use sideburn_adapters::{AdapterMeta, Adapters, Key, Precision};
use sideburn_t5::T5;
use sideburn_weights::{StateDict, TensorSource};
use tempfile::{TempDir, tempdir};

use sideburn_testing::values;

const BASE: &str = "t5_gated_untied";
const ADAPTER: &str = "adapters/lora_rslora";
/// A change here makes every adapter that was saved before look as if it were of another base.
const FINGERPRINT: &str = "v1-3422c96a8aa0370e";

fn base() -> T5 {
    T5::from_dir(sideburn_testing::path(BASE), &Device::flex()).unwrap()
}

/// [`ADAPTER`] as older releases of `peft` wrote it.
fn pickled() -> TempDir {
    let directory = tempdir().unwrap();
    let config = sideburn_testing::path(&format!("{ADAPTER}/adapter_config.json"));
    fs::copy(config, directory.path().join("adapter_config.json")).unwrap();
    fs::copy(sideburn_testing::path("torch/lora_rslora.bin"), directory.path().join("adapter_model.bin")).unwrap();
    directory
}

fn tensors(model: &T5) -> Vec<(String, Vec<f32>)> {
    let tensors = model.adapter_tensors("default").unwrap();
    tensors.into_iter().map(|(name, param): (_, &Param<_>)| (name, values(param.val()))).collect()
}

#[test]
fn a_pickled_adapter_is_the_same() {
    let directory = pickled();
    let (mut safe, mut torch) = (base(), base());
    safe.load_adapter("default", sideburn_testing::path(ADAPTER)).unwrap();
    torch.load_adapter("default", &directory).unwrap();
    assert_eq!(tensors(&torch), tensors(&safe));

    let zero = tensors(&safe).into_iter().map(|(name, values)| (name, vec![0.0; values.len()])).collect::<Vec<_>>();
    let zero = |name: &str| zero.iter().find(|(own, _)| own == name).map(|(_, values)| values.clone());
    torch.set_adapter_tensors("default", zero).unwrap();
    torch.swap_adapter("default", &directory).unwrap();
    assert_eq!(tensors(&torch), tensors(&safe));
}

#[test]
fn a_pickled_adapter_is_saved_as_safetensors() {
    let (directory, converted) = (pickled(), tempdir().unwrap());
    AdapterDir::open(&directory).unwrap().save(&converted).unwrap();
    let [before, after] = [&sideburn_testing::path(ADAPTER), converted.path()]
        .map(|path| StateDict::open(path, "adapter_model").unwrap());
    assert!(matches!(after, StateDict::Safetensors(_)));
    assert_eq!(after.metadata("format"), Some("pt"));
    assert!(before.names().eq(after.names()));
    for name in before.names() {
        assert_eq!(before.read(name).unwrap(), after.read(name).unwrap(), "{name}");
    }
    let config = |path: &Path| fs::read(path.join("adapter_config.json")).unwrap();
    assert_eq!(config(converted.path()), config(directory.path()));
}

#[test]
fn without_tensors_both_files_are_named() {
    let directory = pickled();
    fs::remove_file(directory.path().join("adapter_model.bin")).unwrap();
    let error = base().load_adapter("default", &directory).unwrap_err().to_string();
    assert!(error.contains("neither adapter_model.safetensors nor adapter_model.bin"), "{error}");
}

#[test]
fn the_fingerprint_is_that_of_the_base() {
    let mut model = base();
    assert_eq!(model.fingerprint(), FINGERPRINT);
    assert_eq!(
        T5::from_dir(sideburn_testing::path(BASE), &Device::flex().autodiff()).unwrap().fingerprint(),
        FINGERPRINT
    );
    model.load_adapter("default", sideburn_testing::path(ADAPTER)).unwrap();
    assert_eq!(model.fingerprint(), FINGERPRINT, "with an adapter");
    model.merge().unwrap();
    assert_eq!(model.fingerprint(), FINGERPRINT, "with a merged adapter");
    model.unmerge().unwrap();
    model.delete("default").unwrap();
    assert_eq!(model.fingerprint(), FINGERPRINT, "as before");

    let other = T5::from_dir(sideburn_testing::path("t5_relu_tied"), &Device::flex()).unwrap();
    assert_ne!(other.fingerprint(), FINGERPRINT);
    let directory = tempdir().unwrap();
    for (precision, same) in [(Precision::F32, true), (Precision::Bf16, false)] {
        model.save_dir(&directory, precision).unwrap();
        let stored = T5::from_dir(&directory, &Device::flex()).unwrap();
        assert_eq!(stored.fingerprint() == FINGERPRINT, same, "{precision:?}");
    }
}

#[test]
fn an_adapter_remembers_its_base() {
    assert_eq!(AdapterDir::open(sideburn_testing::path(ADAPTER)).unwrap().base_fingerprint(), None, "saved by peft");
    let (directory, converted, mut model) = (tempdir().unwrap(), tempdir().unwrap(), base());
    model.load_adapter("default", sideburn_testing::path(ADAPTER)).unwrap();
    model.save_adapter("default", &directory).unwrap();
    let saved = AdapterDir::open(&directory).unwrap();
    assert_eq!(saved.base_fingerprint(), Some(FINGERPRINT));
    saved.save(&converted).unwrap();
    assert_eq!(AdapterDir::open(&converted).unwrap().base_fingerprint(), Some(FINGERPRINT));
}

#[test]
fn a_model_card_says_what_the_adapter_is() {
    let (directory, mut model) = (tempdir().unwrap(), base());
    let meta =
        AdapterMeta { base_model_name_or_path: Some("google/t5-v1_1-small".to_owned()), ..AdapterMeta::default() };
    let lora = LoraConfig { r: 4, lora_alpha: 16.0, meta, ..LoraConfig::new(["q", "v"]) };
    model.attach("default", lora, Key::from_seed(0)).unwrap();
    model.save_adapter("default", &directory).unwrap();
    let card = fs::read_to_string(directory.path().join("README.md")).unwrap();
    let front = "---\nbase_model: \"google/t5-v1_1-small\"\nlibrary_name: peft\ntags:\n- sideburn\n- lora\n---\n";
    assert!(card.starts_with(front), "{card}");
    for part in [
        "# LORA adapter",
        "\"r\": 4",
        "base.load_adapter(\"default\", ",
        "AutoModelForSeq2SeqLM.from_pretrained(\"google/t5-v1_1-small\")",
        "PeftModel.from_pretrained(base, ",
    ] {
        assert!(card.contains(part), "{part:?} is not in: {card}");
    }
}

#[test]
fn a_name_does_not_break_out_of_its_field() {
    let (directory, mut model) = (tempdir().unwrap(), base());
    let meta = AdapterMeta { base_model_name_or_path: Some("a\"\n---\n# b".to_owned()), ..AdapterMeta::default() };
    model.attach("default", Ia3Config { meta, ..Ia3Config::default() }, Key::from_seed(0)).unwrap();
    model.save_adapter("default", &directory).unwrap();
    let card = fs::read_to_string(directory.path().join("README.md")).unwrap();
    assert!(card.starts_with("---\nbase_model: \"a\\\"\\n---\\n# b\"\nlibrary_name: peft\n"), "{card}");
    assert!(card.contains("from_pretrained(\"a\\\"\\n---\\n# b\")"), "{card}");
}

#[test]
fn a_model_card_that_is_there_stays() {
    let (directory, mut model) = (tempdir().unwrap(), base());
    model.load_adapter("default", sideburn_testing::path(ADAPTER)).unwrap();
    fs::write(directory.path().join("README.md"), "Mine.").unwrap();
    model.save_adapter("default", &directory).unwrap();
    assert_eq!(fs::read_to_string(directory.path().join("README.md")).unwrap(), "Mine.");
}
