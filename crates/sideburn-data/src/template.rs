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
/// A decoder alone goes on where its prompt ends, and the place `{summary}`, at the end, says where: what stands before it is
/// the prompt, and has no loss in training. Blanks and line ends before it belong to the answer, since byte-level tokenizers
/// put them into its first token: behind `Summary:` a model writes ` A greets B.`, not behind `Summary: `.
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
    /// What stands between prompt and answer, if the template says where the answer goes.
    lead: Option<String>,
}

/// Templates by their names: the instruction of the recipes that fine-tune FLAN-T5 on DialogSum, the prefix that T5 was trained
/// with, and the one that notebooks fine-tune decoders alone with.
const PRESETS: [(&str, &str); 3] = [
    ("dialogsum", "Summarize the following conversation.\n\n{dialogue}\n\nSummary: "),
    ("t5", "summarize: {dialogue}"),
    ("instruction", "### Instruction: Summarize the following conversation.\n\n{dialogue}\n\n### Summary: {summary}"),
];

/// The place where the answer goes.
const ANSWER: &str = "summary";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(String),
}

impl Template {
    /// A template of `text`.
    ///
    /// # Errors
    /// If `text` has no place but `{summary}`, something stands behind that, or there is a single brace that belongs to no
    /// place.
    pub fn new(text: impl Into<String>) -> Result<Self, DataError> {
        let text = text.into();
        match parse(&text).and_then(parted) {
            Ok((parts, lead)) => Ok(Self { text, parts, lead }),
            Err(reason) => Err(DataError::Template { text, reason }),
        }
    }

    /// A template that says where the answer goes, as a decoder alone needs it.
    ///
    /// ```
    /// use sideburn_data::Template;
    ///
    /// let template = Template::completion("{dialogue}\nSummary: {summary}")?;
    /// assert_eq!(template.answer("A greets B."), " A greets B.");
    /// assert!(Template::completion("{dialogue}\nSummary:").is_err());
    /// # Ok::<(), sideburn_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new), and if there is no place `{summary}`.
    pub fn completion(text: impl Into<String>) -> Result<Self, DataError> {
        let template = Self::new(text)?;
        match template.lead {
            Some(_) => Ok(template),
            None => Err(DataError::Template {
                text: template.text,
                reason:
                    "it has no place {summary}, which says where the answer begins and the loss with it; put one at \
                         the end"
                        .to_owned(),
            }),
        }
    }

