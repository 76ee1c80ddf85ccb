//! Decoding one token at a time, with cached keys and values.

use burn::tensor::{Int, Tensor, TensorData};
use sideburn_adapters::Pass;
use sideburn_batch::TokenRows;
use sideburn_generate::Decoder;
use sideburn_kernels::{RowLayout, Sight, on_workers};

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
    /// For each block.
    own: Vec<Cache>,
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
        let cross = on_workers(&model.device(), || {
            let encoded = model.encode(source, &mut pass)?;
            Ok::<_, T5Error>(model.decoder.cross(&encoded.hidden, &encoded.layout, &mut pass))
        })?;
        let rows = source.len();
        let prefix = model.adapters.prefix(&mut pass).map(KeysValues::of_prefix).unwrap_or_default();
        let position = prefix.first().map_or(0, KeysValues::tokens);
        let mut own: Vec<Cache> = model.decoder.blocks.iter().map(|_| Cache::default()).collect();
        for (cache, prefix) in own.iter_mut().zip(prefix) {
            let of_all_rows = |part: Tensor<2>| part.unsqueeze_dim::<3>(0).repeat_dim(0, rows);
            cache.append(of_all_rows(prefix.keys), of_all_rows(prefix.values), 0);
        }
        Ok(Decoding { model, pass, cross, own, rows, position })
    }
}

/// The keys and values of one block's tokens so far, `[rows, capacity, heads * d_kv]`, with room for more.
#[derive(Clone, Debug, Default)]
struct Cache {
    held: Option<(Tensor<3>, Tensor<3>)>,
}

/// The room of a cache that holds this many tokens of each row: it grows seldom, and shapes repeat.
fn capacity(tokens: usize) -> usize {
    tokens.next_multiple_of(64)
}

impl Cache {
    /// Writes keys and values `[rows, tokens, heads * d_kv]` behind the `used` tokens that are there.
    fn append(&mut self, keys: Tensor<3>, values: Tensor<3>, used: usize) {
        let [rows, tokens, width] = keys.dims();
        let grown = |held: Option<Tensor<3>>, like: &Tensor<3>| {
            let before = held.as_ref().map_or(0, |held| held.dims()[1]);
            if used + tokens <= before {
                return held.expect("it has room");
            }
            let more = capacity(used + tokens) - before;
            let room = Tensor::zeros([rows, more, width], (&like.device(), like.dtype()));
            held.into_iter().chain([room]).reduce(|held, room| Tensor::cat(vec![held, room], 1)).expect("there is room")
        };
        let (held_keys, held_values) = self.held.take().unzip();
        let write = |held: Tensor<3>, fresh| held.slice_assign([0..rows, used..used + tokens, 0..width], fresh);
        let held = (write(grown(held_keys, &keys), keys), write(grown(held_values, &values), values));
        self.held = Some(held);
    }

    /// What is held, as a matrix of tokens.
    fn tokens(&self) -> KeysValues {
        let (keys, values) = self.held.clone().expect("something was appended");
        let flat = |part: Tensor<3>| {
            let [rows, capacity, width] = part.dims();
            part.reshape([rows * capacity, width])
        };
        KeysValues { keys: flat(keys), values: flat(values) }
    }

    fn select_rows(&mut self, index: &Tensor<1, Int>) {
        let select = |part: Tensor<3>| part.select(0, index.clone());
        self.held = self.held.take().map(|(keys, values)| (select(keys), select(values)));
    }
}

impl Decoding {
    fn next_logits_here(&mut self, tokens: &[u32]) -> Result<Tensor<2>, T5Error> {
        assert_eq!(tokens.len(), self.rows, "every row needs its last token");
        let input = TokenRows::from_rows(tokens.iter().map(|token| [*token])).expect("one token in each row");
        let layout = RowLayout::packed(input.lengths(), &self.model.device());
        let used = self.position;
        let keys = RowLayout::in_columns(&vec![used + 1; self.rows], capacity(used + 1), layout.device());
        let own = Scores {
            biases: self.model.decoder.position_biases(used, 0),
            sight: Sight::up_to_own_place(self.model.config().num_heads, &layout, &keys, used),
        };
        self.pass.enter(&layout);
        let x = self.model.embed(&input, &layout, &self.pass)?;
        let caches = &mut self.own;
        let mut seen = |block: usize, fresh: KeysValues| {
            caches[block].append(fresh.keys.unsqueeze_dim(1), fresh.values.unsqueeze_dim(1), used);
            caches[block].tokens()
        };
        let hidden = self.model.decoder.run(x, &own, Some(&self.cross), &mut self.pass, Some(&mut seen));
        self.position += 1;
        Ok(self.model.head(hidden, &mut self.pass))
    }
}

impl Decoder for Decoding {
    type Error = T5Error;

    fn rows(&self) -> usize {
        self.rows
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, T5Error> {
        on_workers(&self.model.device(), || self.next_logits_here(tokens))
    }

    fn select_rows(&mut self, rows: &[usize]) {
        let device = self.model.device();
        let index = |index: Vec<usize>| {
            let index: Vec<i32> = index.into_iter().map(|index| index as i32).collect();
            let length = index.len();
            Tensor::<1, Int>::from_data(TensorData::new(index, [length]), &device)
        };
        let own = index(rows.to_vec());
        self.own.iter_mut().for_each(|cache| cache.select_rows(&own));
        let tokens = index(self.cross.layout.tokens_of_rows(rows));
        for KeysValues { keys, values } in &mut self.cross.blocks {
            *keys = keys.clone().select(0, tokens.clone());
            *values = values.clone().select(0, tokens.clone());
        }
        self.cross.layout = self.cross.layout.select_rows(rows);
        self.pass.select_rows(rows);
        self.rows = rows.len();
    }
}
