//! Examples as token ids, and batches of them.

use std::fmt;

#[cfg(feature = "threads")]
use rayon::prelude::*;
use sideburn_batch::{PromptBatch, TokenRows};

use crate::{
    error::DataError,
    example::Example,
    loaded::Grouped,
    sampler::Sampler,
    template::Template,
    tokenizer::{Encoding, Tokenizer},
};

/// The longest token sequences, end-of-sequence token included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a prompt.
    pub max_source_length: usize,
    /// Of a target.
    pub max_target_length: usize,
}

/// 512 and 128, as in the recipes that fine-tune T5 on DialogSum.
impl Default for Limits {
    fn default() -> Self {
        Self { max_source_length: 512, max_target_length: 128 }
    }
}

/// How many examples are tokenised between two calls of a progress: enough for many cores, and a blink.
const WATCHED: usize = 512;

/// An [`Example`] as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedExample {
    /// The example's id.
    pub id: String,
    /// The prompt, as [`Tokenizer::encode_prompt`] gives it.
    pub prompt: Vec<u32>,
    /// The first target, as [`Tokenizer::encode_target`] gives it: with the end-of-sequence token.
    pub target: Vec<u32>,
}

/// Tokenised examples in the order of the examples. Its [`Display`](fmt::Display) reports what was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizedSet {
    /// One for each example.
    pub examples: Vec<TokenizedExample>,
    /// How many prompts were longer than the limit and lost their end.
    pub cut_prompts: usize,
    /// How many targets were longer than the limit and lost their end.
    pub cut_targets: usize,
    /// The limits that were kept.
    pub limits: Limits,
}

/// Tokenises the prompt of every example, and its first target, on all cores.
///
/// What is longer than its limit loses tokens at its end and keeps the end-of-sequence token. For a prompt that means
/// that words of the template behind the last field are the first to go, as in the recipes this follows; the report
/// tells how many examples that concerns. A template that says where the answer goes keeps the words before it, without
/// which a decoder alone would not know what to write: what is cut is the field that they follow. However
/// short the limits are, an answer keeps a token and the end of its text: no example is without a label.
///
/// # Errors
/// If a limit is below 2, the template has a place for a field that an example does not have, an example has no target,
/// or the tokenizer refuses a text.
pub fn tokenize(
    examples: &[Example],
    tokenizer: &Tokenizer,
    template: &Template,
    limits: Limits,
) -> Result<TokenizedSet, DataError> {
    tokenize_watched(examples, tokenizer, template, limits, |_| ())
}

/// As [`tokenize`]; `progress` is called on this thread with the number of examples that are done, now and then and at the
/// end.
///
/// # Errors
/// Those of [`tokenize`].
pub fn tokenize_watched(
    examples: &[Example],
    tokenizer: &Tokenizer,
    template: &Template,
    limits: Limits,
    mut progress: impl FnMut(usize),
) -> Result<TokenizedSet, DataError> {
    for max_length in [limits.max_source_length, limits.max_target_length] {
        if max_length < 2 {
            return Err(DataError::Limit { max_length });
        }
    }
    let encode = |example: &Example| {
        let prompt = prompt(tokenizer, template, &template.render(&example.fields)?, limits.max_source_length)?;
        let target = template.answer(example.targets.first().ok_or(DataError::NoTarget)?);
        let target = tokenizer.encode_target(&target, Some(limits.max_target_length))?;
        Ok((example.id.clone(), prompt, target))
    };
    let encode = |example: &Example| {
        encode(example).map_err(|source| DataError::Example { id: example.id.clone(), source: Box::new(source) })
    };
    let mut encoded: Vec<(String, Encoding, Encoding)> = Vec::with_capacity(examples.len());
    for some in examples.chunks(WATCHED) {
        #[cfg(feature = "threads")]
        let some = some.par_iter();
        #[cfg(not(feature = "threads"))]
        let some = some.iter();
        encoded.extend(some.map(&encode).collect::<Result<Vec<_>, DataError>>()?);
        progress(encoded.len());
    }
    Ok(TokenizedSet {
        cut_prompts: encoded.iter().filter(|(_, prompt, _)| prompt.cut > 0).count(),
        cut_targets: encoded.iter().filter(|(_, _, target)| target.cut > 0).count(),
        examples: encoded
            .into_iter()
            .map(|(id, prompt, target)| TokenizedExample { id, prompt: prompt.ids, target: target.ids })
            .collect(),
        limits,
    })
}

/// The ids of a prompt that the template made.
fn prompt(tokenizer: &Tokenizer, template: &Template, text: &str, max_length: usize) -> Result<Encoding, DataError> {
    let Some(end) = template.end() else { return tokenizer.encode_prompt(text, Some(max_length)) };
    let Encoding { mut ids, .. } = tokenizer.encode_prompt(text, None)?;
    let cut = ids.len().saturating_sub(max_length);
    if cut > 0 {
        let kept = tokenizer.encode_prompt(end, None)?.ids.len().min(max_length - 1);
        let last = ids.len() - kept;
        ids.drain(last - cut..last);
    }
    Ok(Encoding { ids, cut })
}

impl TokenizedSet {
    /// The number of examples.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// How many tokens each example has, prompt and target together: what a
    /// [`GroupedSampler`](crate::GroupedSampler) makes batches by.
    pub fn token_counts(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.prompt.len() + example.target.len()).collect()
    }

    /// How many tokens the prompt and the target of each example have.
    pub fn lengths(&self) -> Vec<[usize; 2]> {
        self.examples.iter().map(|example| [example.prompt.len(), example.target.len()]).collect()
    }

    /// The share of padding among the tokens of an epoch of a sampler, on a device that pads the prompts and the targets of a
    /// batch to the longest of each: 0 if nothing is padded.
    pub fn padding(&self, sampler: &impl Sampler) -> f64 {
        let lengths = self.lengths();
        let (mut tokens, mut places) = (0usize, 0usize);
        for step in 0..sampler.batches_per_epoch() as u64 {
            let batch: Vec<[usize; 2]> = sampler.batch(step).into_iter().map(|example| lengths[example]).collect();
            let [mut longest_prompt, mut longest_target] = [0, 0];
            for [prompt, target] in &batch {
                tokens += prompt + target;
                longest_prompt = longest_prompt.max(*prompt);
                longest_target = longest_target.max(*target);
            }
            places += batch.len() * (longest_prompt + longest_target);
        }
        1.0 - tokens as f64 / places.max(1) as f64
    }

    /// The examples of these numbers (from 0) as a batch, in this order.
    ///
    /// # Errors
    /// If `indices` is empty or names an example that is not there.
    pub fn batch(&self, indices: &[usize]) -> Result<PromptBatch, DataError> {
        let len = self.len();
        let examples: Vec<&TokenizedExample> = indices
            .iter()
            .map(|&index| self.examples.get(index).ok_or(DataError::NoSuchExample { index, len }))
            .collect::<Result<_, _>>()?;
        let prompts = TokenRows::from_rows(examples.iter().map(|example| &example.prompt))?;
        let targets = TokenRows::from_rows(examples.iter().map(|example| &example.target))?;
        Ok(PromptBatch::new(prompts, targets)?)
    }
}

impl fmt::Display for TokenizedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = Grouped(self.len());
        write!(
            f,
            "{} of {len} prompts were longer than {} tokens and were cut; {} of {len} targets were longer than {} \
             tokens and were cut",
            Grouped(self.cut_prompts),
            Grouped(self.limits.max_source_length),
            Grouped(self.cut_targets),
            Grouped(self.limits.max_target_length),
        )
    }
}
