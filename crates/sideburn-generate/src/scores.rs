//! The scores of a step, read back from the device.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use sideburn_kernels::vectorized;

/// The scores of what may follow some rows, `[rows, vocabulary]`, in the memory of this process.
pub(crate) struct Scores {
    data: TensorData,
    vocabulary: usize,
}

impl Scores {
    /// Reads logits back.
    pub(crate) fn read(logits: Tensor<2>) -> Self {
        let [_, vocabulary] = logits.dims();
        Self { data: logits.into_data().convert::<f32>(), vocabulary }
    }

    /// What `each(row, scores)` makes of the scores of each of these rows, in their order. Each is computed by itself.
    pub(crate) fn map<R: Send>(&mut self, rows: Range<usize>, each: impl Fn(usize, &mut [f32]) -> R + Sync) -> Vec<R> {
        let places = rows.start * self.vocabulary..rows.end * self.vocabulary;
        let scores = &mut self.data.as_mut_slice::<f32>().expect("read as f32")[places];
        // Where there is one row, handing it over to another thread would only cost.
        let together = if rows.len() == 1 { usize::MAX } else { 1 };
        let rows = scores.par_chunks_mut(self.vocabulary).zip(rows).with_min_len(together);
        rows.map(|(scores, row)| each(row, scores)).collect()
    }
}

/// The largest score; `None` if all are -inf or NaN.
pub(crate) fn largest(scores: &[f32]) -> Option<f32> {
    const LANES: usize = 32;
    let larger = |best: f32, score: f32| if score > best { score } else { best };
    let largest = vectorized(|| {
        let mut best = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            best.iter_mut().zip(chunk).for_each(|(best, score)| *best = larger(*best, *score));
        }
        best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
    });
    (largest > f32::NEG_INFINITY).then_some(largest)
}

/// The place of the largest score, the first of equals.
pub(crate) fn best(scores: &[f32]) -> Option<u32> {
    let largest = largest(scores)?;
    scores.iter().position(|score| *score == largest).map(|place| place as u32)
}

/// The places of the `count` largest scores and these, the largest first and the first of equals; fewer, if others are -inf
/// or NaN.
pub(crate) fn best_few(scores: &[f32], count: usize) -> Vec<(u32, f32)> {
    const AT_ONCE: usize = 32;
    const FEW: usize = 256;
    if count > FEW {
        let possible = |(_, score): &(u32, f32)| *score > f32::NEG_INFINITY;
        let mut all: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).filter(possible).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(count);
        return all;
    }
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    let mut look = |chunk: &[f32], first: u32| {
        for (score, token) in chunk.iter().zip(first..) {
            if *score > least {
                let place = best.partition_point(|(_, better)| better >= score);
                best.insert(place, (token, *score));
                best.truncate(count);
                if best.len() == count {
                    least = best[count - 1].1;
                }
            }
        }
        least
    };
    let (chunks, rest) = scores.as_chunks::<AT_ONCE>();
    vectorized(|| {
        let mut least = f32::NEG_INFINITY;
        for (chunk, first) in chunks.iter().zip((0..).step_by(AT_ONCE)) {
            // Hardly any chunk has one: the others are passed over as a whole.
            if chunk.iter().fold(false, |some, score| some | (*score > least)) {
                least = look(chunk, first);
            }
        }
    });
    look(rest, (scores.len() - rest.len()) as u32);
    best
}

/// The same of log-probabilities, where `scores` are logits, which are not changed. Subtracting the same number from all changes no
/// order, and so it is subtracted from those alone that are asked for.
pub(crate) fn best_few_log_probs(scores: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best = best_few(scores, count);
    if let Some((_, largest)) = best.first() {
        let normaliser = log_sum_exp_from(scores, *largest);
        best.iter_mut().for_each(|(_, score)| *score -= normaliser);
    }
    best
}

/// The logarithm of the sum of the exponentials; `None` if all scores are -inf or NaN.
pub(crate) fn log_sum_exp(scores: &[f32]) -> Option<f32> {
    largest(scores).map(|largest| log_sum_exp_from(scores, largest))
}

/// The same, where the largest score is known.
fn log_sum_exp_from(scores: &[f32], largest: f32) -> f32 {
    // So many in `f32`, and their sums in `f64`: the vocabulary is long.
    const AT_ONCE: usize = 512;
    const LANES: usize = 8;
    let sum = vectorized(|| {
        let mut sum = 0.0;
        for scores in scores.chunks(AT_ONCE) {
            let (chunks, rest) = scores.as_chunks::<LANES>();
            let mut sums = [0f32; LANES];
            for chunk in chunks {
                sums.iter_mut().zip(chunk).for_each(|(sum, score)| *sum += exp(score - largest));
            }
            sum += sums.into_iter().chain(rest.iter().map(|score| exp(score - largest))).map(f64::from).sum::<f64>();
        }
        sum
    });
    largest + sum.ln() as f32
}

/// The exponential of a number of at most 0, to a few parts in 10^7: what the compiler turns into instructions for several at
/// once, as it does not a call of the system's. Below -87, and of NaN, it is nearly 0.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Added to a number, it leaves the nearest whole one in the last bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = if x > -87.0 { x } else { -87.0 };
    let power = x * std::f32::consts::LOG2_E + ROUND;
    let whole = power - ROUND;
    let rest = x - whole * LN_2[0] - whole * LN_2[1];
    let coefficients = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let series = coefficients.into_iter().fold(0.0, |sum, coefficient| (sum + coefficient) * rest);
    (1.0 + series) * f32::from_bits((power.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// Turns scores into log-probabilities. Nothing, if all are -inf or NaN.
pub(crate) fn log_softmax(scores: &mut [f32]) {
    if let Some(normaliser) = log_sum_exp(scores) {
        scores.iter_mut().for_each(|score| *score -= normaliser);
    }
}

/// The probabilities; zeros, if all scores are -inf or NaN.
pub(crate) fn softmax(scores: &[f32]) -> Vec<f32> {
    match log_sum_exp(scores) {
        // What is impossible has no probability at all.
        Some(normaliser) => {
            let probability = |score: &f32| if *score > f32::NEG_INFINITY { exp(score - normaliser) } else { 0.0 };
            vectorized(|| scores.iter().map(probability).collect())
        }
        None => vec![0.0; scores.len()],
    }
}

/// Draws a place by weights, at the share `uniform` (from 0, below 1) of them all, and takes its weight away, so that it is
/// not drawn again. `None` if nothing has weight.
pub(crate) fn draw(weights: &mut [f32], uniform: f64) -> Option<usize> {
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let (target, mut passed, mut drawn) = (uniform * total, 0.0, None);
    for (place, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        drawn = Some(place);
        passed += f64::from(*weight);
        if passed > target {
            break;
        }
    }
    weights[drawn?] = 0.0;
    drawn
}
