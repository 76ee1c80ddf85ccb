//! A data set: how its files are called, and what stands in them.

use crate::{columns::Columns, split::Split, template::Template};
#[cfg(feature = "fs")]
use crate::{csv::read_csv, error::DataError, example::Example, jsonl::read_jsonl};

/// A data set in a directory, described: no code belongs to one.
///
/// [`Dataset::dialogsum`] and [`Dataset::samsum`] are two. Another is a value like them:
///
/// ```
/// use sideburn_data::{Columns, Dataset, Template};
///
/// let headlines = Dataset {
///     name: "Headlines".into(),
///     columns: Columns::new(["article"], "headline"),
///     train: vec!["train.jsonl".into()],
///     validation: vec![],
///     test: vec!["test.jsonl".into(), "test.csv".into()],
///     template: Template::new("Give this article a headline.\n\n{article}\n\nHeadline: ")?,
/// };
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// What people call it; errors do, too.
    pub name: String,
    /// What its records are.
    pub columns: Columns,
    /// File names that the training split may have: `.csv` or `.tsv`, and `.json` or `.jsonl`.
    pub train: Vec<String>,
    /// Those of the validation split.
    pub validation: Vec<String>,
    /// Those of the test split.
    pub test: Vec<String>,
    /// The usual prompt.
    pub template: Template,
}

impl Dataset {
    /// The file names that a split may have.
    pub fn files(&self, split: Split) -> &[String] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }

    /// Reads a split from `directory`. Other files are passed over.
    ///
    /// # Errors
    /// [`DataError::NoSplit`] if there is none of its files, [`DataError::AmbiguousSplit`] if there are several, and
    /// those of [`read_csv`] and [`read_jsonl`]. A split that is read is never empty.
    #[cfg(feature = "fs")]
    pub fn read(&self, directory: impl AsRef<std::path::Path>, split: Split) -> Result<Vec<Example>, DataError> {
        let directory = directory.as_ref();
        // An unreadable directory would otherwise look like an empty one.
        std::fs::read_dir(directory).map_err(|source| DataError::from_io(directory, source))?;
        let found: Vec<&String> = self.files(split).iter().filter(|name| directory.join(name).exists()).collect();
        let (dataset, directory_given) = (self.name.clone(), directory.to_path_buf());
        match found.as_slice() {
            [] => {
                let looked_for = self.files(split).to_vec();
                Err(DataError::NoSplit { dataset, split, directory: directory_given, looked_for })
            }
            [name] if name.ends_with(".csv") || name.ends_with(".tsv") => read_csv(directory.join(name), &self.columns),
            [name] => read_jsonl(directory.join(name), &self.columns),
            _ => {
                let found = found.into_iter().cloned().collect();
                Err(DataError::AmbiguousSplit { dataset, split, directory: directory_given, found })
            }
        }
    }
}
