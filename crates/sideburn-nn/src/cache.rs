//! The keys and values of the tokens that a decoder has read and written so far.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sideburn_kernels::RowLayout;

use crate::attention::KeysValues;

/// The keys and values of each block, `[lanes, capacity, kv_heads * head_width]`, with room for more: it grows seldom, and
/// shapes repeat. All rows end at the same column, wherever they begin, so that one more token of each is one column.
///
/// At first each row has a lane of its own. Where attention reads keys wherever they lie, rows change places without a copy:
/// each remembers in which lane each of its tokens is, and writes the next one into the lane of its own number.
#[derive(Clone, Debug)]
pub struct Cache {
    blocks: Vec<Option<(Tensor<3>, Tensor<3>)>>,
    /// How many tokens each row holds.
    lengths: Vec<usize>,
    /// The column behind the last token of every row.
    end: usize,
    /// The lane of each column of each row up to the end, unless all rows are in lanes of their own.
    lanes: Option<Vec<Vec<u32>>>,
}

/// The room of a cache whose rows end there.
fn capacity(end: usize) -> usize {
    end.next_multiple_of(64)
}

impl Cache {
    /// A cache in which no row holds anything.
    pub fn new(blocks: usize, rows: usize) -> Self {
        Self { blocks: vec![None; blocks], lengths: vec![0; rows], end: 0, lanes: None }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// How many tokens each row holds.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Whether no row holds anything.
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Begins each row of a block with keys and values that lie as `layout` says. Every block is filled alike.
    pub fn fill(&mut self, block: usize, first: KeysValues, layout: &RowLayout) {
        self.lengths = layout.lengths().to_vec();
        self.end = self.lengths.iter().copied().max().unwrap_or(0);
        // One more column, which the next token takes.
        let (rows, columns) = (self.rows(), capacity(self.end + 1));
        let place = |(row, column): (usize, usize)| {
            let own = (column + self.lengths[row]).checked_sub(self.end).filter(|own| *own < self.lengths[row]);
            // Nothing looks at a place of no token.
            own.map_or(0, |own| layout.row(row).start + own) as i32
        };
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let places: Vec<i32> = places.map(place).collect();
        let places = Tensor::from_data(TensorData::new(places, [rows * columns]), layout.device());
        let KeysValues { keys, values } = first.select(&places);
        let of_rows = |part: Tensor<2>| {
            let width = part.dims()[1];
            part.reshape([rows, columns, width])
        };
        self.blocks[block] = Some((of_rows(keys), of_rows(values)));
    }

    /// Where the rows lie in what [`append`](Self::append) gives for so many more tokens of each.
    pub fn layout(&self, more: usize, device: &Device) -> RowLayout {
        let end = self.end + more;
        // What was forgotten has left its room.
        let held = self.blocks.iter().flatten().next().map_or(0, |(keys, _)| keys.dims()[1]);
        let capacity = capacity(end).max(held);
        let Some(lanes) = &self.lanes else {
            let lengths: Vec<usize> = self.lengths.iter().map(|length| length + more).collect();
            return RowLayout::ending_at(&lengths, end, capacity, device);
        };
        let places = |(own, lanes): (usize, &Vec<u32>)| {
            let fresh = std::iter::repeat_n(own as u32, more);
            let lanes = lanes.iter().copied().chain(fresh).enumerate().skip(self.end - self.lengths[own]);
            lanes.map(|(column, lane)| lane * capacity as u32 + column as u32).collect()
        };
        let places = lanes.iter().enumerate().map(places).collect();
        RowLayout::scattered(places, capacity, self.all_lanes() * capacity, device)
    }

    /// How many rows there is room for.
    fn all_lanes(&self) -> usize {
        self.blocks.iter().flatten().next().map_or(self.rows(), |(keys, _)| keys.dims()[0])
    }

    /// Writes the keys and values of more tokens, as many of each row, `[rows * more, kv_heads * head_width]`, and gives all
    /// that the block holds then. Every block has its turn before the cache [advances](Self::advance).
    pub fn append(&mut self, block: usize, fresh: KeysValues) -> KeysValues {
        let of_rows = |part: Tensor<2>| {
            let [tokens, width] = part.dims();
            part.reshape([self.rows(), tokens / self.rows(), width])
        };
        let (keys, values) = (of_rows(fresh.keys), of_rows(fresh.values));
        self.write(block, keys, values);
        let (keys, values) = self.blocks[block].clone().expect("something was written");
        let flat = |part: Tensor<3>| {
            let [rows, capacity, width] = part.dims();
            part.reshape([rows * capacity, width])
        };
        KeysValues { keys: flat(keys), values: flat(values) }
    }

    /// Counts the tokens of each row that all blocks have [appended](Self::append).
    pub fn advance(&mut self, more: usize) {
        self.end += more;
        self.lengths.iter_mut().for_each(|length| *length += more);
        for (own, lanes) in self.lanes.iter_mut().flatten().enumerate() {
            lanes.extend(std::iter::repeat_n(own as u32, more));
        }
    }

    /// Takes back the last tokens of each row.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn forget(&mut self, tokens: usize) {
        let fewer = |length: usize| length.checked_sub(tokens).expect("no more tokens than were appended");
        self.lengths.iter_mut().for_each(|length| *length = fewer(*length));
        self.end = fewer(self.end);
        self.lanes.iter_mut().flatten().for_each(|lanes| lanes.truncate(self.end));
    }

