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

    /// The prompt that a row answers: what an encoder has read, or for a decoder alone the history.
    ///
    /// # Panics
    /// As [`history`](Self::history).
    fn prompt(&self, row: usize) -> &[u32] {
        self.history(row)
    }

    /// Appends tokens to each row, as many to one as to the other, row after row; and returns the logits of what may follow
    /// each of them: `[tokens, vocabulary]`. Mostly it is one token for each row.
    ///
    /// # Errors
    /// Those of the model, such as a token outside its vocabulary.
    ///
    /// # Panics
    /// If `tokens` is empty, or cannot be shared out to the rows.
    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, Self::Error>;

    /// The last hidden states of the tokens of the latest [`next_logits`](Self::next_logits), `[tokens, width]`; after the
    /// first call, those of the histories, row after row. `None` if the decoder does not tell them.
    fn hidden(&self) -> Option<Tensor<2>> {
        None
    }

    /// Makes row `i` go on from what row `rows[i]` is now. Rows may be dropped and repeated.
    ///
    /// # Panics
    /// If one of `rows` does not exist.
    fn select_rows(&mut self, rows: &[usize]);

    /// Takes back the last tokens of each row, so that it can go on in another way.
    ///
    /// # Panics
    /// If fewer were appended.
    fn forget(&mut self, tokens: usize);
}
