//! One tiny model of each kind of the family against `transformers`, and what configurations and files say in other words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use crate::logits::logits;
use burn::tensor::{Device, Tensor};
use serde_json::{Value, json};
use sideburn_adapters::methods::{AdaLoraConfig, FullConfig, Ia3Config, LoraConfig};
use sideburn_adapters::{AdaptedModel, Adapters, Key, Method, Pass, Precision, Targets};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::GenerationConfig;
use sideburn_t5::{LanguageModel, T5, T5Config, T5Error};
use sideburn_testing::{Golden, goldens, max_difference, path, relative_difference, values, written};
use sideburn_weights::{SafetensorsFile, Tensor as Stored, TensorInfo, TensorSource, WeightsError, write_safetensors};

const GRADIENT: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

fn load(directory: impl AsRef<Path>) -> T5 {
    T5::from_dir(directory, &Device::flex()).unwrap()
}

fn io(name: &str) -> Golden {
    Golden::open(&format!("{name}/io.safetensors"))
}

fn loss(model: &T5, io: &Golden) -> Tensor<1> {
    model.token_losses(&io.batch(), &mut Pass::evaluate()).unwrap().mean()
}

#[test]
fn logits_losses_and_gradients() {
    for golden in goldens("family") {
        let (name, io) = (golden.name(), io(&golden.path));
        let mut model = load(path(&golden.path));
        let own_head = ["mt5", "umt5", "ul2"].contains(&name);
        assert_eq!(model.shape().tied_head, !own_head, "{name}");
        let difference = max_difference(&logits(&model, &io), &io.floats("logits"));
        println!("{name}: logits differ by at most {difference:e}");
        assert!(difference <= golden.tolerance as f32, "{name}: logits differ by {difference:e}");
        let difference = relative_difference(&values(loss(&model, &io)), &io.floats("loss"));
        assert!(difference <= 1e-5, "{name}: loss differs by {difference:e}");

        model = T5::from_dir(path("family").join(name), &Device::flex().autodiff()).unwrap();
        model.attach("default", FullConfig::default(), Key::from_seed(0)).unwrap();
        let gradients = loss(&model, &io).backward();
        let mut trained = model.adapter_tensors("default").unwrap().into_iter();
        let (_, weight) = trained.find(|(name, _)| name.contains(GRADIENT)).expect("every weight is trained");
        let gradient = values(weight.val().grad(&gradients).expect("it has a gradient"));
        let difference = relative_difference(&gradient, &io.floats(&format!("grad.{GRADIENT}")));
        println!("{name}: the gradient differs by {difference:e} relative");
        assert!(difference <= 1e-4, "{name}: the gradient differs by {difference:e}");
    }
}

#[test]
fn greedy_tokens() {
    for golden in goldens("family") {
        let name = golden.name();
        let (model, io) = (load(path(&golden.path)), io(&golden.path));
        let source = io.source();
        let config = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(8) };
        let written = written(model.start_decoding(&source, Pass::evaluate()).unwrap(), &config);
        let expected = io.integers("greedy_ids");
        for (mut found, expected) in written.into_iter().zip(expected.chunks(9)) {
            found.insert(0, 0);
            found.resize(9, 0);
            assert!(
                found.iter().zip(expected).all(|(a, b)| i64::from(*a) == *b),
                "{name}: {found:?}, not {expected:?}"
            );
        }
    }
}

#[test]
fn a_saved_model_is_the_same_model() {
    let directory = tempfile::tempdir().unwrap();
    for golden in goldens("family") {
        let name = golden.name();
        let (model, io) = (load(path(&golden.path)), io(&golden.path));
        let saved = directory.path().join(name);
        model.save_dir(&saved, Precision::F32).unwrap();
        assert_eq!(logits(&load(&saved), &io), logits(&model, &io), "{name}");
    }
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(directory.path().join(name).join("config.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let erf = read("gated_erf");
    assert_eq!([&erf["dense_act_fn"], &erf["is_gated_act"]], [&json!("gelu"), &json!(true)]);
    assert_eq!(read("umt5")["architectures"], json!(["UMT5ForConditionalGeneration"]));
    assert_eq!(read("ul2")["feed_forward_proj"], json!("gated-silu"));
}

/// A copy of the tiny model with a tied head, whose files are to be changed.
struct Model(tempfile::TempDir);

const NAME: &str = "t5_relu_tied";

impl Model {
    fn new() -> Self {
        let model = Self(tempfile::tempdir().unwrap());
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(path(NAME).join(file), model.0.path().join(file)).unwrap();
        }
        model
    }

    /// Stores the embedding under these names.
    fn store_embedding(&self, names: &[(&str, Stored)]) {
        let file = SafetensorsFile::open(path(NAME).join("model.safetensors")).unwrap();
        let others = file.names().filter(|name| *name != "shared.weight");
        let tensors = others.map(|name| (name.to_owned(), file.read(name).unwrap()));
        let embeddings = names.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
        write_safetensors(self.0.path().join("model.safetensors"), tensors.chain(embeddings), None).unwrap();
    }

    fn write(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.0.path().join(file);
        let mut value = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).unwrap(),
            Err(_) => json!({}),
        };
        change(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    }

    fn load(&self) -> Result<T5, T5Error> {
        T5::from_dir(self.0.path(), &Device::flex())
    }
}

