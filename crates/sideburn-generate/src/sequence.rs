//! A row that is being written.

/// A row that is being written: what stood there before, and the tokens written so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    prompt: usize,
    number: u64,
    copy: usize,
    tokens: Vec<u32>,
    history: usize,
    log_probs: Vec<f32>,
}

impl Sequence {
    /// A row behind this history, in which nothing is written yet. Of several rows that answer the same prompt by
    /// themselves, it is the one with the number `copy`.
    ///
    /// # Panics
    /// If the history is empty.
    pub fn new(prompt: usize, copy: usize, history: &[u32]) -> Self {
        assert!(!history.is_empty(), "a row goes on from one token at least");
        Self {
            prompt,
            number: prompt as u64,
            copy,
            tokens: history.to_vec(),
            history: history.len(),
            log_probs: Vec::new(),
        }
    }

    /// Which of the prompts it answers, from 0.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// The number by which draws know the prompt: another one for the same prompt in another batch would draw other tokens.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    /// Which of the rows that answer this prompt by themselves it is, from 0.
    pub fn copy(&self) -> usize {
        self.copy
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

    /// How many tokens stand before the first that is written.
    pub fn history(&self) -> usize {
        self.history
    }

    /// The log-probabilities of the written tokens, if they are kept.
    pub fn log_probs(&self) -> &[f32] {
        &self.log_probs
    }

    /// Appends a token, and its log-probability if those are kept.
    pub fn push(&mut self, token: u32, log_prob: Option<f32>) {
        self.tokens.push(token);
        self.log_probs.extend(log_prob);
    }

    /// What `look` says of the row with one more token.
    pub(crate) fn with<R>(&mut self, token: u32, look: impl FnOnce(&Self) -> R) -> R {
        self.tokens.push(token);
        let seen = look(self);
        self.tokens.pop();
        seen
    }

    /// What is written, as an answer.
    pub(crate) fn into_answer(mut self, rank: usize, score: Option<f32>) -> crate::Answer {
        self.tokens.drain(..self.history);
        crate::Answer { prompt: self.prompt, rank, tokens: self.tokens, score, log_probs: self.log_probs }
    }
}
