//! Processors that go by the place in the row.

use super::{LogitsProcessor, ban, force};
use crate::{GenerationConfig, Sequence};

/// Keeps rows from ending early: `MinLengthLogitsProcessor` and `MinNewTokensLengthLogitsProcessor`.
#[derive(Clone, Debug)]
pub struct MinNewTokens {
    count: usize,
    length: usize,
    eos_token_id: Vec<u32>,
}

impl MinNewTokens {
    /// What `min_new_tokens` and `min_length` ask for.
    pub fn new(config: &GenerationConfig) -> Self {
        let count = config.min_new_tokens.unwrap_or_default();
        Self { count, length: config.min_length, eos_token_id: config.eos_token_id.clone() }
    }
}

impl LogitsProcessor for MinNewTokens {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        if row.written().len() < self.count || row.tokens().len() < self.length {
            self.eos_token_id.iter().for_each(|token| ban(scores, *token));
        }
    }
}

/// Has a row that holds one token go on with a certain one: `ForcedBOSTokenLogitsProcessor`.
#[derive(Clone, Copy, Debug)]
pub struct ForcedBos {
    token: u32,
}

impl ForcedBos {
    /// This token.
    pub const fn new(token: u32) -> Self {
        Self { token }
    }
}

impl LogitsProcessor for ForcedBos {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        if row.tokens().len() == 1 {
            force(scores, &[self.token]);
        }
    }
}

/// Has a row end with certain tokens when it is as long as allowed: `ForcedEOSTokenLogitsProcessor`.
#[derive(Clone, Debug)]
pub struct ForcedEos {
    config: GenerationConfig,
}

impl ForcedEos {
    /// What `forced_eos_token_id` and the longest row ask for.
    pub fn new(config: &GenerationConfig) -> Self {
        Self { config: config.clone() }
    }
}

impl LogitsProcessor for ForcedEos {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        if row.written().len() + 1 == self.config.limit(row.history()) {
            force(scores, &self.config.forced_eos_token_id);
        }
    }
}

/// Makes numbers of scores that are none: `InfNanRemoveLogitsProcessor`. NaN becomes 0, an infinity the largest number.
#[derive(Clone, Copy, Debug)]
pub struct NumbersOnly;

impl LogitsProcessor for NumbersOnly {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        for score in scores {
            *score = if score.is_nan() { 0.0 } else { score.clamp(f32::MIN, f32::MAX) };
        }
    }
}

/// Makes the end likelier with each token behind some: `ExponentialDecayLengthPenalty`. With 10 and 1.5, token 12 adds
/// `|score| * (1.5^2 - 1)` to the end's score.
#[derive(Clone, Debug)]
pub struct LengthDecay {
    start: usize,
    factor: f64,
    eos_token_id: Vec<u32>,
}

impl LengthDecay {
    /// Behind `start` written tokens, by this factor.
    pub fn new(start: usize, factor: f64, eos_token_id: Vec<u32>) -> Self {
        Self { start, factor, eos_token_id }
    }
}

impl LogitsProcessor for LengthDecay {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        let Some(behind) = row.written().len().checked_sub(self.start).filter(|behind| *behind > 0) else { return };
        let grown = (self.factor.powi(behind as i32) - 1.0) as f32;
        for token in &self.eos_token_id {
            // An end that is banned stays so; in `transformers` its score is no number then.
            if let Some(score) = scores.get_mut(*token as usize).filter(|score| score.is_finite()) {
                *score += score.abs() * grown;
            }
        }
    }
}

/// Makes tokens impossible: `SuppressTokensLogitsProcessor`.
#[derive(Clone, Debug)]
pub struct Suppress {
    tokens: Vec<u32>,
}

impl Suppress {
    /// These tokens.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self { tokens }
    }
}

impl LogitsProcessor for Suppress {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        self.tokens.iter().for_each(|token| ban(scores, *token));
    }
}

/// Makes tokens impossible at the beginning: `SuppressTokensAtBeginLogitsProcessor`.
#[derive(Clone, Debug)]
pub struct BeginSuppress {
    tokens: Vec<u32>,
    behind_bos: bool,
}

impl BeginSuppress {
    /// What `begin_suppress_tokens` asks for: the first place, or behind a `forced_bos_token_id` the second.
    pub fn new(config: &GenerationConfig) -> Self {
        Self { tokens: config.begin_suppress_tokens.clone(), behind_bos: config.forced_bos_token_id.is_some() }
    }
}

impl LogitsProcessor for BeginSuppress {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        let first = usize::from(self.behind_bos && row.history() == 1);
        if row.written().len() == first {
            self.tokens.iter().for_each(|token| ban(scores, *token));
        }
    }
}
