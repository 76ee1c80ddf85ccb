//! What generation asks of a model.

use burn::tensor::Tensor;

/// A model in the middle of writing several rows.
pub trait Decoder {
    /// Why a step can fail.
    type Error;

    /// The number of rows being written.
    fn rows(&self) -> usize;

    /// Appends one token to each row, and returns the logits of the next: `[rows, vocabulary]`.
    ///
    /// # Errors
    /// Those of the model, such as a token outside its vocabulary.
    ///
    /// # Panics
    /// If `tokens` does not hold one token for each row.
    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, Self::Error>;

    /// Makes row `i` go on from what row `rows[i]` is now. Rows may be dropped and repeated.
    ///
    /// # Panics
    /// If one of `rows` does not exist.
    fn select_rows(&mut self, rows: &[usize]);
}
