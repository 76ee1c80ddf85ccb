//! Records of a JSON Lines file.

use std::{io::BufRead, path::Path};

use serde_json::{Map, Value};

use crate::{
    columns::{Columns, Gatherer, Layout, Names, kind},
    error::{DataError, Place},
    example::Example,
    lines::Lines,
};

/// Reads a JSON Lines file: an object on each line, whose fields are the columns.
///
/// Fields that the columns do not name are passed over, and so are blank lines. Line ends within texts become `\n`; texts
/// are not changed otherwise. The file is read as a stream.
///
/// # Errors
/// If the file is missing, unreadable, not UTF-8, a Git LFS pointer or holds no record; if a line is not a JSON object or is
/// above 16 MiB; if a field is missing or not a text; if a text is blank; if two records have one id.
#[cfg(feature = "fs")]
pub fn read_jsonl(path: impl AsRef<Path>, columns: &Columns) -> Result<Vec<Example>, DataError> {
    let path = path.as_ref();
    read(Lines::open(path)?, columns)
}

/// The same of what `reader` gives; errors call it `name`.
///
/// # Errors
/// Those of [`read_jsonl`](crate#reading).
pub fn parse_jsonl(name: &Path, reader: impl BufRead, columns: &Columns) -> Result<Vec<Example>, DataError> {
    read(Lines::new(reader, name), columns)
}

fn read(mut lines: Lines<impl BufRead>, columns: &Columns) -> Result<Vec<Example>, DataError> {
    let path = lines.path().to_path_buf();
    let mut gatherer = Gatherer::new(&path, columns);
    loop {
        let line = lines.number() + 1;
        let Some(text) = lines.read()? else { break };
        if text.trim().is_empty() {
            continue;
        }
        let at = Place::new(&path, line);
        let (names, values): (Vec<String>, Vec<Value>) = object(text, &at)?.into_iter().unzip();
        let layout = Layout::new(columns, Names { names: &names, at: &at, is_header: false })?;
        gatherer.add(line, &names, &layout, &values)?;
    }
    gatherer.finish(false)
}

fn object(text: &str, at: &Place) -> Result<Map<String, Value>, DataError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(DataError::NotAnObject { at: at.clone(), found: kind(&other) }),
        Err(error) => {
            // The parser sees one line only: its "at line 1" would contradict the file's line number.
            let message = error.to_string();
            let reason = message.split(" at line ").next().unwrap_or_default().to_owned();
            Err(DataError::Json { at: at.clone(), column: error.column(), reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Example>, DataError> {
        parse_jsonl(Path::new("f"), text.as_bytes(), &crate::Dataset::dialogsum().columns)
    }

    fn message(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn both_shapes_are_read() {
        let examples = read(r#"{"fname":"dev_0","dialogue":"d","summary":"s","topic":"t"}"#).unwrap();
        assert_eq!((examples[0].id.as_str(), examples[0].field("topic")), ("dev_0", Some("t")));
        assert_eq!(examples[0].targets, ["s"]);
        let text = r#"{"fname":"test_0","summary2":"b","summary1":"a","dialogue":"d","topic1":"t","topic2":"u"}"#;
        let examples = read(text).unwrap();
        assert_eq!(examples[0].targets, ["a", "b"]);
        assert_eq!(examples[0].field("topic"), Some("t"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            message("3"),
            "f, line 1: expected an object, found a number; a JSON Lines file holds one object on each line"
        );
        assert!(message("{\"a\": 1,}").starts_with("f, line 1: not JSON at column 9: trailing comma; "));
        assert!(message("{\"x\": 1}").starts_with("f, line 1: no field \"summary\"; found x"));
        assert!(
            message(r#"{"fname": "a", "dialogue": 3, "summary": "s"}"#).starts_with("f, line 1: \"dialogue\" must be")
        );
        let gap = r#"{"fname":"a","dialogue":"d","summary1":"a","summary3":"c"}"#;
        assert!(message(gap).starts_with("f, line 1: no field \"summary2\""));
        let depth = "[".repeat(100_000);
        assert!(message(&depth).contains("not JSON"), "deep nesting must not overflow the stack");
    }
}
