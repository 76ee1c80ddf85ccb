//! What is done with the bytes, and what must hold.

use std::fmt::Display;
use std::path::Path;

use rawzip::{CompressionMethod, ZipArchiveWriter};
use sideburn_data::{Columns, DataError, Dataset, Loaded, Template, Tokenizer, TokenizerFiles, parse_csv, parse_jsonl};
use sideburn_judge::{Rating, Verdict};
use sideburn_quant::{Packed, QuantizationConfig};
use sideburn_weights::{ModelFiles, SafetensorsFile, Tensor, TensorSource, TorchFile, safetensors_bytes};

use crate::seeds;

/// A parser under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called in `fuzz/`: the name of the binary and of the folder of regressions.
    pub name: &'static str,
    /// Takes any bytes, and panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Sound files, from which others are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What the format is made of.
    pub words: &'static [&'static [u8]],
    /// How many times the size of the file the parser may hold in memory, beside 4 MiB.
    pub memory: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "safetensors", run: safetensors, seeds: seeds::safetensors, words: seeds::JSON, memory: 64 },
    Target { name: "index", run: index, seeds: seeds::index, words: seeds::JSON, memory: 64 },
    Target { name: "torch", run: torch, seeds: seeds::torch, words: seeds::PICKLE, memory: 64 },
    Target { name: "pickle", run: pickle, seeds: seeds::pickle, words: seeds::PICKLE, memory: 64 },
    Target { name: "quantized", run: quantized, seeds: seeds::quantized, words: seeds::JSON, memory: 64 },
    Target {
        name: "quantization_config",
        run: quantization_config,
        seeds: seeds::quantization_config,
        words: seeds::JSON,
        memory: 64,
    },
    Target { name: "csv", run: csv, seeds: seeds::csv, words: seeds::CSV, memory: 64 },
    Target { name: "jsonl", run: jsonl, seeds: seeds::jsonl, words: seeds::JSON, memory: 64 },
    Target { name: "template", run: template, seeds: seeds::template, words: seeds::TOML, memory: 64 },
    Target { name: "verdict", run: verdict, seeds: seeds::verdict, words: seeds::JSON, memory: 64 },
    Target { name: "ratings", run: ratings, seeds: seeds::ratings, words: seeds::JSON, memory: 64 },
    // The library compiles patterns and tables that the file asks for.
    Target { name: "tokenizer", run: tokenizer, seeds: seeds::tokenizer, words: seeds::JSON, memory: 4096 },
    Target {
        name: "tokenizer_config",
        run: tokenizer_config,
        seeds: seeds::tokenizer_config,
        words: seeds::JSON,
        memory: 64,
    },
    #[cfg(feature = "models")]
    Target {
        name: "adapter_config",
        run: adapter_config,
        seeds: seeds::adapter_config,
        words: seeds::JSON,
        memory: 64,
    },
    #[cfg(feature = "models")]
    Target {
        name: "generation_config",
        run: generation_config,
        seeds: seeds::generation_config,
        words: seeds::JSON,
        memory: 64,
    },
    #[cfg(feature = "models")]
    Target { name: "model_config", run: model_config, seeds: seeds::model_config, words: seeds::JSON, memory: 64 },
];

/// Passes a result on. The message of an error must not be able to move a terminal's cursor, and must have an end.
fn checked<T, E: Display>(result: Result<T, E>, bytes: &[u8]) -> Option<T> {
    let message = match result {
        Ok(value) => return Some(value),
        Err(error) => error.to_string(),
    };
    let obeyed = message.chars().find(|c| c.is_control() && *c != '\n');
    assert!(obeyed.is_none(), "{obeyed:?} in a message: {message:?}");
    assert!(message.len() < 4096 + 16 * bytes.len(), "{} bytes of message for {} bytes", message.len(), bytes.len());
    None
}

/// Reads tensors as a loader would, at most 64: many names may share one storage.
fn read_all(source: &dyn TensorSource, bytes: &[u8]) {
    for name in source.names().take(64) {
        let info = source.info(name).expect("a name of the file");
        let tensor = checked(source.read(name), bytes);
        assert_eq!(tensor.map(|tensor| tensor.shape().to_vec()), Some(info.shape.clone()), "{name:?}");
        checked(source.read_f32(name), bytes);
    }
    checked(source.read("no such name"), bytes);
}

