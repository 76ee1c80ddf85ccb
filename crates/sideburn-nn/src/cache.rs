//! The keys and values of the tokens that a decoder has written so far.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sideburn_kernels::RowLayout;

use crate::attention::KeysValues;

/// The keys and values of each block, for rows that all hold as many tokens, `[rows, capacity, kv_heads * head_width]`,
/// with room for more: it grows seldom, and shapes repeat.
#[derive(Clone, Debug)]
pub struct Cache {
    blocks: Vec<Option<(Tensor<3>, Tensor<3>)>>,
    rows: usize,
    /// How many tokens each row holds.
    tokens: usize,
}

/// The room of a cache that holds this many tokens of each row.
fn capacity(tokens: usize) -> usize {
    tokens.next_multiple_of(64)
}

impl Cache {
    /// A cache of `rows` rows in which every block holds a prefix that all rows share, or nothing.
    pub fn new(blocks: usize, rows: usize, prefix: Vec<KeysValues>) -> Self {
        let tokens = prefix.first().map_or(0, KeysValues::tokens);
        let mut cache = Self { blocks: vec![None; blocks], rows, tokens: 0 };
        let of_all_rows = |part: Tensor<2>| part.unsqueeze_dim::<3>(0).repeat_dim(0, rows);
        for (block, KeysValues { keys, values }) in prefix.into_iter().enumerate() {
            cache.write(block, of_all_rows(keys), of_all_rows(values));
        }
        cache.tokens = tokens;
        cache
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many tokens each row holds.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Where the rows lie in what [`append`](Self::append) gives for one more token of each.
    pub fn layout(&self, device: &Device) -> RowLayout {
        let tokens = self.tokens + 1;
        RowLayout::in_columns(&vec![tokens; self.rows], capacity(tokens), device)
    }

    /// Writes the keys and values of one more token of each row, `[rows, kv_heads * head_width]`, and gives all that the
    /// block holds then. Every block has its turn before the cache [advances](Self::advance).
    pub fn append(&mut self, block: usize, fresh: KeysValues) -> KeysValues {
        self.write(block, fresh.keys.unsqueeze_dim(1), fresh.values.unsqueeze_dim(1));
        let (keys, values) = self.blocks[block].clone().expect("something was written");
        let flat = |part: Tensor<3>| {
            let [rows, capacity, width] = part.dims();
            part.reshape([rows * capacity, width])
        };
        KeysValues { keys: flat(keys), values: flat(values) }
    }

    /// Counts the token that all blocks have [appended](Self::append).
    pub fn advance(&mut self) {
        self.tokens += 1;
    }

    /// Keeps only these rows, in this order; a row may be taken several times.
    pub fn select_rows(&mut self, rows: &[usize], device: &Device) {
        let index: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [rows.len()]), device);
        let select = |part: Tensor<3>| part.select(0, index.clone());
        for held in &mut self.blocks {
            *held = held.take().map(|(keys, values)| (select(keys), select(values)));
        }
        self.rows = rows.len();
    }

    /// Writes keys and values `[rows, tokens, kv_heads * head_width]` behind the tokens that are counted.
    fn write(&mut self, block: usize, keys: Tensor<3>, values: Tensor<3>) {
        let ([rows, tokens, width], used) = (keys.dims(), self.tokens);
        let grown = |held: Option<Tensor<3>>, like: &Tensor<3>| {
            let before = held.as_ref().map_or(0, |held| held.dims()[1]);
            if used + tokens <= before {
                return held.expect("it has room");
            }
            let more = capacity(used + tokens) - before;
            let room = Tensor::zeros([rows, more, width], (&like.device(), like.dtype()));
            held.into_iter().chain([room]).reduce(|held, room| Tensor::cat(vec![held, room], 1)).expect("there is room")
        };
        let (held_keys, held_values) = self.blocks[block].take().unzip();
        let write = |held: Tensor<3>, fresh| held.slice_assign([0..rows, used..used + tokens, 0..width], fresh);
        let held = (write(grown(held_keys, &keys), keys), write(grown(held_values, &values), values));
        self.blocks[block] = Some(held);
    }
}
