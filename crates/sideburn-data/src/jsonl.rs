//! Records of a JSON Lines file, or of an array in a file.

use std::{
    io::{BufRead, Read},
    path::Path,
};

use serde_json::{Map, Value};

use crate::{
    columns::{Columns, Gatherer, Layout, Names, kind},
    error::{DataError, Place},
    lines::{BYTE_ORDER_MARK, Lines, RECORD_LIMIT},
    loaded::Loaded,
};

/// Reads what `reader` gives of a JSON Lines file: an object on each line, whose fields are the columns. A file that is
/// one array of such objects is read as well. Errors call the file `name`.
///
/// Fields that the columns do not name are passed over, and so are blank lines. An id may be a whole number. Line ends
/// within texts become `\n`; texts are not changed otherwise. The file is read as a stream.
///
/// # Errors
/// If what is read is unreadable, a Git LFS pointer or holds no record; if an array is damaged; if a record is above 16
/// MiB; and, unless the reading is [lenient](Columns#structfield.lenient), if a record is not UTF-8 or no JSON object, a
/// field is missing or not a text, a text is blank or different examples have one id.
pub fn parse_jsonl(name: &Path, reader: impl BufRead, columns: &Columns) -> Result<Loaded, DataError> {
    let mut gatherer = Gatherer::new(columns);
    read_into(&mut gatherer, name, reader)?;
    gatherer.finish(name, false)
}

pub(crate) fn read_into(gatherer: &mut Gatherer<'_>, name: &Path, mut reader: impl BufRead) -> Result<(), DataError> {
    // All blanks before the first bracket or brace, and that byte.
    let mut head = Vec::new();
    while head.len() < RECORD_LIMIT {
        let Some(byte) = next_byte(&mut reader, name)? else { break };
        head.push(byte);
        if !byte.is_ascii_whitespace() && !BYTE_ORDER_MARK.starts_with(&head) {
            break;
        }
    }
    let mut add = |line: u64, column: usize, text: Result<&str, DataError>| {
        let at = Place::new(name, line);
        gatherer.take(&at, |gatherer| {
            let (names, values): (Vec<String>, Vec<Value>) = object(text?, name, line, column)?.into_iter().unzip();
            let layout = Layout::new(gatherer.columns(), Names { names: &names, at: &at, is_header: false })?;
            gatherer.add(&at, &names, &layout, &values)
        })
    };
    let whole = head.as_slice().chain(reader);
    match head.last() {
        Some(b'[') => elements(name, whole, &mut add),
        _ => lines(name, whole, &mut add),
    }
}

/// What is done with a record: its text, and the line and column (from 0) where that begins.
type Add<'a> = dyn FnMut(u64, usize, Result<&str, DataError>) -> Result<(), DataError> + 'a;

fn lines(path: &Path, reader: impl BufRead, add: &mut Add<'_>) -> Result<(), DataError> {
    let mut lines = Lines::new(reader, path);
    loop {
        let line = lines.number() + 1;
        match lines.read() {
            Ok(None) => return Ok(()),
            Ok(Some(text)) if text.trim().is_empty() => {}
            Ok(Some(text)) => add(line, 0, Ok(text))?,
            Err(error @ DataError::NotUtf8 { .. }) => add(line, 0, Err(error))?,
            Err(error) => return Err(error),
        }
    }
}

/// Where the reader of an array is, outside of its elements.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Array,
    FirstElement,
    Element,
    Comma,
    Nothing,
}