fn safetensors(bytes: &[u8]) {
    if let Some(file) = checked(SafetensorsFile::from_bytes("bytes", bytes), bytes) {
        assert!(safetensors::SafeTensors::deserialize(bytes).is_ok(), "the reference refuses this");
        read_all(&file, bytes);
    }
}

fn quantized(bytes: &[u8]) {
    let Some(file) = checked(SafetensorsFile::from_bytes("bytes", bytes), bytes) else { return };
    for name in file.names().take(64).filter(|name| Packed::is_stored(&file, name)) {
        if let Some(packed) = checked(Packed::read(&file, name, seeds::PACKED_SHAPE), bytes) {
            // What was understood can be written and is understood again.
            let again = safetensors_bytes("again", packed.stored("q.weight"), None).expect("names that differ");
            let again = SafetensorsFile::from_bytes("again", again).expect("what was written");
            let again = Packed::read(&again, "q.weight", seeds::PACKED_SHAPE).expect("what was written");
            assert!(packed.dequantize().iter().zip(again.dequantize()).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

fn quantization_config(bytes: &[u8]) {
    let Ok(config) = serde_json::from_slice(bytes) else { return };
    if let Some(Some(config)) = checked(QuantizationConfig::of_model(&config), bytes) {
        let again = serde_json::json!({"quantization_config": config.to_json()});
        assert_eq!(QuantizationConfig::of_model(&again).expect("what was written"), Some(config));
    }
}

fn index(bytes: &[u8]) {
    let one = Tensor::from_f32(vec![1], &[1.0]).expect("one element");
    let open = |name: &str| {
        let parts: Vec<&str> = name.split('/').collect();
        assert!(parts.iter().all(|part| !matches!(*part, "" | "." | "..")), "{name:?} leads elsewhere");
        assert!(!name.contains(['\\', ':']) && name.ends_with(".safetensors"), "{name:?} is no name of a shard");
        let tensors = [("shared.weight", &one), (name, &one)];
        SafetensorsFile::from_bytes(name, safetensors_bytes(name, tensors, None)?)
    };
    if let Some(model) = checked(ModelFiles::from_shards("index.json", bytes, open), bytes) {
        read_all(&model, bytes);
    }
}

fn torch(bytes: &[u8]) {
    if let Some(file) = checked(TorchFile::from_bytes("bytes", bytes), bytes) {
        read_all(&file, bytes);
    }
}

/// The pickle of an archive that is sound but for it, with a storage `0` of 64 bytes.
fn pickle(bytes: &[u8]) {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    let storage: Vec<u8> = (0..64).collect();
    for (name, content) in [("a/data.pkl", bytes), ("a/data/0", &storage), ("a/version", b"3\n")] {
        let (mut entry, config) =
            archive.new_file(name).compression_method(CompressionMethod::STORE).start().expect("in memory");
        let mut writer = config.wrap(&mut entry);
        std::io::Write::write_all(&mut writer, content).expect("in memory");
        let (_, descriptor) = writer.finish().expect("in memory");
        entry.finish(descriptor).expect("in memory");
    }
    torch(&archive.finish().expect("in memory"));
}

/// Has bytes read as a file on a disk, for what reads files only.
fn as_file<T>(bytes: &[u8], name: &str, read: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        // One for all inputs: to make a folder takes longer than most inputs do.
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a temporary directory");
    }
    FOLDER.with(|folder| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("room for a small file");
        read(&path)
    })
}

fn csv(bytes: &[u8]) {
    rows(|name, bytes, columns| parse_csv(name, bytes, columns), bytes);
}

fn jsonl(bytes: &[u8]) {
    rows(|name, bytes, columns| parse_jsonl(name, bytes, columns), bytes);
}

/// What a lenient reading keeps and skips is at least what a strict one keeps.
fn rows(parse: impl Fn(&Path, &[u8], &Columns) -> Result<Loaded, DataError>, bytes: &[u8]) {
    let strict = Dataset::dialogsum().columns;
    let lenient = Columns { lenient: true, ..strict.clone() };
    let again = parse(Path::new("bytes"), bytes, &lenient);
    if let Some(loaded) = checked(parse(Path::new("bytes"), bytes, &strict), bytes) {
        assert!(!loaded.examples.is_empty() && loaded.skipped.is_empty());
        assert_eq!(again.expect("a strict reading passed"), loaded);
    } else if let Some(loaded) = checked(again, bytes) {
        assert!(!loaded.examples.is_empty() && loaded.rows >= loaded.examples.len() + loaded.skipped.len());
    }
}

/// What is around a prompt, in a file of either kind. A text has a place in it.
fn template(bytes: &[u8]) {
    for name in ["template.toml", "template.txt"] {
        if let Some(template) = checked(as_file(bytes, name, |path| Template::from_file(path)), bytes) {
            let fields = [("dialogue".to_owned(), "a: b".to_owned())].into();
            if let Some(prompt) = checked(template.render(&fields), bytes) {
                assert!(prompt.contains("a: b"), "{prompt:?}");
            }
        }
    }
}

/// What a judge answers. One that was told by the text to answer twice has not answered.
fn verdict(bytes: &[u8]) {
    let answer = String::from_utf8_lossy(bytes);
    if let Some(verdict) = checked(Verdict::parse(&answer), bytes) {
        assert!((1..=5).contains(&verdict.score), "{}", verdict.score);
        assert!(
            Verdict::parse(&format!("{answer} {}", seeds::OTHER_VERDICT[usize::from(verdict.score == 5)])).is_err()
        );
    }
}

fn ratings(bytes: &[u8]) {
    if let Some(ratings) = checked(as_file(bytes, "ratings.jsonl", |path| Rating::read(path)), bytes) {
        let mut scores = ratings.iter().flat_map(|rating| rating.scores.values());
        assert!(scores.all(|score| (1.0..=5.0).contains(score)));
    }
}

fn tokenizer(bytes: &[u8]) {
    let text = "#Person1#: Guten Morgen, 你好! </s> a";
    let Some(tokenizer) = checked(Tokenizer::from_bytes(bytes), bytes) else { return };
    for encoding in [tokenizer.encode_prompt(text, Some(16)), tokenizer.encode_target(text, Some(16))] {
        if let Some(encoding) = checked(encoding, bytes) {
            assert!(encoding.ids.len() <= 16);
            checked(tokenizer.decode(&encoding.ids), bytes);
        }
    }
}

/// The settings beside a tokenizer.
fn tokenizer_config(bytes: &[u8]) {
    let given = Some(bytes);
    for files in [
        TokenizerFiles { tokenizer_config: given, ..TokenizerFiles::default() },
        TokenizerFiles {
            special_tokens_map: given,
            generation_config: given,
            config: given,
            ..TokenizerFiles::default()
        },
    ] {
        if let Some(tokenizer) = checked(Tokenizer::from_files(files), bytes) {
            let encoding = tokenizer.encode_target("Guten Morgen </s> a", None).expect("bytes always have an end");
            assert_eq!(encoding.ids.last().copied(), tokenizer.eos_id());
        }
    }
}

#[cfg(feature = "models")]
fn adapter_config(bytes: &[u8]) {
    let methods = sideburn_adapters::methods::MethodRegistry::peft();
    let read = |path: &Path| methods.read_file(path);
    if let Some(method) = checked(as_file(bytes, "adapter_config.json", read), bytes) {
        // What was understood can be written and is understood again.
        let json = method.to_json();
        let again = methods.read(&json);
        assert!(again.is_ok_and(|again| again.to_json() == json), "{json}");
    }
}

/// How a model writes. What is read can be followed.
#[cfg(feature = "models")]
fn generation_config(bytes: &[u8]) {
    let own = sideburn_generate::GenerationConfig::default();
    let read = as_file(bytes, "generation_config.json", |path| {
        let folder = path.parent().expect("a file in a folder");
        sideburn_nn::ModelDir::new(folder).generation_config(&own)
    });
    if let Some(config) = checked(read, bytes) {
        config.check().expect("it was checked");
        assert!(config.without_effect().iter().all(|told| !told.chars().any(char::is_control)));
    }
}

#[cfg(feature = "models")]
fn model_config(bytes: &[u8]) {
    checked(as_file(bytes, "config.json", |path| sideburn_t5::T5Config::from_file(path)), bytes);
}
