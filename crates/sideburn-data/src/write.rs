//! Examples as files, in every form that is read.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::Path,
};

use serde_json::{Map, Value};
use sideburn_files::write_atomic_with;

use crate::{
    error::DataError,
    example::Example,
    files::{Format, format_of},
};

/// Writes examples to a file, whose form its name says: `.csv`, `.tsv`, `.json` (an array), `.jsonl`, `.ndjson`, and
/// `.parquet` with the feature `parquet`. The file appears whole or not at all.
///
/// There is a column `id`, one for each field that any example has, and `target`. What
/// [`read_examples`](crate::read_examples) reads of it, with the fields as required or optional
/// [`Columns`](crate::Columns), are the examples again. Several references are a list of texts. In CSV, which has none,
/// they stand in `summary1`, `summary2` and so on if all examples have as many (for a `target` of `summary`), and else
/// in records that repeat the rest.
///
/// ```
/// use std::path::Path;
/// use sideburn_data::{Dataset, Split, read_examples, write_examples};
///
/// # let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/dialogsum-sample");
/// # let directory = tempfile::tempdir()?;
/// # let file = directory.path().join("test.tsv");
/// let dialogsum = Dataset::dialogsum();
/// let test = dialogsum.read(&sample, Split::Test)?.examples;
/// write_examples(&file, &test, &dialogsum.columns.target)?;
/// assert_eq!(read_examples(&file, &dialogsum.columns)?.examples, test);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`DataError::UnknownFormat`] and [`DataError::NotBuilt`] for a name that ends otherwise; [`DataError::File`] if the
/// file cannot be written; [`DataError::RepeatedReference`] if an example has the same reference twice, which records
/// that repeat the rest cannot tell from a mistake.
pub fn write_examples(path: impl AsRef<Path>, examples: &[Example], target: &str) -> Result<(), DataError> {
    let path = path.as_ref();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((format, _)) = format_of(&name) else { return Err(DataError::UnknownFormat { path: path.to_path_buf() }) };
    let fields: BTreeSet<&str> =
        examples.iter().flat_map(|example| example.fields.keys().map(String::as_str)).collect();
    let table = Table { fields: fields.into_iter().collect(), target };
    let is_called = |ending: &str| name.to_ascii_lowercase().ends_with(ending);
    match format {
        Format::Separated => {
            let rows = table.rows(examples)?;
            let separator = if is_called(".tsv") { '\t' } else { ',' };
            Ok(write_atomic_with(path, |out| write_rows(out, &rows, separator))?)
        }
        Format::Json if is_called(".json") => Ok(write_atomic_with(path, |out| {
            for (at, example) in examples.iter().enumerate() {
                write!(out, "{}{}", if at == 0 { "[\n" } else { ",\n" }, table.object(example))?;
            }
            writeln!(out, "{}", if examples.is_empty() { "[]" } else { "\n]" })
        })?),
        Format::Json => Ok(write_atomic_with(path, |out| {
            examples.iter().try_for_each(|example| writeln!(out, "{}", table.object(example)))
        })?),
        #[cfg(feature = "parquet")]
        Format::Parquet => crate::parquet::write(path, examples, &table.fields, target),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => Err(DataError::NotBuilt { path: path.to_path_buf(), feature: "parquet" }),
    }
}

/// The columns beside the id.
struct Table<'a> {
    fields: Vec<&'a str>,
    target: &'a str,
}

impl Table<'_> {
    fn object(&self, example: &Example) -> Value {
        let texts = example.fields.iter().map(|(name, text)| (name.clone(), text.clone().into()));
        let targets = match example.targets.as_slice() {
            [target] => target.clone().into(),
            targets => targets.into(),
        };
        let object = [("id".to_owned(), example.id.clone().into())].into_iter().chain(texts);
        Value::Object(object.chain([(self.target.to_owned(), targets)]).collect::<Map<_, _>>())
    }

    /// The header and all records.
    fn rows<'a>(&'a self, examples: &'a [Example]) -> Result<Vec<Vec<String>>, DataError> {
        let most = examples.iter().map(|example| example.targets.len()).max().unwrap_or(1);
        let is_even = examples.iter().all(|example| example.targets.len() == most);
        let in_one = if is_even { most } else { 1 };
        let targets = match in_one {
            1 => vec![self.target.to_owned()],
            many => (1..=many).map(|number| format!("{}{number}", self.target)).collect(),
        };
        let fields = self.fields.iter().map(|name| (*name).to_owned());
        let mut rows = vec![["id".to_owned()].into_iter().chain(fields).chain(targets).collect::<Vec<_>>()];
        for example in examples {
            let is_repeated = |(at, target): (usize, &String)| example.targets[..at].contains(target);
            if !is_even && example.targets.iter().enumerate().any(is_repeated) {
                return Err(DataError::RepeatedReference { id: example.id.clone() });
            }
            let fields = self.fields.iter().map(|name| example.field(name).unwrap_or_default().to_owned());
            let start: Vec<String> = [example.id.clone()].into_iter().chain(fields).collect();
            let records = example.targets.chunks(in_one).map(|targets| [start.as_slice(), targets].concat());
            rows.extend(records);
        }
        Ok(rows)
    }
}

/// Every field in quotation marks, so that nothing in it means anything.
fn write_rows(out: &mut dyn Write, rows: &[Vec<String>], separator: char) -> io::Result<()> {
    for row in rows {
        for (at, field) in row.iter().enumerate() {
            if at > 0 {
                write!(out, "{separator}")?;
            }
            write!(out, "\"{}\"", field.replace('"', "\"\""))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
