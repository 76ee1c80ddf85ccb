//! What can go wrong.

/// Why a [`Score`](crate::Score) could not score.
pub type ScoreError = Box<dyn std::error::Error + Send + Sync>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A system is there already.
    #[error("there is a system called {name:?} already; give this one another name")]
    SameName {
        /// The name.
        name: String,
    },
    /// A system has not written one output for each example.
    #[error("system {system:?} has {found} outputs for {expected} examples; give one for each, in their order")]
    Outputs {
        /// The system.
        system: String,
        /// The outputs it has.
        found: usize,
        /// The examples there are.
        expected: usize,
    },
    /// A score failed.
    #[error("the outputs of {system:?} cannot be scored: {source}")]
    Score {
        /// The system.
        system: String,
        /// What the score said.
        source: ScoreError,
    },
    /// A score has not given one value for each output.
    #[error("score {score:?} has {found} values for {expected} outputs; a score gives one for each, in their order")]
    Values {
        /// The score.
        score: String,
        /// The values it gave.
        found: usize,
        /// The outputs there are.
        expected: usize,
    },
    /// A score has given a value that is no number.
    #[error("score {score:?} of example {id:?} is {value}; a score gives finite numbers only")]
    NotFinite {
        /// The score.
        score: String,
        /// The example.
        id: String,
        /// The value.
        value: f64,
    },
    /// Two systems were not scored on the same examples.
    #[error("there are {first} values of the first system and {second} of the second; score both on the same examples")]
    Unpaired {
        /// The values of the first.
        first: usize,
        /// The values of the second.
        second: usize,
    },
    /// There is no such system, or it does not have such a score.
    #[error("no system called {system:?} has a score {score:?}; there are {known}")]
    UnknownScore {
        /// The system.
        system: String,
        /// The score.
        score: String,
        /// The systems and their scores.
        known: String,
    },
    /// An average over nothing was asked for.
    #[error("there are no values to average; score at least one output first")]
    NoValues,
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
}
