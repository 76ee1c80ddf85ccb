//! Which tokens are written.

mod assisted;
mod beam_groups;
mod beams;
mod contrastive;
mod one_each;

use burn::tensor::Tensor;

use crate::processors::{LogitsProcessor, Processors};
use crate::scores::{Scores, best_few, best_few_log_probs, largest, log_softmax};
use crate::{Decoder, GenerateError, Sequence, Stopping, StoppingCriterion};

pub use assisted::Assisted;
pub use beam_groups::BeamGroups;
pub use beams::Beams;
pub use contrastive::Contrastive;
pub use one_each::{Greedy, Sampling};

/// Decides what is written: which rows go on, with which tokens, and which have come to their end.
pub trait Strategy<D: Decoder> {
    /// How many rows each prompt has at the beginning.
    fn rows_of_prompt(&self) -> usize {
        1
    }

    /// Writes one more token behind each of `rows`, which are those of the decoder. Every row goes on, is given up, or has
    /// ended, which [`Rules::ends`] says of a row with its new token. A row may go on several times, as beams do. The rows of
    /// the decoder stay in their places: afterwards it is told which go on.
    ///
    /// # Errors
    /// Those of the decoder, and if no token can follow.
    fn step(
        &mut self,
        decoder: &mut D,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>>;
}

/// What holds for every step: what is done to scores, and what ends a row.
pub struct Rules<'a> {
    pub(crate) processors: Processors<'a>,
    pub(crate) stopping: Stopping<'a>,
    /// Whether log-probabilities of tokens are asked for.
    pub(crate) keeps_log_probs: bool,
}

/// What a step has decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The rows that are written from now on.
    pub going_on: Vec<Next>,
    /// The tokens that are for good in the first answer to a prompt, `(prompt, token)`: what can be shown already.
    pub tokens: Vec<(usize, u32)>,
    /// The answers that are complete.
    pub ended: Vec<Answer>,
}

/// A row that goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// Which row it goes on from.
    pub from: usize,
    /// The row with its new token.
    pub row: Sequence,
}

/// What is written behind a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Which prompt, from 0.
    pub prompt: usize,
    /// Which of the answers to it, from 0: the best of a search is the first.
    pub rank: usize,
    /// The tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// The score of a search with beams: the sum of the tokens' log-probabilities over a power of their number, the length
    /// penalty (`sequences_scores` of `transformers`).
    pub score: Option<f32>,
    /// The log-probability of each token, after what processors have done to it, if `output_scores` asks for them:
    /// `compute_transition_scores` of `transformers`, with `normalize_logits` where there are no beams.
    pub log_probs: Vec<f32>,
}

impl Rules<'_> {
    /// Whether `row` ends with the token that was written last.
    pub fn ends(&self, row: &Sequence) -> bool {
        self.stopping.ends(row)
    }

    /// What `each(row, scores)` makes of the processed scores of every row, in their order. `logits [rows, vocabulary]` are
    /// what may follow `rows`.
    ///
    /// # Errors
    /// If no token can follow a row.
    pub fn each<R: Send, E>(
        &self,
        logits: Tensor<2>,
        rows: &[Sequence],
        each: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Result<Vec<R>, GenerateError<E>> {
        self.each_of(logits, rows, false, each)
    }

    /// The same with log-probabilities, which processors are given as a search with beams gives them.
    ///
    /// # Errors
    /// As there.
    pub fn each_log_probs<R: Send, E>(
        &self,
        logits: Tensor<2>,
        rows: &[Sequence],
        each: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Result<Vec<R>, GenerateError<E>> {
        self.each_of(logits, rows, true, each)
    }

    /// The `count` likeliest tokens that may follow each row with their log-probabilities, the likeliest first; as few as are
    /// possible. Processors are given log-probabilities; without them none but these are worked out.
    pub(super) fn best_log_probs<E>(
        &self,
        logits: Tensor<2>,
        rows: &[Sequence],
        count: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>, GenerateError<E>> {
        if !self.processors.is_empty() {
            return self.each_log_probs(logits, rows, |_, scores| best_few(scores, count.min(scores.len())));
        }
        let best = |_, scores: &mut [f32]| best_few_log_probs(scores, count.min(scores.len()));
        let best = Scores::read(logits).map(0..rows.len(), best).into_iter().zip(rows);
        best.map(|(best, row)| if best.is_empty() { Err(no_token(row)) } else { Ok(best) }).collect()
    }

    fn each_of<R: Send, E>(
        &self,
        logits: Tensor<2>,
        rows: &[Sequence],
        normalised: bool,
        each: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Result<Vec<R>, GenerateError<E>> {
        let processors = &self.processors;
        let made = Scores::read(logits).map(0..rows.len(), |index, scores| {
            if normalised {
                log_softmax(scores);
            }
            processors.process(&rows[index], scores);
            largest(scores).is_some().then(|| each(index, scores))
        });
        made.into_iter().zip(rows).map(|(made, row)| made.ok_or_else(|| no_token(row))).collect()
    }
}

/// That nothing can follow this row.
fn no_token<E>(row: &Sequence) -> GenerateError<E> {
    GenerateError::NoToken { prompt: row.prompt(), written: row.written().len() }
}

/// The last tokens of rows, which a decoder has not read yet.
fn last_tokens(rows: &[Sequence]) -> Vec<u32> {
    rows.iter().map(Sequence::last).collect()
}

impl Decision {
    /// That every row is given one token, with its log-probability if those are kept, and goes on unless it has ended.
    pub fn one_token_each(rows: Vec<Sequence>, tokens: &[(u32, Option<f32>)], rules: &Rules<'_>) -> Self {
        let mut decision = Self::default();
        for (from, (mut row, (token, log_prob))) in rows.into_iter().zip(tokens).enumerate() {
            row.push(*token, *log_prob);
            if row.copy() == 0 {
                decision.tokens.push((row.prompt(), *token));
            }
            if rules.ends(&row) {
                let copy = row.copy();
                decision.ended.push(row.into_answer(copy, None));
            } else {
                decision.going_on.push(Next { from, row });
            }
        }
        decision
    }
}
