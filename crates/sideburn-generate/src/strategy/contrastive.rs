//! Contrastive search.

use burn::tensor::{Int, Tensor, TensorData};

use super::one_each::Chosen;
use super::{Decision, Rules, Strategy, last_tokens};
use crate::scores::{best_few, log_sum_exp};
use crate::{Decoder, GenerateError, GenerationConfig, Sequence};

/// Contrastive search (Su et al., 2022): `GenerationMixin._contrastive_search` of `transformers` 4.52.
///
/// Of the `top_k` likeliest tokens each is tried, and the one is taken whose probability, times `1 - penalty_alpha`, is the
/// most above its likeness to what stands already, times `penalty_alpha`. The likeness is the largest cosine of its hidden
/// state to that of a token of the row.
#[derive(Clone, Debug)]
pub struct Contrastive {
    alpha: f32,
    top_k: usize,
    /// The logits of what may follow each row, whose last token the decoder has read already.
    logits: Option<Tensor<2>>,
    /// The hidden states of the tokens of each row, of length 1 each.
    states: Vec<Vec<Vec<f32>>>,
}

impl Contrastive {
    /// Searches as the configuration asks for.
    pub fn new(config: &GenerationConfig) -> Self {
        let alpha = config.penalty_alpha.unwrap_or_default() as f32;
        Self { alpha, top_k: config.top_k, logits: None, states: Vec::new() }
    }

    /// Which of the candidates of a row is taken.
    fn best(&self, states: &[Vec<f32>], candidates: &[(u32, f32)], of_candidates: &[Vec<f32>]) -> usize {
        let score = |((_, log_prob), state): (&(u32, f32), &Vec<f32>)| {
            let cosine = |other: &Vec<f32>| other.iter().zip(state).map(|(a, b)| a * b).sum::<f32>();
            let likeness = states.iter().map(cosine).fold(f32::MIN, f32::max);
            (1.0 - self.alpha) * log_prob.exp() - self.alpha * likeness
        };
        let scores: Vec<f32> = candidates.iter().zip(of_candidates).map(score).collect();
        (0..scores.len()).rev().max_by(|a, b| scores[*a].total_cmp(&scores[*b])).expect("a row has a candidate")
    }
}

/// The hidden states of the decoder's latest tokens, of length 1 each.
fn states<D: Decoder>(decoder: &D) -> Result<Vec<Vec<f32>>, GenerateError<D::Error>> {
    let hidden = decoder.hidden().ok_or(GenerateError::NoHiddenStates)?;
    let [_, width] = hidden.dims();
    let data = hidden.into_data().convert::<f32>();
    let values = data.as_slice::<f32>().expect("converted to f32");
    let unit = |state: &[f32]| {
        let norm = state.iter().map(|x| x * x).sum::<f32>().sqrt();
        state.iter().map(|x| x / norm).collect()
    };
    Ok(values.chunks(width).map(unit).collect())
}

fn select(logits: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let index: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(index, [rows.len()]), &logits.device());
    logits.select(0, index)
}

impl<D: Decoder> Strategy<D> for Contrastive {
    fn step(
        &mut self,
        decoder: &mut D,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>> {
        let logits = match self.logits.take() {
            Some(logits) => logits,
            None => {
                let logits = decoder.next_logits(&last_tokens(&rows)).map_err(GenerateError::Decoder)?;
                let mut of_histories = states(decoder)?.into_iter();
                self.states = rows.iter().map(|row| of_histories.by_ref().take(row.history()).collect()).collect();
                logits
            }
        };
        let candidates = rules.each(logits, &rows, |_, scores| {
            let normaliser = log_sum_exp(scores).unwrap_or_default();
            let best = best_few(scores, self.top_k);
            best.into_iter().map(|(token, score)| (token, score - normaliser)).collect::<Vec<_>>()
        })?;
        let tried = candidates.iter().enumerate().flat_map(|(row, tokens)| vec![row; tokens.len()]);
        decoder.select_rows(&tried.collect::<Vec<_>>());
        let tokens: Vec<u32> = candidates.iter().flatten().map(|(token, _)| *token).collect();
        let logits = decoder.next_logits(&tokens).map_err(GenerateError::Decoder)?;
        let mut states = states(decoder)?;
        let (mut taken, mut chosen, mut first) = (Vec::new(), Vec::<Chosen>::new(), 0);
        for (row, candidates) in candidates.iter().enumerate() {
            let of_candidates = &mut states[first..first + candidates.len()];
            let best = self.best(&self.states[row], candidates, of_candidates);
            self.states[row].push(std::mem::take(&mut of_candidates[best]));
            taken.push(first + best);
            let (token, log_prob) = candidates[best];
            chosen.push((token, rules.keeps_log_probs.then_some(log_prob)));
            first += candidates.len();
        }
        decoder.select_rows(&taken);
        let decision = Decision::one_token_each(rows, &chosen, rules);
        let left: Vec<usize> = decision.going_on.iter().map(|next| next.from).collect();
        if !left.is_empty() {
            let taken: Vec<usize> = left.iter().map(|row| taken[*row]).collect();
            self.logits = Some(select(logits, &taken));
        }
        self.states = left.into_iter().map(|row| std::mem::take(&mut self.states[row])).collect();
        Ok(decision)
    }
}
