//! From texts to token ids and back, as the files of a model say.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use serde_json::{Map, Value};

use crate::{byte_level, error::DataError};

/// Larger than any published tokenizer by a factor of ten; a wrong path must not fill the memory.
#[cfg(feature = "fs")]
const FILE_LIMIT: u64 = 256 << 20;
/// The classes of `transformers` that end every text with the end-of-sequence token, whatever `tokenizer.json` says.
const ENDING: [&str; 5] = ["ByT5Tokenizer", "MT5Tokenizer", "MT5TokenizerFast", "T5Tokenizer", "T5TokenizerFast"];

/// The tokenizer of a model, with the special tokens that the model's files name.
///
/// The ids are those of the Hugging Face `tokenizers` library, which this wraps; for ByT5, which has no
/// `tokenizer.json`, they are its bytes. Truncation and padding that the file may configure are switched off: lengths
/// are the caller's to choose, and padding is the batch's.
pub struct Tokenizer {
    model: Model,
    vocab_size: usize,
    max_token_id: u32,
    eos_id: Option<u32>,
    pad_id: Option<u32>,
    bos_id: Option<u32>,
    decoder_start_id: Option<u32>,
    /// Whether a prompt ends with the end-of-sequence token.
    ends_prompts: bool,
    /// Of the files.
    #[cfg(feature = "fs")]
    hash: u128,
}

enum Model {
    Library(Box<tokenizers::Tokenizer>),
    Bytes,
}

