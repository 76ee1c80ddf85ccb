//! Which tokens are written.

use burn::tensor::Tensor;

use crate::{Sequence, Stopping, StoppingCriterion};

/// Decides what is written: which rows go on, with which tokens, and which have come to their end.
pub trait Strategy {
    /// Decides over the rows being written, of which `logits [rows, vocabulary]` says what may follow. Every row goes on,
    /// is given up, or has ended, which `stopping` says of a row with its new token. A row may go on several times, as
    /// beams do.
    fn step(&mut self, logits: Tensor<2>, rows: &[Sequence], stopping: &Stopping<'_>) -> Decision;
}

/// What a step has decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The rows that are written from now on.
    pub going_on: Vec<Next>,
    /// The tokens that are in the answer to a prompt for good, `(prompt, token)`: what can be shown already.
    pub tokens: Vec<(usize, u32)>,
    /// The answers that are complete.
    pub ended: Vec<Answer>,
}

/// A row that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Which row it goes on from.
    pub row: usize,
    /// With which token.
    pub token: u32,
}

/// What is written behind a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which prompt, from 0.
    pub prompt: usize,
    /// The tokens, the one that ended it included.
    pub tokens: Vec<u32>,
}

impl Decision {
    /// That every row is given one token, `tokens[row]`, and goes on unless it has ended.
    pub fn one_token_each(tokens: &[u32], rows: &[Sequence], stopping: &Stopping<'_>) -> Self {
        let mut decision = Self::default();
        for (row, (sequence, &token)) in rows.iter().zip(tokens).enumerate() {
            decision.tokens.push((sequence.prompt(), token));
            let written = sequence.with(token);
            if stopping.ends(&written) {
                decision.ended.push(Answer { prompt: written.prompt(), tokens: written.written().to_vec() });
            } else {
                decision.going_on.push(Next { row, token });
            }
        }
        decision
    }
}

/// Always the most likely token, the first of equals.
#[derive(Clone, Copy, Debug, Default)]
pub struct Greedy;

impl Strategy for Greedy {
    fn step(&mut self, logits: Tensor<2>, rows: &[Sequence], stopping: &Stopping<'_>) -> Decision {
        let best: Vec<u32> = logits.argmax(1).into_data().iter::<i64>().map(|token| token as u32).collect();
        Decision::one_token_each(&best, rows, stopping)
    }
}
