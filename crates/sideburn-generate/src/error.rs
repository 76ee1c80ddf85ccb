//! What can go wrong.

/// Why a configuration cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A field that has a value which means nothing.
    #[error("`{field}` is {value}, expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it has.
        value: String,
        /// What it may have.
        expected: &'static str,
    },
    /// Fields that contradict each other.
    #[error("{message}")]
    Conflict {
        /// Which, and what to do.
        message: String,
    },
    /// A prompt that fills the row before anything is written.
    #[error(
        "prompt {prompt} has {length} tokens before the first that is written, and `max_length` is {max_length}; raise it, \
         or set `max_new_tokens`"
    )]
    NoRoom {
        /// Which prompt, from 0.
        prompt: usize,
        /// Tokens that stand before.
        length: usize,
        /// The most that a row may hold.
        max_length: usize,
    },
    /// `stop_strings` without a way to turn tokens into text.
    #[error("`stop_strings` are looked for in text; give what turns tokens into text, `Generation::with_text`")]
    NoText,
}

/// Why nothing more can be written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError<E> {
    /// The model has failed.
    #[error(transparent)]
    Decoder(E),
    /// The configuration cannot be followed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A row that no token may follow.
    #[error(
        "no token can follow what is written behind prompt {prompt} ({written} tokens): all scores are -inf or NaN; look \
         for weights that are not numbers, and for tokens that are forced and suppressed at once"
    )]
    NoToken {
        /// Which prompt, from 0.
        prompt: usize,
        /// How many tokens are written behind it.
        written: usize,
    },
    /// Contrastive search with a decoder that does not tell its hidden states.
    #[error("`penalty_alpha` compares hidden states, which this decoder does not tell")]
    NoHiddenStates,
    /// Assisted generation of several rows.
    #[error("assisted generation writes one row at a time; the decoders have {rows} and {draft_rows}")]
    SeveralRows {
        /// Rows of the decoder.
        rows: usize,
        /// Rows of the draft's decoder.
        draft_rows: usize,
    },
}
