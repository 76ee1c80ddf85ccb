//! From prompts to texts.

use std::error::Error;

use sideburn_adapters::Pass;
use sideburn_batch::TokenRows;
use sideburn_data::{DataError, TokenizedExample, Tokenizer};
use sideburn_generate::{GenerationConfig, greedy};
use sideburn_nn::LanguageModel;

/// Why texts could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TextsError<E: Error + 'static> {
    /// The model could not read a prompt, or not write.
    #[error(transparent)]
    Model(E),
    /// The prompts do not make a batch, or what was written is no text.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Writes greedily behind the prompt of each example, `batch_size` of them at a time: the texts, in the order of the examples.
///
/// ```no_run
/// use sideburn::generate_texts;
/// use sideburn::prelude::*;
///
/// fn summaries(model: &AutoModel, tokenizer: &Tokenizer) -> Result<Vec<String>, Box<dyn std::error::Error>> {
///     let dialogsum = Dataset::dialogsum();
///     let test = dialogsum.read("dialogsum", Split::Test)?;
///     let prompts = tokenize(&test, tokenizer, &dialogsum.template, Limits::default())?;
///     let config = GenerationConfig { no_repeat_ngram_size: 3, ..model.generation_config(64) };
///     Ok(generate_texts(model, tokenizer, &prompts.examples, 8, &config)?)
/// }
/// ```
///
/// # Errors
/// If the model or the tokenizer fails.
///
/// # Panics
/// If `batch_size` is zero.
pub fn generate_texts<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    examples: &[TokenizedExample],
    batch_size: usize,
    config: &GenerationConfig,
) -> Result<Vec<String>, TextsError<M::Error>> {
    let mut texts = Vec::with_capacity(examples.len());
    for chunk in examples.chunks(batch_size) {
        let prompts = TokenRows::from_rows(chunk.iter().map(|example| &example.prompt)).map_err(DataError::from)?;
        let decoding = model.start_decoding(&prompts, Pass::evaluate()).map_err(TextsError::Model)?;
        for ids in greedy(decoding, config).map_err(TextsError::Model)? {
            texts.push(tokenizer.decode(&ids)?);
        }
    }
    Ok(texts)
}
