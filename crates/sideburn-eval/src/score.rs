//! What an output is worth.

use sideburn_data::Example;
use sideburn_rouge::{Metric, RougeScorer};

use crate::error::ScoreError;

/// A measure of outputs: ROUGE, or whatever else gives numbers.
///
/// It is shown all outputs at once, so that a model that judges can be asked for several at a time. What the numbers
/// mean is the score's own matter; an [`Evaluation`](crate::Evaluation) averages them and gives intervals.
///
/// [`RougeScorer`] is one: for each of its metrics the F-measure, between 0 and 1, of the output against all targets of
/// its example, the best of them counting. Another is a few lines:
///
/// ```
/// use sideburn_data::Example;
/// use sideburn_eval::{Score, ScoreError, Values};
///
/// /// How many words an output has.
/// struct Words;
///
/// impl Score for Words {
///     fn score(&self, _: &[Example], outputs: &[String]) -> Result<Vec<Values>, ScoreError> {
///         let words = outputs.iter().map(|output| Some(output.split_whitespace().count() as f64)).collect();
///         Ok(vec![Values { name: "words".into(), is_share: false, values: words }])
///     }
/// }
/// ```
pub trait Score {
    /// What it measures of outputs, of which `outputs[i]` answers `examples[i]`.
    ///
    /// # Errors
    /// If it cannot tell.
    fn score(&self, examples: &[Example], outputs: &[String]) -> Result<Vec<Values>, ScoreError>;
}

/// One number for each output.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// What was measured, such as `rougeL`.
    pub name: String,
    /// Whether the values are shares of 1, which people read in percent.
    pub is_share: bool,
    /// The numbers, in the order of the outputs; `None` where it cannot be told what an output is worth.
    pub values: Vec<Option<f64>>,
}

impl Score for RougeScorer {
    fn score(&self, examples: &[Example], outputs: &[String]) -> Result<Vec<Values>, ScoreError> {
        let references: Vec<&[String]> = examples.iter().map(|example| example.targets.as_slice()).collect();
        let scores = self.score_corpus(&references, outputs)?;
        let values = |metric: &Metric| Values {
            name: metric.name().to_owned(),
            is_share: true,
            values: scores.iter().map(|scores| Some(scores[*metric].fmeasure)).collect(),
        };
        Ok(self.metrics().iter().map(values).collect())
    }
}