fn embedding() -> Stored {
    SafetensorsFile::open(path(NAME).join("model.safetensors")).unwrap().read("shared.weight").unwrap()
}

const SHARED: &str = "shared.weight";
const ENCODER: &str = "encoder.embed_tokens.weight";
const DECODER: &str = "decoder.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

#[test]
fn the_embedding_under_any_of_its_names() {
    let (model, io) = (Model::new(), io(NAME));
    let expected = logits(&load(path(NAME)), &io);
    for names in [
        vec![ENCODER],
        vec![DECODER],
        vec![HEAD],
        vec![ENCODER, DECODER],
        vec![DECODER, HEAD],
        vec![SHARED, ENCODER, DECODER, HEAD],
    ] {
        model.store_embedding(&names.iter().map(|name| (*name, embedding())).collect::<Vec<_>>());
        let loaded = model.load().unwrap_or_else(|error| panic!("{names:?}: {error}"));
        assert_eq!(logits(&loaded, &io), expected, "{names:?}");
        assert!(loaded.shape().tied_head, "{names:?}");
    }
    model.store_embedding(&[]);
    let error = model.load().unwrap_err().to_string();
    assert!(error.contains("missing (1): shared.weight"), "{error}");
}

/// A source that counts how often each tensor is read.
struct Counted {
    file: SafetensorsFile,
    reads: Mutex<BTreeMap<String, usize>>,
}

impl TensorSource for Counted {
    fn path(&self) -> &Path {
        TensorSource::path(&self.file)
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        TensorSource::names(&self.file)
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        TensorSource::info(&self.file, name)
    }

    fn read(&self, name: &str) -> Result<Stored, WeightsError> {
        *self.reads.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        TensorSource::read(&self.file, name)
    }
}

#[test]
fn each_tensor_is_read_once() {
    let model = Model::new();
    let other = Stored::from_f32(vec![256, 64], &[0.5; 256 * 64]).unwrap();
    for head in [embedding(), other] {
        model.store_embedding(&[(SHARED, embedding()), (ENCODER, embedding()), (DECODER, embedding()), (HEAD, head)]);
        let file = SafetensorsFile::open(model.0.path().join("model.safetensors")).unwrap();
        let source = Counted { file, reads: Mutex::default() };
        let config = T5Config::from_file(path(NAME).join("config.json")).unwrap();
        T5::from_source(config, &source, &Device::flex()).unwrap();
        let reads = source.reads.into_inner().unwrap();
        let names = source.file.names().map(|name| (name.to_owned(), 1)).collect::<BTreeMap<_, _>>();
        assert_eq!(reads, names);
    }
}

#[test]
fn copies_in_another_dtype_are_copies() {
    let model = Model::new();
    let rounded = embedding().to_bf16().unwrap();
    let wide = Stored::from_f32(rounded.shape().to_vec(), &rounded.to_f32().unwrap()).unwrap();
    model.store_embedding(&[(SHARED, rounded), (HEAD, wide)]);
    assert!(model.load().unwrap().shape().tied_head);
}

#[test]
fn two_embeddings_are_refused_and_another_head_is_not() {
    let model = Model::new();
    let other = Stored::from_f32(vec![256, 64], &[0.5; 256 * 64]).unwrap();
    model.store_embedding(&[(ENCODER, embedding()), (DECODER, other.clone())]);
    let error = model.load().unwrap_err().to_string();
    let expected =
        "decoder.embed_tokens.weight differs from encoder.embed_tokens.weight, but the model has one embedding";
    assert!(error.contains(expected), "{error}");
    model.store_embedding(&[(DECODER, embedding()), (HEAD, other)]);
    assert!(!model.load().unwrap().shape().tied_head);
}

