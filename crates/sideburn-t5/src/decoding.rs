//! Decoding one token at a time, with cached keys and values.

use burn::tensor::{Int, Tensor, TensorData};
use sideburn_adapters::Pass;
use sideburn_batch::TokenRows;
use sideburn_generate::Decoder;
use sideburn_kernels::RowLayout;

use crate::T5Error;
use crate::layers::{KeysValues, Scores};
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
    /// For each block, once there is a token; before that a prefix, if an adapter has one.
    own: Vec<KeysValues>,
    rows: usize,
    /// The tokens in `own`.
    position: usize,
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
        let encoded = model.encode(source, &mut pass)?;
        let cross = model.decoder.cross(&encoded.hidden, &encoded.layout, &mut pass);
        let rows = source.len();
        let prefix = model.adapters.prefix(&mut pass).map(|layers| KeysValues::of_prefix(layers, rows));
        let position = prefix.as_ref().map_or(0, |layers| layers[0].tokens());
        Ok(Decoding { model, pass, cross, own: prefix.unwrap_or_default(), rows, position })
    }
}

impl Decoder for Decoding {
    type Error = T5Error;

    fn rows(&self) -> usize {
        self.rows
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, T5Error> {
        assert_eq!(tokens.len(), self.rows, "every row needs its last token");
        let input = TokenRows::from_rows(tokens.iter().map(|token| [*token])).expect("one token in each row");
        let layout = RowLayout::packed(input.lengths(), &self.model.device());
        let keys = self.position + 1;
        let own = Scores {
            bias: self.model.decoder.position_bias(self.position, 1, keys),
            mask: Tensor::from_data(
                TensorData::new(vec![false; self.rows * keys], [self.rows, 1, 1, keys]),
                layout.device(),
            ),
        };
        self.pass.enter(&layout);
        let x = self.model.embed(&input, &layout, &self.pass)?;
        let caches = &mut self.own;
        let hidden = self.model.decoder.run(x, &layout, &own, Some(&self.cross), &mut self.pass, |block, fresh| {
            match caches.get_mut(block) {
                Some(cache) => *cache = cache.clone().then(fresh),
                None => caches.push(fresh),
            }
            caches[block].clone()
        });
        self.position += 1;
        Ok(self.model.head(hidden, &mut self.pass))
    }

    fn select_rows(&mut self, rows: &[usize]) {
        let device = self.model.device();
        let index: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [rows.len()]), &device);
        for cache in self.own.iter_mut().chain(&mut self.cross.blocks) {
            cache.keys = cache.keys.clone().select(0, index.clone());
            cache.values = cache.values.clone().select(0, index.clone());
        }
        self.cross.scores.mask = self.cross.scores.mask.clone().select(0, index);
        self.pass.select_rows(rows);
        self.rows = rows.len();
    }
}
