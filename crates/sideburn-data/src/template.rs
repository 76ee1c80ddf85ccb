//! The text around an example's fields.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{error::DataError, example::Fields};

/// A prompt with places for the fields of an [`Example`](crate::Example), written `{dialogue}`. A brace itself is
/// written twice: `{{` and `}}`.
///
/// One value serves training and inference, so that the two cannot differ; it is (de)serialised as its text, to be kept
/// beside an adapter.
///
/// ```
/// use sideburn_data::{Fields, Template};
///
/// let template = Template::new("Summarize as {{\"summary\": ...}}: {dialogue}")?;
/// let fields = Fields::from([("dialogue".to_owned(), "#Person1#: Hi.".to_owned())]);
/// assert_eq!(template.render(&fields)?, "Summarize as {\"summary\": ...}: #Person1#: Hi.");
/// assert!(Template::new("no place").is_err());
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(String),
}

impl Template {
    /// A template of `text`.
    ///
    /// # Errors
    /// If `text` has no place, or a single brace that belongs to none.
    pub fn new(text: impl Into<String>) -> Result<Self, DataError> {
        let text = text.into();
        match parse(&text) {
            Ok(parts) => Ok(Self { text, parts }),
            Err(reason) => Err(DataError::Template { text, reason }),
        }
    }

    /// The prompt for an example with these fields. Their texts are put in as they are, whatever they hold.
    ///
    /// # Errors
    /// [`DataError::UnknownPlace`] if a place is none of the fields.
    pub fn render(&self, fields: &Fields) -> Result<String, DataError> {
        let mut prompt = String::new();
        for part in &self.parts {
            prompt += match part {
                Part::Text(text) => text,
                Part::Place(place) => fields.get(place).ok_or_else(|| DataError::UnknownPlace {
                    place: place.clone(),
                    fields: fields.keys().cloned().collect(),
                })?,
            };
        }
        Ok(prompt)
    }

    /// The template's text, places included.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Texts and places, or what is wrong.
fn parse(text: &str) -> Result<Vec<Part>, String> {
    let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find(['{', '}']) {
        plain += &rest[..at];
        let (brace, behind) = rest[at..].split_at(1);
        if let Some(behind) = behind.strip_prefix(brace) {
            plain += brace;
            rest = behind;
            continue;
        }
        if brace == "}" {
            return Err("it holds a single }; write }} for a brace".to_owned());
        }
        let (place, behind) = match behind.split_once('}') {
            Some((place, behind)) if !place.is_empty() && !place.contains('{') => (place, behind),
            _ => return Err("it holds a { that begins no place; write {{ for a brace".to_owned()),
        };
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(Part::Place(place.to_owned()));
        rest = behind;
    }
    plain += rest;
    if parts.is_empty() {
        return Err("it has no place for a field, such as {dialogue}".to_owned());
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Template {
    type Error = DataError;

    fn try_from(text: String) -> Result<Self, DataError> {
        Self::new(text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(fields: &[(&str, &str)]) -> Fields {
        fields.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    fn rendered(template: &str, given: &[(&str, &str)]) -> String {
        Template::new(template).unwrap().render(&fields(given)).unwrap()
    }

    #[test]
    fn fields_stand_in_their_places() {
        let given = [("dialogue", "A: é"), ("topic", "greeting")];
        assert_eq!(rendered("{topic}:\n{dialogue}\n{topic}", &given), "greeting:\nA: é\ngreeting");
        assert_eq!(rendered("{{{dialogue}}} }}{{", &given), "{A: é} }{");
        assert_eq!(rendered("<{dialogue}>", &[("dialogue", "{dialogue} {{")]), "<{dialogue} {{>", "text, no template");
    }

    #[test]
    fn a_place_without_field_lists_the_fields() {
        let template = Template::new("{dialog}").unwrap();
        let message = template.render(&fields(&[("dialogue", "d"), ("topic", "t")])).unwrap_err().to_string();
        assert_eq!(
            message,
            "the template has a place {dialog}, which is no field of the example; its fields are dialogue, topic"
        );
    }

    #[test]
    fn braces_that_make_no_place_are_refused() {
        for (text, said) in [
            ("", "no place"),
            ("Summarize {{dialogue}}", "no place"),
            ("{dialogue} }", "single }"),
            ("{dialogue", "begins no place"),
            ("{} {dialogue}", "begins no place"),
            ("{a{dialogue}", "begins no place"),
        ] {
            let message = Template::new(text).unwrap_err().to_string();
            assert!(message.contains(said) && message.contains(&format!("{text:?}")), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_stands_between_doubled_braces(text in any::<String>(), template in "[{}a]{0,12}") {
            let escaped = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(rendered(&format!("{escaped}{{a}}{escaped}"), &[("a", "b")]), format!("{text}b{text}"));
            let _ = Template::new(template);
        }
    }

    #[test]
    fn a_template_is_kept_as_its_text() {
        assert!(serde_json::from_str::<Template>("\"no place\"").is_err());
        let template: Template = serde_json::from_str("\"a {dialogue} {{\"").unwrap();
        assert_eq!(serde_json::to_string(&template).unwrap(), "\"a {dialogue} {{\"");
    }
}
