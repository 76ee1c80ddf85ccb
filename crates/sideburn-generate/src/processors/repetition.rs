//! Processors that look at the tokens that stand already.

use std::collections::{BTreeMap, BTreeSet};

use super::{LogitsProcessor, ban};
use crate::Sequence;

/// Makes the tokens of a row less likely: `RepetitionPenaltyLogitsProcessor` (Keskar et al., 2019). With 1.3, a score of 2.6
/// becomes 2 and a score of -2 becomes -2.6, once for each token, however often it stands there.
#[derive(Clone, Copy, Debug)]
pub struct RepetitionPenalty {
    penalty: f32,
}

impl RepetitionPenalty {
    /// This penalty; above 1 for less repetition.
    pub fn new(penalty: f64) -> Self {
        Self { penalty: penalty as f32 }
    }

    fn apply(self, tokens: impl IntoIterator<Item = u32>, scores: &mut [f32]) {
        for token in tokens.into_iter().collect::<BTreeSet<u32>>() {
            if let Some(score) = scores.get_mut(token as usize) {
                *score = if *score < 0.0 { *score * self.penalty } else { *score / self.penalty };
            }
        }
    }
}

impl LogitsProcessor for RepetitionPenalty {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        self.apply(row.tokens().iter().copied(), scores);
    }
}

/// Makes the tokens of the prompt likelier: `EncoderRepetitionPenaltyLogitsProcessor`, the inverse of [`RepetitionPenalty`].
#[derive(Clone, Debug)]
pub struct EncoderRepetitionPenalty {
    penalty: RepetitionPenalty,
    prompts: Vec<Vec<u32>>,
}

impl EncoderRepetitionPenalty {
    /// This penalty, above 1 for more of what stands in the prompt; prompt `i` is `prompts[i]`.
    pub fn new(penalty: f64, prompts: Vec<Vec<u32>>) -> Self {
        Self { penalty: RepetitionPenalty::new(1.0 / penalty), prompts }
    }
}

impl LogitsProcessor for EncoderRepetitionPenalty {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        self.penalty.apply(self.prompts[row.prompt()].iter().copied(), scores);
    }
}

/// Keeps a row from holding the same sequence of some number of tokens twice: `NoRepeatNGramLogitsProcessor`. With two,
/// `[5, 6, 7, 5]` cannot go on with 6.
#[derive(Clone, Copy, Debug)]
pub struct NoRepeatNgram {
    size: usize,
}

impl NoRepeatNgram {
    /// Sequences of so many tokens.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(size: usize) -> Self {
        assert!(size > 0, "a sequence has at least one token");
        Self { size }
    }
}

impl LogitsProcessor for NoRepeatNgram {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        let tokens = row.tokens();
        let Some(begun) = tokens.len().checked_sub(self.size - 1) else { return };
        let begun = &tokens[begun..];
        tokens.windows(self.size).filter(|window| window.starts_with(begun)).for_each(|window| {
            ban(scores, window[self.size - 1]);
        });
    }
}

/// Keeps a row from holding a sequence of some number of tokens that its prompt holds:
/// `EncoderNoRepeatNGramLogitsProcessor`.
#[derive(Clone, Debug)]
pub struct EncoderNoRepeatNgram {
    size: usize,
    /// For each prompt the last tokens of its sequences, by the others.
    endings: Vec<BTreeMap<Vec<u32>, Vec<u32>>>,
}

impl EncoderNoRepeatNgram {
    /// Sequences of so many tokens; prompt `i` is `prompts[i]`.
    ///
    /// # Panics
    /// If they have no token.
    pub fn new(size: usize, prompts: Vec<Vec<u32>>) -> Self {
        assert!(size > 0, "a sequence has at least one token");
        let endings = |prompt: &Vec<u32>| {
            let mut endings = BTreeMap::<Vec<u32>, Vec<u32>>::new();
            for window in prompt.windows(size) {
                endings.entry(window[..size - 1].to_vec()).or_default().push(window[size - 1]);
            }
            endings
        };
        Self { size, endings: prompts.iter().map(endings).collect() }
    }
}

impl LogitsProcessor for EncoderNoRepeatNgram {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        let Some(begun) = row.tokens().len().checked_sub(self.size - 1) else { return };
        let endings = self.endings[row.prompt()].get(&row.tokens()[begun..]);
        endings.into_iter().flatten().for_each(|token| ban(scores, *token));
    }
}

/// Adds something to the score of the last token of a sequence where a row holds the others: `SequenceBiasLogitsProcessor`.
/// With `[5, 6]` and -2, a row that ends with 5 loses 2 for 6.
#[derive(Clone, Debug)]
pub struct SequenceBias {
    biases: Vec<(Vec<u32>, f64)>,
}

impl SequenceBias {
    /// These sequences, of at least one token each.
    pub fn new(biases: Vec<(Vec<u32>, f64)>) -> Self {
        Self { biases }
    }
}

impl LogitsProcessor for SequenceBias {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        for (sequence, bias) in &self.biases {
            if let Some(score) = completed(sequence, row).and_then(|token| scores.get_mut(token as usize)) {
                *score += *bias as f32;
            }
        }
    }
}

/// Keeps rows from holding some sequences of tokens: `NoBadWordsLogitsProcessor`.
#[derive(Clone, Debug)]
pub struct BadWords {
    words: Vec<Vec<u32>>,
}

impl BadWords {
    /// These sequences, of at least one token each, but those that are only what ends a row.
    pub fn new(words: Vec<Vec<u32>>, eos_token_id: &[u32]) -> Self {
        let ends = |word: &Vec<u32>| matches!(word[..], [token] if eos_token_id.contains(&token));
        Self { words: words.into_iter().filter(|word| !ends(word)).collect() }
    }
}

impl LogitsProcessor for BadWords {
    fn process(&self, row: &Sequence, scores: &mut [f32]) {
        self.words.iter().filter_map(|word| completed(word, row)).for_each(|token| ban(scores, token));
    }
}

/// The last token of a sequence, if `row` ends with the others. A row shorter than the whole sequence has not begun it, as
/// `transformers` counts.
fn completed(sequence: &[u32], row: &Sequence) -> Option<u32> {
    let (last, begun) = sequence.split_last()?;
    let held = begun.is_empty() || (sequence.len() <= row.tokens().len() && row.tokens().ends_with(begun));
    held.then_some(*last)
}
