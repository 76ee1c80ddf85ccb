//! What another crate adds: a strategy, a processor, a criterion.

use std::convert::Infallible;

use sideburn_generate::{
    Decision, Decoder, GenerateError, Generation, GenerationConfig, LogitsProcessor, Rules, Sequence,
    StoppingCriterion, Strategy, generate,
};

use crate::script::{garden_path, script, wants};

/// Takes the token at the given share of the probability.
struct AtShare(f32);

impl<D: Decoder> Strategy<D> for AtShare {
    fn step(
        &mut self,
        decoder: &mut D,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<D::Error>> {
        let last: Vec<u32> = rows.iter().map(Sequence::last).collect();
        let logits = decoder.next_logits(&last).map_err(GenerateError::Decoder)?;
        let chosen = rules.each_log_probs(logits, &rows, |_, scores| {
            let mut left = self.0;
            let found = scores.iter().position(|score| {
                left -= score.exp();
                left < 0.0
            });
            (found.unwrap_or(scores.len() - 1) as u32, None)
        })?;
        Ok(Decision::one_token_each(rows, &chosen, rules))
    }
}

#[test]
fn a_strategy_of_ones_own() {
    let config = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(5) };
    let write = |share| {
        let generation = Generation::with_strategy(script(&[&[0]], garden_path), Box::new(AtShare(share)), &config);
        generation.unwrap().finish().unwrap().remove(0).tokens
    };
    assert_eq!([write(0.5), write(0.7)], [[2, 5, 1], [3, 7, 1]]);
}

/// Nothing but even tokens.
struct Even;

impl LogitsProcessor for Even {
    fn process(&self, _: &Sequence, scores: &mut [f32]) {
        scores.iter_mut().skip(1).step_by(2).for_each(|score| *score = f32::NEG_INFINITY);
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
fn a_processor_and_a_criterion() -> Result<(), GenerateError<Infallible>> {
    // Wants the token after the last, and 4 more than anything else.
    let wanting = |fed: &[u32]| {
        let mut logits = wants((fed[fed.len() - 1] + 1) % 10);
        logits[4] += 0.5;
        logits
    };
    let begun = || Generation::new(script(&[&[1], &[2]], wanting), &GenerationConfig::new(9));
    let written = begun()?.with_processor(Even).with_stopping(SumReaches(9)).finish()?;
    assert_eq!([&written[0].tokens, &written[1].tokens], [&[2, 4, 4], &[4, 4, 4]]);
    // A closure is a criterion.
    let written = begun()?.with_stopping(|row: &Sequence| row.written().contains(&4)).finish()?;
    assert_eq!([&written[0].tokens[..], &written[1].tokens], [&[2, 3, 4][..], &[3, 4]]);
    assert_eq!(generate(script(&[&[1]], wanting), &GenerationConfig::new(2))?[0].tokens, [2, 3]);
    Ok(())
}
