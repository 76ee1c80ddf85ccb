//! `config.json` of the T5 family.

use std::path::Path;

use serde_json::{Map, Value, json};

use sideburn_generate::GenerationConfig;
use sideburn_nn::{
    Architecture, ConfigFields, NnError, check_epsilon, check_probability, check_sizes, check_tokens, read_json,
    tokens_to_json,
};

use crate::T5Error;
use crate::feed_forward::FeedForward;

/// Which of the architectures that share T5's layers: `model_type` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `t5`: T5, T5 1.1, FLAN-T5, UL2, FLAN-UL2, MADLAD-400, ByT5.
    T5,
    /// `mt5`: mT5 and mT0. Like T5 1.1; outputs are never scaled before the head.
    Mt5,
    /// `umt5`: uMT5. Every block has a table of relative positions of its own.
    Umt5,
}

impl Family {
    const ALL: [Self; 3] = [Self::T5, Self::Mt5, Self::Umt5];

    /// `model_type` as `config.json` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::T5 => "t5",
            Self::Mt5 => "mt5",
            Self::Umt5 => "umt5",
        }
    }

    /// What `transformers` calls the model with an output head.
    pub(crate) fn architecture(self) -> &'static str {
        match self {
            Self::T5 => "T5ForConditionalGeneration",
            Self::Mt5 => "MT5ForConditionalGeneration",
            Self::Umt5 => "UMT5ForConditionalGeneration",
        }
    }
}

/// The architecture of a model of the T5 family; the fields are named, and default, as in `transformers.T5Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// Which architecture it is.
    pub model_type: Family,
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
    /// The kind of feed-forward layer: `feed_forward_proj`, with `dense_act_fn` and `is_gated_act`, which override it.
    pub feed_forward_proj: FeedForward,
    /// Whether the output head is the embedding, in the classic reading; see [`T5Config::scales_decoder_outputs`].
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is multiplied by `d_model^-0.5` before the head. Written by transformers 5, which
    /// no longer derives it from `tie_word_embeddings`.
    pub scale_decoder_outputs: Option<bool>,
    /// The id of padding, if there is one.
    pub pad_token_id: Option<u32>,
    /// The ids that end a sequence: none, one or several. `config.json` has `null`, a number or a list.
    pub eos_token_id: Vec<u32>,
    /// The id that the decoder starts from, if it is known.
    pub decoder_start_token_id: Option<u32>,
    /// What the initial weights of a new model are scaled by.
    pub initializer_factor: f64,
}

impl Default for T5Config {
    fn default() -> Self {
        Self::of(Family::T5)
    }
}

impl T5Config {
    /// The defaults of a family: those of `T5Config`, `MT5Config` and `UMT5Config` of `transformers`.
    pub fn of(family: Family) -> Self {
        let t5 = Self {
            model_type: family,
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
            feed_forward_proj: FeedForward::RELU,
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            pad_token_id: Some(0),
            eos_token_id: vec![1],
            decoder_start_token_id: Some(0),
            initializer_factor: 1.0,
        };
        match family {
            Family::T5 => t5,
            Family::Mt5 | Family::Umt5 => Self {
                vocab_size: 250112,
                d_ff: 1024,
                num_layers: 8,
                num_heads: 6,
                feed_forward_proj: FeedForward::GATED_GELU,
                ..t5
            },
        }
    }

