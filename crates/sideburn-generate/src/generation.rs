//! The loop that writes.

use crate::strategy::{Assisted, BeamGroups, Beams, Contrastive, Greedy, Rules, Sampling, Strategy};
use crate::{
    Answer, ConfigError, Decision, Decoder, GenerateError, GenerationConfig, LogitsProcessor, Sequence, StopStrings,
    StoppingCriterion,
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
/// #     fn forget(&mut self, _: usize) {}
/// # }
/// use sideburn_generate::{Generation, GenerationConfig};
///
/// # let decoder = Constant(1);
/// let mut written = Vec::new();
/// for step in Generation::new(decoder, &GenerationConfig::new(3))? {
///     // As soon as a token is there, it can be shown.
///     written.extend(step?.tokens);
/// }
/// assert_eq!(written, [(0, 2), (0, 2), (0, 2)]);
/// # Ok::<(), sideburn_generate::GenerateError<std::convert::Infallible>>(())
/// ```
pub struct Generation<'a, D> {
    decoder: D,
    strategy: Box<dyn Strategy<D> + 'a>,
    rules: Rules<'a>,
    rows: Vec<Sequence>,
    /// The answers, where nothing may be written.
    empty: Vec<Answer>,
}

/// What a step has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The tokens that are for good in the first answer to a prompt, `(prompt, token)`, in the order in which they follow each
    /// other.
    pub tokens: Vec<(usize, u32)>,
    /// The answers that are complete.
    pub ended: Vec<Answer>,
}

impl<'a, D: Decoder> Generation<'a, D> {
    /// Gets ready to write behind each row of `decoder`, with the strategy that the configuration asks for.
    ///
    /// # Errors
    /// If the configuration cannot be followed; one with `stop_strings` needs [`with_text`](Self::with_text).
    pub fn new(decoder: D, config: &GenerationConfig) -> Result<Self, GenerateError<D::Error>> {
        if !config.stop_strings.is_empty() {
            return Err(ConfigError::NoText.into());
        }
        Self::with_strategy(decoder, chosen(config), config)
    }

    /// The same, where `text` turns tokens into text: for `stop_strings`.
    ///
    /// # Errors
    /// If the configuration cannot be followed.
    pub fn with_text(
        decoder: D,
        config: &GenerationConfig,
        text: impl Fn(&[u32]) -> String + 'a,
    ) -> Result<Self, GenerateError<D::Error>> {
        let generation = Self::with_strategy(decoder, chosen(config), config)?;
        Ok(match config.stop_strings.is_empty() {
            true => generation,
            false => generation.with_stopping(StopStrings::new(config.stop_strings.clone(), text)),
        })
    }

    /// Gets ready to write behind the only row of `decoder`, where a smaller model, in the middle of writing behind the same
    /// prompt, writes ahead.
    ///
    /// # Errors
    /// If the configuration cannot be followed, asks for a search, or for several answers; if the two begin differently, or
    /// there are several rows.
    pub fn assisted(
        decoder: D,
        draft: impl Decoder<Error = D::Error> + 'a,
        config: &GenerationConfig,
    ) -> Result<Self, GenerateError<D::Error>> {
        let conflict = |message: &str| GenerateError::from(ConfigError::Conflict { message: message.to_owned() });
        if config.num_beams > 1 || config.num_return_sequences > 1 || config.is_contrastive() {
            return Err(conflict(
                "assisted generation is greedy or draws, and gives one answer; unset `num_beams`, \
                                 `num_return_sequences` and `penalty_alpha`",
            ));
        }
        if [decoder.rows(), draft.rows()] != [1, 1] {
            return Err(GenerateError::SeveralRows { rows: decoder.rows(), draft_rows: draft.rows() });
        }
        if decoder.history(0) != draft.history(0) {
            return Err(conflict("the draft begins with other tokens than the model: it is of another family"));
        }
        Self::with_strategy(decoder, Box::new(Assisted::new(draft, config)), config)
    }

