//! The files of a model directory.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sideburn_files::{AtomicDir, FileError, MAX_CONFIG, read_text, write_atomic};
use sideburn_generate::GenerationConfig;
use sideburn_quant::QuantizationConfig;
use sideburn_weights::{Dtype, ModelFiles};

use crate::NnError;
use crate::fields::shown;
use crate::generation_config::{generation_config_fields, of_model_config, read_generation_config};

/// A model directory as Hugging Face writes it: `config.json`, weights in one file (`model.safetensors`, `pytorch_model.bin`) or in
/// shards with an index, perhaps `generation_config.json`, and the tokenizer's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDir(PathBuf);

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";

impl ModelDir {
    /// The directory with this path; nothing of it is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where `config.json` is.
    pub fn config_path(&self) -> PathBuf {
        self.0.join(CONFIG)
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// If it is not there, is too large or not a regular file, or is no JSON.
    pub fn config(&self) -> Result<Value, NnError> {
        read_json(&self.config_path())
    }

    /// Writes a directory that appears whole or not at all: `config.json`, with how the weights are quantised and what the rest
    /// is held in if they are,
    /// `generation_config.json`, and the weights, which `save` writes to the path that it is given.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write<E: From<FileError>>(
        &self,
        mut config: Map<String, Value>,
        generation: &GenerationConfig,
        quantization: Option<QuantizationConfig>,
        save: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let directory = AtomicDir::create(&self.0)?;
        if let Some(quantization) = quantization {
            config.insert("quantization_config".to_owned(), quantization.to_json());
            let dtype = match quantization.dtype {
                Some(Dtype::BF16) => "bfloat16",
                Some(Dtype::F16) => "float16",
                _ => "float32",
            };
            config.insert("dtype".to_owned(), dtype.into());
        }
        for (name, fields) in [(CONFIG, config), (GENERATION_CONFIG, generation_config_fields(generation))] {
            let text = serde_json::to_string_pretty(&fields).expect("a JSON value is always printable");
            write_atomic(directory.path().join(name), (text + "\n").as_bytes())?;
        }
        save(&directory.path().join(WEIGHTS))?;
        directory.commit()?;
        Ok(())
    }

    /// How the weights are quantised: `quantization_config` of `config.json`, if it is there.
    ///
    /// # Errors
    /// If it cannot be read, or names another method than those of bitsandbytes.
    pub fn quantization(&self) -> Result<Option<QuantizationConfig>, NnError> {
        let config = self.config()?;
        QuantizationConfig::of_model(&config)
            .map_err(|error| NnError::Config { path: self.config_path(), message: error.to_string() })
    }

    /// How the weights are to be quantised: as they are, or as `asked`, which they must not be yet.
    ///
    /// # Errors
    /// As for [`quantization`](Self::quantization), and [`check_unquantized`](Self::check_unquantized) if something is asked for.
    pub fn quantization_for(&self, asked: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>, NnError> {
        match asked {
            None => self.quantization(),
            asked => self.check_unquantized().map(|()| asked),
        }
    }

    /// That the weights are not quantised.
    ///
    /// # Errors
    /// If they are, or `config.json` cannot be read.
    pub fn check_unquantized(&self) -> Result<(), NnError> {
        match self.quantization()? {
            None => Ok(()),
            Some(_) => Err(NnError::Config {
                path: self.config_path(),
                message:
                    "`quantization_config` says that the model is quantised already; load it as it is, or quantise \
                          the unquantised model"
                        .to_owned(),
            }),
        }
    }

    /// Opens the weights.
    ///
    /// # Errors
    /// Those of [`ModelFiles::open`].
    pub fn weights(&self) -> Result<ModelFiles, NnError> {
        Ok(ModelFiles::open(&self.0)?)
    }

    /// How the model writes: as `generation_config.json` says, or without one as `config.json` does. What neither says is
    /// as `own` has it, the configuration's own tokens.
    ///
    /// # Errors
    /// If a file is broken, or asks for what is not here.
    pub fn generation_config(&self, own: &GenerationConfig) -> Result<GenerationConfig, NnError> {
        let path = self.0.join(GENERATION_CONFIG);
        // A file that may be absent is absent, too, where something else has its name.
        let (path, fields) = match path.is_file() {
            true => (path.clone(), object(&read_json(&path)?, &path)?),
            false => (self.config_path(), of_model_config(&object(&self.config()?, &self.config_path())?)),
        };
        read_generation_config(&fields, own).map_err(|message| NnError::Config { path, message })
    }

    /// How the model does a task, such as `summarization`, that `task_specific_params` of `config.json` tells of: what it
    /// leaves out is as `own` has it. `None` if it does not tell.
    ///
    /// # Errors
    /// If the file is broken, or asks for what is not here.
    pub fn task(&self, name: &str, own: &GenerationConfig) -> Result<Option<Task>, NnError> {
        let path = self.config_path();
        let config = self.config()?;
        let Some(params) = config.get("task_specific_params").and_then(|tasks| tasks.get(name)) else {
            return Ok(None);
        };
        let mut fields = object(params, &path)?;
        let invalid = |message| NnError::Config { path: path.clone(), message };
        let prefix = match fields.remove("prefix") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(prefix)) => prefix,
            Some(other) => return Err(invalid(format!("`prefix` is {}, expected a string", shown(&other)))),
        };
        let generation = read_generation_config(&fields, own).map_err(invalid)?;
        Ok(Some(Task { prefix, generation }))
    }
}

