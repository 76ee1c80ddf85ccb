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

/// A value as it stands in the file, cut short if it is long.
pub(crate) fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
