//! The text around a dialogue.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

const PLACE: &str = "{dialogue}";

/// The prompt: an instruction with one place for the dialogue. One value serves training and inference, so that the
/// two cannot differ; it is (de)serialised as its text, to be kept beside an adapter.
///
/// ```
/// use sideburn_data::PromptTemplate;
///
/// let template = PromptTemplate::new("summarize: {dialogue}")?;
/// assert_eq!(template.render("#Person1#: Hi."), "summarize: #Person1#: Hi.");
/// assert!(PromptTemplate::new("summarize:").is_err());
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PromptTemplate {
    text: String,
    /// Where the place for the dialogue begins, in bytes.
    place: usize,
}

impl PromptTemplate {
    /// A template of `text`, in which `{dialogue}` is the place for the dialogue.
    ///
    /// # Errors
    /// If `text` does not hold `{dialogue}` exactly once.
    pub fn new(text: impl Into<String>) -> Result<Self, DataError> {
        let text = text.into();
        let places: Vec<usize> = text.match_indices(PLACE).map(|(place, _)| place).collect();
        match places.as_slice() {
            &[place] => Ok(Self { text, place }),
            _ => Err(DataError::Template { text, found: places.len() }),
        }
    }

    /// The prompt for a dialogue. The dialogue is put in as it is, whatever it holds.
    pub fn render(&self, dialogue: &str) -> String {
        [&self.text[..self.place], dialogue, &self.text[self.place + PLACE.len()..]].concat()
    }

    /// The template's text, `{dialogue}` included.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The instruction that FLAN-T5 summarisation tutorials use.
impl Default for PromptTemplate {
    fn default() -> Self {
        let before = "Summarize the following conversation.\n\n";
        Self { text: format!("{before}{PLACE}\n\nSummary: "), place: before.len() }
    }
}

impl fmt::Display for PromptTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for PromptTemplate {
    type Error = DataError;

    fn try_from(text: String) -> Result<Self, DataError> {
        Self::new(text)
    }
}

impl From<PromptTemplate> for String {
    fn from(template: PromptTemplate) -> Self {
        template.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_valid_template() {
        let template = PromptTemplate::default();
        assert_eq!(PromptTemplate::new(template.as_str()).unwrap(), template);
        assert_eq!(template.render("A: é"), "Summarize the following conversation.\n\nA: é\n\nSummary: ");
    }

    #[test]
    fn a_dialogue_is_never_taken_for_a_template() {
        assert_eq!(PromptTemplate::new("<{dialogue}>").unwrap().render("{dialogue}"), "<{dialogue}>");
    }

    #[test]
    fn the_place_must_be_there_once() {
        let message = PromptTemplate::new("{dialogue} {dialogue}").unwrap_err().to_string();
        assert!(message.contains("exactly once, found it 2 times in \"{dialogue} {dialogue}\""), "{message}");
        assert!(serde_json::from_str::<PromptTemplate>("\"no place\"").is_err());
        let template: PromptTemplate = serde_json::from_str("\"a {dialogue}\"").unwrap();
        assert_eq!(serde_json::to_string(&template).unwrap(), "\"a {dialogue}\"");
    }
}
