//! From records to samples: texts are checked and the rows of one dialogue put together.

use std::{collections::HashMap, path::PathBuf};

use crate::{
    error::{DataError, Place},
    sample::Sample,
};

/// A record as it stands in a file, with the names its fields have there.
pub(crate) struct Row {
    pub(crate) line: u64,
    pub(crate) id: String,
    pub(crate) dialogue: String,
    /// Field name and text, in order.
    pub(crate) summaries: Vec<(String, String)>,
    pub(crate) topic: Option<String>,
}

struct Gathered {
    line: u64,
    sample: Sample,
    /// The number of each reference of a dialogue that stands on several rows; empty for all others.
    numbers: Vec<u32>,
}

pub(crate) struct Gatherer {
    path: PathBuf,
    gathered: Vec<Gathered>,
    by_id: HashMap<String, usize>,
}

impl Gatherer {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, gathered: Vec::new(), by_id: HashMap::new() }
    }

    /// Adds a row that is a dialogue with all its summaries.
    pub(crate) fn add_dialogue(&mut self, row: Row) -> Result<(), DataError> {
        let (line, sample) = self.check(row)?;
        self.insert(Gathered { line, sample, numbers: Vec::new() })
    }

    /// Adds a row of the hub's layout, where a dialogue with several references stands once for each of them, its id
    /// followed by the reference's number: `test_7_1`, `test_7_2`, `test_7_3`.
    pub(crate) fn add_hub_row(&mut self, row: Row) -> Result<(), DataError> {
        let Some((dialogue_id, number)) = split_reference(&row.id) else { return self.add_dialogue(row) };
        let dialogue_id = dialogue_id.to_owned();
        let (line, mut sample) = self.check(row)?;
        let at = Place::new(&self.path, line);
        let Some(known) = self.by_id.get(&dialogue_id).map(|&index| &mut self.gathered[index]) else {
            sample.id = dialogue_id;
            return self.insert(Gathered { line, sample, numbers: vec![number] });
        };
        if known.numbers.is_empty() || known.numbers.contains(&number) {
            return Err(DataError::DuplicateId { at, id: sample.id, first: known.line });
        }
        if known.sample.dialogue != sample.dialogue {
            return Err(DataError::DifferentDialogues { at, id: sample.id, first: known.line });
        }
        let position = known.numbers.partition_point(|&before| before < number);
        known.numbers.insert(position, number);
        known.sample.summaries.splice(position..position, sample.summaries);
        if position == 0 {
            known.sample.topic = sample.topic;
        }
        Ok(())
    }

    /// All samples, in the order their first rows came.
    pub(crate) fn finish(self, has_header: bool) -> Result<Vec<Sample>, DataError> {
        if self.gathered.is_empty() {
            return Err(DataError::NoSamples { path: self.path, has_header });
        }
        Ok(self.gathered.into_iter().map(|gathered| gathered.sample).collect())
    }

    fn insert(&mut self, gathered: Gathered) -> Result<(), DataError> {
        let id = gathered.sample.id.clone();
        if let Some(&first) = self.by_id.get(&id) {
            let at = Place::new(&self.path, gathered.line);
            return Err(DataError::DuplicateId { at, id, first: self.gathered[first].line });
        }
        self.by_id.insert(id, self.gathered.len());
        self.gathered.push(gathered);
        Ok(())
    }

    fn check(&self, row: Row) -> Result<(u64, Sample), DataError> {
        let text = |field: &str, text: &str| match text.trim() {
            "" => Err(DataError::Blank { at: Place::new(&self.path, row.line), field: field.to_owned() }),
            _ => Ok(with_plain_line_ends(text)),
        };
        let sample = Sample {
            id: text("id", &row.id)?,
            dialogue: text("dialogue", &row.dialogue)?,
            summaries: row.summaries.iter().map(|(field, summary)| text(field, summary)).collect::<Result<_, _>>()?,
            topic: row.topic.filter(|topic| !topic.trim().is_empty()),
        };
        Ok((row.line, sample))
    }
}

/// Texts are kept as they are, blanks included, but for the line ends.
fn with_plain_line_ends(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Splits `test_7_2` into `test_7` and 2. `train_7` is not a reference: it is the seventh dialogue of "train".
fn split_reference(id: &str) -> Option<(&str, u32)> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (dialogue_id, number) = id.rsplit_once('_')?;
    let (_, dialogue_number) = dialogue_id.rsplit_once('_')?;
    if !digits(number) || !digits(dialogue_number) {
        return None;
    }
    Some((dialogue_id, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: u64, id: &str, dialogue: &str, summary: &str) -> Row {
        Row {
            line,
            id: id.into(),
            dialogue: dialogue.into(),
            summaries: vec![("summary".into(), summary.into())],
            topic: Some(format!("topic of {summary}")),
        }
    }

    #[test]
    fn only_two_numbers_make_a_reference() {
        assert_eq!(split_reference("test_7_2"), Some(("test_7", 2)));
        for id in ["train_7", "test_7_", "test_7_x", "test_a_1", "7", "_1", "test_7_99999999999"] {
            assert_eq!(split_reference(id), None, "{id}");
        }
    }

    #[test]
    fn references_are_put_in_the_order_of_their_numbers() {
        let mut gatherer = Gatherer::new("f".into());
        for (line, id, summary) in
            [(2, "test_0_2", "b"), (3, "test_1_1", "x"), (4, "test_0_3", "c"), (5, "test_0_1", "a")]
        {
            gatherer.add_hub_row(row(line, id, if id.starts_with("test_0") { "hi" } else { "ho" }, summary)).unwrap();
        }
        let samples = gatherer.finish(true).unwrap();
        assert_eq!(samples.len(), 2);
        assert_eq!((samples[0].id.as_str(), samples[0].summary()), ("test_0", "a"));
        assert_eq!(samples[0].references(), ["a", "b", "c"]);
        assert_eq!(samples[0].topic.as_deref(), Some("topic of a"));
    }

    #[test]
    fn ids_that_collide_are_refused() {
        let mut gatherer = Gatherer::new("f".into());
        gatherer.add_hub_row(row(2, "test_0_1", "hi", "a")).unwrap();
        let error = gatherer.add_hub_row(row(3, "test_0_1", "hi", "b")).unwrap_err();
        assert!(error.to_string().starts_with("f, line 3: the id \"test_0_1\" is already that of line 2"), "{error}");
        let error = gatherer.add_hub_row(row(4, "test_0_2", "other", "b")).unwrap_err();
        assert!(matches!(error, DataError::DifferentDialogues { first: 2, .. }), "{error}");
        let error = gatherer.add_hub_row(row(5, "test_0", "hi", "b")).unwrap_err();
        assert!(matches!(error, DataError::DuplicateId { first: 2, .. }), "{error}");
    }
}
