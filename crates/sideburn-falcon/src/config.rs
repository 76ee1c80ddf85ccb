//! `config.json` of Falcon.

use std::path::Path;

use serde_json::{Map, Value, json};
use sideburn_generate::GenerationConfig;
use sideburn_nn::{
    Activation, Alibi, Architecture, AttentionConfig, ConfigFields, NnError, Positions, Rotary, check_epsilon,
    check_probability, check_sizes, check_tokens, read_json, tokens_to_json,
};

use crate::FalconError;

/// `model_type` as `config.json` has it.
const MODEL_TYPE: &str = "falcon";

/// The architecture of a Falcon; the fields are named, and default, as in `transformers.FalconConfig`.
///
/// The defaults are those of Falcon-7B: all heads look through one head of keys (`multi_query`), attention and feed-forward
/// layer see the same norm and are added in one step (`parallel_attn`), positions are rotary.
#[derive(Clone, Debug, PartialEq)]
pub struct FalconConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the hidden states, which the heads share out.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of the queries.
    pub num_attention_heads: usize,
    /// Norms in a block of the new architecture: 2 (absent), one for attention and one for the feed-forward layer, as in
    /// Falcon-40B, or 1 for both, as in Falcon2-11B.
    pub num_ln_in_parallel_attn: Option<usize>,
    /// The epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// The standard deviation of the weights of a new model.
    pub initializer_range: f64,
    /// The probability that an element of what a block adds is dropped.
    pub hidden_dropout: f64,
    /// The probability that an element of what attention adds is dropped, where it is added by itself, and with `alibi` that
    /// a weight of the mixture is dropped. Where positions are rotary, `transformers` drops no weights.
    pub attention_dropout: f64,
    /// Heads of the keys and values in the new architecture; as many as of the queries if absent.
    pub num_kv_heads: Option<usize>,
    /// Whether positions are in a bias ([`Alibi`]), not rotary.
    pub alibi: bool,
    /// Whether blocks are those of Falcon-40B, where several heads look through each head of keys (`num_kv_heads`).
    pub new_decoder_architecture: bool,
    /// Whether all heads look through one head of keys; nothing in the new architecture.
    pub multi_query: bool,
    /// Whether attention and feed-forward layer are added in one step.
    pub parallel_attn: bool,
    /// Whether linear layers have a bias.
    pub bias: bool,
    /// How long rows were in pretraining. Longer ones are computed all the same.
    pub max_position_embeddings: usize,
    /// The base of the angles of rotary positions.
    pub rope_theta: f64,
    /// Width of the feed-forward layer; four times that of the hidden states if absent.
    pub ffn_hidden_size: Option<usize>,
    /// The function inside the feed-forward layer.
    pub activation: Activation,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// The id that begins a text, if there is one.
    pub bos_token_id: Option<u32>,
    /// The ids that end a text: none, one or several. `config.json` has `null`, a number or a list.
    pub eos_token_id: Vec<u32>,
    /// The id of padding, if there is one.
    pub pad_token_id: Option<u32>,
}

impl Default for FalconConfig {
    fn default() -> Self {
        Self {
            vocab_size: 65024,
            hidden_size: 4544,
            num_hidden_layers: 32,
            num_attention_heads: 71,
            num_ln_in_parallel_attn: None,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            hidden_dropout: 0.0,
            attention_dropout: 0.0,
            num_kv_heads: None,
            alibi: false,
            new_decoder_architecture: false,
            multi_query: true,
            parallel_attn: true,
            bias: false,
            max_position_embeddings: 2048,
            rope_theta: 10_000.0,
            ffn_hidden_size: None,
            activation: Activation::Gelu,
            tie_word_embeddings: true,
            bos_token_id: Some(11),
            eos_token_id: vec![11],
            pad_token_id: None,
        }
    }
}

