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
    cross: Cross,
    /// For each block, once there is a token.
    own: Vec<KeysValues>,
    rows: usize,
    position: usize,
}

impl T5 {
    /// Encodes the source rows and gets ready to write a target for each.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn start_decoding(&self, source: &TokenRows) -> Result<Decoding, T5Error> {
        use burn::module::Module;
        let model = self.valid();
        let mut pass = Pass::evaluate();
        let encoded = model.encode(source, &mut pass)?;
        let cross = model.decoder.cross(&encoded.hidden, &encoded.layout, &mut pass);
        Ok(Decoding { model, cross, own: Vec::new(), rows: source.len(), position: 0 })
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
        let x = self.model.embed(&input, &layout)?;
        let mut pass = Pass::evaluate();
        let caches = &mut self.own;
        let hidden = self.model.decoder.run(x, &layout, &own, Some(&self.cross), &mut pass, |block, fresh| {
            match caches.get_mut(block) {
                Some(cache) => {
                    cache.keys = Tensor::cat(vec![cache.keys.clone(), fresh.keys], 2);
                    cache.values = Tensor::cat(vec![cache.values.clone(), fresh.values], 2);
                }
                None => caches.push(fresh),
            }
            caches[block].clone()
        });
        self.position += 1;
        Ok(self.model.head(hidden, &mut pass))
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
        self.rows = rows.len();
    }
}
