//! Results: what systems wrote, and what it is worth.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sideburn_data::Example;

use crate::{
    bootstrap::{BootstrapConfig, Interval, bootstrap},
    comparison::{Comparison, compare},
    error::EvalError,
    score::{Score, Values},
};

/// All that an evaluation has found, to be kept as JSON and shown in any form. As text it is a table of means with
/// their intervals.
///
/// ```
/// use sideburn_data::{Example, Fields};
/// use sideburn_eval::{BootstrapConfig, Evaluation};
/// use sideburn_rouge::RougeScorer;
///
/// let fields = Fields::from([("dialogue".to_owned(), "Ann: Tea?\nBob: Please.".to_owned())]);
/// let example = Example { id: "test_0".into(), fields, targets: vec!["Bob wants tea.".into()] };
/// let mut evaluation = Evaluation::new([example], BootstrapConfig::default());
/// evaluation.add("first line", vec!["Ann: Tea?".into()], &[&RougeScorer::all()])?;
/// evaluation.add("a model", vec!["Bob would like tea.".into()], &[&RougeScorer::all()])?;
/// println!("{evaluation}");
/// // mean [95 %], n 1  rouge1                rouge2            rougeL                rougeLsum
/// // first line        40.00 [40.00, 40.00]  0.00 [0.00, 0.00] ...
/// let again: Evaluation = serde_json::from_str(&serde_json::to_string(&evaluation)?)?;
/// assert_eq!(again, evaluation);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// What was run, such as the flags of a program; null, if nothing was said.
    pub config: Value,
    /// How the intervals were found.
    pub bootstrap: BootstrapConfig,
    /// What was asked, with its references.
    pub examples: Vec<Example>,
    /// Who answered, in the order they were added.
    pub systems: Vec<System>,
}

/// A system: a model, an adapter, or a rule that answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct System {
    /// What it is called.
    pub name: String,
    /// What it wrote for each example.
    pub outputs: Vec<String>,
    /// What that is worth.
    pub scores: Vec<Scored>,
}

/// One measure of all outputs of a system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The mean over all examples that have a value.
    #[serde(flatten)]
    pub mean: Mean,
    /// The value for each example, where it could be told.
    pub values: Vec<Option<f64>>,
}

/// The mean of a measure, its interval, and how many examples that is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// What was measured, such as `rougeL`.
    pub name: String,
    /// Whether the values are shares of 1, which people read in percent.
    pub is_share: bool,
    /// The mean.
    #[serde(flatten)]
    pub interval: Interval,
}

/// How two systems differ in one score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The system that the other is taken from.
    pub first: String,
    /// The other.
    pub second: String,
    /// The score.
    pub score: String,
    /// Whether its values are shares of 1, which people read in percent.
    pub is_share: bool,
    /// First less second.
    #[serde(flatten)]
    pub comparison: Comparison,
}

impl Evaluation {
    /// An evaluation on these examples, to which systems are [added](Self::add).
    pub fn new(examples: impl Into<Vec<Example>>, bootstrap: BootstrapConfig) -> Self {
        Self { config: Value::Null, bootstrap, examples: examples.into(), systems: Vec::new() }
    }

