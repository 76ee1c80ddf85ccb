//! Greedy decoding: always the most likely token.

use burn::tensor::{Bool, Tensor, TensorData};

use crate::Decoder;

/// What may be written, and when a row ends; the fields are named as in `transformers.GenerationConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GreedyConfig {
    /// The longest row, its end-of-sequence token included.
    pub max_new_tokens: usize,
    /// What every row starts from; not part of what is returned.
    pub decoder_start_token_id: u32,
    /// What ends a row: any of these tokens. Without one, all rows are as long as allowed.
    pub eos_token_id: Vec<u32>,
    /// No row may hold the same sequence of this many tokens twice, the start token counted in; 0 allows it.
    pub no_repeat_ngram_size: usize,
}

/// Continues every row of `decoder` with its most likely token (the first of equals) that is allowed, until it writes the
/// end-of-sequence token, which is kept, or is as long as allowed.
///
/// A row that has ended is dropped from the decoder, so that the others do not wait for it.
///
/// # Errors
/// Those of the decoder.
pub fn greedy<D: Decoder>(mut decoder: D, config: &GreedyConfig) -> Result<Vec<Vec<u32>>, D::Error> {
    let mut written = vec![vec![config.decoder_start_token_id]; decoder.rows()];
    // Which row of the result each row of the decoder is.
    let mut open: Vec<usize> = (0..decoder.rows()).collect();
    let mut last = vec![config.decoder_start_token_id; decoder.rows()];
    for _ in 0..config.max_new_tokens {
        if open.is_empty() {
            break;
        }
        let mut logits = decoder.next_logits(&last)?;
        if config.no_repeat_ngram_size > 0 {
            let banned = open.iter().map(|row| repeating(&written[*row], config.no_repeat_ngram_size)).collect();
            logits = ban(logits, banned);
        }
        let best: Vec<u32> = logits.argmax(1).into_data().iter::<i64>().map(|token| token as u32).collect();
        for (row, token) in open.iter().zip(&best) {
            written[*row].push(*token);
        }
        let going_on: Vec<usize> = (0..open.len()).filter(|row| !config.eos_token_id.contains(&best[*row])).collect();
        if going_on.len() < open.len() && !going_on.is_empty() {
            decoder.select_rows(&going_on);
        }
        open = going_on.iter().map(|row| open[*row]).collect();
        last = going_on.iter().map(|row| best[*row]).collect();
    }
    // Every row begins with the start token.
    Ok(written.into_iter().map(|mut row| row.split_off(1)).collect())
}

/// The tokens that would complete a sequence of `size` tokens that `row` holds already:
/// `NoRepeatNGramLogitsProcessor` of `transformers`.
fn repeating(row: &[u32], size: usize) -> Vec<u32> {
    if row.len() + 1 < size {
        return Vec::new();
    }
    let end = &row[row.len() - (size - 1)..];
    row.windows(size).filter(|window| window[..size - 1] == *end).map(|window| window[size - 1]).collect()
}

/// Makes the `banned` tokens of each row impossible.
fn ban(logits: Tensor<2>, banned: Vec<Vec<u32>>) -> Tensor<2> {
    if banned.iter().all(Vec::is_empty) {
        return logits;
    }
    let [rows, vocabulary] = logits.dims();
    let mut mask = vec![false; rows * vocabulary];
    for (row, tokens) in mask.chunks_mut(vocabulary).zip(banned) {
        tokens.into_iter().for_each(|token| row[token as usize] = true);
    }
    let mask = Tensor::<2, Bool>::from_data(TensorData::new(mask, [rows, vocabulary]), &logits.device());
    logits.mask_fill(mask, f32::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use burn::tensor::{Device, Tensor};

    use super::*;

    /// Writes each row's script, and checks that it is fed what it wrote.
    struct Script {
        rows: Vec<Vec<u32>>,
        position: usize,
        fed: Vec<Vec<u32>>,
    }

    impl Decoder for Script {
        type Error = Infallible;

        fn rows(&self) -> usize {
            self.rows.len()
        }

        fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, Infallible> {
            for ((fed, token), row) in self.fed.iter_mut().zip(tokens).zip(&self.rows) {
                fed.push(*token);
                assert_eq!(fed[1..], row[..self.position], "a row must be fed what it wrote");
            }
            let logits: Vec<f32> = self
                .rows
                .iter()
                .flat_map(|row| (0..10).map(|token| f32::from(u8::from(row[self.position] == token))))
                .collect();
            self.position += 1;
            Ok(Tensor::<1>::from_floats(logits.as_slice(), &Device::flex()).reshape([self.rows.len(), 10]))
        }

        fn select_rows(&mut self, rows: &[usize]) {
            self.rows = rows.iter().map(|row| self.rows[*row].clone()).collect();
            self.fed = rows.iter().map(|row| self.fed[*row].clone()).collect();
        }
    }

    #[test]
    fn every_row_stops_at_its_own_end() {
        let rows = vec![vec![4, 5, 1, 9, 9, 9], vec![1, 9, 9, 9, 9, 9], vec![6, 7, 8, 6, 7, 8]];
        let script = Script { fed: vec![Vec::new(); rows.len()], rows, position: 0 };
        let config = GreedyConfig {
            max_new_tokens: 5,
            decoder_start_token_id: 0,
            eos_token_id: vec![1],
            no_repeat_ngram_size: 0,
        };
        let written = greedy(script, &config).unwrap();
        assert_eq!(written, [vec![4, 5, 1], vec![1], vec![6, 7, 8, 6, 7]]);
    }

    #[test]
    fn any_of_several_tokens_ends_a_row_and_none_ends_no_row() {
        let rows = vec![vec![4, 5, 1, 9, 9, 9], vec![7, 9, 9, 9, 9, 9], vec![6, 8, 8, 6, 7, 8]];
        let script = || Script { fed: vec![Vec::new(); rows.len()], rows: rows.clone(), position: 0 };
        let config = |eos_token_id: &[u32]| GreedyConfig {
            max_new_tokens: 5,
            decoder_start_token_id: 0,
            eos_token_id: eos_token_id.to_vec(),
            no_repeat_ngram_size: 0,
        };
        let written = greedy(script(), &config(&[1, 7])).unwrap();
        assert_eq!(written, [vec![4, 5, 1], vec![7], vec![6, 8, 8, 6, 7]]);
        assert_eq!(
            greedy(script(), &config(&[])).unwrap(),
            rows.iter().map(|row| row[..5].to_vec()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn tokens_that_would_repeat_a_sequence() {
        assert_eq!(repeating(&[0, 5, 6, 7, 5, 6], 3), [7]);
        assert_eq!(repeating(&[0, 5, 6, 5, 7, 5], 2), [6, 7]);
        assert_eq!(repeating(&[0, 5, 6, 7], 3), [0; 0]);
        assert_eq!(repeating(&[0], 4), [0; 0]);
        assert_eq!(repeating(&[0, 5], 1), [0, 5]);
    }
}
