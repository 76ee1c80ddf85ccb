//! A row that is being written.

/// A row that is being written: what stood there before, and the tokens written so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    prompt: usize,
    tokens: Vec<u32>,
    history: usize,
}

impl Sequence {
    /// A row behind this history, in which nothing is written yet.
    ///
    /// # Panics
    /// If the history is empty.
    pub fn new(prompt: usize, history: &[u32]) -> Self {
        assert!(!history.is_empty(), "a row goes on from one token at least");
        Self { prompt, tokens: history.to_vec(), history: history.len() }
    }

    /// Which of the prompts it answers, from 0.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// All its tokens: the history of [`Decoder::history`](crate::Decoder::history), then what is written.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What is written.
    pub fn written(&self) -> &[u32] {
        &self.tokens[self.history..]
    }

    /// Its last token.
    pub fn last(&self) -> u32 {
        self.tokens[self.tokens.len() - 1]
    }

    /// The same row with one more token.
    pub fn with(&self, token: u32) -> Self {
        let mut tokens = Vec::with_capacity(self.tokens.len() + 1);
        tokens.extend_from_slice(&self.tokens);
        tokens.push(token);
        Self { tokens, ..*self }
    }
}
