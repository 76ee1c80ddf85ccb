//! From prompts to texts: one as it is written, or many.

use std::collections::VecDeque;
use std::error::Error;
use std::ops::ControlFlow;

use sideburn_adapters::Pass;
use sideburn_batch::TokenRows;
use sideburn_data::{DataError, TextStream, Tokenizer};
use sideburn_generate::{Decoder, GenerateError, Generation, GenerationConfig};
use sideburn_nn::LanguageModel;

/// Why a text could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextsError<E: Error + 'static> {
    /// The model could not read a prompt.
    #[error(transparent)]
    Model(E),
    /// The model could not write.
    #[error(transparent)]
    Generate(#[from] GenerateError<E>),
    /// A prompt is no prompt, or what was written is no text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// It was not written, because somebody had stopped before.
    #[error("it was stopped before this was written")]
    Stopped,
}

/// A text as it is written: an iterator over its pieces, each of whole characters. One prompt is answered by one text.
///
/// ```no_run
/// use sideburn::stream_text;
/// use sideburn::prelude::*;
///
/// fn show(model: &AutoModel, tokenizer: &Tokenizer, text: &str) -> Result<(), Box<dyn std::error::Error>> {
///     let prompt = tokenizer.encode_prompt(text, Some(512))?.ids;
///     for piece in stream_text(model, tokenizer, &prompt, &model.generation_config(64))? {
///         print!("{}", piece?);
///     }
///     Ok(())
/// }
/// ```
///
/// Something else can be called with each piece, and stop: `pieces.try_for_each(|piece| channel.send(piece?))`. With beams,
/// nothing is sure before the end: the text then comes in one go.
///
/// # Errors
/// If the prompt is empty or the model cannot read it, or the configuration cannot be followed. Each piece can fail, too.
pub fn stream_text<'a, M: LanguageModel<Decoding: 'a>>(
    model: &M,
    tokenizer: &'a Tokenizer,
    prompt: &[u32],
    config: &GenerationConfig,
) -> Result<TextPieces<'a, M::Decoding>, TextsError<M::Error>> {
    let generation = begin(model, tokenizer, &[prompt], config)?;
    Ok(TextPieces { generation, stream: Some(TextStream::new(tokenizer)) })
}

/// The pieces of a text as they are written; [`stream_text`] makes it. After an error there are no more.
pub struct TextPieces<'a, D> {
    generation: Generation<'a, D>,
    /// Until the text has ended.
    stream: Option<TextStream<'a>>,
}

impl<D: Decoder<Error: Error + 'static>> Iterator for TextPieces<'_, D> {
    type Item = Result<String, TextsError<D::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut stream = self.stream.take()?;
        for step in self.generation.by_ref() {
            let piece = step.map_err(TextsError::from).and_then(|step| {
                let pieces = step.tokens.iter().map(|(_, token)| stream.push(*token));
                Ok(pieces.collect::<Result<String, DataError>>()?)
            });
            match piece {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => {
                    self.stream = Some(stream);
                    return Some(Ok(piece));
                }
                Err(error) => return Some(Err(error)),
            }
        }
        let rest = stream.finish().map_err(TextsError::from);
        Some(rest).filter(|rest| !matches!(rest, Ok(rest) if rest.is_empty()))
    }
}

/// How [`generate_many`] puts prompts together.
#[derive(Clone, Debug, PartialEq)]
pub struct ManyConfig {
    /// How each text is written.
    pub generation: GenerationConfig,
    /// A batch has no more tokens than this, those that may be written counted in, for each beam; a prompt that has more by
    /// itself makes a batch.
    pub max_batch_tokens: usize,
}

impl ManyConfig {
    /// Batches of up to 8,192 tokens: 25 prompts of 256 tokens that are answered with 64.
    pub fn new(generation: GenerationConfig) -> Self {
        Self { generation, max_batch_tokens: 8192 }
    }
}

/// How far [`generate_many`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManyProgress {
    /// Prompts that are answered, or cannot be.
    pub done: usize,
    /// All prompts.
    pub prompts: usize,
}

/// What became of each prompt, in their order: its texts, `num_return_sequences` of them, or why there are none.
pub type Texts<E> = Vec<Result<Vec<String>, TextsError<E>>>;