/// The elements of the array that a file is, one by one.
fn elements(path: &Path, mut reader: impl BufRead, add: &mut Add<'_>) -> Result<(), DataError> {
    let (mut line, mut column, mut opened) = (1, 0, 1);
    let mut expected = Expected::Array;
    // The element, and where it begins.
    let (mut element, mut begins) = (Vec::new(), (0, 0));
    let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
    while let Some(byte) = next_byte(&mut reader, path)? {
        if depth > 0 {
            element.push(byte);
            if element.len() > RECORD_LIMIT {
                return Err(DataError::RecordTooLong { at: Place::new(path, begins.0), limit: RECORD_LIMIT });
            }
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if in_string => is_escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let text = std::str::from_utf8(&element)
                    .map_err(|error| not_utf8(path, begins, &element[..error.valid_up_to()]));
                add(begins.0, begins.1, text)?;
                element.clear();
            }
        } else {
            let fail = |reason: &str| {
                let (at, reason) = (Place::new(path, line), reason.to_owned());
                Err(DataError::Json { at, column: column + 1, reason })
            };
            expected = match (expected, byte) {
                (_, b' ' | b'\t' | b'\r' | b'\n') => expected,
                (Expected::Array, b'[') => {
                    opened = line;
                    Expected::FirstElement
                }
                // Of the byte order mark.
                (Expected::Array, _) => expected,
                (Expected::FirstElement | Expected::Element, b'{' | b'[') => {
                    (depth, begins) = (1, (line, column));
                    element.push(byte);
                    Expected::Comma
                }
                (Expected::Comma, b',') => Expected::Element,
                (Expected::FirstElement | Expected::Comma, b']') => Expected::Nothing,
                (Expected::Element, b']') => return fail("trailing comma"),
                (Expected::FirstElement | Expected::Element, _) => return fail("an element is no object"),
                (Expected::Comma, _) => return fail("expected `,` or `]`"),
                (Expected::Nothing, _) => return fail("text behind the end of the array"),
            };
        }
        (line, column) = if byte == b'\n' { (line + 1, 0) } else { (line, column + 1) };
    }
    if expected == Expected::Nothing { Ok(()) } else { Err(DataError::UnclosedArray { at: Place::new(path, opened) }) }
}

/// The error of a byte that is not UTF-8, behind those `before` it of a record that begins on `line`, at `column`.
fn not_utf8(path: &Path, (line, column): (u64, usize), before: &[u8]) -> DataError {
    let breaks = before.iter().filter(|byte| **byte == b'\n').count() as u64;
    let byte = match before.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => before.len() - at,
        None => column + before.len() + 1,
    };
    DataError::NotUtf8 { at: Place::new(path, line + breaks), byte }
}

fn next_byte(reader: &mut impl BufRead, path: &Path) -> Result<Option<u8>, DataError> {
    loop {
        match reader.fill_buf() {
            Ok(bytes) => {
                let byte = bytes.first().copied();
                reader.consume(usize::from(byte.is_some()));
                return Ok(byte);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DataError::from_io(path, error)),
        }
    }
}

/// The object that is `text`, which begins at `line` and behind `column` bytes of it.
fn object(text: &str, path: &Path, line: u64, column: usize) -> Result<Map<String, Value>, DataError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(DataError::NotAnObject { at: Place::new(path, line), found: kind(&other) }),
        Err(_) if is_python(text) => Err(DataError::PythonLiteral { at: Place::new(path, line) }),
        Err(error) => {
            // The parser's lines begin with the text: its "at line 1" would contradict the file's line number.
            let message = error.to_string();
            let mut reason = message.split(" at line ").next().unwrap_or_default().to_owned();
            if reason.contains("hex escape") {
                reason += ", such as half of a surrogate pair without the other";
            }
            let column = if error.line() <= 1 { column + error.column() } else { error.column() };
            let at = Place::new(path, line + error.line().saturating_sub(1) as u64);
            Err(DataError::Json { at, column, reason })
        }
    }
}

