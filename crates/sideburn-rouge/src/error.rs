//! What can go wrong.

use crate::metric::Metric;

/// An error of this crate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RougeError {
    /// A prediction came without any reference.
    #[error("sample {sample} (counted from 0) has no reference; give every prediction at least one")]
    NoReferences {
        /// Place of the sample in the corpus; 0 where a single prediction was scored.
        sample: usize,
    },
    /// The two lists of a corpus differ in length.
    #[error("{references} samples of references for {predictions} predictions; the two lists must be of one length")]
    LengthMismatch {
        /// Length of the list of references.
        references: usize,
        /// Length of the list of predictions.
        predictions: usize,
    },
    /// An average over nothing was asked for.
    #[error("there are no scores to average; score at least one sample first")]
    NoScores,
    /// Scores of different sets of metrics were to be averaged together.
    #[error(
        "sample {sample} (counted from 0) was scored with {found:?}, sample 0 with {expected:?}; \
         average only what one scorer made"
    )]
    MixedMetrics {
        /// Place of the first sample that differs.
        sample: usize,
        /// The metrics of sample 0.
        expected: Vec<Metric>,
        /// The metrics of the sample that differs.
        found: Vec<Metric>,
    },
    /// The number of bootstrap samples is out of range.
    #[error("{found} bootstrap samples were asked for; choose from 1 to {max} (1000 is usual)")]
    BootstrapSamples {
        /// What was asked for.
        found: usize,
        /// The largest number allowed.
        max: usize,
    },
    /// The confidence is not between 0 and 1.
    #[error("a confidence of {found} was asked for; choose from 0 to 1, such as 0.95")]
    Confidence {
        /// What was asked for.
        found: f64,
    },
    /// No metric has this name.
    #[error("unknown metric {name:?}; expected rouge1 to rouge9, rougeL or rougeLsum")]
    UnknownMetric {
        /// The name as given.
        name: String,
    },
}
