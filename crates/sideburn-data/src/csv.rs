//! Records of a CSV file after RFC 4180, strictly.
//!
//! The `csv` crate reads what people mean; here a damaged file must not pass. It accepts a quoted field that the end
//! of the file cuts off and quotation marks inside unquoted fields, and puts no limit on a record.

use std::{io::BufRead, path::Path};

use serde_json::Value;

use crate::{
    columns::{Columns, Gatherer, Layout, Names},
    error::{DataError, Place},
    lines::Lines,
    loaded::Loaded,
};

/// Reads what `reader` gives of a CSV file, whose first line names its columns, in any order. Errors call the file `name`.
///
/// Fields are separated by commas, semicolons or tabs, whichever the first line has most of. Quoting is that of RFC
/// 4180, and nothing looser; but where tabs separate, quotation marks inside a text need none around it, and in a text
/// without them `\n`, `\t`, `\r` and `\\` are a line break, a tab, a carriage return and a backslash, and `\N` is no
/// text, as databases export them. Line ends within texts become `\n`; texts are not changed otherwise. Columns that are
/// not asked for are passed over, those without a name as well. The file is read as a stream.
///
/// # Errors
/// If what is read is unreadable, not UTF-8, a Git LFS pointer or holds no record; if a column is missing or named
/// twice; if a quotation mark is left open or misplaced; if a record is above 16 MiB; and, unless the reading is
/// [lenient](Columns#structfield.lenient), if a record has too many or too few fields, a text is blank or different
/// examples have one id.
pub fn parse_csv(name: &Path, reader: impl BufRead, columns: &Columns) -> Result<Loaded, DataError> {
    let mut gatherer = Gatherer::new(columns);
    read_into(&mut gatherer, name, reader)?;
    gatherer.finish(name, true)
}

pub(crate) fn read_into(gatherer: &mut Gatherer<'_>, name: &Path, reader: impl BufRead) -> Result<(), DataError> {
    let mut records = Records::new(Lines::new(reader, name));
    let Some(Record { line, fields: header }) = records.read()? else {
        return Err(DataError::NoExamples { path: name.to_path_buf(), has_header: false });
    };
    let names = Names { names: &header, at: &Place::new(name, line), is_header: true };
    let layout = Layout::new(gatherer.columns(), names)?;
    while let Some(Record { line, fields }) = records.read()? {
        let at = Place::new(name, line);
        gatherer.take(&at, |gatherer| {
            let (expected, found) = (header.len(), fields.len());
            if expected != found {
                return Err(DataError::FieldCount { at: at.clone(), expected, found });
            }
            let values: Vec<Value> = fields.into_iter().map(Value::String).collect();
            gatherer.add(&at, &header, &layout, &values)
        })?;
    }
    Ok(())
}

/// One record and the line it starts on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) line: u64,
    pub(crate) fields: Vec<String>,
}

pub(crate) struct Records<R> {
    lines: Lines<R>,
    /// What stands between fields: known from the first line on.
    separator: Option<char>,
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
        Self { lines, separator: None }
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
            let separator = *self.separator.get_or_insert_with(|| separator_of(text));
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
                    (_, other) if other == separator => {
                        record.fields.push(finished(std::mem::take(&mut field), state, separator));
                        State::FieldStart
                    }
                    (State::Unquoted, '"') if separator == '\t' => {
                        field.push('"');
                        state
                    }
                    (State::Unquoted, '"') | (State::QuoteSeen(_), _) => {
                        let (at, backslash) = (Place::new(&path, record.line), field.ends_with('\\'));
                        let field = record.fields.len() + 1;
                        return Err(DataError::StrayQuote { at, line: next_line, field, backslash });
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
                record.fields.push(finished(field, state, separator));
                return Ok(Some(record));
            }
        }
    }
}

/// The separator that a header has most of, outside of quotation marks; a comma, if there is none.
fn separator_of(header: &str) -> char {
    let (mut counts, mut quoted) = ([(',', 0), (';', 0), ('\t', 0)], false);
    for character in header.chars() {
        quoted ^= character == '"';
        if let Some((_, count)) = counts.iter_mut().find(|(separator, _)| !quoted && *separator == character) {
            *count += 1;
        }
    }
    // Of equals the last is taken: the comma.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map_or(',', |(separator, _)| separator)
}

/// A field at its end: without the escapes of a tab-separated file.
fn finished(field: String, state: State, separator: char) -> String {
    if separator != '\t' || matches!(state, State::QuoteSeen(_)) || !field.contains('\\') {
        return field;
    }
    if field == "\\N" {
        return String::new();
    }
    let (mut text, mut rest) = (String::with_capacity(field.len()), field.as_str());
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        let escaped = match escape.as_bytes().get(1) {
            Some(b'n') => "\n",
            Some(b't') => "\t",
            Some(b'r') => "\r",
            Some(b'\\') => "\\",
            _ => "",
        };
        text += before;
        text += if escaped.is_empty() { "\\" } else { escaped };
        rest = &escape[if escaped.is_empty() { 1 } else { 2 }..];
    }
    text + rest
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
        let message = message("a,b\n1,\"say \\\"yes\\\" now\"\n");
        assert!(message.contains("field 2 on line 2; it is escaped with a backslash, write"), "{message}");
    }

    #[test]
    fn separators_are_those_of_the_header() {
        for (header, separator) in [
            ("id,dialogue,summary", ','),
            ("id;dialogue;summary", ';'),
            ("id\tdialogue\tsummary", '\t'),
            ("\"id, or; name\";\"a,b,c\";d", ';'),
            ("a,b;c", ','),
            ("text", ','),
            ("", ','),
        ] {
            assert_eq!(separator_of(header), separator, "{header}");
        }
        let fields = |text: &str| read(text, 100).unwrap().pop().unwrap().fields;
        assert_eq!(fields("a;b\n1,5;\"x;y\"\n"), ["1,5", "x;y"]);
        assert_eq!(fields("a\tb\tc\n1;2\t\"x\ty\nz\"\tsay \"yes\"\n"), ["1;2", "x\ty\nz", "say \"yes\""]);
    }

    #[test]
    fn escapes_are_those_of_tab_separated_files() {
        let fields = |text: &str| read(text, 100).unwrap().pop().unwrap().fields;
        assert_eq!(fields("a\tb\tc\nx\\ny\\tz\t\\\\n \\d \\\t\\N\n"), ["x\ny\tz", "\\n \\d \\", ""]);
        assert_eq!(fields("a\tb\n\"x\\ny\"\tz\n"), ["x\\ny", "z"], "quoted");
        assert_eq!(fields("a,b\nx\\ny,z\n"), ["x\\ny", "z"], "commas");
    }

    #[test]
    fn a_record_of_many_lines_has_the_limit_too() {
        let error = read(&format!("a\n\"{}", "line\n".repeat(100)), 50).unwrap_err();
        assert!(matches!(&error, DataError::RecordTooLong { at, limit: 50 } if at.number == 2), "{error}");
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
        fn never_panics(text in "[a\",;\t\\\\n\n\r]{0,40}") {
            let _ = read(&text, 20);
        }
    }
}
