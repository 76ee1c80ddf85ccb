//! Rows begin with their histories, and each stops at its own end.

use std::convert::Infallible;

use burn::tensor::Tensor;
use sideburn_generate::{Answer, Decoder, GenerateError, Generation, GenerationConfig, Step, generate};
use sideburn_testing::written;

use crate::script::{script, wants};

const ROWS: [&[u32]; 3] = [&[4, 5, 1, 9, 9, 9], &[7, 9, 9, 9, 9, 9], &[6, 8, 8, 6, 7, 8]];

/// Row `i` begins with `10 + i` and writes `ROWS[i]`.
fn three_rows() -> impl Decoder<Error = Infallible> {
    script(&[&[10], &[11], &[12]], |fed| {
        let row = ROWS[fed[0] as usize - 10];
        assert_eq!(fed[1..], row[..fed.len() - 1], "a row must be fed what it wrote");
        wants(row[fed.len() - 1])
    })
}

fn config(eos_token_id: &[u32]) -> GenerationConfig {
    GenerationConfig { eos_token_id: eos_token_id.to_vec(), ..GenerationConfig::new(5) }
}

#[test]
fn any_of_several_tokens_ends_a_row_and_none_ends_no_row() {
    let found = written(three_rows(), &config(&[1, 7]));
    assert_eq!(found, [vec![4, 5, 1], vec![7], vec![6, 8, 8, 6, 7]]);
    assert_eq!(written(three_rows(), &config(&[])), ROWS.map(|row| row[..5].to_vec()));
}

#[test]
fn every_step_tells_what_it_wrote() {
    let steps: Vec<Step> = Generation::new(three_rows(), &config(&[1, 7])).unwrap().map(Result::unwrap).collect();
    let answer = |prompt: usize, tokens: &[u32]| Answer {
        prompt,
        rank: 0,
        tokens: tokens.to_vec(),
        score: None,
        log_probs: Vec::new(),
    };
    assert_eq!(steps[0], Step { tokens: vec![(0, 4), (1, 7), (2, 6)], ended: vec![answer(1, &[7])] });
    assert_eq!(steps[1], Step { tokens: vec![(0, 5), (2, 8)], ended: vec![] });
    assert_eq!(steps[2], Step { tokens: vec![(0, 1), (2, 8)], ended: vec![answer(0, &[4, 5, 1])] });
    assert_eq!(steps[4], Step { tokens: vec![(2, 7)], ended: vec![answer(2, &[6, 8, 8, 6, 7])] });
    assert_eq!(steps.len(), 5);
}

#[test]
fn nothing_is_written_where_nothing_may_be() {
    let config = GenerationConfig { max_new_tokens: Some(0), ..config(&[1]) };
    assert_eq!(written(three_rows(), &config), vec![Vec::<u32>::new(); 3]);
    assert!(Generation::new(three_rows(), &config).unwrap().next().is_none());
}

/// Prompts of a decoder alone, of which it has read all but the last token, count in what may not repeat.
#[test]
fn histories_count_in_what_may_not_repeat() {
    let prompts: [&[u32]; 2] = [&[3, 4, 5, 3], &[4]];
    // Every row wants to go on as the first prompt did.
    let decoder = || script(&prompts, |fed| wants(if fed.last() == Some(&3) { 4 } else { 3 }));
    let repeating = written(decoder(), &config(&[]));
    assert_eq!(repeating, [[4, 3, 4, 3, 4], [3, 4, 3, 4, 3]]);
    let config = GenerationConfig { no_repeat_ngram_size: 2, ..config(&[]) };
    let found = written(decoder(), &config);
    // `3 4` is in the prompt of the first; the first of equals comes in its place.
    assert_eq!(found, [[0, 3, 1, 3, 2], [3, 4, 0, 3, 0]]);
}

#[test]
fn an_error_ends_it() {
    struct Failing;
    impl Decoder for Failing {
        type Error = &'static str;
        fn rows(&self) -> usize {
            1
        }
        fn history(&self, _: usize) -> &[u32] {
            &[0]
        }
        fn next_logits(&mut self, _: &[u32]) -> Result<Tensor<2>, &'static str> {
            Err("out of memory")
        }
        fn select_rows(&mut self, _: &[usize]) {}
        fn forget(&mut self, _: usize) {}
    }
    let failed = GenerateError::Decoder("out of memory");
    let mut generation = Generation::new(Failing, &config(&[])).unwrap();
    assert_eq!(generation.next(), Some(Err(failed.clone())));
    assert_eq!(generation.next(), None);
    assert_eq!(generate(Failing, &config(&[])), Err(failed));
}