/// What a parsed `config.json` says that floats are stored in: its `dtype`, or `torch_dtype` of older files.
pub fn stored_dtype(config: &Value) -> Option<Dtype> {
    let dtype = ["dtype", "torch_dtype"].iter().find_map(|name| config.get(name)?.as_str())?;
    match dtype {
        "float32" => Some(Dtype::F32),
        "float16" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::BF16),
        _ => None,
    }
}

/// What a model's `task_specific_params` say of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What stands before the text of a prompt.
    pub prefix: String,
    /// How the model writes.
    pub generation: GenerationConfig,
}

/// The fields of a JSON object.
fn object(value: &Value, path: &Path) -> Result<Map<String, Value>, NnError> {
    let invalid = || NnError::Config { path: path.to_owned(), message: "expected a JSON object".to_owned() };
    value.as_object().cloned().ok_or_else(invalid)
}

/// Reads a small JSON file.
///
/// # Errors
/// If it cannot be read, is larger than 16 MiB or not a regular file, or is no JSON.
pub fn read_json(path: &Path) -> Result<Value, NnError> {
    let invalid = |message: String| NnError::Config { path: path.to_owned(), message };
    let text = read_text(path, MAX_CONFIG)?;
    serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_model_writes_is_in_either_file() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let (model, own) = (ModelDir::new(directory.path()), GenerationConfig::default());
        let params =
            r#"{"summarization": {"prefix": "summarize: ", "num_beams": 4, "max_length": 200}, "odd": {"prefix": 1}}"#;
        write("config.json", &format!(r#"{{"d_ff": 8, "num_beams": 2, "task_specific_params": {params}}}"#));
        assert_eq!(model.generation_config(&own).unwrap().num_beams, 2);
        write("generation_config.json", r#"{"top_k": 5}"#);
        let read = model.generation_config(&own).unwrap();
        assert_eq!((read.num_beams, read.top_k), (1, 5));
        let task = model.task("summarization", &own).unwrap().unwrap();
        assert_eq!((task.prefix.as_str(), task.generation.num_beams), ("summarize: ", 4));
        assert_eq!(task.generation.max_length, Some(200));
        assert_eq!(model.task("translation", &own).unwrap(), None);
        let error = model.task("odd", &own).unwrap_err().to_string();
        assert!(error.ends_with("config.json: `prefix` is 1, expected a string"), "{error}");
        write("generation_config.json", "[]");
        let error = model.generation_config(&own).unwrap_err().to_string();
        assert!(error.ends_with("generation_config.json: expected a JSON object"), "{error}");
    }

    #[test]
    fn what_is_no_configuration_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (model, path) = (ModelDir::new(directory.path()), directory.path().join("config.json"));
        let error = || model.config().unwrap_err().to_string();
        assert!(error().contains("config.json\" does not exist"), "{}", error());
        std::fs::write(&path, "[").unwrap();
        assert!(error().contains("config.json: EOF while parsing a list at line 1"), "{}", error());
        std::fs::File::create(&path).unwrap().set_len(MAX_CONFIG + 1).unwrap();
        assert!(error().contains("config.json\" has 16777217 bytes, more than the limit of 16777216"), "{}", error());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(error().contains("config.json\" is not a regular file"), "{}", error());
    }
}
