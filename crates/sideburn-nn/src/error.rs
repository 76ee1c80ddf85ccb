//! What can go wrong with the files and the tokens of a model.

use std::path::PathBuf;

use sideburn_files::{FileError, printable};
use sideburn_weights::WeightsError;

/// Why a model's files cannot be read, or its tokens not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// A configuration that cannot be read or says what cannot be.
    #[error("{}: {}", printable(path), printable(message))]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A token id that the embedding has no row for.
    #[error("token id {id} is outside the vocabulary of {vocab_size}; the tokenizer is not this model's")]
    TokenOutsideVocabulary {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Two tensors of a checkpoint that ought to be copies of each other.
    #[error(
        "{}: {tensor} differs from {of}, but the model has one embedding; \
         the checkpoint is not of this architecture",
        printable(path)
    )]
    NotACopy {
        /// The model directory or file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it ought to be a copy of.
        of: &'static str,
    },
    /// A file that cannot be read, whatever it holds.
    #[error(transparent)]
    File(#[from] FileError),
    /// Weights that cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let config = NnError::Config { path: "m/config.json".into(), message: "`d_ff` is 0".into() };
        assert_eq!(config.to_string(), "m/config.json: `d_ff` is 0");
        let hostile = NnError::Config { path: "m\u{1b}[2J".into(), message: "\0".into() };
        assert_eq!(hostile.to_string(), r"m\u{1b}[2J: \0");
        let token = NnError::TokenOutsideVocabulary { id: 9, vocab_size: 8 };
        let expected = "token id 9 is outside the vocabulary of 8; the tokenizer is not this model's";
        assert_eq!(token.to_string(), expected);
    }
}
