//! What can go wrong.

use sideburn_files::{FileError, printable};

/// Why nothing, or not everything, was judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A setting is out of range.
    #[error("{field} is {found}; {remedy}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What was given.
        found: String,
        /// What is allowed.
        remedy: &'static str,
    },
    /// A variable of the environment is missing, or of no use.
    #[error("the environment variable {variable} {reason}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it, and what should stand there. Its value is not repeated.
        reason: String,
    },
    /// No question will be answered: the address, the key or the model is wrong.
    #[error("{reason}; {remedy}")]
    Refused {
        /// What was asked, and what came of it.
        reason: String,
        /// What to look at.
        remedy: &'static str,
    },
    /// This question is not answered.
    #[error("{reason}")]
    Unanswered {
        /// What came instead of an answer.
        reason: String,
    },
    /// What was answered is none; to ask again may help.
    #[error("{reason}")]
    Invalid {
        /// What came instead of an answer.
        reason: String,
    },
    /// So many questions in a row were not answered that the rest were not asked. What was answered is in the cache.
    #[error(
        "{failures} questions in a row were not answered, and no more were asked; the last: {last}. Answers so far are kept: \
         run it again to go on"
    )]
    GaveUp {
        /// How many.
        failures: usize,
        /// What came instead of the last.
        last: String,
    },
    /// Whoever was shown the progress asked for an end. What was answered is in the cache.
    #[error("stopped after {done} of {total} questions; answers so far are kept: run it again to go on")]
    Stopped {
        /// Questions that have an answer.
        done: usize,
        /// All questions.
        total: usize,
    },
    /// A line of ratings is none.
    #[error("{path}, line {line}: {reason}", path = printable(path), reason = printable(reason))]
    Rating {
        /// The file.
        path: std::path::PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Two ratings have nothing in common, or do not say which of the other's they belong to.
    #[error("the ratings cannot be compared: {reason}", reason = printable(reason))]
    Unrelated {
        /// Why.
        reason: String,
    },
}
