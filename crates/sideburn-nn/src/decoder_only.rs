//! Decoders alone: what a family says of itself, and what all of them do with that.

use std::error::Error;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use sideburn_adapters::{AdaptedTable, AdapterError, Adapters, Pass, TokenPass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::{Decoder, GenerationConfig};
use sideburn_kernels::{RowLayout, Visibility, on_workers};

use crate::{
    Attention, Cache, Head, KeysValues, LanguageModel, NnError, Position, Positions, behind, check_ids, embed,
    places_behind,
};

/// A model that is a decoder alone: each token sees those before it, prompt and answer are one row.
///
/// A family says what stands around its blocks, and how they run; a [`LanguageModel`] follows. Every prompt, with what is
/// written behind it, is a row of its own in one packed matrix: no token sees another row, wherever the rows lie, so that
/// many short rows cost what one long row of as many tokens costs, less the attention between them.
pub trait DecoderOnly: Adapters + Sync {
    /// Why it cannot compute.
    type Error: Error + From<NnError> + From<AdapterError> + Send + Sync + 'static;

    /// What stands around the blocks.
    fn frame(&self) -> Frame<'_>;

    /// Runs the blocks, and the norm behind them, over the embedded `tokens`: from `x [tokens, width]` to the last hidden
    /// states of the same shape.
    ///
    /// # Errors
    /// If there is no place for a token.
    fn run(
        &self,
        x: Tensor<2>,
        tokens: &mut CausalTokens<'_>,
        pass: &mut TokenPass<'_>,
    ) -> Result<Tensor<2>, Self::Error>;
}

/// What stands around the blocks of a [`DecoderOnly`].
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// What tokens are embedded by.
    pub embedding: &'a AdaptedTable,
    /// What makes logits of the last hidden states.
    pub head: Head<'a>,
    /// Heads of the queries.
    pub heads: usize,
    /// How attention knows where tokens stand.
    pub positions: Positions,
    /// How the model writes where nothing else is asked for.
    pub generation: &'a GenerationConfig,
}

/// The tokens of one pass through the blocks of a [`DecoderOnly`], and what they see: the tokens before them in their row,
/// and themselves.
#[derive(Debug)]
pub struct CausalTokens<'a> {
    first: Vec<usize>,
    position: Position,
    visibility: Visibility,
    /// What an adapter has before each row, and where the keys of each row stand among that and their own.
    prefix: Option<(Vec<KeysValues>, Tensor<1, Int>)>,
    memory: Memory<'a>,
}

/// What becomes of keys and values.
#[derive(Debug)]
enum Memory<'a> {
    /// Nothing.
    None,
    /// A cache begins with them.
    Begins(&'a mut Cache),
    /// They go behind those of a cache.
    GoesOn(&'a mut Cache),
}

impl CausalTokens<'_> {
    /// Where the rows lie in the matrix of tokens.
    pub fn layout(&self) -> &RowLayout {
        &self.visibility.queries
    }

    /// The place of the first token of each row among all of its row.
    pub fn first_places(&self) -> &[usize] {
        &self.first
    }

    /// Runs blocks one after the other, each by `forward(block, index, x, tokens, pass)`, from `x [tokens, width]` on; with
    /// [checkpoints](Pass::with_checkpoints), if the pass has them and nothing stands before the rows.
    pub fn run_blocks<B: Module + Send + Sync + 'static>(
        &mut self,
        blocks: &[B],
        x: Tensor<2>,
        pass: &mut TokenPass<'_>,
        forward: impl Fn(&B, usize, Tensor<2>, &mut CausalTokens<'_>, &mut TokenPass<'_>) -> Tensor<2>
        + Copy
        + Send
        + Sync
        + 'static,
    ) -> Tensor<2> {
        let blocks = blocks.iter().enumerate();
        if !pass.has_checkpoints() || self.prefix.is_some() || !matches!(self.memory, Memory::None) {
            return blocks.fold(x, |x, (index, block)| forward(block, index, x, self, pass));
        }
        let begun = pass.boundary(x);
        let last = blocks.fold(begun, |x, (index, block)| {
            let (first, position, visibility) = (self.first.clone(), self.position.clone(), self.visibility.clone());
            pass.checkpointed(vec![x], block, move |block, inputs, pass| {
                let (first, position, visibility) = (first.clone(), position.clone(), visibility.clone());
                let mut tokens = CausalTokens { first, position, visibility, prefix: None, memory: Memory::None };
                let x = inputs.into_iter().next().expect("the input that was given");
                forward(block, index, x, &mut tokens, pass)
            })
        });
        last.into_tensor()
    }

    /// Lets the tokens `x [tokens, width]` of a block look at what they see: `[tokens, width]`.
    pub fn attend(&mut self, block: usize, attention: &Attention, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        let Self { position, visibility, prefix, memory, .. } = self;
        let projections = attention.projections(x, pass);
        if let (None, Memory::None) = (&prefix, &memory) {
            return attention.among_themselves(projections, position, visibility, pass);
        }
        let (queries, fresh) = attention.split(projections, position);
        let seen = match (prefix, memory) {
            (_, Memory::GoesOn(cache)) => cache.append(block, fresh),
            (prefix, memory) => {
                let seen = match prefix {
                    Some((prefix, places)) => prefix[block].clone().pick_with(fresh, places),
                    None => fresh,
                };
                if let Memory::Begins(cache) = memory {
                    cache.fill(block, seen.clone(), &visibility.keys);
                }
                seen
            }
        };
        attention.look_at(queries, seen, position, visibility, pass)
    }
}

