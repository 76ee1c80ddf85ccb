//! The DialogSum data set (Chen et al., 2021) in the two layouts it is published in.

use std::path::Path;

use crate::{
    csv_records::Records,
    error::{DataError, Place},
    gather::{Gatherer, Row},
    jsonl,
    lines::Lines,
    sample::Sample,
};

/// DialogSum: daily-life dialogues with human summaries; three references for each test dialogue.
///
/// Chen, Liu, Chen and Zhang, *DialogSum: A Real-Life Scenario Dialogue Summarization Dataset*, Findings of
/// ACL-IJCNLP 2021. The whole set has 12,460 training, 500 validation and 500 test dialogues.
#[derive(Clone, Copy, Debug)]
pub struct DialogSum;

/// The splits of a data set. One that has no file is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Splits {
    /// What adapters are trained on.
    pub train: Vec<Sample>,
    /// What choices are made by.
    pub validation: Vec<Sample>,
    /// What results are reported on.
    pub test: Vec<Sample>,
}

const TRAIN: [&str; 3] = ["train.csv", "dialogsum_train.csv", "dialogsum.train.jsonl"];
const VALIDATION: [&str; 3] = ["validation.csv", "dialogsum_validation.csv", "dialogsum.dev.jsonl"];
const TEST: [&str; 3] = ["test.csv", "dialogsum_test.csv", "dialogsum.test.jsonl"];

impl DialogSum {
    /// Reads the splits that `directory` holds.
    ///
    /// A split is `train.csv` or `dialogsum_train.csv` in the hub's layout (see [`read_csv`]), or
    /// `dialogsum.train.jsonl` in the original one (see [`read_jsonl`]); `validation`, in the original layout `dev`,
    /// and `test` likewise. Other files are passed over.
    ///
    /// # Errors
    /// If there is none of these files, if a split is there twice, or as the readers say.
    pub fn open(directory: impl AsRef<Path>) -> Result<Splits, DataError> {
        let directory = directory.as_ref();
        // An unreadable directory would otherwise look like an empty one.
        std::fs::read_dir(directory).map_err(|source| DataError::from_io(directory, source))?;
        let train = read_split(directory, "train", TRAIN)?;
        let validation = read_split(directory, "validation", VALIDATION)?;
        let test = read_split(directory, "test", TEST)?;
        if train.is_none() && validation.is_none() && test.is_none() {
            let looked_for = [TRAIN, VALIDATION, TEST].concat().into_iter().map(String::from).collect();
            return Err(DataError::NoSplits { directory: directory.to_path_buf(), looked_for });
        }
        Ok(Splits {
            train: train.unwrap_or_default(),
            validation: validation.unwrap_or_default(),
            test: test.unwrap_or_default(),
        })
    }
}

fn read_split(
    directory: &Path,
    split: &'static str,
    names: [&'static str; 3],
) -> Result<Option<Vec<Sample>>, DataError> {
    let found: Vec<&str> = names.into_iter().filter(|name| directory.join(name).exists()).collect();
    match found.as_slice() {
        [] => Ok(None),
        [name] if name.ends_with(".csv") => read_csv(directory.join(name)).map(Some),
        [name] => read_jsonl(directory.join(name)).map(Some),
        _ => Err(DataError::AmbiguousSplit {
            directory: directory.to_path_buf(),
            split,
            found: found.into_iter().map(String::from).collect(),
        }),
    }
}

/// Reads a CSV file of the hub's layout: the columns `id`, `dialogue` and `summary`, perhaps `topic`, in any order.
///
/// Quoting is that of RFC 4180, and nothing looser. Rows whose ids are a dialogue's id and the number of a reference
/// (`test_7_1`, `test_7_2`, `test_7_3`) become one sample, `test_7`, with that many references. Line ends within texts
/// become `\n`; texts are not changed otherwise. The file is read as a stream.
///
/// # Errors
/// If the file is missing, unreadable, not UTF-8 or holds no record; if a column is missing or named twice; if a
/// quotation mark is left open or misplaced; if a record has too many or too few fields or is above 16 MiB; if a
/// dialogue or summary is blank; if two records have one id, or two dialogues do.
pub fn read_csv(path: impl AsRef<Path>) -> Result<Vec<Sample>, DataError> {
    let path = path.as_ref();
    let mut records = Records::new(Lines::open(path)?);
    let Some(header) = records.read()? else {
        return Err(DataError::NoSamples { path: path.to_path_buf(), has_header: false });
    };
    let at = Place::new(path, header.line);
    let column = |name| find_column(&header.fields, name, &at);
    let missing = |name| DataError::MissingColumn { at: at.clone(), column: name, found: header.fields.clone() };
    let required = |name| column(name)?.ok_or_else(|| missing(name));
    let (id, dialogue, summary) = (required("id")?, required("dialogue")?, required("summary")?);
    let topic = column("topic")?;

    let mut gatherer = Gatherer::new(path.to_path_buf());
    while let Some(mut record) = records.read()? {
        let (expected, found) = (header.fields.len(), record.fields.len());
        if expected != found {
            return Err(DataError::FieldCount { at: Place::new(path, record.line), expected, found });
        }
        let mut take = |column: usize| std::mem::take(&mut record.fields[column]);
        gatherer.add_hub_row(Row {
            line: record.line,
            id: take(id),
            dialogue: take(dialogue),
            summaries: vec![("summary".to_owned(), take(summary))],
            topic: topic.map(take),
        })?;
    }
    gatherer.finish(true)
}

fn find_column(header: &[String], name: &'static str, at: &Place) -> Result<Option<usize>, DataError> {
    let mut places = header.iter().enumerate().filter(|(_, column)| column.trim() == name).map(|(place, _)| place);
    let place = places.next();
    if places.next().is_some() {
        return Err(DataError::RepeatedColumn { at: at.clone(), column: name });
    }
    Ok(place)
}

/// Reads a JSON Lines file of the original layout: on each line an object with `fname`, `dialogue`, `summary` and
/// perhaps `topic`; with several references `summary1`, `summary2`, ... and `topic1`, ... in their place.
///
/// `id` is taken for `fname`, other fields are passed over, and so are blank lines. Line ends within texts become
/// `\n`; texts are not changed otherwise. The file is read as a stream.
///
/// # Errors
/// If the file is missing, unreadable, not UTF-8 or holds no record; if a line is not a JSON object or is above 16 MiB;
/// if a field is missing or not a string; if a dialogue or summary is blank; if two records have one id.
pub fn read_jsonl(path: impl AsRef<Path>) -> Result<Vec<Sample>, DataError> {
    let path = path.as_ref();
    let mut lines = Lines::open(path)?;
    let mut gatherer = Gatherer::new(path.to_path_buf());
    loop {
        let line = lines.number() + 1;
        let Some(text) = lines.read()? else { break };
        if !text.trim().is_empty() {
            gatherer.add_dialogue(jsonl::parse(text, path, line)?)?;
        }
    }
    gatherer.finish(false)
}