#[test]
fn token_ids_that_are_null_or_lists() {
    let (model, io) = (Model::new(), io(NAME));
    let expected = logits(&load(path(NAME)), &io);
    model.write("config.json", |config| {
        config["pad_token_id"] = Value::Null;
        config["decoder_start_token_id"] = Value::Null;
        config["eos_token_id"] = json!([1, 2]);
    });
    let loaded = model.load().unwrap();
    assert_eq!(logits(&loaded, &io), expected);
    let own = loaded.default_generation_config();
    assert_eq!((own.decoder_start_token_id, &own.eos_token_id[..], own.pad_token_id), (None, &[1, 2][..], None));

    // There is nothing that the decoder could start from.
    let rows = TokenRows::from_rows([[7, 8, 1]]).unwrap();
    let batch = PromptBatch::new(rows.clone(), rows).unwrap();
    let error = loaded.token_losses(&batch, &mut Pass::evaluate()).unwrap_err();
    assert!(error.to_string().starts_with("neither config.json nor generation_config.json has a"), "{error}");
    model.write("generation_config.json", |config| config["decoder_start_token_id"] = json!(0));
    let loaded = model.load().unwrap();
    assert_eq!(loaded.default_generation_config().decoder_start_token_id, Some(0));
    let of_original = values(load(path(NAME)).token_losses(&batch, &mut Pass::evaluate()).unwrap());
    assert_eq!(values(loaded.token_losses(&batch, &mut Pass::evaluate()).unwrap()), of_original);
    // How it writes is written with it.
    let saved = tempfile::tempdir().unwrap();
    loaded.save_dir(saved.path().join("model"), Precision::F32).unwrap();
    assert_eq!(load(saved.path().join("model")).default_generation_config(), loaded.default_generation_config());
}

/// The golden's rows, cut at the first of two tokens that end them.
#[test]
fn any_token_of_a_list_ends_a_row() {
    let (model, io) = (load(path("family/mt5")), io("family/mt5"));
    let source = io.source();
    let config = GenerationConfig { eos_token_id: vec![6, 22], ..GenerationConfig::new(8) };
    let written = written(model.start_decoding(&source, Pass::evaluate()).unwrap(), &config);
    let whole: Vec<Vec<u32>> =
        io.integers("greedy_ids").chunks(9).map(|row| row[1..].iter().map(|id| *id as u32).collect()).collect();
    assert_eq!(written, [whole[0][..2].to_vec(), whole[1][..3].to_vec(), whole[2].clone()]);
}

#[cfg(unix)]
#[test]
fn a_configuration_that_could_be_read_for_ever_is_not_opened() {
    let model = Model::new();
    let config = model.0.path().join("config.json");
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
    let error = model.load().unwrap_err().to_string();
    assert!(error.contains("config.json\" is not a regular file"), "{error}");
    std::fs::remove_file(&config).unwrap();
    std::fs::copy(path(NAME).join("config.json"), &config).unwrap();
    std::os::unix::fs::symlink("/dev/zero", model.0.path().join("generation_config.json")).unwrap();
    assert_eq!(model.load().unwrap().default_generation_config().eos_token_id, [1], "as if it were not there");
}

#[test]
fn an_encoder_alone_is_told() {
    let model = Model::new();
    model.write("config.json", |config| config["architectures"] = json!(["T5EncoderModel"]));
    let error = model.load().unwrap_err().to_string();
    let first = error.lines().next().unwrap();
    assert!(first.contains("config.json: ") && first.contains("which is the encoder of a T5 alone"), "{error}");
    // The configuration says nothing of it, the weights do.
    let file = SafetensorsFile::open(path(NAME).join("model.safetensors")).unwrap();
    let encoder = file.names().filter(|name| !name.starts_with("decoder."));
    let tensors = encoder.map(|name| (name, file.read(name).unwrap()));
    write_safetensors(model.0.path().join("model.safetensors"), tensors, None).unwrap();
    model.write("config.json", |config| config["architectures"] = Value::Null);
    let error = model.load().unwrap_err().to_string();
    assert!(error.lines().next().unwrap().contains("holds the encoder of a T5 alone"), "{error}");
}

#[test]
fn the_usual_targets_of_mt5_are_those_of_peft() {
    fn adapted(method: impl Method) -> BTreeSet<String> {
        let mut model = load(path("family/mt5"));
        model.attach("default", method, Key::from_seed(0)).unwrap();
        let sites = model.linears().into_iter().filter(|(_, site)| site.slots().len() > 0);
        sites.map(|(name, _)| name.rsplit('.').next().unwrap().to_owned()).collect()
    }
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let all = Targets::default();
    assert_eq!(adapted(LoraConfig::new(all.clone())), names(&["q", "v"]));
    assert_eq!(adapted(Ia3Config::default()), names(&["k", "v", "wi_1"]));
    assert_eq!(adapted(AdaLoraConfig::new(all, 1000)), names(&["q", "k", "v", "o", "wi_0", "wi_1", "wo"]));
}
