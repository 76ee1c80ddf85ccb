//! Records of a CSV file after RFC 4180, strictly.
//!
//! The `csv` crate reads what people mean; here a damaged file must not pass. It accepts a quoted field that the end
//! of the file cuts off and quotation marks inside unquoted fields, and puts no limit on a record.

use std::{io::BufRead, path::Path};

use serde_json::Value;

use crate::{
    columns::{Columns, Gatherer, Layout, Names},
    error::{DataError, Place},
    example::Example,
    lines::Lines,
};

/// Reads a CSV file whose first line names its columns, which may stand in any order.
///
/// Quoting is that of RFC 4180, and nothing looser. Line ends within texts become `\n`; texts are not changed otherwise.
/// The file is read as a stream.
///
/// # Errors
/// If the file is missing, unreadable, not UTF-8, a Git LFS pointer or holds no record; if a column is missing or named
/// twice; if a quotation mark is left open or misplaced; if a record has too many or too few fields or is above 16 MiB; if
/// a text is blank; if two records have one id, or two examples do.
#[cfg(feature = "fs")]
pub fn read_csv(path: impl AsRef<Path>, columns: &Columns) -> Result<Vec<Example>, DataError> {
    let path = path.as_ref();
    read(Lines::open(path)?, columns)
}

/// The same of what `reader` gives; errors call it `name`.
///
/// # Errors
/// Those of [`read_csv`](crate#reading).
pub fn parse_csv(name: &Path, reader: impl BufRead, columns: &Columns) -> Result<Vec<Example>, DataError> {
    read(Lines::new(reader, name), columns)
}

fn read(lines: Lines<impl BufRead>, columns: &Columns) -> Result<Vec<Example>, DataError> {
    let path = lines.path().to_path_buf();
    let mut records = Records::new(lines);
    let Some(Record { line, fields: header }) = records.read()? else {
        return Err(DataError::NoExamples { path, has_header: false });
    };
    let layout = Layout::new(columns, Names { names: &header, at: &Place::new(&path, line), is_header: true })?;
    let mut gatherer = Gatherer::new(&path, columns);
    while let Some(Record { line, fields }) = records.read()? {
        let (expected, found) = (header.len(), fields.len());
        if expected != found {
            return Err(DataError::FieldCount { at: Place::new(&path, line), expected, found });
        }
        let values: Vec<Value> = fields.into_iter().map(Value::String).collect();
        gatherer.add(line, &header, &layout, &values)?;
    }
    gatherer.finish(true)
}

/// One record and the line it starts on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) line: u64,
    pub(crate) fields: Vec<String>,
}

pub(crate) struct Records<R> {
    lines: Lines<R>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Unquoted,
    /// Within quotation marks, the first of them on this line.
    Quoted(u64),
    /// Behind a quotation mark in a quoted field: its end, or the first of a doubled one.
    QuoteSeen(u64),
}

impl<R: BufRead> Records<R> {
    pub(crate) fn new(lines: Lines<R>) -> Self {
        Self { lines }
    }

    /// The next record, or `None` behind the last. Empty lines between records are passed over.
    pub(crate) fn read(&mut self) -> Result<Option<Record>, DataError> {
        let path = self.lines.path().to_path_buf();
        let limit = self.lines.limit();
        let mut record = Record { line: 0, fields: Vec::new() };
        let (mut field, mut state, mut size) = (String::new(), State::FieldStart, 0);
        loop {
            let next_line = self.lines.number() + 1;
            let Some(text) = self.lines.read()? else {
                return match state {
                    State::Quoted(opened) => {
                        Err(DataError::UnclosedQuote { at: Place::new(&path, record.line), opened })
                    }
                    _ => Ok(None),
                };
            };
            if record.line == 0 {
                if text.is_empty() {
                    continue;
                }
                record.line = next_line;
            }
            size += text.len() + 1;
            if size > limit {
                return Err(DataError::RecordTooLong { at: Place::new(&path, record.line), limit });
            }
            for character in text.chars() {
                state = match (state, character) {
                    (State::FieldStart, '"') => State::Quoted(next_line),
                    (State::Quoted(opened), '"') => State::QuoteSeen(opened),
                    (State::QuoteSeen(opened), '"') => {
                        field.push('"');
                        State::Quoted(opened)
                    }
                    (State::Quoted(_), other) => {
                        field.push(other);
                        state
                    }
                    (_, ',') => {
                        record.fields.push(std::mem::take(&mut field));
                        State::FieldStart
                    }
                    (State::Unquoted, '"') | (State::QuoteSeen(_), _) => {
                        let at = Place::new(&path, record.line);
                        return Err(DataError::StrayQuote { at, line: next_line, field: record.fields.len() + 1 });
                    }
                    (_, other) => {
                        field.push(other);
                        State::Unquoted
                    }
                };
            }
            if matches!(state, State::Quoted(_)) {
                field.push('\n');
            } else {
                record.fields.push(field);
                return Ok(Some(record));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, limit: usize) -> Result<Vec<Record>, DataError> {
        let mut records = Records::new(Lines::with_limit(text.as_bytes(), Path::new("f.csv"), limit));
        std::iter::from_fn(|| records.read().transpose()).collect()
    }

    fn message(text: &str) -> String {
        read(text, 100).unwrap_err().to_string()
    }

    #[test]
    fn records_carry_their_first_line() {
        let records = read("a,\"b\"\"\nc\",\r\n\n,x,\"\"", 100).unwrap();
        assert_eq!(records[0], Record { line: 1, fields: ["a", "b\"\nc", ""].map(String::from).to_vec() });
        assert_eq!(records[1], Record { line: 4, fields: ["", "x", ""].map(String::from).to_vec() });
        assert_eq!(records.len(), 2);
    }

    #[test]
    fn damage_is_placed() {
        assert_eq!(
            message("a,b\n1,2\nx,\"y\nz\n"),
            "f.csv, line 3: the quotation mark opened on line 3 is never closed; the file may have been cut short"
        );
        assert!(message("\"a\nb\",\"c").contains("line 1: the quotation mark opened on line 2"));
        assert!(message("a, \"b\"\n").contains("line 1: stray quotation mark in field 2 on line 1"));
        assert!(message("a\n\"b\nc\"d\n").contains("line 2: stray quotation mark in field 1 on line 3"));
    }

    #[test]
    fn a_record_of_many_lines_has_the_limit_too() {
        let error = read(&format!("a\n\"{}", "line\n".repeat(100)), 50).unwrap_err();
        assert!(matches!(&error, DataError::RecordTooLong { at, limit: 50 } if at.line == 2), "{error}");
    }

    proptest! {
        /// What the `csv` crate writes, we read; the alphabet is what quoting is about.
        #[test]
        fn reads_what_the_csv_crate_writes(rows in prop::collection::vec(prop::collection::vec("[a\", \n#é]{0,6}", 3), 1..6)) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            for row in &rows {
                writer.write_record(row).unwrap();
            }
            let text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
            let fields: Vec<_> = read(&text, 10_000).unwrap().into_iter().map(|record| record.fields).collect();
            prop_assert_eq!(fields, rows);
        }

        #[test]
        fn never_panics(text in "[a\",\n\r]{0,40}") {
            let _ = read(&text, 20);
        }
    }
}
