//! Where the rows of a batch lie in the matrix of tokens that layers see.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use sideburn_batch::TokenRows;

/// Where the rows of a batch lie in a matrix of tokens, `[tokens, width]`, which is what layers see.
///
/// A batch is *packed* on the CPU: the matrix holds real tokens only, row after row, so that padding costs nothing at
/// all. On a GPU it is *padded*: the matrix is the rectangle of all rows, with the columns rounded up so that shapes,
/// and with them compiled and tuned kernels, repeat. Either way the lengths say what is padding, never a token's value.
///
/// Rows may also [look into the matrix of others](Self::rows_of), several into one row: so beams share the source that
/// they were read from. And the tokens of a row may [lie anywhere](Self::scattered): so beams share what they have written
/// alike, and change places without a copy.
#[derive(Clone, Debug)]
pub struct RowLayout {
    lengths: Arc<[usize]>,
    columns: usize,
    /// Where each row begins, unless the matrix is the rectangle of all rows.
    starts: Option<Arc<[usize]>>,
    /// Where each token of each row lies, if they do not lie side by side.
    scattered: Option<Arc<[Vec<u32>]>>,
    /// The number of tokens in the matrix.
    tokens: usize,
    /// Whether the matrix has a place for every column of a row.
    padded: bool,
    /// Whether a token may be in several rows or in none.
    shared: bool,
    device: Device,
}

/// Columns of padded batches are rounded up to a multiple of this.
const COLUMN_BUCKET: usize = 32;

impl RowLayout {
    /// The layout that suits `device`: packed on the CPU, padded elsewhere.
    ///
    /// # Panics
    /// If there is no row, or an empty one; a [`TokenRows`] has neither.
    pub fn new(lengths: &[usize], device: &Device) -> Self {
        if is_cpu(device) { Self::packed(lengths, device) } else { Self::padded(lengths, COLUMN_BUCKET, device) }
    }

    /// A layout that holds real tokens only.
    ///
    /// # Panics
    /// If there is no row, or an empty one.
    pub fn packed(lengths: &[usize], device: &Device) -> Self {
        let layout = Self::padded(lengths, 1, device);
        if !layout.has_padding() {
            return layout;
        }
        let mut tokens = 0;
        let starts = lengths.iter().map(|length| {
            tokens += length;
            tokens - length
        });
        Self { starts: Some(starts.collect()), tokens, padded: false, ..layout }
    }

