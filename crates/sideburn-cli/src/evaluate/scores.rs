//! Scores from elsewhere, such as a judge's.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use sideburn::eval::{ScoreError, Values};
use sideburn::files::read_text;
use sideburn::prelude::*;

use crate::report::{in_line, shown_in_line};

const MAX_SCORES: u64 = 1 << 30;

/// A line of a file of scores. Other fields are passed over, and so are lines without an id, which are summaries.
#[derive(Deserialize)]
struct Line {
    id: Option<String>,
    system: Option<String>,
    #[serde(default)]
    scores: BTreeMap<String, f64>,
}

/// The scores of one system, by their names.
pub(super) struct GivenScores(BTreeMap<String, Vec<Option<f64>>>);

impl Score for GivenScores {
    fn score(&self, _: &[Example], _: &[String]) -> Result<Vec<Values>, ScoreError> {
        let values = |(name, values): (&String, &Vec<Option<f64>>)| Values {
            name: name.clone(),
            is_share: false,
            values: values.clone(),
        };
        Ok(self.0.iter().map(values).collect())
    }
}

/// The scores that files have of each of `systems`, in their order.
pub(super) fn read(paths: &[PathBuf], examples: &[Example], systems: &[&str]) -> anyhow::Result<Vec<GivenScores>> {
    let places: HashMap<&str, usize> =
        examples.iter().enumerate().map(|(at, example)| (example.id.as_str(), at)).collect();
    let mut given: Vec<GivenScores> = systems.iter().map(|_| GivenScores(BTreeMap::new())).collect();
    for path in paths {
        let file = read_text(path, MAX_SCORES)?;
        let mut any = false;
        for (number, line) in file.lines().enumerate() {
            let at = || format!("{}, line {}", shown_in_line(path), number + 1);
            let line: Line = serde_json::from_str(line).with_context(|| {
                format!("{}: no line of scores, such as {{\"id\": \"test_0\", \"system\": \"lora\", \"scores\": {{\"fluency\": 4}}}}", at())
            })?;
            let Some(id) = line.id else { continue };
            let system = match (&line.system, systems) {
                (Some(name), _) => systems.iter().position(|system| system == name).with_context(|| {
                    let known = systems.iter().map(|name| in_line(name)).collect::<Vec<_>>().join(", ");
                    format!("{}: no system is called {:?}; they are {known}", at(), in_line(name))
                })?,
                (None, [_]) => 0,
                (None, _) => bail!("{}: no field \"system\", and there are {} systems", at(), systems.len()),
            };
            let Some(place) = places.get(id.as_str()) else {
                bail!("{}: no dialogue has the id {:?}", at(), in_line(&id));
            };
            for (name, value) in line.scores {
                any = true;
                let column = given[system].0.entry(name.clone()).or_insert_with(|| vec![None; examples.len()]);
                let known = column[*place].replace(value);
                ensure!(known.is_none(), "{}: a second {:?} of {:?}", at(), in_line(&name), in_line(&id));
            }
        }
        ensure!(any, "{} has no scores", shown_in_line(path));
    }
    Ok(given)
}
