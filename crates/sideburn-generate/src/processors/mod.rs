//! What becomes of scores before a strategy chooses from them.

mod bounds;
mod repetition;
mod sampling;

use crate::{GenerationConfig, Sequence};

pub use bounds::{BeginSuppress, ForcedBos, ForcedEos, LengthDecay, MinNewTokens, NumbersOnly, Suppress};
pub use repetition::{
    BadWords, EncoderNoRepeatNgram, EncoderRepetitionPenalty, NoRepeatNgram, RepetitionPenalty, SequenceBias,
};
pub use sampling::{EpsilonCutoff, EtaCutoff, MinP, Renormalize, Temperature, TopK, TopP, TypicalP};

/// Changes the scores of a step before a strategy chooses from them: `LogitsProcessor` of `transformers`.
///
/// They are read back from the device once a step, `rows * vocabulary` numbers, and rows are processed side by side. A step of
/// [`Greedy`](crate::Greedy) without processors reads a token and its score of each row instead.
pub trait LogitsProcessor: Sync {
    /// Changes the scores of the tokens that may follow `row`: one for each of the vocabulary. They are logits, or where
    /// beams are searched log-probabilities.
    fn process(&self, row: &Sequence, scores: &mut [f32]);
}

/// Processors, one behind the other.
#[derive(Default)]
pub(crate) struct Processors<'a>(Vec<Box<dyn LogitsProcessor + 'a>>);

impl<'a> Processors<'a> {
    /// Those of a configuration, in the order of `GenerationMixin._get_logits_processor` of `transformers`; prompt `i` is
    /// `prompts[i]`.
    pub(crate) fn new(config: &GenerationConfig, prompts: Vec<Vec<u32>>) -> Self {
        let mut all = Self::default();
        if !config.sequence_bias.is_empty() {
            all.push(SequenceBias::new(config.sequence_bias.clone()));
        }
        if config.encoder_repetition_penalty != 1.0 {
            all.push(EncoderRepetitionPenalty::new(config.encoder_repetition_penalty, prompts.clone()));
        }
        if config.repetition_penalty != 1.0 {
            all.push(RepetitionPenalty::new(config.repetition_penalty));
        }
        if config.no_repeat_ngram_size > 0 {
            all.push(NoRepeatNgram::new(config.no_repeat_ngram_size));
        }
        if config.encoder_no_repeat_ngram_size > 0 {
            all.push(EncoderNoRepeatNgram::new(config.encoder_no_repeat_ngram_size, prompts));
        }
        if !config.bad_words_ids.is_empty() {
            all.push(BadWords::new(config.bad_words_ids.clone(), &config.eos_token_id));
        }
        all.push_bounds(config);
        if config.do_sample {
            all.push_sampling(config);
        }
        if config.renormalize_logits {
            all.push(Renormalize);
        }
        all
    }

    fn push_bounds(&mut self, config: &GenerationConfig) {
        if config.min_length > 0 || config.min_new_tokens.is_some_and(|count| count > 0) {
            self.push(MinNewTokens::new(config));
        }
        if let Some(token) = config.forced_bos_token_id {
            self.push(ForcedBos::new(token));
        }
        if !config.forced_eos_token_id.is_empty() {
            self.push(ForcedEos::new(config));
        }
        if config.remove_invalid_values {
            self.push(NumbersOnly);
        }
        if let Some((start, factor)) = config.exponential_decay_length_penalty {
            self.push(LengthDecay::new(start, factor, config.eos_token_id.clone()));
        }
        if !config.suppress_tokens.is_empty() {
            self.push(Suppress::new(config.suppress_tokens.clone()));
        }
        if !config.begin_suppress_tokens.is_empty() {
            self.push(BeginSuppress::new(config));
        }
    }

    fn push_sampling(&mut self, config: &GenerationConfig) {
        // Beams need tokens that go on beside those that end them.
        let keep = if config.num_beams > 1 { config.eos_token_id.len() + 1 } else { 1 };
        let keep = if config.num_beams > 1 { keep.max(2) } else { keep };
        if config.temperature != 1.0 {
            self.push(Temperature::new(config.temperature));
        }
        if config.top_k > 0 {
            self.push(TopK::new(config.top_k.max(keep)));
        }
        if config.top_p < 1.0 {
            self.push(TopP::new(config.top_p, keep));
        }
        if let Some(share) = config.min_p {
            self.push(MinP::new(share, keep));
        }
        if config.typical_p < 1.0 {
            self.push(TypicalP::new(config.typical_p, keep));
        }
        if config.epsilon_cutoff > 0.0 && config.epsilon_cutoff < 1.0 {
            self.push(EpsilonCutoff::new(config.epsilon_cutoff, keep));
        }
        if config.eta_cutoff > 0.0 && config.eta_cutoff < 1.0 {
            self.push(EtaCutoff::new(config.eta_cutoff, keep));
        }
    }

    pub(crate) fn push(&mut self, processor: impl LogitsProcessor + 'a) {
        self.0.push(Box::new(processor));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl LogitsProcessor for Processors<'_> {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        self.0.iter().for_each(|processor| processor.process(row, scores));
    }
}

/// Makes a token impossible, if there is such a token.
fn ban(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = f32::NEG_INFINITY;
    }
}

/// Makes every token impossible but these, of which each has the score 0.
fn force(scores: &mut [f32], tokens: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    for token in tokens {
        if let Some(score) = scores.get_mut(*token as usize) {
            *score = 0.0;
        }
    }
}
