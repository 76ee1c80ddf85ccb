//! Processors that say what draws are made from. Each keeps at least `keep` of the likeliest tokens.

use super::LogitsProcessor;
use crate::Sequence;
use crate::scores::{best_few, largest, log_softmax, softmax};

/// Divides scores: `TemperatureLogitsWarper`. Below 1, likely tokens become likelier.
#[derive(Clone, Copy, Debug)]
pub struct Temperature {
    temperature: f32,
}

impl Temperature {
    /// By this number.
    pub fn new(temperature: f64) -> Self {
        Self { temperature: temperature as f32 }
    }
}

impl LogitsProcessor for Temperature {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        scores.iter_mut().for_each(|score| *score /= self.temperature);
    }
}

/// Keeps the likeliest tokens: `TopKLogitsWarper`. What is as likely as the last of them is kept too.
#[derive(Clone, Copy, Debug)]
pub struct TopK {
    count: usize,
}

impl TopK {
    /// So many.
    pub const fn new(count: usize) -> Self {
        Self { count }
    }
}

impl LogitsProcessor for TopK {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        if let Some(least) = score_of_best(scores, self.count) {
            keep_only(scores, |_, score| score >= least);
        }
    }
}

/// Keeps the fewest tokens that have a share of the probability: `TopPLogitsWarper` (Holtzman et al., 2020).
#[derive(Clone, Copy, Debug)]
pub struct TopP {
    share: f64,
    keep: usize,
}

impl TopP {
    /// This share.
    pub const fn new(share: f64, keep: usize) -> Self {
        Self { share, keep }
    }
}

impl LogitsProcessor for TopP {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        let (probabilities, left) = (softmax(scores), 1.0 - self.share);
        // All that have at most this much make no more than what is left out: they need not be sorted.
        let small = (left / scores.len() as f64) as f32;
        let is_small = |probability: f32| probability <= small;
        let mut passed: f64 = probabilities.iter().filter(|p| is_small(**p)).map(|p| f64::from(*p)).sum();
        let mut large: Vec<usize> = (0..scores.len()).filter(|token| !is_small(probabilities[*token])).collect();
        large.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        let last = large.len().saturating_sub(self.keep);
        let removed = large[..last].iter().take_while(|token| {
            passed += f64::from(probabilities[**token]);
            passed <= left
        });
        // The sorting keeps the order of tokens that are equally likely, of which some may have to go.
        let first = large.get(removed.count()).map(|token| (*token, scores[*token]));
        let Some(of_kept) = score_of_best(scores, self.keep) else { return };
        keep_only(scores, |token, score| {
            score >= of_kept || first.is_some_and(|(tied, least)| score > least || (score == least && token >= tied))
        });
    }
}

/// Keeps tokens that are not much less likely than the likeliest: `MinPLogitsWarper` (Nguyen et al., 2024).
#[derive(Clone, Copy, Debug)]
pub struct MinP {
    share: f64,
    keep: usize,
}

impl MinP {
    /// At least this share of the largest probability.
    pub const fn new(share: f64, keep: usize) -> Self {
        Self { share, keep }
    }
}

impl LogitsProcessor for MinP {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        let probabilities = softmax(scores);
        let least = largest(&probabilities).unwrap_or_default() * self.share as f32;
        keep_likely(scores, &probabilities, least, self.keep);
    }
}

/// Keeps tokens that tell about as much as is expected: `TypicalLogitsWarper` (Meister et al., 2022). Those whose
/// log-probability is nearest to the mean of all, until they have a share of the probability.
#[derive(Clone, Copy, Debug)]
pub struct TypicalP {
    mass: f64,
    keep: usize,
}

impl TypicalP {
    /// This share.
    pub const fn new(mass: f64, keep: usize) -> Self {
        Self { mass, keep }
    }
}

impl LogitsProcessor for TypicalP {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        let mut normalised = scores.to_vec();
        log_softmax(&mut normalised);
        let possible = || normalised.iter().filter(|score| **score > f32::NEG_INFINITY);
        let entropy = -possible().map(|score| f64::from(score.exp()) * f64::from(*score)).sum::<f64>() as f32;
        let far = |token: &usize| (-normalised[*token] - entropy).abs();
        let mut order: Vec<usize> = (0..scores.len()).filter(|token| normalised[*token] > f32::NEG_INFINITY).collect();
        order.sort_by(|a, b| far(a).total_cmp(&far(b)));
        let mut passed = 0.0;
        let below = order.iter().take_while(|token| {
            passed += f64::from(normalised[**token].exp());
            passed < self.mass
        });
        let last = below.count().min(order.len().saturating_sub(1));
        let Some(farthest) = order.get(last).map(far) else { return };
        let kept = order.iter().enumerate().filter(|(place, token)| *place < self.keep || far(token) <= farthest);
        let mut keeps = vec![false; scores.len()];
        kept.for_each(|(_, token)| keeps[*token] = true);
        keep_only(scores, |token, _| keeps[token]);
    }
}

/// Keeps tokens of some probability: `EpsilonLogitsWarper` (Hewitt et al., 2022).
#[derive(Clone, Copy, Debug)]
pub struct EpsilonCutoff {
    epsilon: f64,
    keep: usize,
}

impl EpsilonCutoff {
    /// At least this probability.
    pub const fn new(epsilon: f64, keep: usize) -> Self {
        Self { epsilon, keep }
    }
}

impl LogitsProcessor for EpsilonCutoff {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        let probabilities = softmax(scores);
        keep_likely(scores, &probabilities, self.epsilon as f32, self.keep);
    }
}

/// Keeps tokens of some probability, which is less where much is possible: `EtaLogitsWarper` (Hewitt et al., 2022).
#[derive(Clone, Copy, Debug)]
pub struct EtaCutoff {
    epsilon: f64,
    keep: usize,
}

impl EtaCutoff {
    /// At least the smaller of this probability and its root times `exp(-entropy)`.
    pub const fn new(epsilon: f64, keep: usize) -> Self {
        Self { epsilon, keep }
    }
}

impl LogitsProcessor for EtaCutoff {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        let probabilities = softmax(scores);
        let possible = probabilities.iter().filter(|probability| **probability > 0.0).map(|p| f64::from(*p));
        let entropy = -possible.map(|probability| probability * probability.ln()).sum::<f64>();
        let least = self.epsilon.min(self.epsilon.sqrt() * (-entropy).exp());
        keep_likely(scores, &probabilities, least as f32, self.keep);
    }
}

/// Makes scores log-probabilities: `LogitNormalization`.
#[derive(Clone, Copy, Debug)]
pub struct Renormalize;

impl LogitsProcessor for Renormalize {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        log_softmax(scores);
    }
}

/// The score of the last of the `count` likeliest tokens.
fn score_of_best(scores: &[f32], count: usize) -> Option<f32> {
    best_few(scores, count.min(scores.len())).last().map(|(_, score)| *score)
}

/// Keeps tokens of this probability, and the `keep` likeliest.
fn keep_likely(scores: &mut [f32], probabilities: &[f32], least: f32, keep: usize) {
    let Some(of_kept) = score_of_best(scores, keep) else { return };
    keep_only(scores, |token, score| probabilities[token] >= least || score >= of_kept);
}

fn keep_only(scores: &mut [f32], keeps: impl Fn(usize, f32) -> bool) {
    for (token, score) in scores.iter_mut().enumerate() {
        if !keeps(token, *score) {
            *score = f32::NEG_INFINITY;
        }
    }
}
