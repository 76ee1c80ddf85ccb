//! The loop that writes.

use crate::{
    Answer, Decision, Decoder, GenerationConfig, Greedy, LogitsProcessor, Sequence, Stopping, StoppingCriterion,
    Strategy,
};

/// Rows being written, token by token: an iterator over [`Step`]s, which can be left at any of them.
///
/// A row that has ended is dropped from the decoder, so that the others do not wait for it.
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// # use sideburn_generate::Decoder;
/// # struct Constant(usize);
/// # impl Decoder for Constant {
/// #     type Error = std::convert::Infallible;
/// #     fn rows(&self) -> usize { self.0 }
/// #     fn history(&self, _: usize) -> &[u32] { &[0] }
/// #     fn next_logits(&mut self, _: &[u32]) -> Result<Tensor<2>, Self::Error> {
/// #         Ok(Tensor::from_floats([[0.0, 0.0, 1.0]], &Device::flex()).repeat_dim(0, self.0))
/// #     }
/// #     fn select_rows(&mut self, rows: &[usize]) { self.0 = rows.len() }
/// # }
/// use sideburn_generate::{Generation, GenerationConfig, Greedy};
///
/// # let decoder = Constant(1);
/// let mut written = Vec::new();
/// for step in Generation::new(decoder, Greedy, &GenerationConfig::new(3)) {
///     // As soon as a token is there, it can be shown.
///     written.extend(step?.tokens);
/// }
/// assert_eq!(written, [(0, 2), (0, 2), (0, 2)]);
/// # Ok::<(), std::convert::Infallible>(())
/// ```
pub struct Generation<'a, D, S> {
    decoder: D,
    strategy: S,
    processors: Vec<Box<dyn LogitsProcessor + 'a>>,
    stopping: Stopping<'a>,
    rows: Vec<Sequence>,
    prompts: usize,
}

/// What a step has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The tokens that are in the answer to a prompt for good, `(prompt, token)`, in the order in which they follow each
    /// other.
    pub tokens: Vec<(usize, u32)>,
    /// The answers that are complete.
    pub ended: Vec<Answer>,
}

impl<'a, D: Decoder, S: Strategy> Generation<'a, D, S> {
    /// Gets ready to write behind each row of `decoder`.
    pub fn new(decoder: D, strategy: S, config: &GenerationConfig) -> Self {
        let prompts = decoder.rows();
        let rows = if config.max_new_tokens == 0 { 0 } else { prompts };
        let rows = (0..rows).map(|row| Sequence::new(row, decoder.history(row))).collect();
        Self { decoder, strategy, processors: config.processors(), stopping: config.stopping(), rows, prompts }
    }

    /// The same with one more processor of logits, behind those of the configuration.
    pub fn with_processor(mut self, processor: impl LogitsProcessor + 'a) -> Self {
        self.processors.push(Box::new(processor));
        self
    }

    /// The same with something more that ends a row.
    pub fn with_stopping(mut self, criterion: impl StoppingCriterion + 'a) -> Self {
        self.stopping = self.stopping.with(criterion);
        self
    }

    /// Writes to the end: the answer to each prompt.
    ///
    /// # Errors
    /// Those of the decoder.
    ///
    /// # Panics
    /// If the strategy gives up a prompt without an answer.
    pub fn finish(self) -> Result<Vec<Vec<u32>>, D::Error> {
        let empty = (self.rows.is_empty()).then(Vec::new);
        let mut answers: Vec<Option<Vec<u32>>> = vec![empty; self.prompts];
        for step in self {
            for Answer { prompt, tokens } in step?.ended {
                answers[prompt] = Some(tokens);
            }
        }
        let answer = |(prompt, answer): (usize, Option<_>)| {
            answer.unwrap_or_else(|| panic!("the strategy has no answer to prompt {prompt}"))
        };
        Ok(answers.into_iter().enumerate().map(answer).collect())
    }

    fn step(&mut self) -> Result<Step, D::Error> {
        let last: Vec<u32> = self.rows.iter().map(Sequence::last).collect();
        let logits = self.decoder.next_logits(&last)?;
        let logits = self.processors.iter_mut().fold(logits, |logits, processor| processor.process(logits, &self.rows));
        let Decision { going_on, tokens, ended } = self.strategy.step(logits, &self.rows, &self.stopping);
        let from: Vec<usize> = going_on.iter().map(|next| next.row).collect();
        if !from.is_empty() && !from.iter().copied().eq(0..self.rows.len()) {
            self.decoder.select_rows(&from);
        }
        self.rows = going_on.iter().map(|next| self.rows[next.row].with(next.token)).collect();
        Ok(Step { tokens, ended })
    }
}

/// The steps, until every row has ended; after an error there are no more.
impl<D: Decoder, S: Strategy> Iterator for Generation<'_, D, S> {
    type Item = Result<Step, D::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rows.is_empty() {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.rows.clear();
        }
        Some(step)
    }
}

/// Continues every row of `decoder` with its most likely token that is allowed, until it ends: the answer to each prompt.
///
/// # Errors
/// Those of the decoder.
pub fn greedy<D: Decoder>(decoder: D, config: &GenerationConfig) -> Result<Vec<Vec<u32>>, D::Error> {
    Generation::new(decoder, Greedy, config).finish()
}