    /// A layout of full rows, with the columns rounded up to a multiple of `bucket`.
    ///
    /// # Panics
    /// If there is no row, or an empty one, or `bucket` is zero.
    pub fn padded(lengths: &[usize], bucket: usize, device: &Device) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self::in_columns(lengths, longest.next_multiple_of(bucket), device)
    }

    /// A layout of full rows with this many columns: a cache with room for more tokens.
    ///
    /// # Panics
    /// If there is no row, or an empty one, or one that is longer.
    pub fn in_columns(lengths: &[usize], columns: usize, device: &Device) -> Self {
        assert!(!lengths.is_empty() && !lengths.contains(&0), "every row of a batch needs a token");
        assert!(lengths.iter().all(|length| *length <= columns), "a row is longer than {columns} columns");
        let tokens = lengths.len() * columns;
        let device = device.clone();
        Self {
            lengths: lengths.into(),
            columns,
            starts: None,
            scattered: None,
            tokens,
            padded: true,
            shared: false,
            device,
        }
    }

    /// A layout of rows whose tokens lie anywhere in a matrix of so many `tokens`: token `j` of row `i` is at
    /// `places[i][j]`. Rows may share tokens, and there may be tokens of no row. Attention sees rows of `columns` columns.
    ///
    /// It may look at keys so laid out, as at those of [`rows_of`](Self::rows_of). On the CPU one query of each row reads them
    /// where they lie; all else gathers them first.
    ///
    /// # Panics
    /// If there is no row, or an empty one, one with more than `columns` tokens, or a place outside the matrix.
    pub fn scattered(places: Vec<Vec<u32>>, columns: usize, tokens: usize, device: &Device) -> Self {
        let lengths: Vec<usize> = places.iter().map(Vec::len).collect();
        assert!(
            places.iter().flatten().all(|place| (*place as usize) < tokens),
            "a place is outside of {tokens} tokens"
        );
        let layout = Self::in_columns(&lengths, columns, device);
        Self { scattered: Some(places.into()), tokens, padded: false, shared: true, ..layout }
    }

    /// Whether attention reads [scattered](Self::scattered) keys where they lie on this device.
    pub fn reads_scattered(device: &Device) -> bool {
        is_cpu(device)
    }

    /// Rows in a matrix of full rows with this many columns, each of which ends before column `end`: a cache of rows that
    /// began with prompts of different lengths. With `end` 3, a row of two tokens has columns 1 and 2.
    ///
    /// # Panics
    /// If there is no row, or an empty one, or one that is longer than `end`, or `end` is behind the last column.
    pub fn ending_at(lengths: &[usize], end: usize, columns: usize, device: &Device) -> Self {
        let layout = Self::in_columns(lengths, columns, device);
        assert!(end <= columns && lengths.iter().all(|length| *length <= end), "rows do not end at column {end}");
        if lengths.iter().all(|length| *length == end) {
            return layout;
        }
        let starts = lengths.iter().enumerate().map(|(row, length)| row * columns + end - length);
        Self { starts: Some(starts.collect()), padded: false, shared: true, ..layout }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// The number of columns of the rectangle that attention sees.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of real tokens in each row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The number of tokens in the matrix.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Where the real tokens of a row are in the matrix.
    ///
    /// # Panics
    /// If they are [scattered](Self::scattered).
    pub fn row(&self, row: usize) -> Range<usize> {
        assert!(self.scattered.is_none(), "the tokens of a row do not lie side by side");
        let start = self.starts.as_ref().map_or(row * self.columns, |starts| starts[row]);
        start..start + self.lengths[row]
    }

    /// The number of places of a row in the matrix, those of padding included.
    #[cfg(feature = "gpu")]
    pub(crate) fn places(&self, row: usize) -> usize {
        if self.padded { self.columns } else { self.lengths[row] }
    }

    /// Where the tokens of a row lie, if they are [scattered](Self::scattered).
    pub(crate) fn scattered_row(&self, row: usize) -> Option<&[u32]> {
        self.scattered.as_ref().map(|places| &places[row][..])
    }

    /// Whether two rows are the same tokens.
    pub(crate) fn is_same_row(&self, a: usize, b: usize) -> bool {
        self.scattered.is_none() && self.row(a) == self.row(b)
    }

    /// Whether these are rows that may share tokens: [rows of another layout](Self::rows_of), scattered ones, or ones
    /// that [end together](Self::ending_at).
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether there may be tokens in the matrix that belong to no row.
    pub fn has_padding(&self) -> bool {
        self.shared || (self.padded && self.lengths.iter().any(|length| *length < self.columns))
    }

    /// A layout of other rows in the same matrix: row `i` is what row `rows[i]` is here. Rows may be left out and
    /// repeated, and nothing is copied.
    ///
    /// Attention may look at keys so laid out, without an autodiff graph: a gradient would have to be summed over the
    /// rows that share a token.
    ///
    /// # Panics
    /// If there is no row, or one of `rows` does not exist.
    pub fn rows_of(&self, rows: &[usize]) -> Self {
        assert!(!rows.is_empty(), "a layout needs a row");
        if let Some(places) = &self.scattered {
            let places = rows.iter().map(|row| places[*row].clone()).collect();
            return Self::scattered(places, self.columns, self.tokens, &self.device);
        }
        Self {
            lengths: rows.iter().map(|row| self.lengths[*row]).collect(),
            starts: Some(rows.iter().map(|row| self.row(*row).start).collect()),
            shared: true,
            ..self.clone()
        }
    }

    /// For each place in the rectangle of all rows, the token that stands there; `None` if the matrix is that
    /// rectangle. A place of padding is given some token of the matrix, which is not to be looked at.
    pub(crate) fn token_of_each_place(&self) -> Option<Vec<i32>> {
        if let Some(places) = &self.scattered {
            let row = |places: &Vec<u32>| {
                let padding = std::iter::repeat_n(0, self.columns - places.len());
                places.iter().map(|place| *place as i32).chain(padding).collect::<Vec<_>>()
            };
            return Some(places.iter().flat_map(row).collect());
        }
        self.starts.as_ref()?;
        let place = |row| self.row(row).chain(std::iter::repeat(0)).take(self.columns);
        Some((0..self.rows()).flat_map(place).map(|token| token as i32).collect())
    }

    /// The inverse: the place of each token.
    pub(crate) fn place_of_each_token(&self) -> Option<Vec<i32>> {
        assert!(!self.shared, "a token of shared rows has several places, or none");
        self.starts.as_ref()?;
        let places = |row| row * self.columns..row * self.columns + self.lengths[row];
        Some((0..self.rows()).flat_map(places).map(|place| place as i32).collect())
    }

    /// For each row of the token matrix, the row of the batch that it belongs to.
    pub fn token_rows(&self) -> Vec<usize> {
        assert!(!self.shared, "a token of shared rows belongs to several, or to none");
        match self.padded {
            false => self.real_token_rows(),
            true => (0..self.rows()).flat_map(|row| std::iter::repeat_n(row, self.columns)).collect(),
        }
    }

    /// The same for [`real_tokens`](Self::real_tokens).
    pub fn real_token_rows(&self) -> Vec<usize> {
        self.lengths.iter().enumerate().flat_map(|(row, length)| std::iter::repeat_n(row, *length)).collect()
    }

    /// The device of its tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The token ids of the matrix, `[tokens]`; `pad` stands where there is no real one.
    ///
    /// # Panics
    /// If `rows` has other lengths than this layout.
    pub fn ids(&self, rows: &TokenRows, pad: u32) -> Tensor<1, Int> {
        assert_eq!(rows.lengths(), &*self.lengths, "these rows belong to another layout");
        assert!(!self.shared, "shared rows have no tokens of their own");
        let ids: Vec<i32> = match self.padded {
            false => rows.ids().iter().map(|id| *id as i32).collect(),
            true => rows
                .iter()
                .flat_map(|row| (0..self.columns).map(|column| row.get(column).copied().unwrap_or(pad) as i32))
                .collect(),
        };
        int_tensor(ids, &self.device)
    }

    /// The rows of the token matrix that hold real tokens, in the order of [`TokenRows::ids`].
    pub fn real_tokens(&self, x: Tensor<2>) -> Tensor<2> {
        if !self.has_padding() {
            return x;
        }
        let index = (0..self.rows()).flat_map(|row| self.row(row)).map(|token| token as i32);
        x.select(0, int_tensor(index.collect(), &self.device))
    }
}

