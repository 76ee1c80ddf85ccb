//! What another crate adds: a strategy that keeps several rows for each prompt, one that draws, a processor, a criterion.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use burn::tensor::{Tensor, activation};
use sideburn_generate::{
    Answer, Decision, Generation, GenerationConfig, Greedy, LogitsProcessor, Next, Sequence, Stopping,
    StoppingCriterion, Strategy, ban,
};

use crate::script::{script, wants};

fn log_probabilities(logits: Tensor<2>) -> Vec<Vec<f32>> {
    let [_, vocabulary] = logits.dims();
    let values: Vec<f32> = activation::log_softmax(logits, 1).into_data().try_into_vec().unwrap();
    values.chunks(vocabulary).map(<[f32]>::to_vec).collect()
}

/// The best rows of each prompt by the sum of their log-probabilities, until the best has ended.
struct Beams {
    width: usize,
    /// The score of each row, in the order of the decoder's.
    scores: Vec<f32>,
}

impl Strategy for Beams {
    fn step(&mut self, logits: Tensor<2>, rows: &[Sequence], stopping: &Stopping<'_>) -> Decision {
        let mut candidates: BTreeMap<usize, Vec<(f32, Next)>> = BTreeMap::new();
        for (row, scores) in log_probabilities(logits).iter().enumerate() {
            let before = self.scores.get(row).copied().unwrap_or(0.0);
            let of_prompt = candidates.entry(rows[row].prompt()).or_default();
            of_prompt.extend((0..).zip(scores).map(|(token, score)| (before + score, Next { row, token })));
        }
        let (mut decision, mut kept) = (Decision::default(), Vec::new());
        for (prompt, mut candidates) in candidates {
            candidates.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
            let best = candidates[0].1;
            let written = rows[best.row].with(best.token);
            if stopping.ends(&written) {
                decision.ended.push(Answer { prompt, tokens: written.written().to_vec() });
                continue;
            }
            let going_on = candidates.iter().filter(|(_, next)| !stopping.ends(&rows[next.row].with(next.token)));
            for (score, next) in going_on.take(self.width) {
                decision.going_on.push(*next);
                kept.push(*score);
            }
        }
        self.scores = kept;
        decision
    }
}

/// Tokens 2 and 3 begin two rows: 2 looks better at first, and leads to what is unlikely.
fn garden_path(fed: &[u32]) -> Vec<f32> {
    let probabilities: &[(usize, f32)] = match fed {
        [_] => &[(2, 0.6), (3, 0.4)],
        [.., 2] => &[(4, 0.3), (5, 0.3), (6, 0.4)],
        [.., 3] => &[(7, 1.0)],
        _ => &[(1, 1.0)],
    };
    let mut logits = vec![f32::NEG_INFINITY; 10];
    probabilities.iter().for_each(|(token, probability)| logits[*token] = probability.ln());
    logits
}

#[test]
fn beams_find_what_greed_misses() {
    let config = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(5) };
    let decoder = || script(&[&[0], &[8]], garden_path);
    let greedy = Generation::new(decoder(), Greedy, &config).finish().unwrap();
    assert_eq!(greedy, [[2, 6, 1], [2, 6, 1]]);
    let beams = Beams { width: 2, scores: Vec::new() };
    let mut generation = Generation::new(decoder(), beams, &config);
    assert_eq!(generation.next().unwrap().unwrap().tokens, [], "no token is sure before the end");
    let beams = Beams { width: 2, scores: Vec::new() };
    assert_eq!(Generation::new(decoder(), beams, &config).finish().unwrap(), [[3, 7, 1], [3, 7, 1]]);
}

/// Takes the token at the given share of the probability, as drawing does.
struct AtShare(f32);

impl Strategy for AtShare {
    fn step(&mut self, logits: Tensor<2>, rows: &[Sequence], stopping: &Stopping<'_>) -> Decision {
        let choose = |scores: &Vec<f32>| {
            let mut left = self.0;
            let found = scores.iter().position(|score| {
                left -= score.exp();
                left < 0.0
            });
            found.unwrap_or(scores.len() - 1) as u32
        };
        let chosen: Vec<u32> = log_probabilities(logits).iter().map(choose).collect();
        Decision::one_token_each(&chosen, rows, stopping)
    }
}

#[test]
fn a_strategy_that_draws() {
    let config = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(5) };
    let write = |share| Generation::new(script(&[&[0]], garden_path), AtShare(share), &config).finish().unwrap();
    assert_eq!([write(0.5), write(0.7)], [[[2, 5, 1]], [[3, 7, 1]]]);
}

/// Nothing but even tokens.
struct Even;

impl LogitsProcessor for Even {
    fn process(&mut self, logits: Tensor<2>, rows: &[Sequence]) -> Tensor<2> {
        ban(logits, (0..rows.len()).flat_map(|row| [1, 3, 5, 7, 9].map(|token| (row, token))))
    }
}

/// Ends a row whose tokens add up to this.
struct SumReaches(u32);

impl StoppingCriterion for SumReaches {
    fn ends(&self, row: &Sequence) -> bool {
        row.written().iter().sum::<u32>() >= self.0
    }
}

#[test]
fn a_processor_and_a_criterion() {
    // Wants the token after the last, and 4 more than anything else.
    let wanting = |fed: &[u32]| {
        let mut logits = wants((fed[fed.len() - 1] + 1) % 10);
        logits[4] += 0.5;
        logits
    };
    let generation = Generation::new(script(&[&[1], &[2]], wanting), Greedy, &GenerationConfig::new(9));
    let written = generation.with_processor(Even).with_stopping(SumReaches(9)).finish().unwrap();
    assert_eq!(written, [vec![2, 4, 4], vec![4, 4, 4]]);
}
