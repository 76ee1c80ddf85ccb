//! What can be wrong with data, and where.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use sideburn_batch::BatchError;
use sideburn_files::{FileError, printable, printable_lines};

use crate::split::Split;

/// A record in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named when it was opened.
    pub path: PathBuf,
    /// What is counted: `line`, or `row` in a Parquet file.
    pub unit: &'static str,
    /// The record's first line, or its row, from 1. A CSV record with line breaks in its fields goes over several lines.
    pub number: u64,
}

impl Place {
    pub(crate) fn new(path: &Path, line: u64) -> Self {
        Self { path: path.to_path_buf(), unit: "line", number: line }
    }

    #[cfg(feature = "parquet")]
    pub(crate) fn row(path: &Path, row: u64) -> Self {
        Self { path: path.to_path_buf(), unit: "row", number: row }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", printable(&self.path), self.unit, self.number)
    }
}

/// Why data could not be read, tokenised or batched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file that cannot be opened or read, whatever it holds.
    #[error(transparent)]
    File(#[from] FileError),

    /// A model has no tokenizer that can be read.
    #[error(
        "{directory} has no tokenizer.json; Python writes one: `from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained(\"MODEL\").save_pretrained(\"FOLDER\")`",
        directory = printable(directory)
    )]
    NoTokenizer {
        /// The directory given.
        directory: PathBuf,
    },

    /// A directory holds no file of a split.
    #[error(
        "{directory} holds no {split} split of {dataset}: looked for {looked_for}{endings}; rename the file, or give \
         another directory",
        directory = printable(directory),
        dataset = printable(dataset),
        looked_for = listed(looked_for),
        endings = if looked_for.iter().any(|name| name.ends_with(".*")) {
            " (* is csv, tsv, json, jsonl, ndjson or parquet)"
        } else {
            ""
        }
    )]
    NoSplit {
        /// The data set.
        dataset: String,
        /// The split asked for.
        split: Split,
        /// The directory given.
        directory: PathBuf,
        /// The file names looked for in it; `train.*` is `train` with any ending.
        looked_for: Vec<String>,
    },

    /// A directory holds a split more than once.
    #[error(
        "{directory} holds the {split} split of {dataset} more than once, as {found}; keep one of them",
        directory = printable(directory),
        dataset = printable(dataset),
        found = printable(&found.join(" and "))
    )]
    AmbiguousSplit {
        /// The data set.
        dataset: String,
        /// The split asked for.
        split: Split,
        /// The directory given.
        directory: PathBuf,
        /// The file names found.
        found: Vec<String>,
    },

    /// The ending of a file's name is none of those that are read.
    #[error(
        "{path} is not read by its name; give it the ending of what it is: .csv, .tsv, .json, .jsonl, .ndjson or .parquet",
        path = printable(path)
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },

    /// A file of a format that this program was built without.
    #[error(
        "{path} is read only with the feature `{feature}` of sideburn-data, which this program was built without; build it \
         with that, or convert the file to JSON Lines",
        path = printable(path)
    )]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// The feature.
        feature: &'static str,
    },

    /// A file in a container (Parquet, 7z) is damaged, or uses what is not read.
    #[error("{path} cannot be read: {reason}; fetch the file again", path = printable(path), reason = printable(reason))]
    Container {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A small file that would become a large one.
    #[error(
        "{path} unpacks to more than {limit} bytes, the most that is accepted of its size; no published data set does",
        path = printable(path)
    )]
    Bomb {
        /// The file, or the file in the archive.
        path: PathBuf,
        /// The most bytes accepted.
        limit: u64,
    },

    /// An archive names a file that would lie outside of where it is unpacked.
    #[error(
        "{path} holds a file named \"{name}\", which leads out of the archive; the archive is not to be trusted",
        path = printable(path),
        name = printable(name)
    )]
    UnsafeName {
        /// The archive.
        path: PathBuf,
        /// The name.
        name: String,
    },

    /// A lenient reading has skipped all that it read.
    #[error("all {rows} records of {path} were skipped; the first, {first}", path = printable(path))]
    AllSkipped {
        /// The file.
        path: PathBuf,
        /// How many records there are.
        rows: usize,
        /// The place of the first record, and what is wrong with it.
        first: String,
    },

    /// The description of columns is none.
    #[error(
        "\"{text}\" names no columns: {reason}; expected FIELD=COLUMN with commas between them, such as \
         dialogue=text,summary=target,id=index",
        text = printable(text),
        reason = printable(reason)
    )]
    Columns {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A file holds no record.
    #[error(
        "{path} holds no example; expected at least one record{after}",
        path = printable(path),
        after = if *has_header { " after the header" } else { "" }
    )]
    NoExamples {
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

    /// A record is longer than any example should be.
    #[error(
        "{at}: the record that starts here is longer than {limit} bytes; a quotation mark or line end is probably \
         missing"
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
        "{at}: stray quotation mark in field {field} on line {line}; {remedy}",
        remedy = if *backslash {
            "it is escaped with a backslash, write it twice instead, as Python's csv.writer does by itself"
        } else {
            "put the whole field in quotation marks and double those inside it (RFC 4180)"
        }
    )]
    StrayQuote {
        /// The record.
        at: Place,
        /// The line of the quotation mark.
        line: u64,
        /// The field, from 1.
        field: usize,
        /// Whether a backslash stands before it, as in files that escape quotation marks.
        backslash: bool,
    },

    /// A CSV header lacks a column.
    #[error("{at}: no column named \"{column}\"; found {found}", column = printable(column), found = listed(found))]
    MissingColumn {
        /// The header.
        at: Place,
        /// The column looked for.
        column: String,
        /// The columns there are.
        found: Vec<String>,
    },

    /// A CSV header, or an object, has a name twice, or in two spellings.
    #[error("{at}: more than one column is named \"{column}\"; rename all but one", column = printable(column))]
    RepeatedColumn {
        /// The header or the object.
        at: Place,
        /// The name.
        column: String,
    },

    /// A CSV record does not fit its header.
    #[error(
        "{at}: expected {expected} fields as in the header, found {found}; a field with a separator or line break must \
         stand in quotation marks"
    )]
    FieldCount {
        /// The record.
        at: Place,
        /// Fields in the header.
        expected: usize,
        /// Fields in the record.
        found: usize,
    },

    /// A line of a JSON Lines file, or an element of an array, is not JSON.
    #[error(
        "{at}: not JSON at column {column}: {reason}; expected one object on each line, or an array of objects",
        reason = printable(reason)
    )]
    Json {
        /// The line.
        at: Place,
        /// The column, from 1.
        column: usize,
        /// What the parser said.
        reason: String,
    },

    /// A line holds a dictionary as Python prints it.
    #[error(
        "{at}: a Python dictionary, not JSON, whose quotation marks are double; Python turns a line into JSON with \
         `json.dumps(ast.literal_eval(line))`"
    )]
    PythonLiteral {
        /// The line.
        at: Place,
    },

    /// A file that is an array ends before the array does.
    #[error("{at}: the array that begins here is never closed; the file may have been cut short")]
    UnclosedArray {
        /// The line of its bracket.
        at: Place,
    },

    /// A line of a JSON Lines file, or an element of an array, is JSON, but not an object.
    #[error("{at}: expected an object, found {found}; give each record as one object, with names for its values")]
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

    /// A value is not a text.
    #[error(
        "{at}: \"{field}\" must be a string, found {found}; {remedy}",
        field = printable(field),
        remedy = remedy(found)
    )]
    FieldType {
        /// The record.
        at: Place,
        /// The field.
        field: String,
        /// What was found, such as "a number".
        found: &'static str,
    },

    /// A record has an id where the first record of the file has none.
    #[error("{at}: this record has an id, and the first of the file has none; give one to all of them or to none")]
    UnexpectedId {
        /// The record.
        at: Place,
    },

    /// A text that must say something is blank.
    #[error("{at}: \"{field}\" is blank; remove the record or fill it in", field = printable(field))]
    Blank {
        /// The record.
        at: Place,
        /// The field.
        field: String,
    },

    /// A text holds a NUL character.
    #[error(
        "{at}: \"{field}\" holds a NUL character, as damaged files and UTF-16 do; remove it, or convert the file to UTF-8",
        field = printable(field)
    )]
    Nul {
        /// The record.
        at: Place,
        /// The field.
        field: String,
    },

    /// Two records have the same id.
    #[error(
        "{at}: the id \"{id}\" is already that of {unit} {first}; give the record an id of its own, or let it repeat that \
         example with another reference",
        id = printable(id),
        unit = at.unit
    )]
    DuplicateId {
        /// The second record.
        at: Place,
        /// The id.
        id: String,
        /// The first record's line or row.
        first: u64,
    },

    /// Two different examples under one id.
    #[error(
        "{at}: \"{id}\" is numbered as a reference to the example of {unit} {first}, but its \"{field}\" differs; records \
         ID_1, ID_2, ... must repeat one example",
        id = printable(id),
        unit = at.unit,
        field = printable(field)
    )]
    DifferentFields {
        /// The second record.
        at: Place,
        /// Its id.
        id: String,
        /// The field.
        field: String,
        /// The first record's line or row.
        first: u64,
    },

    /// An example has more references than one can have.
    #[error(
        "{at}: example \"{id}\" has more than {limit} references; give every record an id of its own",
        id = printable(id)
    )]
    TooManyReferences {
        /// The record that is one too many.
        at: Place,
        /// The example.
        id: String,
        /// The most references.
        limit: usize,
    },

    /// No template has this name.
    #[error("no template is called \"{name}\"; there are {known}", name = printable(name))]
    UnknownPreset {
        /// The name.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A file holds no template.
    #[error("{path} holds no prompt template: {reason}", path = printable(path), reason = printable_lines(reason))]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The text of a template is none.
    #[error("{text:?} is no prompt template: {reason}")]
    Template {
        /// The template's text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A template has a place for a field that an example does not have.
    #[error(
        "the template has a place {{{place}}}, which is no field of the example; its fields are {fields}",
        place = printable(place),
        fields = listed(fields)
    )]
    UnknownPlace {
        /// The place.
        place: String,
        /// The fields of the example.
        fields: Vec<String>,
    },

    /// An example cannot be tokenised.
    #[error("example \"{id}\": {source}", id = printable(id))]
    Example {
        /// The example.
        id: String,
        /// Why.
        source: Box<DataError>,
    },

    /// A tokenizer file cannot be understood.
    #[error(
        "{path} is not a tokenizer.json that the tokenizers library can read: {source}; fetch the file again",
        source = printable(&source.to_string()),
        path = printable(path)
    )]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A file of settings cannot be understood.
    #[error(
        "{path} is not what it should be: {reason}; fetch the file again",
        path = printable(path),
        reason = printable(reason)
    )]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A tokenizer lacks the end-of-sequence token that other files of the model name.
    #[error(
        "{path} has no token \"{token}\", which is the end-of-sequence token of the model; fetch all files from one place",
        path = printable(path),
        token = printable(token)
    )]
    MissingToken {
        /// The tokenizer file.
        path: PathBuf,
        /// The token looked for.
        token: String,
    },

    /// The files of a model name no end-of-sequence token.
    #[error("no file of the model names its end-of-sequence token; add \"eos_token\" to tokenizer_config.json")]
    NoEndToken,

    /// A tokenizer has ids that a model has no embedding for.
    #[error(
        "the tokenizer's largest id is {max_token_id}, but the model embeds ids below {embedding_rows}; use the tokenizer \
         that came with the model"
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

    /// An example has nothing to be trained on.
    #[error("it has no target; give it at least one")]
    NoTarget,

    /// A batch names an example that is not there.
    #[error("there is no example {index}; the set has {len} examples, numbered from 0")]
    NoSuchExample {
        /// The number given.
        index: usize,
        /// The examples there are.
        len: usize,
    },

    /// A rank that is none of the ranks.
    #[error("rank {rank} of {ranks} is none; ranks are numbered from 0, and there is at least one")]
    NoSuchRank {
        /// The rank given.
        rank: usize,
        /// How many ranks there are.
        ranks: usize,
    },

    /// A part of a data set that cannot be taken.
    #[error("\"{given}\" takes no part of the data: {reason}", given = printable(given), reason = printable(reason))]
    Subsample {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A data set cannot be split in these parts.
    #[error("the data cannot be split into parts of {}: {reason}", fractions.iter().map(f64::to_string).collect::<Vec<_>>().join(", "))]
    Fractions {
        /// The parts that were asked for.
        fractions: Vec<f64>,
        /// What is wrong with them.
        reason: String,
    },

    /// An example has the same reference twice, which a file of this form cannot hold.
    #[error(
        "example \"{id}\" has the same reference twice, and not all examples have as many: records of CSV cannot say that; write JSON \
         Lines",
        id = printable(id)
    )]
    RepeatedReference {
        /// The example.
        id: String,
    },

    /// A sampler would never yield a batch.
    #[error(
        "{len} examples in batches of {batch_size} make no {batch}; both must be above zero",
        batch = if *drop_last { "full batch" } else { "batch" }
    )]
    NoBatches {
        /// Examples.
        len: usize,
        /// Examples in a batch.
        batch_size: usize,
        /// Whether a smaller last batch is dropped.
        drop_last: bool,
    },

    /// Token rows do not make a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// Names of fields or columns, as a message lists them.
pub(crate) fn listed(names: &[String]) -> String {
    printable(&names.join(", ")).to_string()
}

/// How to mend a value that is `found` in the place of a text.
fn remedy(found: &str) -> &'static str {
    match found {
        "null" | "an empty array" => "remove the record or fill it in",
        "an array" => "join its texts into one, with line breaks between them",
        "an object" => "put the text itself there",
        _ => "put it in quotation marks",
    }
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
            DataError::MissingColumn { at: at.clone(), column: hostile(), found: found.clone() },
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
