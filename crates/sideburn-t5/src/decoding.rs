//! Decoding one token at a time, with cached keys and values.

use burn::tensor::{Int, Tensor, TensorData};
use sideburn_adapters::Pass;
use sideburn_batch::TokenRows;
use sideburn_generate::Decoder;
use sideburn_kernels::{RowLayout, Sight, on_workers};
use sideburn_nn::{Cache, KeysValues};

use crate::T5Error;
use crate::layers::Scores;
use crate::model::T5;
use crate::stack::Cross;

/// A T5 decoder in the middle of writing: the encoder's keys and values, and those of the tokens so far.
///
/// Made by [`T5::start_decoding`]; always evaluates, without dropout and without an autodiff graph.
#[derive(Clone, Debug)]
pub struct Decoding {
    /// In evaluation mode.
    model: T5,
    pass: Pass,
    cross: Cross,
    own: Cache,
}

impl T5 {
    /// Encodes the source rows and gets ready to write a target for each.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn start_decoding(&self, source: &TokenRows) -> Result<Decoding, T5Error> {
        self.start_decoding_in(source, Pass::evaluate())
    }

    /// The same with the adapters that `pass` [names](Pass::with_adapters) for the rows.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or an adapter cannot be had for a single row.
    ///
    /// # Panics
    /// If `pass` trains.
    pub fn start_decoding_in(&self, source: &TokenRows, mut pass: Pass) -> Result<Decoding, T5Error> {
        use burn::module::Module;
        assert!(!pass.is_train(), "decoding has no dropout; give it a pass that evaluates");
        let model = self.valid();
        let cross = on_workers(&model.device(), || {
            let encoded = model.encode(source, &mut pass)?;
            model.cross(&encoded, &mut pass)
        })?;
        let prefix = model.adapters.prefix(&mut pass).map(KeysValues::of_prefix).unwrap_or_default();
        let own = Cache::new(model.decoder.blocks.len(), source.len(), prefix);
        Ok(Decoding { model, pass, cross, own })
    }
}

impl Decoding {
    fn next_logits_here(&mut self, tokens: &[u32]) -> Result<Tensor<2>, T5Error> {
        assert_eq!(tokens.len(), self.own.rows(), "every row needs its last token");
        let input = TokenRows::from_rows(tokens.iter().map(|token| [*token])).expect("one token in each row");
        let layout = RowLayout::packed(input.lengths(), &self.model.device());
        let (used, keys) = (self.own.tokens(), self.own.layout(layout.device()));
        let model = &self.model;
        let pass = &mut model.adapters.enter(&mut self.pass, &layout)?;
        let own = Scores {
            biases: model.decoder.position_biases(used, 0, pass),
            sight: Sight::up_to_own_place(model.config().num_heads, &layout, &keys, used),
        };
        let x = model.embed(&input, &layout, pass)?;
        let cache = &mut self.own;
        let mut seen = |block, fresh| cache.append(block, fresh);
        let hidden = model.decoder.run(x, &own, Some(&self.cross), pass, Some(&mut seen));
        self.own.advance();
        Ok(model.head(hidden, pass))
    }
}

impl Decoder for Decoding {
    type Error = T5Error;

    fn rows(&self) -> usize {
        self.own.rows()
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, T5Error> {
        on_workers(&self.model.device(), || self.next_logits_here(tokens))
    }

    fn select_rows(&mut self, rows: &[usize]) {
        let device = self.model.device();
        self.own.select_rows(rows, &device);
        let tokens: Vec<i32> = self.cross.layout.tokens_of_rows(rows).into_iter().map(|token| token as i32).collect();
        let length = tokens.len();
        let tokens = Tensor::<1, Int>::from_data(TensorData::new(tokens, [length]), &device);
        self.cross.blocks.iter_mut().for_each(|block| *block = block.select(&tokens));
        self.cross.layout = self.cross.layout.select_rows(rows);
        self.pass.select_rows(rows);
    }
}