/// Whether a text that is no JSON looks like what Python prints of a dictionary or a list: with texts in single quotation
/// marks, or with `None`, `True` and `False`.
///
/// ```
/// use sideburn_data::is_python;
///
/// assert!(is_python("{'summary': \"It's late.\"}") && is_python(r#"{"summary": None}"#));
/// assert!(!is_python(r#"{"summary": "It's None of"#));
/// ```
pub fn is_python(text: &str) -> bool {
    let text = text.trim_start();
    if !text.starts_with(['{', '[']) {
        return false;
    }
    let (mut is_inside, mut is_escaped) = (false, false);
    let is_outside = |c: &char| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_inside => is_escaped = true,
            '"' => is_inside = !is_inside,
            _ => return !is_inside,
        }
        false
    };
    let outside: String = text.chars().filter(is_outside).collect();
    let mut words = outside.split(|c: char| !c.is_alphanumeric());
    outside.contains('\'') || words.any(|word| matches!(word, "None" | "True" | "False"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<crate::Example>, DataError> {
        let loaded = parse_jsonl(Path::new("f"), text.as_bytes(), &crate::Dataset::dialogsum().columns)?;
        Ok(loaded.examples)
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
            "f, line 1: expected an object, found a number; give each record as one object, with names for its values"
        );
        assert!(message("{\"a\": 1,}").starts_with("f, line 1: not JSON at column 9: trailing comma; "));
        assert!(message("{\"x\": 1}").starts_with("f, line 1: no field \"summary\"; found x"));
        assert!(
            message(r#"{"fname": "a", "dialogue": 3, "summary": "s"}"#).starts_with("f, line 1: \"dialogue\" must be")
        );
        let gap = r#"{"fname":"a","dialogue":"d","summary1":"a","summary3":"c"}"#;
        assert!(message(gap).starts_with("f, line 1: no field \"summary2\""));
        assert!(message("{'fname': 'a'}").starts_with("f, line 1: a Python dictionary, not JSON"));
        let depth = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(message(&depth).contains("not JSON"), "deep nesting must not overflow the stack");
        let depth = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(message(&depth).contains("not JSON"), "deep nesting must not overflow the stack");
    }

    const ONE: &str = r#"{"id": 1, "dialogue": "a ] \" [", "summary": "s"}"#;

    #[test]
    fn an_array_is_read_element_by_element() {
        let two = "{\n \"id\": \"2\", \"dialogue\": \"ü\",\n \"summary\": [\"t\", \"u\"]\n}";
        for array in [
            format!("[{ONE},{two}]"),
            format!("\u{feff}[\n{ONE},\r\n{two}\r\n]\r\n"),
            format!("\n \n[\n  {ONE}\n  ,{two} ] \n"),
        ] {
            let examples = read(&array).unwrap();
            assert_eq!(examples.iter().map(|example| example.id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
            assert_eq!(examples[0].field("dialogue"), Some("a ] \" ["));
            assert_eq!(examples[1].targets, ["t", "u"]);
        }
        assert!(message("[]").starts_with("f holds no example"));
    }

    #[test]
    fn what_is_wrong_with_an_array_is_placed() {
        for (array, said) in [
            (format!("\n[{ONE}"), "line 2: the array that begins here is never closed;"),
            (format!("[{ONE},\n {{\"id\""), "line 1: the array that begins here is never closed;"),
            (format!("[{ONE}\n,]"), "line 2: not JSON at column 2: trailing comma;"),
            (format!("[{ONE}\n{ONE}]"), "line 2: not JSON at column 1: expected `,` or `]`;"),
            (format!("[{ONE}]\n]"), "line 2: not JSON at column 1: text behind the end of the array;"),
            ("[1]".to_owned(), "line 1: not JSON at column 2: an element is no object;"),
            ("[[1]]".to_owned(), "line 1: expected an object, found an array;"),
            (format!("[{ONE}, {{\"x\": 1,}}]"), "line 1: not JSON at column 61: trailing comma;"),
            (format!("[{ONE},\n{{\"x\": 1,\n \"y\"}}]"), "line 3: not JSON at column 5: expected `:`;"),
            (format!("[{ONE},\n{ONE}]"), "line 2: the id \"1\" is already that of line 1;"),
        ] {
            let message = message(&array);
            assert!(message.starts_with(&format!("f, {said}")), "{array}: {message}");
        }
        let bytes = [b"[{\n\"id\": \"", &[0xFF][..], b"\"}]"].concat();
        let message = parse_jsonl(Path::new("f"), bytes.as_slice(), &crate::Dataset::samsum().columns).unwrap_err();
        assert!(message.to_string().starts_with("f, line 2: byte 8 of the line is not UTF-8;"), "{message}");
    }
}