    /// A template that many use, by its name:
    ///
    /// | name | template |
    /// |---|---|
    /// | `dialogsum` | `Summarize the following conversation.\n\n{dialogue}\n\nSummary: `, for FLAN-T5 |
    /// | `t5` | `summarize: {dialogue}`, the prefix that T5 was trained with |
    /// | `instruction` | `### Instruction: Summarize the following conversation.\n\n{dialogue}\n\n### Summary: {summary}`, for decoders alone: the loss is that of the summary |
    ///
    /// # Errors
    /// [`DataError::UnknownPreset`] for any other name.
    pub fn preset(name: &str) -> Result<Self, DataError> {
        let Some((_, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
            let known = PRESETS.map(|(name, _)| name).join(", ");
            return Err(DataError::UnknownPreset { name: name.to_owned(), known });
        };
        Self::new(*text)
    }

    /// The template in a file of at most 1 MiB. A file whose name ends in `.toml` has one key, `template`, as in
    /// `template = "Summarize: {dialogue}"`; any other is the template itself, less the line break that editors put at the
    /// end of a text.
    ///
    /// # Errors
    /// [`DataError::File`] if it cannot be read, [`DataError::TemplateFile`] if it is no such TOML or its text is no template.
    #[cfg(feature = "fs")]
    pub fn from_file(path: impl AsRef<std::path::Path>) -> Result<Self, DataError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            template: String,
        }
        let path = path.as_ref();
        let text = sideburn_files::read_text(path, 1 << 20)?.replace("\r\n", "\n");
        let fail = |reason: String| DataError::TemplateFile { path: path.to_owned(), reason };
        let is_toml = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("toml"));
        let text = match is_toml {
            true => toml::from_str::<File>(&text).map_err(|error| fail(error.to_string()))?.template,
            false => text.strip_suffix('\n').unwrap_or(&text).to_owned(),
        };
        Self::new(text).map_err(|error| fail(error.to_string()))
    }

    /// The text that is to be written behind the prompt for this answer: the answer, and before it the blanks and line ends
    /// that the template has before `{summary}`.
    pub fn answer(&self, answer: &str) -> String {
        format!("{}{answer}", self.lead.as_deref().unwrap_or_default())
    }

    /// The text that stands behind the last field, of a template that says where the answer goes.
    pub(crate) fn end(&self) -> Option<&str> {
        self.lead.as_ref()?;
        Some(match self.parts.last() {
            Some(Part::Text(text)) => text,
            _ => "",
        })
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

/// The parts of the prompt, and what stands between it and the answer if there is a place for that, or what is wrong.
fn parted(mut parts: Vec<Part>) -> Result<(Vec<Part>, Option<String>), String> {
    let is_answer = |part: &Part| matches!(part, Part::Place(place) if place == ANSWER);
    let Some(at) = parts.iter().position(is_answer) else { return Ok((parts, None)) };
    if at + 1 < parts.len() {
        let reason = "something stands behind {summary}, where the answer goes; leave it out: the end-of-sequence token is \
                      added by itself";
        return Err(reason.to_owned());
    }
    parts.pop();
    let mut lead = String::new();
    if let Some(Part::Text(text)) = parts.last_mut() {
        lead = text.split_off(text.trim_end().len());
        if text.is_empty() {
            parts.pop();
        }
    }
    if !parts.iter().any(|part| matches!(part, Part::Place(_))) {
        return Err("it has no place for a field before {summary}, such as {dialogue}".to_owned());
    }
    Ok((parts, Some(lead)))
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
    fn the_answer_begins_where_the_template_says() {
        let given = [("dialogue", "A: é")];
        for (text, prompt, answer) in [
            ("{dialogue}\nSummary: {summary}", "A: é\nSummary:", " short"),
            ("<{dialogue}>\n\n{summary}", "<A: é>", "\n\nshort"),
            ("{dialogue} {summary}", "A: é", " short"),
            ("{dialogue}{summary}", "A: é", "short"),
            ("{dialogue} ", "A: é ", "short"),
        ] {
            let template = Template::new(text).unwrap();
            assert_eq!(template.render(&fields(&given)).unwrap(), prompt, "{text}");
            assert_eq!(template.answer("short"), answer, "{text}");
            assert_eq!(Template::completion(text).is_ok(), text.contains("{summary}"), "{text}");
        }
        let message = |text| Template::completion(text).unwrap_err().to_string();
        assert!(message("{dialogue}").contains("it has no place {summary}"), "{}", message("{dialogue}"));
        assert!(message("{dialogue} {summary}</s>").contains("behind {summary}"));
        assert!(message("{summary}{summary}").contains("behind {summary}"));
        assert!(message("Write: {summary}").contains("no place for a field before {summary}"));
    }

    #[test]
    fn presets_are_those_of_the_recipes() {
        let rendered = |name: &str| Template::preset(name).unwrap().render(&fields(&[("dialogue", "A: é")])).unwrap();
        assert_eq!(rendered("dialogsum"), "Summarize the following conversation.\n\nA: é\n\nSummary: ");
        assert_eq!(rendered("t5"), "summarize: A: é");
        let asked = "### Instruction: Summarize the following conversation.\n\nA: é\n\n### Summary:";
        assert_eq!(rendered("instruction"), asked);
        assert_eq!(Template::preset("instruction").unwrap().answer("s"), " s");
        let message = Template::preset("flan").unwrap_err().to_string();
        assert_eq!(message, "no template is called \"flan\"; there are dialogsum, t5, instruction");
    }

    #[test]
    fn a_template_is_kept_as_its_text() {
        assert!(serde_json::from_str::<Template>("\"no place\"").is_err());
        let template: Template = serde_json::from_str("\"a {dialogue} {{\"").unwrap();
        assert_eq!(serde_json::to_string(&template).unwrap(), "\"a {dialogue} {{\"");
    }
}
