//! The files of a model directory.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sideburn_files::{MAX_CONFIG, read_text};
use sideburn_weights::ModelFiles;

use crate::{NnError, SpecialTokens};

/// A model directory as Hugging Face writes it: `config.json`, weights in `model.safetensors` or in shards with an index,
/// perhaps `generation_config.json`, and the tokenizer's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDir(PathBuf);

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

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

    /// Opens the weights.
    ///
    /// # Errors
    /// Those of [`ModelFiles::open`].
    pub fn weights(&self) -> Result<ModelFiles, NnError> {
        Ok(ModelFiles::open(&self.0)?)
    }

    /// The tokens that generation needs: those of `generation_config.json`, or else `own`, those of the configuration.
    ///
    /// # Errors
    /// If the file is broken.
    pub fn special_tokens(&self, own: SpecialTokens) -> Result<SpecialTokens, NnError> {
        let path = self.0.join(GENERATION_CONFIG);
        // A file that may be absent is absent, too, where something else has its name.
        if !path.is_file() {
            return Ok(own);
        }
        let value = read_json(&path)?;
        SpecialTokens::from_json(&value, own).map_err(|message| NnError::Config { path, message })
    }
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