    /// Reads a `config.json`, as transformers 4 or 5 writes it. ConfigFields that say nothing of the architecture pass.
    ///
    /// # Errors
    /// If the file cannot be read, is of another architecture, or a field is ill-typed or out of range.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, T5Error> {
        let path = path.as_ref();
        Ok(Self::of_file(path, &read_json(path)?)?)
    }

    /// Reads what was parsed of the file `path`.
    pub(crate) fn of_file(path: &Path, value: &Value) -> Result<Self, NnError> {
        Self::from_value(value).map_err(|message| NnError::Config { path: path.to_owned(), message })
    }

    /// Reads a parsed `config.json`; the error is a message without the file's name.
    fn from_value(value: &Value) -> Result<Self, String> {
        let fields = ConfigFields::new(value.as_object().ok_or("expected a JSON object")?);
        let config = Self::read(&fields, family(&fields)?)?;
        config.validate()?;
        Ok(config)
    }

    fn read(fields: &ConfigFields<'_>, family: Family) -> Result<Self, String> {
        let default = Self::of(family);
        let proj = fields.value("feed_forward_proj", "a string")?.unwrap_or(default.feed_forward_proj.to_string());
        let act_fn: Option<String> = fields.value("dense_act_fn", "a string")?;
        // `null` is as good as false in Python.
        let flag = |name| fields.nullable(name, "true or false").map(|flag| flag.map(Option::unwrap_or_default));
        Ok(Self {
            model_type: family,
            vocab_size: fields.number("vocab_size", default.vocab_size)?,
            // What follows `or` are the names that every configuration of `transformers` has; they override T5's own.
            d_model: fields.number_or("hidden_size", "d_model", default.d_model)?,
            d_kv: fields.number_or("head_dim", "d_kv", default.d_kv)?,
            d_ff: fields.number("d_ff", default.d_ff)?,
            num_layers: fields.number_or("num_hidden_layers", "num_layers", default.num_layers)?,
            num_decoder_layers: fields.nullable("num_decoder_layers", "a whole number or null")?.flatten(),
            num_heads: fields.number_or("num_attention_heads", "num_heads", default.num_heads)?,
            relative_attention_num_buckets: fields
                .number("relative_attention_num_buckets", default.relative_attention_num_buckets)?,
            relative_attention_max_distance: fields
                .number("relative_attention_max_distance", default.relative_attention_max_distance)?,
            dropout_rate: fields.value("dropout_rate", "a number")?.unwrap_or(default.dropout_rate),
            layer_norm_epsilon: fields.value("layer_norm_epsilon", "a number")?.unwrap_or(default.layer_norm_epsilon),
            feed_forward_proj: FeedForward::read(&proj, act_fn.as_deref(), flag("is_gated_act")?)?,
            tie_word_embeddings: fields
                .nullable("tie_word_embeddings", "true or false")?
                .flatten()
                .unwrap_or(default.tie_word_embeddings),
            scale_decoder_outputs: flag("scale_decoder_outputs")?,
            pad_token_id: fields.token("pad_token_id")?.unwrap_or(default.pad_token_id),
            eos_token_id: fields.tokens("eos_token_id")?.unwrap_or(default.eos_token_id),
            decoder_start_token_id: fields.token("decoder_start_token_id")?.unwrap_or(default.decoder_start_token_id),
            initializer_factor: fields.value("initializer_factor", "a number")?.unwrap_or(default.initializer_factor),
        })
    }

    /// The fields as `config.json` has them, with those that `transformers` derives.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let Value::Object(mut fields) = json!({
            "architectures": [self.model_type.architecture()],
            "is_encoder_decoder": true,
            "model_type": self.model_type.name(),
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "d_ff": self.d_ff,
            "num_layers": self.num_layers,
            "num_decoder_layers": self.decoder_layers(),
            "num_heads": self.num_heads,
            "relative_attention_num_buckets": self.relative_attention_num_buckets,
            "relative_attention_max_distance": self.relative_attention_max_distance,
            "dropout_rate": self.dropout_rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "feed_forward_proj": self.feed_forward_proj.to_string(),
            "dense_act_fn": self.feed_forward_proj.activation.name(),
            "is_gated_act": self.feed_forward_proj.gated,
            "tie_word_embeddings": self.tie_word_embeddings,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": tokens_to_json(&self.eos_token_id),
            "decoder_start_token_id": self.decoder_start_token_id,
            "initializer_factor": self.initializer_factor,
        }) else {
            unreachable!("an object")
        };
        if let Some(scales) = self.scale_decoder_outputs {
            fields.insert("scale_decoder_outputs".to_owned(), json!(scales));
        }
        fields
    }

    fn validate(&self) -> Result<(), String> {
        // The caps are far above any published model, and low enough that no product of two overflows memory sizes.
        check_sizes(&[
            ("vocab_size", self.vocab_size, 1 << 24),
            ("d_model", self.d_model, 1 << 17),
            ("d_kv", self.d_kv, 1 << 13),
            ("d_ff", self.d_ff, 1 << 20),
            ("num_layers", self.num_layers, 1 << 10),
            ("num_decoder_layers", self.decoder_layers(), 1 << 10),
            ("num_heads", self.num_heads, 1 << 12),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets, 1 << 16),
            ("relative_attention_max_distance", self.relative_attention_max_distance, 1 << 24),
        ])?;
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || !buckets.is_multiple_of(2) || distance <= buckets / 2 {
            return Err(format!(
                "`relative_attention_num_buckets` is {buckets} with a maximal distance of {distance}, expected an even \
                 number of at least 4, half of which is below the distance"
            ));
        }
        check_probability("dropout_rate", self.dropout_rate)?;
        check_epsilon("layer_norm_epsilon", self.layer_norm_epsilon)?;
        let ids = [
            ("pad_token_id", self.pad_token_id.as_slice()),
            ("eos_token_id", &self.eos_token_id),
            ("decoder_start_token_id", self.decoder_start_token_id.as_slice()),
        ];
        check_tokens(ids, self.vocab_size)
    }

    /// The tokens that generation needs, as the configuration has them.
    pub(crate) fn generation(&self) -> GenerationConfig {
        GenerationConfig {
            decoder_start_token_id: self.decoder_start_token_id,
            eos_token_id: self.eos_token_id.clone(),
            pad_token_id: self.pad_token_id,
            ..GenerationConfig::default()
        }
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
    /// says, or else, as before transformers 5, exactly for a tied head. Never for mT5.
    pub fn scales_decoder_outputs(&self) -> bool {
        self.model_type != Family::Mt5 && self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings)
    }
}

