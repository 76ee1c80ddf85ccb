//! The tokens that generation begins with, ends with and pads with.

use serde_json::Value;

use crate::fields::ConfigFields;

/// Token ids that generation needs: those of `generation_config.json`, or else of `config.json`, as `generate` of
/// `transformers` takes them. A model directory [reads](crate::ModelDir::special_tokens) them.
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
    /// Those of a parsed `generation_config.json`: what it leaves out is as `own` has it. Whether the model knows a token
    /// shows when it is embedded. The error is a message that names the field.
    pub(crate) fn from_json(value: &Value, own: Self) -> Result<Self, String> {
        let fields = ConfigFields::new(value.as_object().ok_or("expected a JSON object")?);
        let token = |field| Ok::<_, String>(fields.token(field)?.flatten());
        let end = fields.tokens("eos_token_id")?.unwrap_or_default();
        let start = token("decoder_start_token_id")?.or(own.start);
        Ok(Self {
            start: start.map_or_else(|| token("bos_token_id"), |start| Ok(Some(start)))?,
            end: if end.is_empty() { own.end } else { end },
            pad: token("pad_token_id")?.or(own.pad),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokens(start: Option<u32>, end: &[u32], pad: Option<u32>) -> SpecialTokens {
        SpecialTokens { start, end: end.to_vec(), pad }
    }

    #[test]
    fn what_the_file_says_goes_before_the_configuration() {
        let read = |value, own: &SpecialTokens| SpecialTokens::from_json(&value, own.clone()).unwrap();
        let (own, none) = (tokens(Some(0), &[1, 2], Some(0)), SpecialTokens::default());
        assert_eq!(read(json!({}), &own), own);
        assert_eq!(read(json!({"eos_token_id": 5}), &own), tokens(Some(0), &[5], Some(0)));
        assert_eq!(read(json!({"eos_token_id": [5, 6], "pad_token_id": 3}), &none), tokens(None, &[5, 6], Some(3)));
        assert_eq!(read(json!({"bos_token_id": 4}), &none), tokens(Some(4), &[], None));
        assert_eq!(read(json!({"decoder_start_token_id": 2, "bos_token_id": 4}), &none), tokens(Some(2), &[], None));
        assert_eq!(read(json!({"eos_token_id": null}), &own), own);
    }

    #[test]
    fn broken_files_are_refused_by_field() {
        let error = |value| SpecialTokens::from_json(&value, SpecialTokens::default()).unwrap_err();
        assert_eq!(error(json!({"pad_token_id": "x"})), "`pad_token_id` is \"x\", expected a token id or null");
        let ids = "expected a token id, a list of token ids or null";
        assert_eq!(error(json!({"eos_token_id": [-1]})), format!("`eos_token_id` is [-1], {ids}"));
        assert_eq!(error(json!([])), "expected a JSON object");
    }
}