/// The last hidden states of `rows`, which go on from what `cache` holds if there is one, at the last `wanted[i]` tokens of
/// row `i`.
fn states<M: DecoderOnly>(
    model: &M,
    rows: &TokenRows,
    wanted: &[usize],
    cache: Option<&mut Cache>,
    pass: &mut Pass,
) -> Result<Tensor<2>, M::Error> {
    let (frame, adapters, device) = (model.frame(), model.adapters(), model.device());
    let memory = match cache {
        None => Memory::None,
        Some(cache) if cache.is_empty() => Memory::Begins(cache),
        Some(cache) => Memory::GoesOn(cache),
    };
    let goes_on = matches!(memory, Memory::GoesOn(_));
    let prompt = adapters.virtual_tokens().filter(|_| !goes_on);
    let prefix = adapters.prefix().filter(|_| !goes_on);
    let prefix = prefix.map(|layers| KeysValues::of_prefix(layers, frame.embedding.dtype()));
    let added = prompt.as_ref().map_or(0, |prompt| prompt.dims()[0]);
    let before = prefix.as_ref().and_then(|prefix| prefix.first()).map_or(0, KeysValues::tokens);
    let lengths: Vec<usize> = rows.lengths().iter().map(|length| added + length).collect();
    let layout = if goes_on { RowLayout::packed(&lengths, &device) } else { RowLayout::new(&lengths, &device) };
    let (first, visibility) = match &memory {
        Memory::GoesOn(cache) => {
            let (fresh, first) = (layout.columns(), cache.lengths().to_vec());
            let keys = cache.layout(fresh, &device);
            // One token of each row sees all.
            let visibility = if fresh == 1 { Visibility::full } else { Visibility::at_end };
            (first, visibility(frame.heads, &layout, &keys))
        }
        _ if before == 0 => (vec![0; rows.len()], Visibility::causal(frame.heads, &layout, &layout, 0)),
        _ => {
            let seen: Vec<usize> = lengths.iter().map(|length| before + length).collect();
            let keys = RowLayout::new(&seen, &device);
            (vec![before; rows.len()], Visibility::causal(frame.heads, &layout, &keys, before))
        }
    };
    let visibility = match frame.positions {
        Positions::Alibi(_) => visibility.with_bias_by_place(),
        Positions::None | Positions::Rotary(_) => visibility,
    };
    let filler = frame.generation.pad_token_id.unwrap_or(0);
    let pass = &mut adapters.enter(pass, &layout)?;
    let x = match prompt {
        Some(prompt) => {
            let own = RowLayout::packed(rows.lengths(), &device);
            let embedded = embed(frame.embedding, rows, &own, filler, &adapters.enter(pass, &own)?)?;
            behind(prompt, embedded, &own, &layout)
        }
        None => embed(frame.embedding, rows, &layout, filler, pass)?,
    };
    let prefix = prefix.map(|prefix| (prefix, places_behind(before, &layout, &visibility.keys)));
    let position = frame.positions.of(&visibility, &first, x.dtype());
    let tokens = &mut CausalTokens { first, position, visibility, prefix, memory };
    let hidden = model.run(x, tokens, pass)?;
    if let Memory::GoesOn(cache) = &mut tokens.memory {
        cache.advance(layout.columns());
    }
    let last = |(row, wanted): (usize, &usize)| layout.row(row).end - wanted..layout.row(row).end;
    let places: Vec<i32> = wanted.iter().enumerate().flat_map(last).map(|token| token as i32).collect();
    let count = places.len();
    Ok(hidden.select(0, Tensor::from_data(TensorData::new(places, [count]), &device)))
}

/// Rows of which each is one of `first` and, behind it, one of `then`.
fn joined<'a>(first: impl Iterator<Item = &'a [u32]>, then: impl Iterator<Item = &'a [u32]>) -> TokenRows {
    TokenRows::from_rows(first.zip(then).map(|(first, then)| [first, then].concat())).expect("rows of a batch")
}

/// A pass over one matrix in which row `i` has `lengths[i]` tokens.
fn enter<'p, M: DecoderOnly>(model: &M, pass: &'p mut Pass, lengths: &[usize]) -> Result<TokenPass<'p>, AdapterError> {
    model.adapters().enter(pass, &RowLayout::packed(lengths, &model.device()))
}

impl<M: DecoderOnly> LanguageModel for M {
    type Error = M::Error;
    type Decoding = CausalDecoding<M>;

    fn vocab_size(&self) -> usize {
        self.frame().embedding.shape()[0]
    }

