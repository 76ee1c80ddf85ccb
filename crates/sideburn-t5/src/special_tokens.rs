//! The tokens that generation begins with, ends with and pads with.

use std::path::Path;

use serde_json::Value;

use crate::T5Error;
use crate::config::{T5Config, read_json};
use crate::fields::Fields;

const FILE: &str = "generation_config.json";

/// Token ids that generation needs: those of `generation_config.json`, or else of `config.json`, as `generate` of
/// `transformers` takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// What the decoder starts from, `decoder_start_token_id` or else `bos_token_id`.
    pub start: Option<u32>,
    /// What ends a row, any of them; `eos_token_id`.
    pub end: Vec<u32>,
    /// What is put behind the end, `pad_token_id`.
    pub pad: Option<u32>,
}

impl SpecialTokens {
    /// Those of `config.json`.
    pub(crate) fn of(config: &T5Config) -> Self {
        Self { start: config.decoder_start_token_id, end: config.eos_token_id.clone(), pad: config.pad_token_id }
    }

    /// Those of a model directory: what its `generation_config.json` leaves out is as the configuration has it.
    pub(crate) fn read(directory: &Path, config: &T5Config) -> Result<Self, T5Error> {
        let (path, own) = (directory.join(FILE), Self::of(config));
        // A file that may be absent is absent, too, where something else has its name.
        if !path.is_file() {
            return Ok(own);
        }
        let value = read_json(&path)?;
        Self::from_json(&value, own, config.vocab_size).map_err(|message| T5Error::Config { path, message })
    }

    fn from_json(value: &Value, own: Self, vocab_size: usize) -> Result<Self, String> {
        let fields = Fields::new(value.as_object().ok_or("expected a JSON object")?);
        let token = |field| -> Result<Option<u32>, String> {
            let id = fields.token(field)?.flatten();
            id.map(|id| in_vocabulary(field, id, vocab_size)).transpose()
        };
        let start = token("decoder_start_token_id")?.or(own.start);
        let end = fields.tokens("eos_token_id")?.unwrap_or_default();
        let end: Vec<u32> =
            end.into_iter().map(|id| in_vocabulary("eos_token_id", id, vocab_size)).collect::<Result<_, _>>()?;
        Ok(Self {
            start: start.map_or_else(|| token("bos_token_id"), |start| Ok(Some(start)))?,
            end: if end.is_empty() { own.end } else { end },
            pad: token("pad_token_id")?.or(own.pad),
        })
    }
}

fn in_vocabulary(field: &str, id: u32, vocab_size: usize) -> Result<u32, String> {
    if (id as usize) < vocab_size {
        Ok(id)
    } else {
        Err(format!("`{field}` is {id}, but the vocabulary has {vocab_size} entries"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value, config: &T5Config) -> Result<SpecialTokens, String> {
        SpecialTokens::from_json(&value, SpecialTokens::of(config), config.vocab_size)
    }

    #[test]
    fn what_the_file_says_goes_before_the_configuration() {
        let config = T5Config { eos_token_id: vec![1, 2], ..T5Config::default() };
        let none =
            T5Config { decoder_start_token_id: None, pad_token_id: None, eos_token_id: vec![], ..config.clone() };
        let tokens = |start, end: &[u32], pad| Ok(SpecialTokens { start, end: end.to_vec(), pad });
        assert_eq!(read(json!({}), &config), tokens(Some(0), &[1, 2], Some(0)));
        assert_eq!(read(json!({"eos_token_id": 5}), &config), tokens(Some(0), &[5], Some(0)));
        assert_eq!(read(json!({"eos_token_id": [5, 6], "pad_token_id": 3}), &none), tokens(None, &[5, 6], Some(3)));
        assert_eq!(read(json!({"bos_token_id": 4}), &none), tokens(Some(4), &[], None));
        assert_eq!(read(json!({"decoder_start_token_id": 2, "bos_token_id": 4}), &none), tokens(Some(2), &[], None));
        assert_eq!(read(json!({"eos_token_id": null}), &config), tokens(Some(0), &[1, 2], Some(0)));
    }

    #[test]
    fn broken_files_are_refused_by_field() {
        let error = |value| read(value, &T5Config::default()).unwrap_err();
        assert_eq!(error(json!({"pad_token_id": "x"})), "`pad_token_id` is \"x\", expected a token id or null");
        assert_eq!(
            error(json!({"eos_token_id": [40000]})),
            "`eos_token_id` is 40000, but the vocabulary has 32128 entries"
        );
        assert_eq!(error(json!([])), "expected a JSON object");
    }
}
