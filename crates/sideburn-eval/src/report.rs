//! All that can be said of an evaluation.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    error::EvalError,
    evaluation::{Difference, Evaluation},
    slices::{Slicing, slicings},
    statistics::{Statistics, statistics},
};

/// An evaluation, and what follows from it: which systems differ, what their texts are like, and where they fail. As
/// text it is a few tables, as JSON it is all of this, and [`to_html`](Self::to_html) is a page.
///
/// ```
/// use sideburn_data::{Example, Fields};
/// use sideburn_eval::{BootstrapConfig, Evaluation, Report};
/// use sideburn_rouge::RougeScorer;
///
/// let fields = Fields::from([("dialogue".to_owned(), "Ann: Tea?\nBob: Please.".to_owned())]);
/// let example = Example { id: "test_0".into(), fields, targets: vec!["Bob wants tea.".into()] };
/// let mut evaluation = Evaluation::new([example], BootstrapConfig::default());
/// evaluation.add("first line", vec!["Ann: Tea?".into()], &[&RougeScorer::all()])?;
/// evaluation.add("a model", vec!["Bob would like tea.".into()], &[&RougeScorer::all()])?;
/// let report = Report::new("Tea", evaluation)?;
/// assert_eq!(report.differences[0].to_string(), "+17.14 [17.14, 17.14], p 1.000, n 1");
/// assert_eq!(report.statistics[2].measures[0].interval.mean, 4.0); // the words of "a model"
/// assert_eq!((report.slicings[1].by.as_str(), report.slicings[1].slices[0].name.as_str()), ("speakers", "2"));
/// assert!(report.to_html().contains("Bob would like tea."));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// What was evaluated, such as `DialogSum, test`.
    pub title: String,
    /// What was found.
    pub evaluation: Evaluation,
    /// For each pair of systems and each score of both, the later system less the earlier one. The p-values are those
    /// of single tests: of twenty true chance differences one is below 0.05.
    pub differences: Vec<Difference>,
    /// What the texts of people and of each system are like.
    pub statistics: Vec<Statistics>,
    /// Scores over parts of the examples.
    pub slicings: Vec<Slicing>,
}

impl Report {
    /// What follows from an evaluation.
    ///
    /// # Errors
    /// [`EvalError::NoValues`] if it has no examples, and those of [`bootstrap`](crate::bootstrap).
    pub fn new(title: impl Into<String>, evaluation: Evaluation) -> Result<Self, EvalError> {
        if evaluation.examples.is_empty() {
            return Err(EvalError::NoValues);
        }
        let mut differences = Vec::new();
        for (place, later) in evaluation.systems.iter().enumerate() {
            for earlier in &evaluation.systems[..place] {
                for name in later.scores.iter().map(|scored| &scored.mean.name) {
                    // Two judges may have given up on different examples, all of them.
                    let both = earlier.score(name).zip(later.score(name)).is_some_and(|(earlier, later)| {
                        earlier.values.iter().zip(&later.values).any(|(first, second)| first.and(*second).is_some())
                    });
                    if both {
                        differences.push(evaluation.compare(&later.name, &earlier.name, name)?);
                    }
                }
            }
        }
        let Evaluation { examples, bootstrap, systems, .. } = &evaluation;
        let mut all = vec![statistics("references", examples, |at| examples[at].targets.as_slice(), bootstrap)?];
        for system in systems {
            let output = |at: usize| std::slice::from_ref(&system.outputs[at]);
            all.push(statistics(&system.name, examples, output, bootstrap)?);
        }
        let slicings = slicings(&evaluation)?;
        Ok(Self { title: title.into(), differences, statistics: all, slicings, evaluation })
    }
}

/// The title, the table of the evaluation, a line for each difference, and the statistics.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n\n{}", self.title, self.evaluation)?;
        if !self.differences.is_empty() {
            writeln!(f)?;
        }
        for difference in &self.differences {
            let Difference { first, second, score, .. } = difference;
            writeln!(f, "{score}, {first} less {second}: {difference}")?;
        }
        writeln!(f)?;
        for Statistics { name, empty, measures } in &self.statistics {
            let measures: Vec<String> = measures
                .iter()
                .map(|mean| format!("{} {mean}{}", mean.name, if mean.is_share { " %" } else { "" }))
                .collect();
            writeln!(f, "{name}: {}, {empty} empty", measures.join(", "))?;
        }
        Ok(())
    }
}
