//! What may be written, and when a row ends.

use crate::processors::{LogitsProcessor, NoRepeatNgram};
use crate::stopping::{EosToken, MaxNewTokens, Stopping};

/// What may be written, and when a row ends; the fields are named as in `transformers.GenerationConfig`.
///
/// ```
/// use sideburn_generate::GenerationConfig;
///
/// let config = GenerationConfig { eos_token_id: vec![1], no_repeat_ngram_size: 3, ..GenerationConfig::new(64) };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationConfig {
    /// The longest row, its end-of-sequence token included.
    pub max_new_tokens: usize,
    /// What ends a row: any of these tokens. Without one, all rows are as long as allowed.
    pub eos_token_id: Vec<u32>,
    /// No row may hold the same sequence of this many tokens twice, its history counted in; 0 allows it.
    pub no_repeat_ngram_size: usize,
}

impl GenerationConfig {
    /// Rows of at most so many tokens, which nothing ends earlier.
    pub const fn new(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, eos_token_id: Vec::new(), no_repeat_ngram_size: 0 }
    }

    /// What it does to the logits of each step.
    pub(crate) fn processors<'a>(&self) -> Vec<Box<dyn LogitsProcessor + 'a>> {
        match self.no_repeat_ngram_size {
            0 => Vec::new(),
            size => vec![Box::new(NoRepeatNgram::new(size))],
        }
    }

    /// What ends a row.
    pub(crate) fn stopping<'a>(&self) -> Stopping<'a> {
        let ends = EosToken::new(self.eos_token_id.iter().copied());
        Stopping::default().with(MaxNewTokens::new(self.max_new_tokens)).with(ends)
    }
}