/// Writes behind many prompts. Those of about one length are put together, as many as fit into a batch, the longest first;
/// what comes back is in the order of the prompts. A prompt that cannot be answered fails alone: the others of its batch are
/// answered.
///
/// After every step `watch` is told how far it is, and can stop: then what is written is given, and all other prompts are
/// [`Stopped`](TextsError::Stopped). Draws follow from the place among all prompts: how they are put together changes
/// nothing.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use sideburn::prelude::*;
/// use sideburn::{ManyConfig, generate_many};
///
/// fn summaries(model: &AutoModel, tokenizer: &Tokenizer) -> Result<Vec<String>, Box<dyn std::error::Error>> {
///     let dialogsum = Dataset::dialogsum();
///     let test = dialogsum.read("dialogsum", Split::Test)?.examples;
///     let set = tokenize(&test, tokenizer, &dialogsum.template, Limits::default())?;
///     let prompts: Vec<_> = set.examples.iter().map(|example| &example.prompt).collect();
///     let generation = GenerationConfig { no_repeat_ngram_size: 3, ..model.generation_config(64) };
///     let texts = generate_many(model, tokenizer, &prompts, &ManyConfig::new(generation), |progress| {
///         eprint!("\r{} of {}", progress.done, progress.prompts);
///         ControlFlow::Continue(())
///     });
///     Ok(texts.into_iter().map(|texts| Ok(texts?.remove(0))).collect::<Result<_, sideburn::TextsError<_>>>()?)
/// }
/// ```
///
/// # Panics
/// If `max_batch_tokens` is zero.
pub fn generate_many<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    prompts: &[impl AsRef<[u32]>],
    config: &ManyConfig,
    mut watch: impl FnMut(ManyProgress) -> ControlFlow<()>,
) -> Texts<M::Error> {
    assert!(config.max_batch_tokens > 0, "a batch of no tokens holds no prompt");
    let prompts: Vec<&[u32]> = prompts.iter().map(AsRef::as_ref).collect();
    let mut texts: Vec<_> = prompts.iter().map(|_| None).collect();
    let mut batches = VecDeque::from(batches(&prompts, config));
    while let Some(batch) = batches.pop_front() {
        let mut stopped = false;
        let written = write_batch(model, tokenizer, &prompts, &batch, config, |written| {
            if let Some((index, written)) = written {
                texts[index] = Some(Ok(written));
            }
            let done = texts.iter().filter(|text| text.is_some()).count();
            let flow = watch(ManyProgress { done, prompts: texts.len() });
            stopped |= flow.is_break();
            flow
        });
        match written {
            // Which of them it was shows when each is alone.
            Err(_) if batch.len() > 1 => {
                let left = batch.into_iter().rev().filter(|index| texts[*index].is_none());
                left.for_each(|index| batches.push_front(vec![index]));
            }
            Err(error) => texts[batch[0]] = Some(Err(error)),
            Ok(()) => {}
        }
        if stopped {
            break;
        }
    }
    texts.into_iter().map(|text| text.unwrap_or(Err(TextsError::Stopped))).collect()
}

/// Gets ready to write behind these prompts.
fn begin<'a, M: LanguageModel>(
    model: &M,
    tokenizer: &'a Tokenizer,
    prompts: &[&[u32]],
    config: &GenerationConfig,
) -> Result<Generation<'a, M::Decoding>, TextsError<M::Error>> {
    let rows = TokenRows::from_rows(prompts).map_err(DataError::from)?;
    let decoding = model.start_decoding(&rows, Pass::evaluate()).map_err(TextsError::Model)?;
    Ok(Generation::with_text(decoding, config, |ids| tokenizer.decode(ids).unwrap_or_default())?)
}

/// The prompts of each batch, by their indices.
fn batches(prompts: &[&[u32]], config: &ManyConfig) -> Vec<Vec<usize>> {
    let ManyConfig { generation, max_batch_tokens } = config;
    let copies = generation.num_beams.max(generation.num_return_sequences);
    let tokens = |index: usize| prompts[index].len().saturating_add(copies.saturating_mul(generation.limit(1)));
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(prompts[*index].len()));
    let (mut batches, mut held) = (Vec::<Vec<usize>>::new(), 0usize);
    for index in order {
        match batches.last_mut() {
            Some(batch) if tokens(index).saturating_add(held) <= *max_batch_tokens => batch.push(index),
            _ => {
                batches.push(vec![index]);
                held = 0;
            }
        }
        held = tokens(index).saturating_add(held);
    }
    batches
}

/// Writes behind the prompts of one batch. `each` is given the texts of every one that is done, and told of every step; it can
/// stop all.
fn write_batch<M: LanguageModel>(
    model: &M,
    tokenizer: &Tokenizer,
    prompts: &[&[u32]],
    batch: &[usize],
    config: &ManyConfig,
    mut each: impl FnMut(Option<(usize, Vec<String>)>) -> ControlFlow<()>,
) -> Result<(), TextsError<M::Error>> {
    let rows: Vec<&[u32]> = batch.iter().map(|index| prompts[*index]).collect();
    let numbers: Vec<u64> = batch.iter().map(|index| *index as u64).collect();
    let asked_for = config.generation.num_return_sequences;
    // Answers to a prompt need not all come in one step.
    let mut answers = vec![Some(Vec::new()); batch.len()];
    let texts = |mut answers: Vec<(usize, String)>| {
        answers.sort();
        answers.into_iter().map(|(_, text)| text).collect()
    };
    for step in begin(model, tokenizer, &rows, &config.generation)?.with_numbers(&numbers) {
        for answer in step?.ended {
            let Some(of_prompt) = &mut answers[answer.prompt] else { continue };
            of_prompt.push((answer.rank, tokenizer.decode(&answer.tokens)?));
            if of_prompt.len() == asked_for {
                let of_prompt = answers[answer.prompt].take().expect("some were there");
                let _ = each(Some((batch[answer.prompt], texts(of_prompt))));
            }
        }
        if each(None).is_break() {
            return Ok(());
        }
    }
    // Where nothing may be written, or a search has found fewer than were asked for.
    for (index, mut left) in batch.iter().zip(answers).filter_map(|(index, left)| left.map(|left| (*index, left))) {
        if left.is_empty() {
            left = (0..asked_for).map(|rank| (rank, String::new())).collect();
        }
        let _ = each(Some((index, texts(left))));
    }
    Ok(())
}
