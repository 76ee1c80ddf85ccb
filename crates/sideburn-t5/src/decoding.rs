//! Decoding one token at a time, with cached keys and values.

use burn::module::Module;
use burn::tensor::Tensor;
use sideburn_adapters::{AdaptedModel, Pass};
use sideburn_batch::TokenRows;
use sideburn_generate::Decoder;
use sideburn_kernels::{RowLayout, Visibility, on_workers};
use sideburn_nn::Cache;

use crate::T5Error;
use crate::layers::{DECODER, Scores};
use crate::model::T5;
use crate::stack::Cross;

/// A T5 decoder in the middle of writing: the encoder's keys and values, and those of the tokens so far.
///
/// Made by [`start_decoding`](sideburn_nn::LanguageModel::start_decoding); always evaluates, without dropout and without an
/// autodiff graph.
#[derive(Clone, Debug)]
pub struct Decoding {
    /// In evaluation mode.
    model: T5,
    pass: Pass,
    start: u32,
    /// Before anything is written.
    prompts: TokenRows,
    cross: Cross,
    own: Cache,
    /// The last hidden states of the latest tokens.
    hidden: Option<Tensor<2>>,
}

impl Decoding {
    /// Encodes the prompts.
    pub(crate) fn start(model: &T5, prompts: &TokenRows, mut pass: Pass) -> Result<Self, T5Error> {
        assert!(!pass.is_train(), "decoding has no dropout; give it a pass that evaluates");
        let (model, start) = (model.valid(), model.generation.decoder_start_token_id.ok_or(T5Error::NoStartToken)?);
        let cross = on_workers(&model.device(), || {
            let encoded = model.encode(prompts, &mut pass)?;
            model.cross(&encoded, &mut pass)
        })?;
        let mut own = Cache::new(model.decoder.blocks.len(), prompts.len());
        for (block, prefix) in model.prefix().into_iter().flatten().enumerate() {
            let all_rows = RowLayout::packed(&[prefix.tokens()], &model.device()).rows_of(&vec![0; prompts.len()]);
            own.fill(block, prefix, &all_rows);
        }
        Ok(Self { model, pass, start, prompts: prompts.clone(), cross, own, hidden: None })
    }

    fn next_logits_here(&mut self, tokens: &[u32]) -> Result<Tensor<2>, T5Error> {
        let rows = self.own.rows();
        assert!(
            !tokens.is_empty() && tokens.len().is_multiple_of(rows),
            "every row needs as many tokens as the others"
        );
        let fresh = tokens.len() / rows;
        let input = TokenRows::from_rows(tokens.chunks(fresh)).expect("a token at least in each row");
        let layout = RowLayout::packed(input.lengths(), &self.model.device());
        let (used, keys) = (self.own.lengths()[0], self.own.layout(fresh, layout.device()));
        let model = &self.model;
        let pass = &mut model.adapters.enter(&mut self.pass, &layout)?;
        let own = Scores {
            positions: model.decoder.positions(used + fresh - 1, 0, pass),
            visibility: Visibility::causal(model.config().num_heads, &layout, &keys, used),
        };
        let x = model.embed(DECODER, &input, &layout, pass)?;
        let cache = &mut self.own;
        let mut seen = |block, fresh| cache.append(block, fresh);
        let hidden = model.decoder.run(x, &own, Some(&self.cross), pass, Some(&mut seen));
        self.own.advance(fresh);
        self.hidden = Some(hidden.clone());
        Ok(model.head(hidden, pass))
    }
}

impl Decoder for Decoding {
    type Error = T5Error;

    fn rows(&self) -> usize {
        self.own.rows()
    }

    fn history(&self, _row: usize) -> &[u32] {
        std::slice::from_ref(&self.start)
    }

    fn prompt(&self, row: usize) -> &[u32] {
        self.prompts.iter().nth(row).expect("a row of the prompts")
    }

    fn hidden(&self) -> Option<Tensor<2>> {
        self.hidden.clone()
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, T5Error> {
        on_workers(&self.model.device(), || self.next_logits_here(tokens))
    }

    fn select_rows(&mut self, rows: &[usize]) {
        self.own.select_rows(rows, &self.model.device());
        // The source stays where it is: rows that go on from one row look at the same keys and values.
        self.cross.layout = self.cross.layout.rows_of(rows);
        self.pass.select_rows(rows);
    }

    fn forget(&mut self, tokens: usize) {
        self.own.forget(tokens);
    }
}
