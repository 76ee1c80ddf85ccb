//! Who is asked.

use crate::{error::JudgeError, question::Question};

/// A model that answers a question: a server (`Endpoint`, with the feature `net`), or whatever else gives text.
///
/// Several threads ask at once. What comes of it need not be good: a [`Judge`](crate::Judge) checks each answer.
pub trait Chat: Sync {
    /// What the model is called, for the results.
    fn model(&self) -> &str;

    /// All that an answer depends on beside the question, such as the address, the model and the temperature. Answers are
    /// kept under it, and found again only under the same.
    fn identity(&self) -> String;

    /// What the model writes.
    ///
    /// # Errors
    /// [`JudgeError::Invalid`] to be asked again, [`JudgeError::Unanswered`] if this question has no answer, and others may
    /// have one. Any other error ends a run.
    fn ask(&self, question: &Question) -> Result<Answer, JudgeError>;
}

impl<C: Chat + ?Sized> Chat for &C {
    fn model(&self) -> &str {
        (**self).model()
    }

    fn identity(&self) -> String {
        (**self).identity()
    }

    fn ask(&self, question: &Question) -> Result<Answer, JudgeError> {
        (**self).ask(question)
    }
}

/// What a model wrote, and what that took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Tokens that were read, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens that were written.
    pub completion_tokens: u64,
}