impl FalconConfig {
    /// Reads a `config.json`, as transformers 4 or 5 writes it. Fields that say nothing of the architecture pass.
    ///
    /// # Errors
    /// If the file cannot be read, is of another architecture, a field is ill-typed or out of range, or the fields describe
    /// a model that `transformers` cannot run.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, FalconError> {
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
        check_family(&fields)?;
        let config = Self::read(&fields)?;
        config.validate()?;
        Ok(config)
    }

    fn read(fields: &ConfigFields<'_>) -> Result<Self, String> {
        let default = Self::default();
        // `null` is as good as false in Python.
        let flag = |name, default| {
            let flag: Option<Option<bool>> = fields.nullable(name, "true or false")?;
            Ok::<_, String>(flag.map_or(default, Option::unwrap_or_default))
        };
        let number = |name, default| Ok::<_, String>(fields.value(name, "a number")?.unwrap_or(default));
        let probability =
            |name| Ok::<_, String>(fields.nullable(name, "a number or null")?.flatten().unwrap_or_default());
        let size = |name| Ok::<_, String>(fields.nullable(name, "a whole number or null")?.flatten());
        if flag("apply_residual_connection_post_layernorm", false)? {
            let field = "`apply_residual_connection_post_layernorm` is true";
            return Err(format!(
                "{field}, which no implementation of Falcon has ever done; remove it, or set it to false"
            ));
        }
        let activation: Option<String> = fields.nullable("activation", "a string")?.flatten();
        let activation = match activation.as_deref() {
            None => default.activation,
            Some(name) => Activation::from_name(name).ok_or_else(|| {
                format!("`activation` is {}, expected one of {}", name.escape_debug(), Activation::names())
            })?,
        };
        Ok(Self {
            vocab_size: fields.number("vocab_size", default.vocab_size)?,
            hidden_size: fields.number_or("n_embed", "hidden_size", default.hidden_size)?,
            num_hidden_layers: fields.number("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: fields.number("num_attention_heads", default.num_attention_heads)?,
            num_ln_in_parallel_attn: size("num_ln_in_parallel_attn")?,
            layer_norm_epsilon: number("layer_norm_epsilon", default.layer_norm_epsilon)?,
            initializer_range: number("initializer_range", default.initializer_range)?,
            hidden_dropout: probability("hidden_dropout")?,
            attention_dropout: probability("attention_dropout")?,
            num_kv_heads: size("num_kv_heads")?,
            alibi: flag("alibi", default.alibi)?,
            new_decoder_architecture: flag("new_decoder_architecture", default.new_decoder_architecture)?,
            multi_query: flag("multi_query", default.multi_query)?,
            parallel_attn: flag("parallel_attn", default.parallel_attn)?,
            bias: flag("bias", default.bias)?,
            max_position_embeddings: fields.number("max_position_embeddings", default.max_position_embeddings)?,
            rope_theta: rope_theta(fields)?.unwrap_or(default.rope_theta),
            ffn_hidden_size: size("ffn_hidden_size")?,
            activation,
            tie_word_embeddings: flag("tie_word_embeddings", default.tie_word_embeddings)?,
            bos_token_id: fields.token("bos_token_id")?.unwrap_or(default.bos_token_id),
            eos_token_id: fields.tokens("eos_token_id")?.unwrap_or(default.eos_token_id),
            pad_token_id: fields.token("pad_token_id")?.unwrap_or(default.pad_token_id),
        })
    }

    /// The fields as `config.json` has them, for transformers 4 (`rope_theta`) and 5 (`rope_parameters`).
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let Value::Object(fields) = json!({
            "architectures": ["FalconForCausalLM"],
            "model_type": MODEL_TYPE,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_ln_in_parallel_attn": self.num_ln_in_parallel_attn,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
            "hidden_dropout": self.hidden_dropout,
            "attention_dropout": self.attention_dropout,
            "num_kv_heads": self.num_kv_heads.unwrap_or(self.num_attention_heads),
            "alibi": self.alibi,
            "new_decoder_architecture": self.new_decoder_architecture,
            "multi_query": self.multi_query,
            "parallel_attn": self.parallel_attn,
            "bias": self.bias,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rope_parameters": { "rope_type": "default", "rope_theta": self.rope_theta },
            "ffn_hidden_size": self.feed_forward_width(),
            "activation": self.activation.name(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": tokens_to_json(&self.eos_token_id),
            "pad_token_id": self.pad_token_id,
        }) else {
            unreachable!("an object")
        };
        fields
    }

    fn validate(&self) -> Result<(), String> {
        // The caps are far above any published model, and low enough that no product of two overflows memory sizes.
        check_sizes(&[
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 17),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_kv_heads", self.num_kv_heads.unwrap_or(1), 1 << 12),
            ("ffn_hidden_size", self.feed_forward_width(), 1 << 20),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
        ])?;
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if !width.is_multiple_of(heads) {
            return Err(format!("`num_attention_heads` is {heads}, expected a divisor of `hidden_size`, {width}"));
        }
        if !self.alibi && !(width / heads).is_multiple_of(2) {
            return Err(format!(
                "{heads} heads of {width} are {} wide, expected an even number: rotary positions turn pairs",
                width / heads
            ));
        }
        let named = self.num_kv_heads.unwrap_or(heads);
        if self.new_decoder_architecture && !heads.is_multiple_of(named) {
            return Err(format!("`num_kv_heads` is {named}, expected a divisor of `num_attention_heads`, {heads}"));
        }
        if !self.new_decoder_architecture && !self.multi_query && named != heads {
            return Err(format!(
                "`num_kv_heads` is {named} without `new_decoder_architecture`, expected `num_attention_heads`, {heads}, or \
                 `multi_query`"
            ));
        }
        if self.new_decoder_architecture && !self.parallel_attn {
            let message = "`parallel_attn` is false, expected true with `new_decoder_architecture`";
            return Err(format!("{message}, whose blocks `transformers` cannot run otherwise"));
        }
        match self.num_ln_in_parallel_attn {
            Some(norms) if self.new_decoder_architecture && !matches!(norms, 1 | 2) => {
                return Err(format!("`num_ln_in_parallel_attn` is {norms}, expected 1 or 2"));
            }
            Some(2) if !self.new_decoder_architecture && self.parallel_attn => {
                let message = "`num_ln_in_parallel_attn` is 2, expected 1 or null without `new_decoder_architecture`";
                return Err(format!("{message}, whose blocks `transformers` cannot run otherwise"));
            }
            _ => {}
        }
        check_probability("hidden_dropout", self.hidden_dropout)?;
        check_probability("attention_dropout", self.attention_dropout)?;
        check_epsilon("layer_norm_epsilon", self.layer_norm_epsilon)?;
        for (field, number) in [("rope_theta", self.rope_theta), ("initializer_range", self.initializer_range)] {
            if !(number > 0.0 && number.is_finite()) {
                return Err(format!("`{field}` is {number}, expected a positive number"));
            }
        }
        let ids = [
            ("bos_token_id", self.bos_token_id.as_slice()),
            ("eos_token_id", &self.eos_token_id),
            ("pad_token_id", self.pad_token_id.as_slice()),
        ];
        check_tokens(ids, self.vocab_size)
    }

    /// The tokens that generation needs, as the configuration has them.
    pub(crate) fn generation(&self) -> GenerationConfig {
        GenerationConfig {
            bos_token_id: self.bos_token_id,
            eos_token_id: self.eos_token_id.clone(),
            pad_token_id: self.pad_token_id,
            ..GenerationConfig::default()
        }
    }

    /// The width of a head.
    pub fn head_width(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Heads that have keys and values of their own.
    pub fn kv_heads(&self) -> usize {
        match self.multi_query && !self.new_decoder_architecture {
            true => 1,
            false => self.num_kv_heads.unwrap_or(self.num_attention_heads),
        }
    }

    /// The width of the feed-forward layer.
    pub fn feed_forward_width(&self) -> usize {
        self.ffn_hidden_size.unwrap_or(4 * self.hidden_size)
    }

    /// Whether attention and the feed-forward layer have a norm each.
    pub(crate) fn has_two_norms(&self) -> bool {
        match self.new_decoder_architecture {
            true => self.num_ln_in_parallel_attn != Some(1),
            false => !self.parallel_attn,
        }
    }

    /// What scores are multiplied by.
    fn scale(&self) -> f64 {
        (self.head_width() as f64).powf(-0.5)
    }

    pub(crate) fn attention(&self) -> AttentionConfig {
        AttentionConfig {
            width: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_width: self.head_width(),
            scale: self.scale(),
            dropout: if self.alibi { self.attention_dropout } else { 0.0 },
        }
    }

    pub(crate) fn positions(&self) -> Positions {
        match self.alibi {
            true => Positions::Alibi(Alibi { heads: self.num_attention_heads, scale: self.scale() }),
            false => Positions::Rotary(Rotary { theta: self.rope_theta, head_width: self.head_width() }),
        }
    }
}

