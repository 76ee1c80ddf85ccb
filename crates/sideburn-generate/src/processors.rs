//! What becomes of logits before a strategy sees them.

use std::collections::BTreeSet;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use crate::Sequence;

/// Changes the logits of a step before a strategy chooses from them: `LogitsProcessor` of `transformers`.
pub trait LogitsProcessor {
    /// The logits `[rows, vocabulary]` of what may follow `rows`, changed.
    fn process(&mut self, logits: Tensor<2>, rows: &[Sequence]) -> Tensor<2>;
}

/// Keeps a row from holding the same sequence of some number of tokens twice: `NoRepeatNGramLogitsProcessor` of
/// `transformers`. With two, `[5, 6, 7, 5]` cannot go on with 6.
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

    /// The tokens that would complete a sequence that `row` holds already.
    fn completing(self, row: &[u32]) -> BTreeSet<u32> {
        let Some(begun) = row.len().checked_sub(self.size - 1) else { return BTreeSet::new() };
        let begun = &row[begun..];
        row.windows(self.size).filter(|window| window.starts_with(begun)).map(|window| window[self.size - 1]).collect()
    }
}

impl LogitsProcessor for NoRepeatNgram {
    fn process(&mut self, logits: Tensor<2>, rows: &[Sequence]) -> Tensor<2> {
        let banned = rows.iter().map(|row| self.completing(row.tokens())).enumerate();
        ban(logits, banned.flat_map(|(row, tokens)| tokens.into_iter().map(move |token| (row, token))))
    }
}

/// Makes these tokens impossible: `(row, token)`, each once.
pub fn ban(logits: Tensor<2>, banned: impl IntoIterator<Item = (usize, u32)>) -> Tensor<2> {
    let [rows, vocabulary] = logits.dims();
    let places: Vec<i32> = banned.into_iter().map(|(row, token)| (row * vocabulary) as i32 + token as i32).collect();
    if places.is_empty() {
        return logits;
    }
    let (count, device) = (places.len(), logits.device());
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device);
    let impossible = Tensor::full([count], f32::NEG_INFINITY, (&device, logits.dtype()));
    let flat = logits.reshape([rows * vocabulary]);
    flat.select_assign(0, places, impossible, IndexingUpdateOp::Add).reshape([rows, vocabulary])
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn tokens_that_would_repeat_a_sequence() {
        let completing = |size, row: &[u32]| NoRepeatNgram::new(size).completing(row).into_iter().collect::<Vec<_>>();
        assert_eq!(completing(3, &[0, 5, 6, 7, 5, 6]), [7]);
        assert_eq!(completing(2, &[0, 5, 6, 5, 7, 5]), [6, 7]);
        assert_eq!(completing(3, &[0, 5, 6, 7]), [0; 0]);
        assert_eq!(completing(4, &[0]), [0; 0]);
        assert_eq!(completing(1, &[0, 5]), [0, 5]);
    }

    #[test]
    fn what_is_banned_is_impossible_and_nothing_else() {
        let logits = Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::flex());
        let banned: Vec<f32> = ban(logits.clone(), [(0, 2), (1, 0), (1, 1)]).into_data().try_into_vec().unwrap();
        assert_eq!(banned, [1.0, 2.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, 6.0]);
        assert_eq!(ban(logits.clone(), []).into_data(), logits.into_data());
    }
}
