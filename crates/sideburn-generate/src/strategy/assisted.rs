//! Assisted generation.

use std::collections::VecDeque;

use burn::tensor::Tensor;

use super::one_each::{Choose, Chosen, Greedy, Sampling, choose_each};
use super::{Decision, Rules, Strategy};
use crate::{Decoder, GenerateError, GenerationConfig, Sequence};

/// Assisted generation (Leviathan et al., 2023; `GenerationMixin._assisted_decoding` of `transformers`): a smaller model, the
/// draft, writes a few tokens ahead, and the model reads them all at once. Those that it would have written itself stay.
///
/// What is written is what the model alone writes, drawn tokens too, since a draw follows from its place and not from how
/// often something was drawn before.
pub struct Assisted<D> {
    draft: D,
    choose: Box<dyn Choose + Send>,
    count: usize,
    /// The longest row may not be overrun.
    config: GenerationConfig,
    /// How many tokens of the row the draft has read.
    read: Option<usize>,
    /// Tokens that are chosen, and not given yet.
    ahead: VecDeque<Chosen>,
}

impl<D: Decoder> Assisted<D> {
    /// Chooses as the configuration asks for, greedily or by draws, with this draft.
    pub fn new(draft: D, config: &GenerationConfig) -> Self {
        let choose: Box<dyn Choose + Send> = match config.do_sample {
            true => Box::new(Sampling::new(config.seed, 1)),
            false => Box::new(Greedy),
        };
        let (count, config) = (config.num_assistant_tokens, config.clone());
        Self { draft, choose, count, config, read: None, ahead: VecDeque::new() }
    }

    /// The tokens that the draft writes behind `row`.
    fn write_ahead(&mut self, row: &Sequence, rules: &Rules<'_>) -> Result<Vec<u32>, GenerateError<D::Error>> {
        // The last token that is allowed is the model's own.
        let room = self.config.limit(row.history()).saturating_sub(row.written().len() + 1);
        let (mut row, mut written) = (row.clone(), Vec::new());
        let mut read = self.read.unwrap_or(row.history() - 1);
        while written.len() < self.count.min(room) {
            let logits = self.draft.next_logits(&row.tokens()[read..]).map_err(GenerateError::Decoder)?;
            read = row.tokens().len();
            let [tokens, vocabulary] = logits.dims();
            let last: Tensor<2> = logits.slice([tokens - 1..tokens, 0..vocabulary]);
            let (token, _) = choose_each(&*self.choose, last, std::slice::from_ref(&row), rules)?[0];
            written.push(token);
            row.push(token, None);
            if rules.ends(&row) {
                break;
            }
        }
        self.read = Some(read);
        Ok(written)
    }
}

impl<D: Decoder, Draft: Decoder<Error = D::Error>> Strategy<D> for Assisted<Draft> {
    fn step(
        &mut self,
        decoder: &mut D,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>> {
        let [row] = &rows[..] else {
            return Err(GenerateError::SeveralRows { rows: rows.len(), draft_rows: self.draft.rows() });
        };
        if self.ahead.is_empty() {
            let guessed = self.write_ahead(row, rules)?;
            // The row as it would be with more and more of what is guessed.
            let mut rows = vec![row.clone()];
            for token in &guessed {
                let mut row = rows[rows.len() - 1].clone();
                row.push(*token, None);
                rows.push(row);
            }
            let tokens: Vec<u32> = rows.iter().map(Sequence::last).collect();
            let logits = decoder.next_logits(&tokens).map_err(GenerateError::Decoder)?;
            let chosen = choose_each(&*self.choose, logits, &rows, rules)?;
            let right = chosen.iter().zip(&guessed).take_while(|((token, _), guess)| token == *guess).count();
            self.ahead.extend(&chosen[..=right]);
            decoder.forget(guessed.len() - right);
            // The draft has read all but the last of its tokens.
            let known = row.tokens().len() + right;
            if let Some(read) = &mut self.read {
                self.draft.forget(read.saturating_sub(known));
                *read = known.min(*read);
            }
        }
        let chosen = self.ahead.pop_front().expect("a token at least is chosen");
        Ok(Decision::one_token_each(rows, &[chosen], rules))
    }
}
