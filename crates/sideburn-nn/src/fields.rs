//! ConfigFields of a JSON object, whose errors name the field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of a model's configuration. Every error is a message that begins with the field's name:
///
/// ```
/// use sideburn_nn::ConfigFields;
///
/// let config = serde_json::json!({"n_layer": 12, "n_head": "8", "eos_token_id": [1, 2]});
/// let fields = ConfigFields::new(config.as_object().unwrap());
/// assert_eq!(fields.number("n_layer", 6), Ok(12));
/// assert_eq!(fields.number("n_embd", 768), Ok(768));
/// assert_eq!(fields.number("n_head", 12).unwrap_err(), "`n_head` is \"8\", expected a whole number");
/// assert_eq!(fields.tokens("eos_token_id"), Ok(Some(vec![1, 2])));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ConfigFields<'a>(&'a Map<String, Value>);

const NUMBER: &str = "a whole number";

impl<'a> ConfigFields<'a> {
    /// The fields of a JSON object.
    pub fn new(fields: &'a Map<String, Value>) -> Self {
        Self(fields)
    }

    /// A field that may be absent, but not null.
    ///
    /// # Errors
    /// If it is ill-typed.
    pub fn value<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>, String> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|_| format!("`{name}` is {}, expected {expected}", shown(value)))
    }

    /// A field that may be absent (`None`), or null (`Some(None)`).
    ///
    /// # Errors
    /// If it is ill-typed.
    pub fn nullable<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<Option<T>>, String> {
        self.value(name, expected)
    }

    /// A whole number.
    ///
    /// # Errors
    /// If it is ill-typed.
    pub fn number(&self, name: &str, default: usize) -> Result<usize, String> {
        Ok(self.value(name, NUMBER)?.unwrap_or(default))
    }

    /// A whole number that has a second name, which overrides the first.
    ///
    /// # Errors
    /// If it is ill-typed.
    pub fn number_or(&self, general: &str, name: &str, default: usize) -> Result<usize, String> {
        let own = self.number(name, default)?;
        self.number(general, own)
    }

    /// A token id; null is none.
    ///
    /// # Errors
    /// If it is ill-typed.
    pub fn token(&self, name: &str) -> Result<Option<Option<u32>>, String> {
        self.nullable(name, "a token id or null")
    }

    /// Any number of token ids: null, one, or a list.
    ///
    /// # Errors
    /// If it is ill-typed.
    pub fn tokens(&self, name: &str) -> Result<Option<Vec<u32>>, String> {
        let expected = "a token id, a list of token ids or null";
        match self.0.get(name) {
            Some(Value::Array(_)) => self.value(name, expected),
            _ => Ok(self.nullable(name, expected)?.map(|id: Option<u32>| id.into_iter().collect())),
        }
    }
}

/// What a `config.json` says of its architecture.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The family.
    pub model_type: Option<String>,
    /// Names of classes of `transformers`.
    classes: Vec<String>,
}

impl Architecture {
    /// Reads `model_type` and `architectures`.
    ///
    /// # Errors
    /// If one is ill-typed.
    pub fn read(fields: &ConfigFields<'_>) -> Result<Self, String> {
        let classes = fields.nullable("architectures", "a list of strings")?.flatten().unwrap_or_default();
        Ok(Self { model_type: fields.nullable("model_type", "a string")?.flatten(), classes })
    }

    /// Whether the name of a class has this part.
    pub fn is(&self, part: &str) -> bool {
        self.classes.iter().any(|name| name.contains(part))
    }

    /// What its head does, if it is one that writes nothing: `whose head classifies rows and writes nothing`.
    pub fn other_head(&self) -> Option<String> {
        let heads = [
            ("ForSequenceClassification", "classifies rows"),
            ("ForTokenClassification", "classifies tokens"),
            ("ForQuestionAnswering", "marks spans"),
        ];
        let (_, task) = heads.into_iter().find(|(head, _)| self.is(head))?;
        Some(format!("whose head {task} and writes nothing"))
    }

    /// The message that refuses it: what it is, and `why` behind that.
    pub fn refused(&self, why: &str) -> String {
        // Both come from a stranger's file and go to a terminal.
        let model_type = self.model_type.as_deref().unwrap_or("(absent)").escape_debug();
        let classes = self.classes.join(", ");
        format!("`model_type` is {model_type} (architectures: {}), {why}", classes.escape_debug())
    }
}

/// Refuses sizes that are 0 or above their caps: `(field, size, cap)`.
///
/// # Errors
/// A message that names the first of them.
pub fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<(), String> {
    match sizes.iter().find(|(_, size, cap)| *size == 0 || size > cap) {
        Some((field, size, cap)) => Err(format!("`{field}` is {size}, expected 1 to {cap}")),
        None => Ok(()),
    }
}

/// Refuses what is no probability of a dropout.
///
/// # Errors
/// A message that names the field.
pub fn check_probability(field: &str, probability: f64) -> Result<(), String> {
    match (0.0..1.0).contains(&probability) {
        true => Ok(()),
        false => Err(format!("`{field}` is {probability}, expected a probability in [0, 1)")),
    }
}

/// Refuses what a norm cannot add to a variance.
///
/// # Errors
/// A message that names the field.
pub fn check_epsilon(field: &str, epsilon: f64) -> Result<(), String> {
    match epsilon > 0.0 && epsilon < 1.0 {
        true => Ok(()),
        false => Err(format!("`{field}` is {epsilon}, expected a small positive number")),
    }
}

/// Refuses token ids that the vocabulary does not have: fields with their ids.
///
/// # Errors
/// A message that names the field.
pub fn check_tokens<'a>(ids: impl IntoIterator<Item = (&'a str, &'a [u32])>, vocab_size: usize) -> Result<(), String> {
    for (field, ids) in ids {
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(format!("`{field}` is {id}, but the vocabulary has {vocab_size} entries"));
        }
    }
    Ok(())
}

/// Token ids as files have them: null, one, or a list.
pub fn tokens_to_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}

/// A value as it stands in the file, cut short if it is long.
pub(crate) fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
