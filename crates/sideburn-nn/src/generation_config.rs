//! How a model writes, as its files say it.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sideburn_generate::{EarlyStopping, GenerationConfig};

use crate::fields::{ConfigFields, shown, tokens_to_json};

/// Reads the fields of a `generation_config.json`: what it leaves out is as `own` has it. Every field is honoured, or refused
/// by name. The error is a message that names the field.
///
/// ```
/// use sideburn_generate::GenerationConfig;
/// use sideburn_nn::read_generation_config;
///
/// let own = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::default() };
/// let fields = serde_json::json!({"num_beams": 4, "early_stopping": "never", "transformers_version": "4.57.6"});
/// let read = read_generation_config(fields.as_object().unwrap(), &own)?;
/// assert_eq!((read.num_beams, read.eos_token_id), (4, vec![1]));
/// let error = read_generation_config(serde_json::json!({"guidance_scale": 2.0}).as_object().unwrap(), &own).unwrap_err();
/// assert_eq!(error, "`guidance_scale` is 2.0, which generation does not follow here; remove it");
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
/// If a field is not known, ill-typed, or asks for what is not here.
pub fn read_generation_config(fields: &Map<String, Value>, own: &GenerationConfig) -> Result<GenerationConfig, String> {
    let mut config = own.clone();
    for (name, value) in fields {
        if !read_field(&mut config, name, &Field(fields, name))? && !has_no_effect(name, value) {
            let known = refused().iter().any(|(field, _)| field == name);
            let what = if known { "generation does not follow here" } else { "no field of generation is called" };
            return Err(format!("`{name}` is {}, which {what}; remove it", shown(value)));
        }
    }
    let ids = ConfigFields::new(fields);
    let end = ids.tokens("eos_token_id")?.unwrap_or_default();
    config.eos_token_id = if end.is_empty() { own.eos_token_id.clone() } else { end };
    config.forced_eos_token_id = ids.tokens("forced_eos_token_id")?.unwrap_or_else(|| own.forced_eos_token_id.clone());
    config.decoder_start_token_id = config.decoder_start_token_id.or(config.bos_token_id);
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

/// The fields of a `generation_config.json` that says the same, as [`read_generation_config`] reads them. What is as it would be
/// without the file is left out, and so are the seed and what is asked for one call alone.
pub fn generation_config_fields(config: &GenerationConfig) -> Map<String, Value> {
    let fields = |config: &GenerationConfig| {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(config) else {
            unreachable!("a struct of plain fields")
        };
        // A number where one is enough.
        for (name, ids) in
            [("eos_token_id", &config.eos_token_id), ("forced_eos_token_id", &config.forced_eos_token_id)]
        {
            fields.insert(name.to_owned(), tokens_to_json(ids));
        }
        fields
    };
    let (mut told, usual) = (fields(config), fields(&GenerationConfig::default()));
    told.retain(|name, value| usual.get(name) != Some(value));
    told
}

/// The fields of a `config.json` that are about generation, as releases before 4.25 wrote them there.
pub(crate) fn of_model_config(fields: &Map<String, Value>) -> Map<String, Value> {
    let field = |name: &str| read_field(&mut GenerationConfig::default(), name, &Field(&Map::new(), name)) == Ok(true);
    // A `sep_token_id` and the like are none; ids are read by the family, which knows its defaults.
    let of_generation = fields.iter().filter(|(name, _)| !name.ends_with("_token_id") || name.starts_with("forced_"));
    of_generation.filter(|(name, _)| field(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// One field of an object.
struct Field<'a>(&'a Map<String, Value>, &'a str);

impl Field<'_> {
    /// Writes the value to `to`, or `absent` if it is null. Nothing where there is no such field.
    fn set<T: DeserializeOwned>(&self, to: &mut T, absent: T, expected: &str) -> Result<bool, String> {
        if let Some(value) = ConfigFields::new(self.0).nullable::<T>(self.1, expected)? {
            *to = value.unwrap_or(absent);
        }
        Ok(true)
    }

    fn optional<T: DeserializeOwned>(&self, to: &mut Option<T>, expected: &str) -> Result<bool, String> {
        if let Some(value) = ConfigFields::new(self.0).nullable::<T>(self.1, expected)? {
            *to = value;
        }
        Ok(true)
    }
}

const COUNT: &str = "a whole number or null";
const NUMBER: &str = "a number or null";
const FLAG: &str = "true, false or null";
const TOKEN: &str = "a token id or null";
const TOKENS: &str = "a list of token ids or null";

/// Reads one field; whether there is such a field.
fn read_field(config: &mut GenerationConfig, name: &str, field: &Field<'_>) -> Result<bool, String> {
    let c = config;
    match name {
        "max_length" => {
            field.optional(&mut c.max_length, COUNT)?;
            // transformers takes 20, its default, for no limit of the model's own: so many may be written.
            c.max_length = c.max_length.filter(|length| *length != 20);
            Ok(true)
        }
        "max_new_tokens" => field.optional(&mut c.max_new_tokens, COUNT),
        "min_length" => field.set(&mut c.min_length, 0, COUNT),
        "min_new_tokens" => field.optional(&mut c.min_new_tokens, COUNT),
        "early_stopping" => early_stopping(&mut c.early_stopping, field),
        "max_time" => field.optional(&mut c.max_time, NUMBER),
        "stop_strings" => stop_strings(&mut c.stop_strings, field),
        "do_sample" => field.set(&mut c.do_sample, false, FLAG),
        "num_beams" => field.set(&mut c.num_beams, 1, COUNT),
        "num_beam_groups" => field.set(&mut c.num_beam_groups, 1, COUNT),
        "penalty_alpha" => field.optional(&mut c.penalty_alpha, NUMBER),
        "temperature" => field.set(&mut c.temperature, 1.0, NUMBER),
        "top_k" => field.set(&mut c.top_k, 0, COUNT),
        "top_p" => field.set(&mut c.top_p, 1.0, NUMBER),
        "min_p" => field.optional(&mut c.min_p, NUMBER),
        "typical_p" => field.set(&mut c.typical_p, 1.0, NUMBER),
        "epsilon_cutoff" => field.set(&mut c.epsilon_cutoff, 0.0, NUMBER),
        "eta_cutoff" => field.set(&mut c.eta_cutoff, 0.0, NUMBER),
        "diversity_penalty" => field.set(&mut c.diversity_penalty, 0.0, NUMBER),
        "repetition_penalty" => field.set(&mut c.repetition_penalty, 1.0, NUMBER),
        "encoder_repetition_penalty" => field.set(&mut c.encoder_repetition_penalty, 1.0, NUMBER),
        "length_penalty" => field.set(&mut c.length_penalty, 1.0, NUMBER),
        "no_repeat_ngram_size" => field.set(&mut c.no_repeat_ngram_size, 0, COUNT),
        "encoder_no_repeat_ngram_size" => field.set(&mut c.encoder_no_repeat_ngram_size, 0, COUNT),
        "bad_words_ids" => field.set(&mut c.bad_words_ids, Vec::new(), "a list of lists of token ids or null"),
        "renormalize_logits" => field.set(&mut c.renormalize_logits, false, FLAG),
        "forced_bos_token_id" => field.optional(&mut c.forced_bos_token_id, TOKEN),
        "remove_invalid_values" => field.set(&mut c.remove_invalid_values, false, FLAG),
        "exponential_decay_length_penalty" => {
            field.optional(&mut c.exponential_decay_length_penalty, "a list of a number of tokens and a factor or null")
        }
        "suppress_tokens" => field.set(&mut c.suppress_tokens, Vec::new(), TOKENS),
        "begin_suppress_tokens" => field.set(&mut c.begin_suppress_tokens, Vec::new(), TOKENS),
        "sequence_bias" => {
            field.set(&mut c.sequence_bias, Vec::new(), "a list of pairs of token ids and a number, or null")
        }
        "num_return_sequences" => field.set(&mut c.num_return_sequences, 1, COUNT),
        "output_scores" => field.set(&mut c.output_scores, false, FLAG),
        "pad_token_id" => keep_own(&mut c.pad_token_id, field),
        "bos_token_id" => keep_own(&mut c.bos_token_id, field),
        "decoder_start_token_id" => keep_own(&mut c.decoder_start_token_id, field),
        // Numbers or lists, which are read where all fields are.
        "eos_token_id" | "forced_eos_token_id" => Ok(true),
        "num_assistant_tokens" => field.set(&mut c.num_assistant_tokens, 20, COUNT),
        _ => Ok(false),
    }
}

/// An id that null does not take away.
fn keep_own(to: &mut Option<u32>, field: &Field<'_>) -> Result<bool, String> {
    let own = to.take();
    field.optional(to, TOKEN)?;
    *to = to.or(own);
    Ok(true)
}

fn early_stopping(to: &mut EarlyStopping, Field(fields, name): &Field<'_>) -> Result<bool, String> {
    *to = match fields.get(*name) {
        None => *to,
        Some(Value::Null | Value::Bool(false)) => EarlyStopping::Heuristic,
        Some(Value::Bool(true)) => EarlyStopping::FirstFound,
        Some(Value::String(word)) if word == "never" => EarlyStopping::Never,
        Some(other) => return Err(format!("`{name}` is {}, expected true, false or \"never\"", shown(other))),
    };
    Ok(true)
}

/// One string, or several.
fn stop_strings(to: &mut Vec<String>, field: &Field<'_>) -> Result<bool, String> {
    match field.0.get(field.1) {
        Some(Value::String(one)) => {
            *to = vec![one.clone()];
            Ok(true)
        }
        _ => field.set(to, Vec::new(), "a string, a list of strings or null"),
    }
}

/// Whether a field changes nothing of what is written: it tells about the file, about what is returned or kept in memory, or
/// it has the value that it has where it is not written down.
fn has_no_effect(name: &str, value: &Value) -> bool {
    const ABOUT_OTHER_THINGS: [&str; 17] = [
        "_from_model_config",
        "_commit_hash",
        "transformers_version",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "return_legacy_cache",
        "prefill_chunk_size",
        "low_memory",
        "compile_config",
        "disable_compile",
        "return_dict_in_generate",
        "is_assistant",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
    ];
    let unset = |(field, usual): &(&str, Value)| *field == name && (value.is_null() || value == usual);
    ABOUT_OTHER_THINGS.contains(&name) || refused().iter().any(unset)
}

/// Fields of `transformers` that are not followed, and what they have where nobody asks for them.
fn refused() -> Vec<(&'static str, Value)> {
    vec![
        ("dola_layers", Value::Null),
        ("force_words_ids", Value::Null),
        ("constraints", Value::Null),
        ("forced_decoder_ids", Value::Null),
        ("token_healing", json!(false)),
        ("guidance_scale", json!(1.0)),
        ("watermarking_config", Value::Null),
        ("output_attentions", json!(false)),
        ("output_hidden_states", json!(false)),
        ("output_logits", json!(false)),
        ("prompt_lookup_num_tokens", Value::Null),
        ("max_matching_ngram_size", Value::Null),
        ("assistant_early_exit", Value::Null),
        ("generation_kwargs", json!({})),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value, own: &GenerationConfig) -> Result<GenerationConfig, String> {
        read_generation_config(value.as_object().unwrap(), own)
    }

    fn tokens(start: Option<u32>, end: &[u32], pad: Option<u32>) -> GenerationConfig {
        let eos_token_id = end.to_vec();
        GenerationConfig {
            decoder_start_token_id: start,
            eos_token_id,
            pad_token_id: pad,
            ..GenerationConfig::default()
        }
    }

    #[test]
    fn what_the_file_says_goes_before_the_configuration() {
        let ids = |value, own: &GenerationConfig| {
            let read = read(value, own).unwrap();
            tokens(read.decoder_start_token_id, &read.eos_token_id, read.pad_token_id)
        };
        let (own, none) = (tokens(Some(0), &[1, 2], Some(0)), GenerationConfig::default());
        assert_eq!(ids(json!({}), &own), own);
        assert_eq!(ids(json!({"eos_token_id": 5}), &own), tokens(Some(0), &[5], Some(0)));
        assert_eq!(ids(json!({"eos_token_id": [5, 6], "pad_token_id": 3}), &none), tokens(None, &[5, 6], Some(3)));
        assert_eq!(ids(json!({"bos_token_id": 4}), &none), tokens(Some(4), &[], None));
        assert_eq!(ids(json!({"decoder_start_token_id": 2, "bos_token_id": 4}), &none), tokens(Some(2), &[], None));
        assert_eq!(ids(json!({"eos_token_id": null, "pad_token_id": null}), &own), own);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = GenerationConfig {
            max_length: Some(70),
            max_new_tokens: Some(30),
            min_length: 3,
            min_new_tokens: Some(2),
            early_stopping: EarlyStopping::Never,
            max_time: Some(1.5),
            stop_strings: vec!["\n".to_owned()],
            do_sample: true,
            num_beams: 4,
            temperature: 0.5,
            top_k: 7,
            top_p: 0.9,
            min_p: Some(0.1),
            typical_p: 0.8,
            epsilon_cutoff: 0.01,
            eta_cutoff: 0.02,
            repetition_penalty: 1.2,
            encoder_repetition_penalty: 1.3,
            length_penalty: 2.0,
            no_repeat_ngram_size: 3,
            encoder_no_repeat_ngram_size: 4,
            bad_words_ids: vec![vec![5, 6]],
            renormalize_logits: true,
            forced_bos_token_id: Some(8),
            forced_eos_token_id: vec![1],
            remove_invalid_values: true,
            exponential_decay_length_penalty: Some((5, 1.1)),
            suppress_tokens: vec![9],
            begin_suppress_tokens: vec![10],
            sequence_bias: vec![(vec![11, 12], -1.5)],
            num_return_sequences: 2,
            num_assistant_tokens: 5,
            eos_token_id: vec![1, 2],
            pad_token_id: Some(0),
            bos_token_id: Some(3),
            decoder_start_token_id: Some(4),
            ..GenerationConfig::default()
        };
        for config in [all, tokens(Some(0), &[1], Some(0)), GenerationConfig::default()] {
            let fields = generation_config_fields(&config);
            assert_eq!(read_generation_config(&fields, &GenerationConfig::default()), Ok(config));
        }
        assert!(generation_config_fields(&GenerationConfig::default()).is_empty());
    }

    #[test]
    fn null_takes_a_limit_away() {
        let own =
            GenerationConfig { top_k: 10, max_new_tokens: Some(5), min_p: Some(0.1), ..GenerationConfig::default() };
        let read = read(json!({"top_k": null, "max_new_tokens": null, "min_p": null}), &own).unwrap();
        assert_eq!((read.top_k, read.max_new_tokens, read.min_p), (0, None, None));
        assert_eq!(super::tests::read(json!({"max_length": 20}), &own).unwrap().max_length, None);
    }

    #[test]
    fn broken_fields_are_refused_by_name() {
        let error = |value| read(value, &GenerationConfig::default()).unwrap_err();
        assert_eq!(error(json!({"pad_token_id": "x"})), "`pad_token_id` is \"x\", expected a token id or null");
        let ids = "expected a token id, a list of token ids or null";
        assert_eq!(error(json!({"eos_token_id": [-1]})), format!("`eos_token_id` is [-1], {ids}"));
        assert_eq!(error(json!({"num_beams": 0})), "`num_beams` is 0, expected a number of at least 1");
        assert_eq!(error(json!({"num_beams": "4"})), "`num_beams` is \"4\", expected a whole number or null");
        assert_eq!(error(json!({"early_stopping": 2})), "`early_stopping` is 2, expected true, false or \"never\"");
        let length = error(json!({"min_length": 30, "max_length": 25}));
        assert_eq!(length, "`min_length` is 30, above `max_length`, which is 25");
        let constraint = error(json!({"force_words_ids": [[[1]]]}));
        assert_eq!(constraint, "`force_words_ids` is [[[1]]], which generation does not follow here; remove it");
        let unknown = error(json!({"heat": 0.5}));
        assert_eq!(unknown, "`heat` is 0.5, which no field of generation is called; remove it");
    }

    #[test]
    fn what_asks_for_nothing_is_passed_over() {
        let fields = json!({
            "_from_model_config": true, "transformers_version": "4.57.6", "use_cache": true, "guidance_scale": null,
            "watermarking_config": null, "token_healing": false, "return_dict_in_generate": true,
        });
        assert_eq!(read(fields, &GenerationConfig::default()).unwrap(), GenerationConfig::default());
    }

    #[test]
    fn old_configurations_of_models_say_how_to_write() {
        let fields =
            json!({"d_model": 16, "num_beams": 4, "sep_token_id": 3, "eos_token_id": 1, "length_penalty": 2.0});
        let of_generation = of_model_config(fields.as_object().unwrap());
        assert_eq!(Value::Object(of_generation), json!({"num_beams": 4, "length_penalty": 2.0}));
    }
}
