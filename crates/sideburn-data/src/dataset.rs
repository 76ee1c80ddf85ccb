//! A data set: how its files are called, and what stands in them.

use crate::{columns::Columns, split::Split, template::Template};

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
    /// File names that the training split may have. One without an ending, such as `train`, stands for that name with any of
    /// `.csv`, `.tsv`, `.json`, `.jsonl`, `.ndjson` and `.parquet`, and for the parts of a file that is in several. Upper and
    /// lower case are the same.
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
}
