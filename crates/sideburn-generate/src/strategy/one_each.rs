//! One token for each row, and no search.

use burn::tensor::{DType, FloatDType, Tensor};
use sideburn_batch::Key;
use sideburn_kernels::is_cpu;

use super::{Decision, Rules, Strategy, last_tokens, no_token};
use crate::scores::{Scores, best, draw, log_sum_exp, softmax};
use crate::{Decoder, GenerateError, Sequence};

/// Always the most likely token, the first of equals.
#[derive(Clone, Copy, Debug, Default)]
pub struct Greedy;

/// A token and, if asked for, its log-probability.
pub(super) type Chosen = (u32, Option<f32>);

/// How a token is chosen from the scores of what may follow a row.
pub(super) trait Choose: Sync {
    fn choose(&self, row: &Sequence, scores: &[f32]) -> Option<u32>;
}

/// Chooses a token for each row.
pub(super) fn choose_each<E>(
    choose: &dyn Choose,
    logits: Tensor<2>,
    rows: &[Sequence],
    rules: &Rules<'_>,
) -> Result<Vec<Chosen>, GenerateError<E>> {
    let keeps_log_probs = rules.keeps_log_probs;
    let chosen = rules.each(logits, rows, |index, scores| {
        let token = choose.choose(&rows[index], scores)?;
        let log_prob = || Some(scores[token as usize] - log_sum_exp(scores)?);
        Some((token, keeps_log_probs.then(log_prob).flatten()))
    })?;
    chosen.into_iter().zip(rows).map(|(chosen, row)| chosen.ok_or_else(|| no_token(row))).collect()
}

impl Choose for Greedy {
    fn choose(&self, _: &Sequence, scores: &[f32]) -> Option<u32> {
        best(scores)
    }
}

impl<D: Decoder> Strategy<D> for Greedy {
    fn step(
        &mut self,
        decoder: &mut D,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>> {
        let logits = decoder.next_logits(&last_tokens(&rows)).map_err(GenerateError::Decoder)?;
        let chosen = if rules.processors.is_empty() && !rules.keeps_log_probs {
            most_likely(logits, &rows)?
        } else {
            choose_each(self, logits, &rows, rules)?
        };
        Ok(Decision::one_token_each(rows, &chosen, rules))
    }
}

/// The most likely token of each row, which a GPU finds itself, so that nothing else is read back.
fn most_likely<E>(logits: Tensor<2>, rows: &[Sequence]) -> Result<Vec<Chosen>, GenerateError<E>> {
    let chosen: Vec<Option<u32>> = if is_cpu(&logits.device()) {
        Scores::read(logits).map(0..rows.len(), |_, scores| best(scores))
    } else {
        let (scores, tokens) = logits.max_dim_with_indices(1);
        // One read of both: numbers of tokens are exact in `f32`.
        let both = Tensor::cat(vec![scores.cast(DType::F32), tokens.cast(FloatDType::F32)], 1).into_data();
        let both: Vec<f32> = both.iter().collect();
        both.chunks_exact(2).map(|row| (row[0] > f32::NEG_INFINITY).then_some(row[1] as u32)).collect()
    };
    chosen.into_iter().zip(rows).map(|(token, row)| Ok((token.ok_or_else(|| no_token(row))?, None))).collect()
}

/// Draws each token with its probability: multinomial sampling.
///
/// What is drawn follows from the seed, the numbers of the prompt and of its copy, and the place of the token, and from
/// nothing else: not from the other rows of the batch. With the same scores the same is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    key: Key,
    copies: usize,
}

impl Sampling {
    /// Draws with this seed, `copies` answers for each prompt.
    pub fn new(seed: u64, copies: usize) -> Self {
        Self { key: Key::from_seed(seed).fold_in_name("sampling"), copies }
    }
}

impl Choose for Sampling {
    fn choose(&self, row: &Sequence, scores: &[f32]) -> Option<u32> {
        let key = self.key.fold_in(row.number()).fold_in(row.copy() as u64).fold_in(row.written().len() as u64);
        draw(&mut softmax(scores), key.uniform(0)).map(|token| token as u32)
    }
}

impl<D: Decoder> Strategy<D> for Sampling {
    fn rows_of_prompt(&self) -> usize {
        self.copies
    }

    fn step(
        &mut self,
        decoder: &mut D,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>> {
        let logits = decoder.next_logits(&last_tokens(&rows)).map_err(GenerateError::Decoder)?;
        let chosen = choose_each(self, logits, &rows, rules)?;
        Ok(Decision::one_token_each(rows, &chosen, rules))
    }
}
