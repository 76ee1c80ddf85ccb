//! What generation asks of a model.

use burn::tensor::Tensor;

/// A model in the middle of writing several rows.
///
/// It has read what stands before the first token that is written, but for the last token of it, which the first call of
/// [`next_logits`](Self::next_logits) appends: an encoder-decoder that starts from token 0 has the history `[0]`, and a
/// decoder alone that is to go on from the prompt `[5, 6, 7]` has that history, of which it has read `[5, 6]`.
pub trait Decoder {
    /// Why a step can fail.
    type Error;

    /// The number of rows being written.
    fn rows(&self) -> usize;

    /// What stands before the first token that is written in a row: at least one token.
    ///
    /// # Panics
    /// If there is no such row, or it was written to already.
    fn history(&self, row: usize) -> &[u32];

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
