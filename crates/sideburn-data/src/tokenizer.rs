//! A `tokenizer.json` as an encoder-decoder needs it.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use sideburn_files::{FileError, read_text};

use crate::error::DataError;

/// Larger than any published tokenizer by a factor of ten; a wrong path must not fill the memory.
const FILE_LIMIT: u64 = 256 << 20;
const EOS: &str = "</s>";
const PAD: &str = "<pad>";

/// A text tokenizer with an end-of-sequence token `</s>` and a padding token `<pad>`, as T5 has.
///
/// The ids are those of the Hugging Face `tokenizers` library, which this wraps. Truncation and padding that the file
/// may configure are switched off: lengths are the caller's to choose, and padding is the batch's.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    max_token_id: u32,
    eos_id: u32,
    pad_id: u32,
}

/// The ids of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids; the last is the end-of-sequence token.
    pub ids: Vec<u32>,
    /// How many ids were left out to keep to the length asked for; 0 if the text fitted.
    pub cut: usize,
}

impl Tokenizer {
    /// Loads a `tokenizer.json`.
    ///
    /// # Errors
    /// If the file is missing or unreadable, is not a tokenizer, or its vocabulary lacks `</s>` or `<pad>`.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let text = read_text(path, FILE_LIMIT)?;
        let unreadable = |source| DataError::TokenizerFile { path: path.to_path_buf(), source };
        let inner = parse(text.as_bytes()).map_err(unreadable)?;
        let token =
            |token| inner.token_to_id(token).ok_or_else(|| DataError::MissingToken { path: path.to_path_buf(), token });
        let (eos_id, pad_id) = (token(EOS)?, token(PAD)?);
        let vocabulary = inner.get_vocab(true);
        let (vocab_size, max_token_id) = (vocabulary.len(), vocabulary.into_values().max().unwrap_or_default());
        Ok(Self { inner, vocab_size, max_token_id, eos_id, pad_id })
    }

    /// Loads the `tokenizer.json` in a model's directory.
    ///
    /// # Errors
    /// [`DataError::NoTokenizer`] if there is none, and those of [`from_file`](Self::from_file).
    pub fn from_dir(directory: impl AsRef<Path>) -> Result<Self, DataError> {
        let directory = directory.as_ref();
        match Self::from_file(directory.join("tokenizer.json")) {
            Err(DataError::File(FileError::NotFound { .. })) if directory.is_dir() => {
                Err(DataError::NoTokenizer { directory: directory.to_path_buf() })
            }
            read => read,
        }
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The largest id that [`encode`](Self::encode) can give.
    pub fn max_token_id(&self) -> u32 {
        self.max_token_id
    }

    /// The id of `</s>`.
    pub fn eos_id(&self) -> u32 {
        self.eos_id
    }

    /// The id of `<pad>`.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Checks that a model with `embedding_rows` token embeddings has one for every id.
    ///
    /// A model may have more of them: T5's embedding is rounded up to 32,128 rows for 32,100 tokens.
    ///
    /// # Errors
    /// If the largest id is not below `embedding_rows`.
    pub fn check_fits(&self, embedding_rows: usize) -> Result<(), DataError> {
        if (self.max_token_id as usize) < embedding_rows {
            return Ok(());
        }
        Err(DataError::VocabularyTooLarge { max_token_id: self.max_token_id, embedding_rows })
    }

    /// The ids of `text`, with one end-of-sequence token at their end.
    ///
    /// With `max_length`, a longer text keeps its first `max_length - 1` ids and the end-of-sequence token, as with
    /// `truncation=True` in Hugging Face. Names of special tokens in the text, such as `<extra_id_0>`, become those
    /// tokens, also as there; but a text that itself ends in `</s>` does not get a second one.
    ///
    /// # Errors
    /// If `max_length` is below 2, or the library refuses the text.
    pub fn encode(&self, text: &str, max_length: Option<usize>) -> Result<Encoding, DataError> {
        if let Some(max_length) = max_length.filter(|&length| length < 2) {
            return Err(DataError::Limit { max_length });
        }
        let encoding = self.inner.encode_fast(text, true).map_err(|source| DataError::Tokenizer { source })?;
        let mut ids = encoding.get_ids().to_vec();
        // The file's post-processor may add `</s>` or not; both kinds are published for T5.
        while ids.last() == Some(&self.eos_id) {
            ids.pop();
        }
        let kept = max_length.map_or(ids.len(), |length| ids.len().min(length - 1));
        let cut = ids.len() - kept;
        ids.truncate(kept);
        ids.push(self.eos_id);
        Ok(Encoding { ids, cut })
    }

    /// The text of `ids`, special tokens and ids without a token left out.
    ///
    /// This is `decode` of the `tokenizers` library. `transformers` before version 5 by default also closes up the
    /// blanks before punctuation afterwards (`clean_up_tokenization_spaces`).
    ///
    /// # Errors
    /// If the library's decoder fails, as it can on a pattern in the tokenizer file that runs out of bounds.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner.decode(ids, true).map_err(|source| DataError::Tokenizer { source })
    }
}

/// Reads a tokenizer file that may be damaged or hostile.
///
/// The library has its own opinion of such files: 0.23 panics on an unreadable `precompiled_charsmap`, on a template
/// that names an unknown token (at the first text it encodes) and on some strings that are not JSON.
fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer, Box<dyn std::error::Error + Send + Sync>> {
    // The everyday damage, a download cut short, is found here, before anything can panic.
    serde_json::from_slice::<serde_json::Value>(bytes)?;
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
        inner.with_padding(None);
        inner.with_truncation(None)?;
        inner.encode_fast("a probe", true)?;
        Ok(inner)
    }));
    parsed.unwrap_or_else(|_| Err("the library panicked on it".into()))
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The vocabulary would fill screens.
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("eos_id", &self.eos_id)
            .field("pad_id", &self.pad_id)
            .finish_non_exhaustive()
    }
}