    /// The same with a strategy of another crate. Which one the configuration asks for does not matter.
    ///
    /// # Errors
    /// If the configuration cannot be followed.
    pub fn with_strategy(
        mut decoder: D,
        strategy: Box<dyn Strategy<D> + 'a>,
        config: &GenerationConfig,
    ) -> Result<Self, GenerateError<D::Error>> {
        config.check()?;
        let (prompts, copies) = (decoder.rows(), strategy.rows_of_prompt());
        let mut rows = Vec::with_capacity(prompts * copies);
        for prompt in 0..prompts {
            rows.extend((0..copies).map(|copy| Sequence::new(prompt, copy, decoder.history(prompt))));
        }
        config.check_rows(&rows)?;
        let processors = config.processors((0..prompts).map(|row| decoder.prompt(row).to_vec()).collect());
        let rules = Rules { processors, stopping: config.stopping(), keeps_log_probs: config.output_scores };
        let mut empty = Vec::new();
        if config.max_new_tokens == Some(0) {
            let answer = |rank| move |row: &Sequence| row.clone().into_answer(rank, None);
            let first = rows.iter().filter(|row| row.copy() == 0);
            empty = first.flat_map(|row| (0..config.num_return_sequences).map(move |rank| answer(rank)(row))).collect();
            rows.clear();
        } else if copies > 1 {
            decoder.select_rows(&rows.iter().map(Sequence::prompt).collect::<Vec<_>>());
        }
        Ok(Self { decoder, strategy, rules, rows, empty })
    }

    /// The same with one more processor of scores, behind those of the configuration.
    pub fn with_processor(mut self, processor: impl LogitsProcessor + 'a) -> Self {
        self.rules.processors.push(processor);
        self
    }

    /// The same with something more that ends a row.
    pub fn with_stopping(mut self, criterion: impl StoppingCriterion + 'a) -> Self {
        self.rules.stopping = std::mem::take(&mut self.rules.stopping).with(criterion);
        self
    }

    /// The same where draws know prompt `i` by `numbers[i]`, instead of by its place in the batch: a prompt with the same
    /// number is answered alike, whatever stands beside it.
    ///
    /// # Panics
    /// If a prompt has no number.
    pub fn with_numbers(mut self, numbers: &[u64]) -> Self {
        self.rows.iter_mut().for_each(|row| row.set_number(numbers[row.prompt()]));
        self
    }

    /// Writes to the end: the answers to all prompts, one behind the other, `num_return_sequences` to each.
    ///
    /// # Errors
    /// Those of the decoder, and if no token can follow.
    pub fn finish(mut self) -> Result<Vec<Answer>, GenerateError<D::Error>> {
        let mut answers = std::mem::take(&mut self.empty);
        for step in self {
            answers.extend(step?.ended);
        }
        answers.sort_by_key(|answer| (answer.prompt, answer.rank));
        Ok(answers)
    }

    fn step(&mut self) -> Result<Step, GenerateError<D::Error>> {
        let rows = std::mem::take(&mut self.rows);
        let count = rows.len();
        let Decision { going_on, tokens, ended } = self.strategy.step(&mut self.decoder, rows, &self.rules)?;
        let from: Vec<usize> = going_on.iter().map(|next| next.from).collect();
        if !from.is_empty() && !from.iter().copied().eq(0..count) {
            self.decoder.select_rows(&from);
        }
        self.rows = going_on.into_iter().map(|next| next.row).collect();
        Ok(Step { tokens, ended })
    }
}

/// The strategy that a configuration asks for.
fn chosen<'a, D: Decoder>(config: &GenerationConfig) -> Box<dyn Strategy<D> + 'a> {
    match (config.num_beams, config.do_sample) {
        (0 | 1, true) => Box::new(Sampling::new(config.seed, config.num_return_sequences)),
        (0 | 1, false) if config.is_contrastive() => Box::new(Contrastive::new(config)),
        (0 | 1, false) => Box::new(Greedy),
        _ if config.num_beam_groups > 1 => Box::new(BeamGroups::new(config)),
        _ => Box::new(Beams::new(config)),
    }
}

/// The steps, until every row has ended; after an error there are no more.
impl<D: Decoder> Iterator for Generation<'_, D> {
    type Item = Result<Step, GenerateError<D::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rows.is_empty() { None } else { Some(self.step()) }
    }
}

/// Writes behind every row of `decoder` as the configuration asks for: the answers to all prompts, one behind the other.
///
/// # Errors
/// If the configuration cannot be followed, those of the decoder, and if no token can follow.
pub fn generate<D: Decoder>(decoder: D, config: &GenerationConfig) -> Result<Vec<Answer>, GenerateError<D::Error>> {
    Generation::new(decoder, config)?.finish()
}