/// Whether a device is the CPU of this machine.
#[cfg(feature = "flex")]
pub fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

/// Whether a device is the CPU of this machine; without the feature `flex` none is.
#[cfg(not(feature = "flex"))]
pub fn is_cpu(_: &Device) -> bool {
    false
}

fn int_tensor(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    fn rows() -> TokenRows {
        TokenRows::from_rows([[3, 4, 5].as_slice(), &[0]]).unwrap()
    }

    fn column(values: &[f32], device: &Device) -> Tensor<2> {
        Tensor::<1>::from_floats(values, device).reshape([values.len(), 1])
    }

    #[test]
    fn packed_and_padded_layouts_hold_the_same_rows() {
        let (rows, device) = (rows(), Device::flex());
        let layouts = [RowLayout::packed(rows.lengths(), &device), RowLayout::padded(rows.lengths(), 4, &device)];
        for layout in &layouts {
            let ids: Tensor<2> = layout.ids(&rows, 9).float().unsqueeze_dim(1);
            assert_eq!(ids.dims(), [layout.tokens(), 1]);
            let values: Vec<f32> = ids.to_data().try_into_vec().unwrap();
            assert_eq!([layout.row(0), layout.row(1)].map(|row| &values[row]), [[3.0, 4.0, 5.0].as_slice(), &[0.0]]);
            let real = layout.real_tokens(ids);
            real.into_data().assert_eq(&column(&[3.0, 4.0, 5.0, 0.0], &device).into_data(), true);
        }
        assert_eq!(layouts.map(|layout| (layout.columns(), layout.has_padding())), [(3, false), (4, true)]);
    }

    #[test]
    fn rows_may_end_together() {
        let device = Device::flex();
        let layout = RowLayout::ending_at(&[3, 1], 3, 4, &device);
        assert_eq!([layout.row(0), layout.row(1)], [0..3, 6..7]);
        assert_eq!((layout.tokens(), layout.columns(), layout.has_padding()), (8, 4, true));
        assert_eq!(layout.token_of_each_place().unwrap(), [0, 1, 2, 0, 6, 0, 0, 0]);
        assert!(RowLayout::ending_at(&[2, 2], 2, 4, &device).token_of_each_place().is_none(), "these begin together");
    }

    #[test]
    fn a_packed_matrix_and_the_rectangle_of_its_rows_map_to_each_other() {
        let layout = RowLayout::packed(&[3, 1], &Device::flex());
        assert_eq!(layout.token_of_each_place().unwrap(), [0, 1, 2, 3, 0, 0]);
        assert_eq!(layout.place_of_each_token().unwrap(), [0, 1, 2, 3]);
        let full = RowLayout::packed(&[2, 2], &Device::flex());
        assert!(full.token_of_each_place().is_none(), "it is the rectangle");
    }
}