/// The base of rotary angles: of `rope_parameters` (transformers 5) or of its name there was before, `rope_scaling`, or else
/// `rope_theta`. Angles that are scaled are refused.
fn rope_theta(fields: &ConfigFields<'_>) -> Result<Option<f64>, String> {
    let plain = fields.nullable("rope_theta", "a number")?.flatten();
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(own) = fields.nullable::<Map<String, Value>>(name, "an object or null")?.flatten() else { continue };
        let own = ConfigFields::new(&own);
        let within = |message: String| format!("`{name}`: {message}");
        for (field, usual) in [("rope_type", "default"), ("type", "default")] {
            let kind: Option<Option<String>> = own.nullable(field, "a string").map_err(within)?;
            if let Some(kind) = kind.flatten().filter(|kind| kind != usual) {
                let kind = kind.escape_debug();
                return Err(within(format!("`{field}` is {kind}, expected {usual}: angles are not scaled here")));
            }
        }
        let part: Option<f64> = own.nullable("partial_rotary_factor", "a number").map_err(within)?.flatten();
        if let Some(part) = part.filter(|part| *part != 1.0) {
            return Err(within(format!("`partial_rotary_factor` is {part}, expected 1: Falcon turns whole heads")));
        }
        if let Some(theta) = own.nullable("rope_theta", "a number").map_err(within)?.flatten() {
            return Ok(Some(theta));
        }
    }
    Ok(plain)
}

/// Refuses other architectures; the error says in its first line what it is.
fn check_family(fields: &ConfigFields<'_>) -> Result<(), String> {
    let architecture = Architecture::read(fields)?;
    let refused = |what: &str| Err(architecture.refused(what));
    if let Some(head) = architecture.other_head() {
        return refused(&format!("{head}; this crate has Falcon with an output head"));
    }
    match architecture.model_type.as_deref() {
        Some(MODEL_TYPE) => Ok(()),
        Some("RefinedWeb" | "RefinedWebModel") => refused(
            "which is Falcon as its authors first published it, with fields of other names; the same model is on the hub \
             with `model_type` falcon",
        ),
        Some("falcon_h1") => refused("which is Falcon-H1, a hybrid with state spaces, expected falcon"),
        Some("falcon_mamba") => refused("which is Falcon Mamba, which has no attention, expected falcon"),
        _ => refused("expected falcon"),
    }
}
