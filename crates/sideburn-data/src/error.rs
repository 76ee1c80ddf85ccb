//! What can be wrong with data, and where.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use sideburn_batch::BatchError;
use sideburn_files::{FileError, printable};

/// A record in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named when it was opened.
    pub path: PathBuf,
    /// The record's first line, from 1. A CSV record with line breaks in its fields goes over several lines.
    pub line: u64,
}

impl Place {
    pub(crate) fn new(path: &Path, line: u64) -> Self {
        Self { path: path.to_path_buf(), line }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", printable(&self.path), self.line)
    }
}

/// Why data could not be read, tokenised or batched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file that cannot be opened or read, whatever it holds.
    #[error(transparent)]
    File(#[from] FileError),

    /// A model's directory has no tokenizer that can be read.
    #[error(
        "{directory} has no tokenizer.json; Python writes one: `from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained(\"MODEL\").save_pretrained(\"FOLDER\")`",
        directory = printable(directory)
    )]
    NoTokenizer {
        /// The directory given.
        directory: PathBuf,
    },

    /// A directory holds none of a data set's files.
    #[error("{directory} holds no file of DialogSum; looked for {looked_for}", directory = printable(directory), looked_for = looked_for.join(", "))]
    NoSplits {
        /// The directory given.
        directory: PathBuf,
        /// The file names looked for in it.
        looked_for: Vec<String>,
    },

    /// A directory holds one split more than once.
    #[error("{directory} holds the {split} split more than once, as {found}; keep one of them", directory = printable(directory), found = printable(&found.join(" and ")))]
    AmbiguousSplit {
        /// The directory given.
        directory: PathBuf,
        /// `train`, `validation` or `test`.
        split: &'static str,
        /// The file names found.
        found: Vec<String>,
    },

    /// A file holds no record.
    #[error("{path} holds no sample; expected at least one record{after}", path = printable(path), after = if *has_header { " after the header" } else { "" })]
    NoSamples {
        /// The file.
        path: PathBuf,
        /// Whether there was a header line.
        has_header: bool,
    },

    /// A line is not UTF-8.
    #[error("{at}: byte {byte} of the line is not UTF-8; convert the file to UTF-8")]
    NotUtf8 {
        /// The line itself, which is not always a record's first.
        at: Place,
        /// The first byte that does not fit, from 1.
        byte: usize,
    },

    /// A record is longer than any sample should be.
    #[error(
        "{at}: the record that starts here is longer than {limit} bytes; a quotation mark or line end is probably missing"
    )]
    RecordTooLong {
        /// The record.
        at: Place,
        /// The longest record accepted, in bytes.
        limit: usize,
    },

    /// A CSV file ends inside a quoted field.
    #[error("{at}: the quotation mark opened on line {opened} is never closed; the file may have been cut short")]
    UnclosedQuote {
        /// The record.
        at: Place,
        /// The line of the opening quotation mark.
        opened: u64,
    },

    /// A quotation mark where CSV does not allow one.
    #[error(
        "{at}: stray quotation mark in field {field} on line {line}; put the whole field in quotation marks and double those inside it (RFC 4180)"
    )]
    StrayQuote {
        /// The record.
        at: Place,
        /// The line of the quotation mark.
        line: u64,
        /// The field, from 1.
        field: usize,
    },

    /// A CSV header lacks a column.
    #[error("{at}: no column named \"{column}\"; found {found}", found = listed(found))]
    MissingColumn {
        /// The header.
        at: Place,
        /// The column looked for.
        column: &'static str,
        /// The columns there are.
        found: Vec<String>,
    },

    /// A CSV header names a column twice.
    #[error("{at}: more than one column is named \"{column}\"; rename all but one")]
    RepeatedColumn {
        /// The header.
        at: Place,
        /// The name.
        column: &'static str,
    },

    /// A CSV record does not fit its header.
    #[error(
        "{at}: expected {expected} fields as in the header, found {found}; a field with a comma or line break must stand in quotation marks"
    )]
    FieldCount {
        /// The record.
        at: Place,
        /// Fields in the header.
        expected: usize,
        /// Fields in the record.
        found: usize,
    },

    /// A line of a JSON Lines file is not JSON.
    #[error("{at}: not JSON at column {column}: {reason}; expected one object on each line", reason = printable(reason))]
    Json {
        /// The line.
        at: Place,
        /// The column, from 1.
        column: usize,
        /// What the parser said.
        reason: String,
    },

    /// A line of a JSON Lines file is JSON, but not an object.
    #[error("{at}: expected an object, found {found}; a JSON Lines file holds one object on each line")]
    NotAnObject {
        /// The line.
        at: Place,
        /// What was found, such as "an array".
        found: &'static str,
    },

    /// An object lacks a field.
    #[error("{at}: no field \"{field}\"; found {found}", field = printable(field), found = listed(found))]
    MissingField {
        /// The line.
        at: Place,
        /// The field looked for.
        field: String,
        /// The fields there are.
        found: Vec<String>,
    },

    /// A field is not of the right type.
    #[error("{at}: field \"{field}\" must be a string, found {found}; put the text in quotation marks", field = printable(field))]
    FieldType {
        /// The line.
        at: Place,
        /// The field.
        field: String,
        /// What was found, such as "a number".
        found: &'static str,
    },

    /// A text that must say something is blank.
    #[error("{at}: \"{field}\" is blank; remove the record or fill it in", field = printable(field))]
    Blank {
        /// The record.
        at: Place,
        /// The field.
        field: String,
    },

    /// Two records have the same id.
    #[error("{at}: the id \"{id}\" is already that of line {first}; give every record an id of its own", id = printable(id))]
    DuplicateId {
        /// The second record.
        at: Place,
        /// The id.
        id: String,
        /// The first record's line.
        first: u64,
    },

    /// Two different dialogues under one id.
    #[error(
        "{at}: \"{id}\" is numbered as a reference to the dialogue of line {first}, but its dialogue differs; rows ID_1, ID_2, ... must repeat one dialogue",
        id = printable(id)
    )]
    DifferentDialogues {
        /// The second record.
        at: Place,
        /// Its id.
        id: String,
        /// The first record's line.
        first: u64,
    },

    /// A prompt template does not have exactly one place for the dialogue.
    #[error("the prompt template must hold {{dialogue}} exactly once, found it {found} times in {text:?}")]
    Template {
        /// The template's text.
        text: String,
        /// How often it holds `{dialogue}`.
        found: usize,
    },

    /// A tokenizer file cannot be understood.
    #[error("{path} is not a tokenizer.json that the tokenizers library can read: {source}; fetch the file again", source = printable(&source.to_string()), path = printable(path))]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A tokenizer lacks a token that an encoder-decoder needs.
    #[error("{path} has no token \"{token}\"; a T5 tokenizer is needed", path = printable(path))]
    MissingToken {
        /// The tokenizer file.
        path: PathBuf,
        /// The token looked for.
        token: &'static str,
    },

    /// A tokenizer has ids that a model has no embedding for.
    #[error(
        "the tokenizer's largest id is {max_token_id}, but the model embeds ids below {embedding_rows}; use the tokenizer that came with the model"
    )]
    VocabularyTooLarge {
        /// The tokenizer's largest id.
        max_token_id: u32,
        /// The model's embedding rows.
        embedding_rows: usize,
    },

    /// The tokenizer refused a text or ids.
    #[error("the tokenizer failed: {source}", source = printable(&source.to_string()))]
    Tokenizer {
        /// What the library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A length limit leaves no room for text.
    #[error("a limit of {max_length} tokens leaves no room for text before the end-of-sequence token; use 2 or more")]
    Limit {
        /// The limit given.
        max_length: usize,
    },

    /// A sample has nothing to be trained on.
    #[error("sample \"{id}\" has no summary; give it at least one", id = printable(id))]
    NoSummary {
        /// The sample.
        id: String,
    },

    /// A batch names a sample that is not there.
    #[error("there is no sample {index}; the set has {len} samples, numbered from 0")]
    NoSuchSample {
        /// The number given.
        index: usize,
        /// The samples there are.
        len: usize,
    },

    /// A sampler would never yield a batch.
    #[error("{len} samples in batches of {batch_size} make no {batch}; both must be above zero", batch = if *drop_last { "full batch" } else { "batch" })]
    NoBatches {
        /// Samples.
        len: usize,
        /// Samples in a batch.
        batch_size: usize,
        /// Whether a smaller last batch is dropped.
        drop_last: bool,
    },

    /// Token rows do not make a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// Names of fields or columns, as a message lists them.
fn listed(names: &[String]) -> String {
    printable(&names.join(", ")).to_string()
}

impl DataError {
    /// The error of opening or reading `path`.
    pub(crate) fn from_io(path: &Path, source: io::Error) -> Self {
        FileError::reading("reading", path, source).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_files_are_shown_and_not_obeyed() {
        let hostile = || "x\u{1b}[2J\0".to_owned();
        let at = Place::new(Path::new(&hostile()), 3);
        let found = vec![hostile()];
        let errors = [
            DataError::MissingColumn { at: at.clone(), column: "id", found: found.clone() },
            DataError::MissingField { at: at.clone(), field: hostile(), found },
            DataError::Json { at: at.clone(), column: 1, reason: hostile() },
            DataError::DuplicateId { at, id: hostile(), first: 1 },
            DataError::TokenizerFile { path: hostile().into(), source: hostile().into() },
        ];
        for error in errors {
            let message = error.to_string();
            assert!(message.contains(r"x\u{1b}[2J\0") && !message.contains(['\u{1b}', '\0']), "{message:?}");
        }
    }
}