    /// Keeps only these rows, in this order; a row may be taken several times. Nothing is copied where attention reads keys
    /// wherever they lie, unless there are more rows than ever.
    pub fn select_rows(&mut self, rows: &[usize], device: &Device) {
        if RowLayout::reads_scattered(device) && rows.len() <= self.all_lanes() && self.end > 0 {
            let (all, end) = (self.rows(), self.end);
            let own = |row: usize| vec![row as u32; end];
            let lanes = self.lanes.take().unwrap_or_else(|| (0..all).map(own).collect());
            self.lanes = Some(rows.iter().map(|row| lanes[*row].clone()).collect());
        } else {
            self.copy_rows(rows, device);
        }
        self.lengths = rows.iter().map(|row| self.lengths[*row]).collect();
    }

    /// Gives each of these rows a lane of its own, with a copy of its tokens.
    fn copy_rows(&mut self, rows: &[usize], device: &Device) {
        let Some([_, capacity, width]) = self.blocks.iter().flatten().next().map(|(keys, _)| keys.dims()) else {
            return;
        };
        let lanes = self.lanes.take();
        // Behind the tokens there is room, of which it does not matter what is in it.
        let lane = |row: usize, token: usize| match &lanes {
            Some(lanes) => lanes[row].get(token).map_or(0, |lane| *lane as usize),
            None => row,
        };
        let places = rows.iter().flat_map(|row| (0..capacity).map(move |token| (*row, token)));
        let places: Vec<i32> = places.map(|(row, token)| (lane(row, token) * capacity + token) as i32).collect();
        let length = places.len();
        let places = Tensor::<1, Int>::from_data(TensorData::new(places, [length]), device);
        let select = |part: Tensor<3>| {
            let [lanes, ..] = part.dims();
            part.reshape([lanes * capacity, width]).select(0, places.clone()).reshape([rows.len(), capacity, width])
        };
        for held in &mut self.blocks {
            *held = held.take().map(|(keys, values)| (select(keys), select(values)));
        }
    }

    /// Writes keys and values `[rows, tokens, kv_heads * head_width]` behind the tokens that are counted.
    fn write(&mut self, block: usize, keys: Tensor<3>, values: Tensor<3>) {
        let ([rows, tokens, width], used) = (keys.dims(), self.end);
        let lanes = self.all_lanes();
        let grown = |held: Option<Tensor<3>>, like: &Tensor<3>| {
            let before = held.as_ref().map_or(0, |held| held.dims()[1]);
            if used + tokens <= before {
                return held.expect("it has room");
            }
            let more = capacity(used + tokens) - before;
            let room = Tensor::zeros([lanes, more, width], (&like.device(), like.dtype()));
            held.into_iter().chain([room]).reduce(|held, room| Tensor::cat(vec![held, room], 1)).expect("there is room")
        };
        let (held_keys, held_values) = self.blocks[block].take().unzip();
        let write = |held: Tensor<3>, fresh| held.slice_assign([0..rows, used..used + tokens, 0..width], fresh);
        let held = (write(grown(held_keys, &keys), keys), write(grown(held_values, &values), values));
        self.blocks[block] = Some(held);
    }
}
