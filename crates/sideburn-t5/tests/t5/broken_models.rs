//! Model directories that are not what they should be: each is refused with a message that says what, where and how to
//! mend it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use sideburn_adapters::{Adapters, Key};
use sideburn_t5::{Quantization, QuantizationConfig, T5, T5Config};
use sideburn_weights::{
    Dtype, ModelFiles, SafetensorsFile, Tensor, TensorInfo, TensorSource, WeightsError, write_safetensors,
};
use tempfile::TempDir;

/// A copy of a tiny model, to be broken.
struct Model(TempDir);

impl Model {
    fn new() -> Self {
        let model = Self(tempfile::tempdir().unwrap());
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden("t5_gated_untied").join(file), model.file(file)).unwrap();
        }
        model
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes the tensors of the checkpoint.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let file = SafetensorsFile::open(self.file("model.safetensors")).unwrap();
        let mut tensors: BTreeMap<_, _> =
            file.names().map(|name| (name.to_owned(), file.read(name).unwrap())).collect();
        change(&mut tensors);
        write_safetensors(self.file("model.safetensors"), tensors, None).unwrap();
    }

    fn load(&self) -> Result<T5, String> {
        T5::from_dir(self.0.path(), &Device::flex()).map_err(|error| error.to_string())
    }

    fn error(&self) -> String {
        self.load().expect_err("a broken model")
    }
}

/// The tensors of a model, one of whose shards is cut in the middle when ten of them have been read.
struct Cut<'a> {
    source: &'a ModelFiles,
    shard: PathBuf,
    reads: AtomicUsize,
}

impl TensorSource for Cut<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        self.source.names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source.info(name)
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == 10 {
            let file = std::fs::OpenOptions::new().write(true).open(&self.shard).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
        self.source.read(name)
    }
}

fn golden(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(relative)
}

const Q: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

#[test]
fn tensors_that_are_missing_unexpected_or_misshapen_are_all_listed() {
    let model = Model::new();
    model.change(|tensors| {
        tensors.remove("decoder.final_layer_norm.weight");
        tensors.remove("lm_head.weight");
        tensors.insert("surplus.weight".into(), Tensor::from_f32(vec![1], &[0.0]).unwrap());
        tensors.insert(Q.into(), Tensor::from_f32(vec![32, 64], &[0.0; 2048]).unwrap());
    });
    let error = model.error();
    for part in [
        "model.safetensors: the tensors do not fit the model",
        "missing (2): decoder.final_layer_norm.weight; lm_head.weight",
        "unexpected (1): surplus.weight",
        &format!("misshapen (1): {Q} is [32, 64], the model has [64, 64]"),
    ] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_tensor_of_another_dtype() {
    let model = Model::new();
    model.change(|tensors| {
        tensors.insert(Q.into(), Tensor::new(Dtype::I32, vec![64, 64], vec![0; 4 * 4096]).unwrap());
    });
    let error = model.error();
    assert!(error.contains(Q) && error.contains("I32"), "{error}");
}

#[test]
fn half_precision_is_read_as_it_was_rounded() {
    let model = Model::new();
    model.change(|tensors| tensors.values_mut().for_each(|tensor| *tensor = tensor.to_bf16().unwrap()));
    assert!(model.load().is_ok());
}

#[test]
fn a_checkpoint_that_is_cut_off_or_not_there() {
    let model = Model::new();
    let bytes = std::fs::read(model.file("model.safetensors")).unwrap();
    std::fs::write(model.file("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    let error = model.error();
    assert!(error.contains("model.safetensors") && error.contains(&(bytes.len() / 2).to_string()), "{error}");
    std::fs::remove_file(model.file("model.safetensors")).unwrap();
    assert!(model.error().contains("model.safetensors"), "{}", model.error());
    std::fs::remove_file(model.file("config.json")).unwrap();
    assert!(model.error().contains("config.json\" does not exist"), "{}", model.error());
}

#[test]
fn an_unknown_architecture() {
    let model = Model::new();
    std::fs::write(model.file("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let error = model.error();
    assert!(
        error.contains("config.json: `model_type` is llama") && error.contains("expected t5, mt5 or umt5;"),
        "{error}"
    );
}

#[test]
fn copies_of_the_embedding_must_be_copies() {
    let model = Model::new();
    model.change(|tensors| {
        let embedding = tensors["shared.weight"].clone();
        tensors.insert("encoder.embed_tokens.weight".into(), embedding);
    });
    assert!(model.load().is_ok(), "older checkpoints store the embedding more than once");
    model.change(|tensors| {
        let other = Tensor::from_f32(vec![256, 64], &[0.5; 256 * 64]).unwrap();
        tensors.insert("encoder.embed_tokens.weight".into(), other);
    });
    let error = model.error();
    assert!(error.contains("encoder.embed_tokens.weight differs from shared.weight"), "{error}");
}

#[test]
fn shards() {
    let model = Model::new();
    let file = SafetensorsFile::open(model.file("model.safetensors")).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let (first, second) = names.split_at(names.len() / 2);
    let shard = |name: &str, tensors: &[String]| {
        write_safetensors(model.file(name), tensors.iter().map(|name| (name, file.read(name).unwrap())), None).unwrap();
    };
    shard("model-00001-of-00002.safetensors", first);
    shard("model-00002-of-00002.safetensors", second);
    let index = |second_file: &str| {
        let file_of =
            |name: &String| if first.contains(name) { "model-00001-of-00002.safetensors" } else { second_file };
        let map: BTreeMap<&String, &str> = names.iter().map(|name| (name, file_of(name))).collect();
        let text = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
        std::fs::write(model.file("model.safetensors.index.json"), text).unwrap();
    };
    index("model-00002-of-00002.safetensors");
    std::fs::remove_file(model.file("model.safetensors")).unwrap();
    assert!(model.load().is_ok());

    // A shard that is cut while the tensors before are packed: the error names it, and there is no model.
    let whole = std::fs::read(model.file("model-00002-of-00002.safetensors")).unwrap();
    let files = ModelFiles::open(model.0.path()).unwrap();
    let source =
        Cut { source: &files, shard: model.file("model-00002-of-00002.safetensors"), reads: AtomicUsize::new(0) };
    let config = T5Config::from_file(model.file("config.json")).unwrap();
    let error = T5::from_source(config.clone(), &source, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
    std::fs::write(model.file("model-00002-of-00002.safetensors"), &whole).unwrap();
    let source = Cut { reads: AtomicUsize::new(0), ..source };
    fn own(name: &str) -> Option<&str> {
        Some(name)
    }
    let mut packed = T5::random(&config, Key::from_seed(0), &Device::flex());
    let nf4 = QuantizationConfig::from(Quantization::NF4);
    let error = packed.load_base_quantized(&source, own, &nf4).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
    std::fs::write(model.file("model-00002-of-00002.safetensors"), &whole).unwrap();
    assert!(T5::from_dir_quantized(model.0.path(), Quantization::NF4, &Device::flex()).is_ok());

    for outside in ["../model-00002-of-00002.safetensors", "/etc/model.safetensors", "missing.safetensors"] {
        index(outside);
        let error = model.error();
        assert!(error.contains(outside), "{outside} is not in: {error}");
    }
    // The last tensor of the first shard, in the second as well.
    let mut twice = second.to_vec();
    twice.push(first[first.len() - 1].clone());
    shard("model-00002-of-00002.safetensors", &twice);
    index("model-00002-of-00002.safetensors");
    assert!(model.error().contains(&first[first.len() - 1]), "{}", model.error());
}