    fn default_generation_config(&self) -> &GenerationConfig {
        self.frame().generation
    }

    fn tokens_at(&self, site: &str, prompts: usize, targets: usize) -> usize {
        if site == self.shape().head { targets } else { prompts + targets }
    }

    fn token_losses(&self, batch: &PromptBatch, pass: &mut Pass) -> Result<Tensor<1>, M::Error> {
        on_workers(&self.device(), || {
            let (prompts, targets) = (batch.prompts(), batch.targets());
            check_ids(targets, self.vocab_size())?;
            // Nothing is written behind the last token, so that it need not be read.
            let rows = joined(prompts.iter(), targets.iter().map(|target| &target[..target.len() - 1]));
            let hidden = states(self, &rows, targets.lengths(), None, pass)?;
            Ok(self.frame().head.token_losses(hidden, targets, &mut enter(self, pass, targets.lengths())?))
        })
    }

    fn logits(&self, prompts: &TokenRows, written: &TokenRows, pass: &mut Pass) -> Result<Tensor<2>, M::Error> {
        assert_eq!(written.len(), prompts.len(), "every prompt needs one row of what is written");
        let hidden = states(self, &joined(prompts.iter(), written.iter()), written.lengths(), None, pass)?;
        Ok(self.frame().head.logits(hidden, &mut enter(self, pass, written.lengths())?))
    }

    fn start_decoding(&self, prompts: &TokenRows, pass: Pass) -> Result<CausalDecoding<M>, M::Error> {
        assert!(!pass.is_train(), "decoding has no dropout; give it a pass that evaluates");
        check_ids(prompts, self.vocab_size())?;
        // What cannot be chosen for single rows is told before anything is written.
        enter(self, &mut pass.clone(), prompts.lengths())?;
        let cache = Cache::new(self.shape().num_layers, prompts.len());
        let prompts = prompts.iter().map(<[u32]>::to_vec).collect();
        Ok(CausalDecoding { model: self.valid(), pass, prompts, cache, hidden: None })
    }
}

/// A [`DecoderOnly`] in the middle of writing: the keys and values of the tokens so far. Prompts of different lengths are
/// read in one packed pass, together with the first step; no token of padding is ever computed.
///
/// Made by [`start_decoding`](LanguageModel::start_decoding); always evaluates, without dropout and without an autodiff
/// graph.
#[derive(Clone, Debug)]
pub struct CausalDecoding<M> {
    /// In evaluation mode.
    model: M,
    pass: Pass,
    /// What is not read yet; nothing behind the first step.
    prompts: Vec<Vec<u32>>,
    cache: Cache,
    /// The last hidden states of the latest tokens.
    hidden: Option<Tensor<2>>,
}

impl<M: DecoderOnly> CausalDecoding<M> {
    /// See [`next_logits`](Decoder::next_logits).
    fn next_logits_here(&mut self, tokens: &[u32]) -> Result<Tensor<2>, M::Error> {
        let Self { model, pass, prompts, cache, hidden } = self;
        let fresh = tokens.len() / cache.rows();
        let unread = |row: usize| prompts.get(row).map_or(&[][..], |prompt| &prompt[..prompt.len() - 1]);
        let rows = joined((0..cache.rows()).map(unread), tokens.chunks(fresh));
        let states = states(model, &rows, rows.lengths(), Some(cache), pass)?;
        *hidden = Some(states.clone());
        let layout = RowLayout::packed(rows.lengths(), &model.device());
        let last = |row: usize| layout.row(row).end - fresh..layout.row(row).end;
        let places: Vec<i32> = (0..rows.len()).flat_map(last).map(|token| token as i32).collect();
        let states = match tokens.len() == rows.tokens() {
            true => states,
            false => states.select(0, Tensor::from_data(TensorData::new(places, [tokens.len()]), &model.device())),
        };
        let logits = model.frame().head.logits(states, &mut enter(model, pass, &vec![fresh; rows.len()])?);
        prompts.clear();
        Ok(logits)
    }
}

impl<M: DecoderOnly> Decoder for CausalDecoding<M> {
    type Error = M::Error;

    fn rows(&self) -> usize {
        self.cache.rows()
    }

    fn history(&self, row: usize) -> &[u32] {
        &self.prompts[row]
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, M::Error> {
        let is_shared_out = !tokens.is_empty() && tokens.len().is_multiple_of(self.rows());
        assert!(is_shared_out, "every row needs as many tokens as the others");
        on_workers(&self.model.device(), || self.next_logits_here(tokens))
    }

    fn hidden(&self) -> Option<Tensor<2>> {
        self.hidden.clone()
    }

    fn select_rows(&mut self, rows: &[usize]) {
        if !self.prompts.is_empty() {
            self.prompts = rows.iter().map(|row| self.prompts[*row].clone()).collect();
        }
        self.cache.select_rows(rows, &self.model.device());
        self.pass.select_rows(rows);
    }

    fn forget(&mut self, tokens: usize) {
        self.cache.forget(tokens);
    }
}
