//! What can go wrong.

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
    /// A text is longer than [`RougeScorer::MAX_WORDS`](crate::RougeScorer::MAX_WORDS), or for ROUGE-Lsum has more
    /// lines than [`RougeScorer::MAX_LINES`](crate::RougeScorer::MAX_LINES).
    #[error(
        "the {text} of sample {sample} (counted from 0) has more than {limit} {unit}; ROUGE is for summaries: cut it, \
         or score its parts"
    )]
    TooLong {
        /// Place of the sample in the corpus; 0 where a single prediction was scored.
        sample: usize,
        /// Which of its texts: "reference" or "prediction".
        text: &'static str,
        /// The most that a text may have.
        limit: usize,
        /// Of what: "words" or "lines".
        unit: &'static str,
    },
    /// A file of [`Punkt`](crate::Punkt) is none.
    #[error("line {line} of {file} is no entry of NLTK's punkt_tab; fetch it again")]
    Punkt {
        /// The file.
        file: &'static str,
        /// The line, from 1.
        line: usize,
    },
    /// No metric has this name.
    #[error("unknown metric {name:?}; expected rouge1 to rouge9, rougeL or rougeLsum")]
    UnknownMetric {
        /// The name as given.
        name: String,
    },
}
