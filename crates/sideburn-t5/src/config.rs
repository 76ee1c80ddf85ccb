//! `config.json` of T5 models.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::T5Error;

/// The feed-forward layer's activation, and whether it is gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FeedForward {
    /// `wo(relu(wi x))`: T5 1.0.
    #[serde(rename = "relu")]
    Relu,
    /// `wo(gelu(wi_0 x) * wi_1 x)` with the tanh approximation of GELU: T5 1.1 and FLAN-T5.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

/// The architecture of a T5 model; the fields are named, and default, as in `transformers.T5Config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Always `t5`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Width of each attention head; `num_heads * d_kv` need not be `d_model`.
    pub d_kv: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Blocks of the encoder.
    pub num_layers: usize,
    /// Blocks of the decoder; as many as of the encoder if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_decoder_layers: Option<usize>,
    /// Attention heads.
    pub num_heads: usize,
    /// Buckets of relative positions.
    pub relative_attention_num_buckets: usize,
    /// The distance from which on all positions share a bucket.
    pub relative_attention_max_distance: usize,
    /// The probability of every dropout of the model.
    pub dropout_rate: f64,
    /// The epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// The kind of feed-forward layer.
    pub feed_forward_proj: FeedForward,
    /// Whether the output head is the embedding, in the classic reading; see [`T5Config::scales_decoder_outputs`].
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is multiplied by `d_model^-0.5` before the head. Written by transformers 5, which
    /// no longer derives it from `tie_word_embeddings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_decoder_outputs: Option<bool>,
    /// The id of padding.
    pub pad_token_id: u32,
    /// The id of the end of a sequence.
    pub eos_token_id: u32,
    /// The id that the decoder starts from.
    pub decoder_start_token_id: u32,
    /// What the initial weights of a new model are scaled by.
    pub initializer_factor: f64,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            model_type: "t5".to_owned(),
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: FeedForward::Relu,
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            pad_token_id: 0,
            eos_token_id: 1,
            decoder_start_token_id: 0,
            initializer_factor: 1.0,
        }
    }
}

/// No configuration comes near this; a larger file is something else.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

impl T5Config {
    /// Reads a `config.json`, as transformers 4 or 5 writes it. Fields that say nothing of the architecture pass.
    ///
    /// # Errors
    /// If the file cannot be read, is of another architecture, or a field is ill-typed or out of range.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, T5Error> {
        let path = path.as_ref();
        let invalid = |message: String| T5Error::Config { path: path.to_owned(), message };
        let size = std::fs::metadata(path).map_err(|error| invalid(error.to_string()))?.len();
        if size > MAX_CONFIG_BYTES {
            return Err(invalid(format!("{size} bytes is no model configuration")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
        Self::from_json(&text).map_err(invalid)
    }

    /// Reads the text of a `config.json`; the error is a message without the file's name.
    pub(crate) fn from_json(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Kind {
            model_type: Option<String>,
            architectures: Option<Vec<String>>,
        }
        let kind: Kind = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if kind.model_type.as_deref() != Some("t5") {
            let found = kind.model_type.as_deref().unwrap_or("(absent)");
            let architectures = kind.architectures.unwrap_or_default().join(", ");
            return Err(format!(
                "`model_type` is {found} (architectures: {architectures}), expected t5; \
                 this crate has no other architecture"
            ));
        }
        let config: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        // The caps are far above any published model, and low enough that no product of two overflows memory sizes.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("d_model", self.d_model, 1 << 17),
            ("d_kv", self.d_kv, 1 << 13),
            ("d_ff", self.d_ff, 1 << 20),
            ("num_layers", self.num_layers, 1 << 10),
            ("num_decoder_layers", self.decoder_layers(), 1 << 10),
            ("num_heads", self.num_heads, 1 << 12),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets, 1 << 16),
            ("relative_attention_max_distance", self.relative_attention_max_distance, 1 << 24),
        ];
        for (field, size, cap) in sizes {
            if size == 0 || size > cap {
                return Err(format!("`{field}` is {size}, expected 1 to {cap}"));
            }
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || !buckets.is_multiple_of(2) || distance <= buckets / 2 {
            return Err(format!(
                "`relative_attention_num_buckets` is {buckets} with a maximal distance of {distance}, expected an even \
                 number of at least 4, half of which is below the distance"
            ));
        }
        if !(0.0..1.0).contains(&self.dropout_rate) {
            return Err(format!("`dropout_rate` is {}, expected a probability in [0, 1)", self.dropout_rate));
        }
        if !(self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon < 1.0) {
            return Err(format!(
                "`layer_norm_epsilon` is {}, expected a small positive number",
                self.layer_norm_epsilon
            ));
        }
        for (field, id) in [
            ("pad_token_id", self.pad_token_id),
            ("eos_token_id", self.eos_token_id),
            ("decoder_start_token_id", self.decoder_start_token_id),
        ] {
            if id as usize >= self.vocab_size {
                return Err(format!("`{field}` is {id}, but the vocabulary has {} entries", self.vocab_size));
            }
        }
        Ok(())
    }

    /// Blocks of the decoder.
    pub fn decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    /// The width of all heads together.
    pub fn inner_dim(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// Whether the decoder's output is multiplied by `d_model^-0.5` before the head: what `scale_decoder_outputs`
    /// says, or else, as before transformers 5, exactly for a tied head.
    pub fn scales_decoder_outputs(&self) -> bool {
        self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_take_the_defaults_of_transformers() {
        let config = T5Config::from_json(r#"{"model_type": "t5", "num_layers": 3, "unknown": [1]}"#).unwrap();
        assert_eq!(config, T5Config { num_layers: 3, ..T5Config::default() });
        assert_eq!(config.decoder_layers(), 3);
        assert!(config.scales_decoder_outputs(), "tied by default");
    }

    #[test]
    fn broken_configurations_are_refused_by_field() {
        let message = |text: &str| T5Config::from_json(text).unwrap_err();
        let bert = message(r#"{"model_type": "bert", "architectures": ["BertModel"]}"#);
        assert!(bert.starts_with("`model_type` is bert (architectures: BertModel), expected t5;"), "{bert}");
        assert!(message("{}").contains("(absent)"));
        assert!(message("[").contains("line 1"));
        let with = |field: &str| message(&format!(r#"{{"model_type": "t5", {field}}}"#));
        assert_eq!(with(r#""num_heads": 0"#), "`num_heads` is 0, expected 1 to 4096");
        assert!(with(r#""d_model": 99999999999"#).starts_with("`d_model` is 99999999999, expected"));
        assert!(with(r#""dropout_rate": 1.5"#).contains("`dropout_rate` is 1.5"));
        assert!(with(r#""feed_forward_proj": "gated-silu""#).contains("gated-silu"));
        assert!(with(r#""relative_attention_num_buckets": 7"#).contains("is 7 with"));
        assert!(with(r#""eos_token_id": 40000"#).contains("`eos_token_id` is 40000, but the vocabulary"));
        assert!(with(r#""vocab_size": -1"#).contains("-1"));
    }
}
