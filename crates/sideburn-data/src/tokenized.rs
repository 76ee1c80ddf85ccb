//! Samples as token ids, and batches of them.

use std::fmt;

use rayon::prelude::*;
use sideburn_batch::{Seq2SeqBatch, TokenRows};

use crate::{
    error::DataError,
    sample::Sample,
    template::PromptTemplate,
    tokenizer::{Encoding, Tokenizer},
};

/// The longest token sequences, end-of-sequence token included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the prompt around a dialogue.
    pub max_source_length: usize,
    /// Of a summary.
    pub max_target_length: usize,
}

/// 512 and 128, as in the DialogSum recipes for T5.
impl Default for Limits {
    fn default() -> Self {
        Self { max_source_length: 512, max_target_length: 128 }
    }
}

/// A [`Sample`] as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedSample {
    /// The sample's id.
    pub id: String,
    /// The prompt with the dialogue in it; ends with the end-of-sequence token.
    pub source: Vec<u32>,
    /// The first summary; ends with the end-of-sequence token.
    pub target: Vec<u32>,
}

/// Tokenised samples in the order of the samples. Its [`Display`](fmt::Display) reports what was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizedSet {
    /// One for each sample.
    pub samples: Vec<TokenizedSample>,
    /// How many sources were longer than the limit and lost their end.
    pub cut_sources: usize,
    /// How many targets were longer than the limit and lost their end.
    pub cut_targets: usize,
    /// The limits that were kept.
    pub limits: Limits,
}

/// Puts every sample's dialogue into `template` and tokenises it and the first summary, on all cores.
///
/// What is longer than its limit loses tokens at its end and keeps the end-of-sequence token. For a source that means
/// that words of the template behind the dialogue are the first to go, as in the recipes this follows; the report
/// tells how many samples that concerns.
///
/// # Errors
/// If a limit is below 2, a sample made by hand has no summary, or the tokenizer refuses a text.
pub fn tokenize(
    samples: &[Sample],
    tokenizer: &Tokenizer,
    template: &PromptTemplate,
    limits: Limits,
) -> Result<TokenizedSet, DataError> {
    for max_length in [limits.max_source_length, limits.max_target_length] {
        if max_length < 2 {
            return Err(DataError::Limit { max_length });
        }
    }
    let encode = |sample: &Sample| {
        let source = tokenizer.encode(&template.render(&sample.dialogue), Some(limits.max_source_length))?;
        let summary = sample.summaries.first().ok_or_else(|| DataError::NoSummary { id: sample.id.clone() })?;
        let target = tokenizer.encode(summary, Some(limits.max_target_length))?;
        Ok((sample.id.clone(), source, target))
    };
    let encoded: Vec<(String, Encoding, Encoding)> =
        samples.par_iter().map(encode).collect::<Result<_, DataError>>()?;
    Ok(TokenizedSet {
        cut_sources: encoded.iter().filter(|(_, source, _)| source.cut > 0).count(),
        cut_targets: encoded.iter().filter(|(_, _, target)| target.cut > 0).count(),
        samples: encoded
            .into_iter()
            .map(|(id, source, target)| TokenizedSample { id, source: source.ids, target: target.ids })
            .collect(),
        limits,
    })
}

impl TokenizedSet {
    /// The number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The samples of these numbers (from 0) as a batch, in this order.
    ///
    /// # Errors
    /// If `indices` is empty or names a sample that is not there.
    pub fn batch(&self, indices: &[usize]) -> Result<Seq2SeqBatch, DataError> {
        let len = self.len();
        let samples: Vec<&TokenizedSample> = indices
            .iter()
            .map(|&index| self.samples.get(index).ok_or(DataError::NoSuchSample { index, len }))
            .collect::<Result<_, _>>()?;
        let source = TokenRows::from_rows(samples.iter().map(|sample| &sample.source))?;
        let target = TokenRows::from_rows(samples.iter().map(|sample| &sample.target))?;
        Ok(Seq2SeqBatch::new(source, target)?)
    }
}

impl fmt::Display for TokenizedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = Grouped(self.len());
        write!(
            f,
            "{} of {len} dialogues were longer than {} tokens and were cut; {} of {len} summaries were longer than {} \
             tokens and were cut",
            Grouped(self.cut_sources),
            Grouped(self.limits.max_source_length),
            Grouped(self.cut_targets),
            Grouped(self.limits.max_target_length),
        )
    }
}

/// A number with commas between the thousands.
struct Grouped(usize);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let text = [0, 7, 999, 1000, 12460, 1_234_567].map(|number| Grouped(number).to_string());
        assert_eq!(text, ["0", "7", "999", "1,000", "12,460", "1,234,567"]);
    }
}