/// The family of a configuration; of another architecture the error says in its first line what it is.
fn family(fields: &ConfigFields<'_>) -> Result<Family, String> {
    let architecture = Architecture::read(fields)?;
    let refused = |what: &str| {
        Err(architecture.refused(&format!("{what}; this crate has T5 with an encoder, a decoder and an output head")))
    };
    if architecture.is("ChronosBolt") {
        return refused("which is Chronos-Bolt, a forecaster of numbers without an embedding of tokens");
    }
    if architecture.is("EncoderModel") || architecture.is("EncoderForTokenClassification") {
        return refused("which is the encoder of a T5 alone");
    }
    if let Some(head) = architecture.other_head() {
        return refused(&head);
    }
    let model_type = &architecture.model_type;
    if let Some(family) = Family::ALL.into_iter().find(|family| model_type.as_deref() == Some(family.name())) {
        return Ok(family);
    }
    match model_type.as_deref() {
        Some("longt5") => refused("which is LongT5, whose encoder attends in windows, expected t5, mt5 or umt5"),
        Some("switch_transformers") => refused("a T5 with routed experts, expected t5, mt5 or umt5"),
        Some("t5gemma" | "t5gemma2") => refused("which is Gemma with an encoder, expected t5, mt5 or umt5"),
        _ => refused("expected t5, mt5 or umt5"),
    }
}

#[cfg(test)]
mod tests {
    use sideburn_nn::Activation;

    use super::*;

    fn from_json(text: &str) -> Result<T5Config, String> {
        T5Config::from_value(&serde_json::from_str(text).unwrap())
    }