/// The files of a model that its tokenizer is made of, as bytes; each may be missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: Option<&'a [u8]>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `generation_config.json`.
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`.
    pub config: Option<&'a [u8]>,
}

#[cfg(feature = "fs")]
impl TokenizerFiles<'_> {
    /// A hash of all of them, in which a file that is missing is not an empty one.
    fn hash(&self) -> u128 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let Self { tokenizer, tokenizer_config, special_tokens_map, generation_config, config } = *self;
        for file in [tokenizer, tokenizer_config, special_tokens_map, generation_config, config] {
            hash.update(&file.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
            hash.update(file.unwrap_or_default());
        }
        hash.digest128()
    }
}

/// The ids of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// How many ids were left out to keep to the length asked for; 0 if the text fitted.
    pub cut: usize,
}

impl Tokenizer {
    /// Loads the tokenizer of a model's directory.
    ///
    /// It is `tokenizer.json`, unless the class named in `tokenizer_config.json` or `config.json` is `ByT5Tokenizer`.
    /// The special tokens are those that `tokenizer_config.json` names; for what it leaves open, those of
    /// `special_tokens_map.json`, then those that `tokenizer.json` itself puts around a text, and at last the ids in
    /// `generation_config.json` and `config.json`.
    ///
    /// # Errors
    /// [`DataError::NoTokenizer`] if there is none; if a file is unreadable, or not what its name says; if the
    /// vocabulary lacks the end-of-sequence token.
    #[cfg(feature = "fs")]
    pub fn from_dir(directory: impl AsRef<std::path::Path>) -> Result<Self, DataError> {
        let directory = directory.as_ref();
        std::fs::read_dir(directory).map_err(|source| DataError::from_io(directory, source))?;
        let read = |name: &str, limit| match sideburn_files::read_text(directory.join(name), limit) {
            Err(sideburn_files::FileError::NotFound { .. }) => Ok(None),
            read => read.map(Some),
        };
        let config = |name: &str| read(name, sideburn_files::MAX_CONFIG);
        let (tokenizer, tokenizer_config) = (read("tokenizer.json", FILE_LIMIT)?, config("tokenizer_config.json")?);
        let special_tokens_map = config("special_tokens_map.json")?;
        let (generation_config, config) = (config("generation_config.json")?, config("config.json")?);
        let files = TokenizerFiles {
            tokenizer: tokenizer.as_deref().map(str::as_bytes),
            tokenizer_config: tokenizer_config.as_deref().map(str::as_bytes),
            special_tokens_map: special_tokens_map.as_deref().map(str::as_bytes),
            generation_config: generation_config.as_deref().map(str::as_bytes),
            config: config.as_deref().map(str::as_bytes),
        };
        Self::build(files, |name| directory.join(name))
    }

    /// Loads a `tokenizer.json`, whose special tokens are those that it puts around a text itself.
    ///
    /// # Errors
    /// If the file is missing, unreadable, or not a tokenizer.
    #[cfg(feature = "fs")]
    pub fn from_file(path: impl AsRef<std::path::Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let text = sideburn_files::read_text(path, FILE_LIMIT)?;
        Self::build(TokenizerFiles { tokenizer: Some(text.as_bytes()), ..TokenizerFiles::default() }, |_| {
            path.to_owned()
        })
    }

    /// The same of the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// If they are not a tokenizer.
    pub fn from_bytes(tokenizer: &[u8]) -> Result<Self, DataError> {
        Self::from_files(TokenizerFiles { tokenizer: Some(tokenizer), ..TokenizerFiles::default() })
    }

    /// The tokenizer of a model of which these are the files, as [`from_dir`](Self::from_dir) finds them in a
    /// directory.
    ///
    /// # Errors
    /// [`DataError::NoTokenizer`] if there is none; if a file is not what its name says; if the vocabulary lacks
    /// the end-of-sequence token.
    pub fn from_files(files: TokenizerFiles<'_>) -> Result<Self, DataError> {
        Self::build(files, |name| PathBuf::from(name))
    }

    /// `path` says what errors call a file.
    fn build(files: TokenizerFiles<'_>, path: impl Fn(&str) -> PathBuf) -> Result<Self, DataError> {
        let read = |name: &'static str, bytes: Option<&[u8]>| Config::new(path(name), bytes);
        let tokenizer_config = read("tokenizer_config.json", files.tokenizer_config)?;
        let special_tokens_map = read("special_tokens_map.json", files.special_tokens_map)?;
        let generation_config = read("generation_config.json", files.generation_config)?;
        let config = read("config.json", files.config)?;

        let class = [&tokenizer_config, &config].iter().find_map(|file| file.text("tokenizer_class"));
        let (model, [mut bos_id, ends_with], mut pad_id) = match (class.as_deref(), files.tokenizer) {
            (Some("ByT5Tokenizer"), _) => (Model::Bytes, [None, Some(byte_level::EOS)], Some(byte_level::PAD)),
            (_, Some(bytes)) => {
                let parsed = parse(bytes);
                let Parsed { tokenizer, around, pad } =
                    parsed.map_err(|source| DataError::TokenizerFile { path: path("tokenizer.json"), source })?;
                (Model::Library(Box::new(tokenizer)), around, pad)
            }
            (_, None) => return Err(DataError::NoTokenizer { directory: path("") }),
        };
        let mut eos_id = ends_with;
        let id_of = |token: &str| match &model {
            Model::Library(tokenizer) => tokenizer.token_to_id(token),
            Model::Bytes => Some(byte_level::encode(token)).filter(|ids| ids.len() == 1).map(|ids| ids[0]),
        };
        for (role, id) in [("bos_token", &mut bos_id), ("eos_token", &mut eos_id), ("pad_token", &mut pad_id)] {
            let named = [&tokenizer_config, &special_tokens_map].into_iter().find_map(|file| file.token(role));
            if let Some(token) = named {
                *id = id_of(&token);
                // No text needs the others: lengths say where padding is, and a text that begins with a token has it.
                if role == "eos_token" && id.is_none() {
                    return Err(DataError::MissingToken { path: path("tokenizer.json"), token });
                }
            } else if id.is_none() {
                let role = format!("{role}_id");
                *id = generation_config.id(&role)?.or(config.id(&role)?);
            }
        }
        let start = "decoder_start_token_id";
        let decoder_start_id = generation_config.id(start)?.or(config.id(start)?);
        let (vocab_size, largest) = match &model {
            Model::Bytes => (byte_level::TOKENS as usize, byte_level::TOKENS - 1),
            Model::Library(tokenizer) => {
                let vocabulary = tokenizer.get_vocab(true);
                (vocabulary.len(), vocabulary.into_values().max().unwrap_or_default())
            }
        };
        let ends_prompts = eos_id.is_some()
            && (ends_with == eos_id
                || class.is_some_and(|class| ENDING.contains(&class.as_str()))
                || config.object.get("is_encoder_decoder") == Some(&Value::Bool(true)));
        let max_token_id = largest.max(eos_id.unwrap_or_default());
        Ok(Self {
            model,
            vocab_size,
            max_token_id,
            eos_id,
            pad_id,
            bos_id,
            decoder_start_id,
            ends_prompts,
            #[cfg(feature = "fs")]
            hash: files.hash(),
        })
    }

    /// A hash of the files that it was made of.
    #[cfg(feature = "fs")]
    pub(crate) fn hash(&self) -> u128 {
        self.hash
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The largest id that a text can get.
    pub fn max_token_id(&self) -> u32 {
        self.max_token_id
    }

    /// The end-of-sequence token, `</s>` in T5: what a target ends with.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// The padding token, `<pad>` in T5, if the vocabulary has it.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// The token that texts begin with, if the vocabulary has it. T5 has none.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The token that a decoder is given first. Only a model with an encoder has one.
    pub fn decoder_start_id(&self) -> Option<u32> {
        self.decoder_start_id
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

    /// The ids of a text that is given to a model, with the special tokens that `tokenizer(text)` of `transformers`
    /// adds.
    ///
    /// A T5 ends it with `</s>`: `Hello` is `[8774, 1]`. So does every model with an encoder. A model without one goes
    /// on where its prompt ends, and nothing is put behind it; some put a token before it.
    ///
    /// With `max_length`, a longer text keeps its first ids and the end-of-sequence token, if it has one, as with
    /// `truncation=True` in Hugging Face. Names of special tokens in the text, such as `<extra_id_0>`, become those
    /// tokens, also as there; but a text that itself ends in `</s>` does not get a second one.
    ///
    /// # Errors
    /// If `max_length` is below 2, or the library refuses the text.
    pub fn encode_prompt(&self, text: &str, max_length: Option<usize>) -> Result<Encoding, DataError> {
        self.encode(text, max_length, true, self.eos_id.filter(|_| self.ends_prompts))
    }

    /// The ids of a text that a model is to write: always with the end-of-sequence token behind it.
    ///
    /// For a T5, and every model with an encoder, they are those of [`encode_prompt`](Self::encode_prompt), as
    /// `tokenizer(text_target=text)` of `transformers` gives them. For a model without one they are what follows its
    /// prompt: no token is put before them.
    ///
    /// # Errors
    /// If `max_length` is below 2, the model has no end-of-sequence token, or the library refuses the text.
    pub fn encode_target(&self, text: &str, max_length: Option<usize>) -> Result<Encoding, DataError> {
        let eos = self.eos_id.ok_or(DataError::NoEndToken)?;
        self.encode(text, max_length, self.ends_prompts, Some(eos))
    }

    /// `with_special` asks for what the library puts around a text, `end` is behind it exactly once.
    fn encode(
        &self,
        text: &str,
        max_length: Option<usize>,
        with_special: bool,
        end: Option<u32>,
    ) -> Result<Encoding, DataError> {
        if let Some(max_length) = max_length.filter(|&length| length < 2) {
            return Err(DataError::Limit { max_length });
        }
        let mut ids = match &self.model {
            Model::Bytes => byte_level::encode(text),
            Model::Library(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, with_special);
                encoding.map_err(|source| DataError::Tokenizer { source })?.get_ids().to_vec()
            }
        };
        // The file's post-processor may add `</s>` or not; both kinds are published for T5.
        while end.is_some() && ids.last().copied() == end {
            ids.pop();
        }
        let room = max_length.unwrap_or(usize::MAX) - usize::from(end.is_some());
        let cut = ids.len().saturating_sub(room);
        ids.truncate(room);
        ids.extend(end);
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
        match &self.model {
            Model::Bytes => Ok(byte_level::decode(ids)),
            Model::Library(tokenizer) => tokenizer.decode(ids, true).map_err(|source| DataError::Tokenizer { source }),
        }
    }
}

/// A file of settings; empty, if it is missing.
struct Config {
    path: PathBuf,
    object: Map<String, Value>,
}

impl Config {
    fn new(path: PathBuf, bytes: Option<&[u8]>) -> Result<Self, DataError> {
        let Some(bytes) = bytes else { return Ok(Self { path, object: Map::new() }) };
        match serde_json::from_slice(bytes) {
            Ok(object) => Ok(Self { path, object }),
            Err(error) => Err(DataError::Config { path, reason: error.to_string() }),
        }
    }

    fn text(&self, field: &str) -> Option<String> {
        self.object.get(field).and_then(Value::as_str).map(str::to_owned)
    }

    /// A token, which is its name or an object with its `content`.
    fn token(&self, field: &str) -> Option<String> {
        let content = self.object.get(field).and_then(|token| token.get("content")).and_then(Value::as_str);
        content.map(str::to_owned).or_else(|| self.text(field))
    }

    /// An id, the first of several, or none.
    fn id(&self, field: &str) -> Result<Option<u32>, DataError> {
        let given = match self.object.get(field) {
            Some(Value::Array(ids)) => ids.first(),
            other => other,
        };
        match given {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => Ok(Some(id)),
                None => {
                    let reason = format!("`{field}` is {value}, expected the id of a token");
                    Err(DataError::Config { path: self.path.clone(), reason })
                }
            },
        }
    }
}

/// What a `tokenizer.json` says.
struct Parsed {
    tokenizer: tokenizers::Tokenizer,
    /// The special tokens that stand before and behind a text.
    around: [Option<u32>; 2],
    pad: Option<u32>,
}

/// Reads a tokenizer file that may be damaged or hostile.
///
/// The library has its own opinion of such files: 0.23 panics on an unreadable `precompiled_charsmap`, on a template
/// that names an unknown token (at the first text it encodes) and on some strings that are not JSON.
fn parse(bytes: &[u8]) -> Result<Parsed, Box<dyn std::error::Error + Send + Sync>> {
    // The everyday damage, a download cut short, is found here, before anything can panic.
    serde_json::from_slice::<Value>(bytes)?;
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
        let pad = tokenizer.get_padding().map(|padding| padding.pad_id);
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None)?;
        let probe = tokenizer.encode_fast("a probe", true)?;
        let special = |(id, mask): (&u32, &u32)| (*mask == 1).then_some(*id);
        let mut ids = probe.get_ids().iter().zip(probe.get_special_tokens_mask());
        let around = [ids.clone().next().and_then(special), ids.next_back().and_then(special)];
        Ok(Parsed { tokenizer, around, pad })
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
