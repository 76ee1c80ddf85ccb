//! One example: what a prompt is made of, and what should be answered.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

/// Texts by their names, such as `dialogue` and `topic`: what a [`Template`](crate::Template) has places for.
pub type Fields = BTreeMap<String, String>;

/// An example of a task from text to text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The data set's name for the example, such as `train_17`. Unique within a file.
    pub id: String,
    /// Its texts by the names of their columns, such as `dialogue` and `topic`; none of them is blank.
    pub fields: Fields,
    /// One or more answers that people gave, none of them blank. The first is the training target; in evaluation all
    /// of them are the references that an output is scored against.
    pub targets: Vec<String>,
}

impl Example {
    /// The text of the field called `name`, if there is one.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// What is asked about: the field `dialogue`, or, where there is none, all fields, one below the other.
    pub fn source(&self) -> Cow<'_, str> {
        match self.field("dialogue") {
            Some(dialogue) => dialogue.into(),
            None => self.fields.values().map(String::as_str).collect::<Vec<_>>().join("\n").into(),
        }
    }
}