    fn with(field: &str) -> Result<T5Config, String> {
        from_json(&format!(r#"{{"model_type": "t5", {field}}}"#))
    }

    #[test]
    fn absent_fields_take_the_defaults_of_transformers() {
        let config = from_json(r#"{"model_type": "t5", "num_layers": 3, "unknown": [1]}"#).unwrap();
        assert_eq!(config, T5Config { num_layers: 3, ..T5Config::default() });
        assert_eq!(config.decoder_layers(), 3);
        assert!(config.scales_decoder_outputs(), "tied by default");
        let config = from_json(r#"{"model_type": "mt5"}"#).unwrap();
        assert_eq!((config.vocab_size, config.num_heads), (250112, 6));
        assert_eq!(config.feed_forward_proj, FeedForward::GATED_GELU);
    }

    #[test]
    fn null_is_read_as_in_python() {
        let config = with(
            r#""num_decoder_layers": null, "tie_word_embeddings": null, "scale_decoder_outputs": null,
               "is_gated_act": null, "pad_token_id": null, "eos_token_id": null, "decoder_start_token_id": null"#,
        )
        .unwrap();
        let expected = T5Config {
            scale_decoder_outputs: Some(false),
            pad_token_id: None,
            eos_token_id: vec![],
            decoder_start_token_id: None,
            ..T5Config::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn an_end_token_is_a_number_or_a_list() {
        assert_eq!(with(r#""eos_token_id": 7"#).unwrap().eos_token_id, [7]);
        assert_eq!(with(r#""eos_token_id": [1, 2]"#).unwrap().eos_token_id, [1, 2]);
        assert_eq!(with(r#""eos_token_id": []"#).unwrap().eos_token_id, [0u32; 0]);
    }

    #[test]
    fn general_names_override_those_of_t5() {
        let config = with(r#""hidden_size": 64, "d_model": 32, "num_hidden_layers": 3, "head_dim": 8"#).unwrap();
        assert_eq!((config.d_model, config.num_layers, config.d_kv), (64, 3, 8));
    }

    #[test]
    fn only_mt5_never_scales() {
        let scales = |model_type: &str, fields: &str| {
            let text = format!(r#"{{"model_type": "{model_type}", {fields}}}"#);
            from_json(&text).unwrap().scales_decoder_outputs()
        };
        for (fields, expected) in [
            (r#""tie_word_embeddings": true"#, true),
            (r#""tie_word_embeddings": false"#, false),
            (r#""tie_word_embeddings": true, "scale_decoder_outputs": false"#, false),
        ] {
            assert_eq!([scales("t5", fields), scales("umt5", fields)], [expected; 2], "{fields}");
            assert!(!scales("mt5", fields), "{fields}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for feed_forward_proj in [
            FeedForward::RELU,
            FeedForward::GATED_GELU,
            FeedForward { activation: Activation::Gelu, gated: true },
            FeedForward { activation: Activation::GeluNew, gated: false },
            FeedForward { activation: Activation::Silu, gated: true },
        ] {
            let config = T5Config {
                feed_forward_proj,
                num_decoder_layers: Some(2),
                scale_decoder_outputs: Some(true),
                pad_token_id: None,
                eos_token_id: vec![1, 2],
                ..T5Config::of(Family::Umt5)
            };
            let text = Value::Object(config.to_json()).to_string();
            assert_eq!(from_json(&text), Ok(config), "{text}");
        }
    }

    #[test]
    fn other_architectures_are_named_in_the_first_line() {
        let message = |text: &str| from_json(text).unwrap_err();
        let bert = message(r#"{"model_type": "bert", "architectures": ["BertModel"]}"#);
        assert!(
            bert.starts_with("`model_type` is bert (architectures: BertModel), expected t5, mt5 or umt5;"),
            "{bert}"
        );
        assert!(message("{}").contains("(absent)"));
        for (model_type, architecture, what) in [
            ("longt5", "LongT5ForConditionalGeneration", "which is LongT5, whose encoder attends in windows"),
            ("t5", "T5EncoderModel", "which is the encoder of a T5 alone"),
            ("umt5", "UMT5EncoderModel", "which is the encoder of a T5 alone"),
            ("t5", "ChronosBoltModelForForecasting", "which is Chronos-Bolt, a forecaster of numbers"),
            ("mt5", "MT5ForTokenClassification", "whose head classifies tokens"),
            ("t5", "T5ForSequenceClassification", "whose head classifies rows"),
            ("t5", "T5ForQuestionAnswering", "whose head marks spans"),
            ("switch_transformers", "SwitchTransformersForConditionalGeneration", "a T5 with routed experts"),
            ("t5gemma", "T5GemmaForConditionalGeneration", "which is Gemma with an encoder"),
        ] {
            let error = message(&format!(r#"{{"model_type": "{model_type}", "architectures": ["{architecture}"]}}"#));
            let first = error.lines().next().unwrap();
            assert!(first.contains(what) && first.contains(architecture), "{what:?} is not in: {error}");
        }
        // The forecaster that writes its numbers as tokens is a T5 like any other.
        let chronos = r#"{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "chronos_config": {}}"#;
        assert!(from_json(chronos).is_ok());
    }

    #[test]
    fn broken_configurations_are_refused_by_field() {
        assert_eq!(from_json("[]").unwrap_err(), "expected a JSON object");
        let with = |field: &str| with(field).unwrap_err();
        assert_eq!(with(r#""num_heads": 0"#), "`num_heads` is 0, expected 1 to 4096");
        assert!(with(r#""d_model": 99999999999"#).starts_with("`d_model` is 99999999999, expected"));
        assert!(with(r#""dropout_rate": 1.5"#).contains("`dropout_rate` is 1.5"));
        assert!(with(r#""feed_forward_proj": "gated-mish""#).contains("gated-mish"));
        assert!(with(r#""relative_attention_num_buckets": 7"#).contains("is 7 with"));
        assert!(with(r#""eos_token_id": 40000"#).contains("`eos_token_id` is 40000, but the vocabulary"));
        assert!(with(r#""eos_token_id": [1, 40000]"#).contains("`eos_token_id` is 40000, but the vocabulary"));
        assert_eq!(with(r#""vocab_size": -1"#), "`vocab_size` is -1, expected a whole number");
        assert_eq!(with(r#""d_model": null"#), "`d_model` is null, expected a whole number");
        assert_eq!(with(r#""d_ff": "64""#), "`d_ff` is \"64\", expected a whole number");
        assert_eq!(with(r#""pad_token_id": [0]"#), "`pad_token_id` is [0], expected a token id or null");
        assert_eq!(with(r#""dense_act_fn": null"#), "`dense_act_fn` is null, expected a string");
        assert_eq!(with(r#""is_gated_act": 1"#), "`is_gated_act` is 1, expected true or false");
        let ids = "expected a token id, a list of token ids or null";
        assert_eq!(with(r#""eos_token_id": "1""#), format!("`eos_token_id` is \"1\", {ids}"));
        assert_eq!(with(r#""eos_token_id": [true]"#), format!("`eos_token_id` is [true], {ids}"));
    }
}
