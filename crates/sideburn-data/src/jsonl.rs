//! One line of DialogSum's original JSON Lines layout.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    error::{DataError, Place},
    gather::Row,
};

/// Reads the object on a line: `fname` (or `id`), `dialogue`, `summary` (or `summary1`, `summary2`, ...) and,
/// if there is one, `topic` (or `topic1`). Other fields are passed over.
pub(crate) fn parse(text: &str, path: &Path, line: u64) -> Result<Row, DataError> {
    let at = || Place::new(path, line);
    let object = match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Object { object, at: at() },
        Ok(other) => return Err(DataError::NotAnObject { at: at(), found: kind(&other) }),
        Err(error) => {
            // The parser sees one line only: its "at line 1" would contradict the file's line number.
            let message = error.to_string();
            let reason = message.split(" at line ").next().unwrap_or_default().to_owned();
            return Err(DataError::Json { at: at(), column: error.column(), reason });
        }
    };
    let id = if object.has("fname") { object.text("fname") } else { object.text("id") };
    let id = id.map_err(|error| match error {
        DataError::MissingField { at, found, .. } => DataError::MissingField { at, field: "fname".into(), found },
        other => other,
    })?;
    let topic = ["topic", "topic1"].into_iter().find(|name| object.has(name));
    Ok(Row {
        line,
        id,
        dialogue: object.text("dialogue")?,
        summaries: summaries(&object)?,
        topic: topic.map(|name| object.text(name)).transpose()?,
    })
}

fn summaries(object: &Object) -> Result<Vec<(String, String)>, DataError> {
    let is_numbered = |name: &str| {
        name.strip_prefix("summary").is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let names: Vec<String> = match object.object.keys().filter(|name| is_numbered(name)).count() {
        0 => vec!["summary".to_owned()],
        // Counted, not probed: with summary2 left out, summary3 must not vanish.
        count => (1..=count).map(|number| format!("summary{number}")).collect(),
    };
    names.into_iter().map(|name| object.text(&name).map(|text| (name, text))).collect()
}

struct Object {
    object: Map<String, Value>,
    at: Place,
}

impl Object {
    fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    fn text(&self, name: &str) -> Result<String, DataError> {
        let (at, field) = (|| self.at.clone(), || name.to_owned());
        match self.object.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(DataError::FieldType { at: at(), field: field(), found: kind(other) }),
            None => {
                let found = self.object.keys().take(20).cloned().collect();
                Err(DataError::MissingField { at: at(), field: field(), found })
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(text, Path::new("f"), 7).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn both_shapes_are_read() {
        let row = parse(r#"{"fname":"dev_0","dialogue":"d","summary":"s","topic":"t"}"#, Path::new("f"), 1).unwrap();
        assert_eq!((row.id.as_str(), row.topic.as_deref()), ("dev_0", Some("t")));
        assert_eq!(row.summaries, [("summary".to_owned(), "s".to_owned())]);
        let text = r#"{"fname":"test_0","summary2":"b","summary1":"a","dialogue":"d","topic1":"t","topic2":"u"}"#;
        let row = parse(text, Path::new("f"), 1).unwrap();
        assert_eq!(row.summaries.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(row.topic.as_deref(), Some("t"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            message("[1]"),
            "f, line 7: expected an object, found an array; a JSON Lines file holds one object on each line"
        );
        assert!(message("{\"a\": 1,}").starts_with("f, line 7: not JSON at column 9: trailing comma; "));
        assert!(message("{\"x\": 1}").starts_with("f, line 7: no field \"fname\"; found x"));
        assert!(message(r#"{"fname": 3}"#).starts_with("f, line 7: field \"fname\" must be a string, found a number"));
        let gap = r#"{"fname":"a","dialogue":"d","summary1":"a","summary3":"c"}"#;
        assert!(message(gap).starts_with("f, line 7: no field \"summary2\""));
        let depth = "[".repeat(100_000);
        assert!(message(&depth).contains("not JSON"), "deep nesting must not overflow the stack");
    }
}
