//! What a language model can be asked for, of whatever family it is.

use std::error::Error;

use burn::tensor::Tensor;
use sideburn_adapters::{Adapters, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::{Decoder, GenerationConfig};

/// A model that writes tokens behind prompts, and can be trained to.
///
/// An encoder-decoder reads a prompt with its encoder; what its decoder reads begins with a start token of the model's. A
/// decoder alone reads the prompt, and goes on with what is written.
pub trait LanguageModel: Adapters {
    /// Why it cannot compute.
    type Error: Error + Send + Sync + 'static;
    /// The model in the middle of writing.
    type Decoding: Decoder<Error = Self::Error>;

    /// How many tokens it knows: ids are below.
    fn vocab_size(&self) -> usize;

    /// How it writes where nothing else is asked for: what its files say, the tokens that rows begin with, end with and are
    /// padded with among it.
    fn default_generation_config(&self) -> &GenerationConfig;

    /// The negative log-likelihood of every token of the batch's targets, end to end, in nats: `[tokens]`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or `pass` names adapters that cannot be had for single rows.
    fn token_losses(&self, batch: &PromptBatch, pass: &mut Pass) -> Result<Tensor<1>, Self::Error>;

    /// The logits of what may follow every token of `written`, which stands behind `prompts`: `[tokens, vocab_size]`. For an
    /// encoder-decoder `written` is all that the decoder reads, and begins with the start token.
    ///
    /// # Errors
    /// As [`token_losses`](Self::token_losses).
    ///
    /// # Panics
    /// If there are not as many rows of both.
    fn logits(&self, prompts: &TokenRows, written: &TokenRows, pass: &mut Pass) -> Result<Tensor<2>, Self::Error>;

    /// Reads the prompts, and gets ready to write behind each, without an autodiff graph.
    ///
    /// # Errors
    /// As [`token_losses`](Self::token_losses), and if nothing says what an encoder-decoder starts from.
    ///
    /// # Panics
    /// If `pass` trains: decoding has no dropout.
    fn start_decoding(&self, prompts: &TokenRows, pass: Pass) -> Result<Self::Decoding, Self::Error>;

    /// How many tokens the linear layer called `site` sees in a step whose prompts and targets have so many.
    fn tokens_at(&self, site: &str, prompts: usize, targets: usize) -> usize;

    /// The model's own settings of generation, for at most so many tokens.
    fn generation_config(&self, max_new_tokens: usize) -> GenerationConfig {
        GenerationConfig { max_new_tokens: Some(max_new_tokens), ..self.default_generation_config().clone() }
    }
}