    /// Scores what a system wrote, one output for each example in their order, and keeps it.
    ///
    /// # Errors
    /// If the name is taken, if there is not one output for each example, and at least one of them; if a score fails or
    /// gives anything but a finite number for each output.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        outputs: Vec<String>,
        scores: &[&dyn Score],
    ) -> Result<&System, EvalError> {
        let (name, expected) = (name.into(), self.examples.len());
        if self.systems.iter().any(|system| system.name == name) {
            return Err(EvalError::SameName { name });
        }
        if outputs.len() != expected {
            return Err(EvalError::Outputs { system: name, found: outputs.len(), expected });
        }
        let mut scored = Vec::new();
        for score in scores {
            let columns = score.score(&self.examples, &outputs);
            for values in columns.map_err(|source| EvalError::Score { system: name.clone(), source })? {
                scored.push(self.scored(values)?);
            }
        }
        let place = self.systems.len();
        self.systems.push(System { name, outputs, scores: scored });
        Ok(&self.systems[place])
    }

    /// Compares two systems by a score that both have, such as `rougeL`, on the examples for which both have a value;
    /// see [`compare`](crate::compare).
    ///
    /// # Errors
    /// If one is not there, or does not have the score.
    pub fn compare(&self, first: &str, second: &str, score: &str) -> Result<Difference, EvalError> {
        let scored = |name: &str| -> Result<&Scored, EvalError> {
            let system = self.systems.iter().find(|system| system.name == name);
            system.and_then(|system| system.score(score)).ok_or_else(|| EvalError::UnknownScore {
                system: name.to_owned(),
                score: score.to_owned(),
                known: self.systems.iter().map(System::scores_listed).collect::<Vec<_>>().join("; "),
            })
        };
        let (of_first, of_second) = (scored(first)?, scored(second)?);
        let both =
            of_first.values.iter().zip(&of_second.values).filter_map(|(first, second)| Some(((*first)?, (*second)?)));
        let (values, others): (Vec<f64>, Vec<f64>) = both.unzip();
        Ok(Difference {
            first: first.to_owned(),
            second: second.to_owned(),
            score: score.to_owned(),
            is_share: of_first.mean.is_share,
            comparison: compare(&values, &others, &self.bootstrap)?,
        })
    }

    /// What was measured of any system, in the order it first came.
    pub(crate) fn score_names(&self) -> Vec<&str> {
        names_of(self.systems.iter().flat_map(|system| &system.scores).map(|scored| &scored.mean))
    }

    fn scored(&self, Values { name, is_share, values }: Values) -> Result<Scored, EvalError> {
        let expected = self.examples.len();
        if values.len() != expected {
            return Err(EvalError::Values { score: name, found: values.len(), expected });
        }
        let is_wrong = |(_, value): &(&Example, f64)| !value.is_finite();
        let told = self.examples.iter().zip(&values).filter_map(|(example, value)| Some((example, (*value)?)));
        if let Some((example, value)) = told.clone().find(is_wrong) {
            return Err(EvalError::NotFinite { score: name, id: example.id.clone(), value });
        }
        let told: Vec<f64> = told.map(|(_, value)| value).collect();
        Ok(Scored { mean: Mean { name, is_share, interval: bootstrap(&told, &self.bootstrap)? }, values })
    }
}

impl System {
    /// What it is called and has.
    fn scores_listed(&self) -> String {
        let scores: Vec<&str> = self.scores.iter().map(|scored| scored.mean.name.as_str()).collect();
        format!("{} with {}", self.name, scores.join(", "))
    }

    /// The measure of this name, such as `rougeL`.
    pub fn score(&self, name: &str) -> Option<&Scored> {
        self.scores.iter().find(|scored| scored.mean.name == name)
    }
}

/// The names of means, each once, in the order they first come.
pub(crate) fn names_of<'a>(means: impl Iterator<Item = &'a Mean>) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for Mean { name, .. } in means {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// A number as people read it: a share of 1 in percent.
pub(crate) fn shown(value: f64, is_share: bool) -> f64 {
    if is_share { 100.0 * value } else { value }
}

/// The mean, with two digits behind the point; with `{:#}` its interval as well.
impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Interval { mean, low, high, .. } = self.interval;
        let [mean, low, high] = [mean, low, high].map(|value| shown(value, self.is_share));
        match f.alternate() {
            true => write!(f, "{mean:.2} [{low:.2}, {high:.2}]"),
            false => f.pad(&format!("{mean:.2}")),
        }
    }
}

/// `+13.83 [11.20, 16.41], p 0.001, n 120`: shares of 1 in percent.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { difference, p_value } = self.comparison;
        let [mean, low, high] =
            [difference.mean, difference.low, difference.high].map(|value| shown(value, self.is_share));
        let difference = Interval { mean, low, high, ..difference };
        Comparison { difference, p_value }.fmt(f)
    }
}

/// A row for each system, a column for each measure. A mean that is not of all examples says of how many.
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.score_names();
        let corner = format!("mean [{} %], n {}", 100.0 * self.bootstrap.confidence, self.examples.len());
        let mut rows =
            vec![[corner].into_iter().chain(names.iter().map(|name| (*name).to_owned())).collect::<Vec<_>>()];
        for system in &self.systems {
            let cell = |name: &&str| match system.score(name).map(|scored| &scored.mean) {
                None => "-".to_owned(),
                Some(mean) if mean.interval.n == self.examples.len() => format!("{mean:#}"),
                Some(mean) => format!("{mean:#} (n {})", mean.interval.n),
            };
            rows.push([system.name.clone()].into_iter().chain(names.iter().map(cell)).collect());
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=names.len()).map(width).collect();
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}
