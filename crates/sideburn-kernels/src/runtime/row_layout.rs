//! Where the rows of a batch lie in the matrix of tokens that layers see.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use sideburn_batch::TokenRows;

/// Where the rows of a batch lie in a matrix of tokens, `[tokens, width]`, which is what layers see.
///
/// A batch is *packed* on the CPU: the matrix holds real tokens only, row after row, so that padding costs nothing at
/// all. On a GPU it is *padded*: the matrix is the rectangle of all rows, with the columns rounded up so that shapes, and
/// with them compiled and tuned kernels, repeat. Either way the lengths say what is padding, never a token's value.
/// No other type knows which of the two a batch is.
#[derive(Clone, Debug)]
pub struct RowLayout {
    lengths: Arc<[usize]>,
    columns: usize,
    /// Where each row begins, if they follow each other without padding.
    packed: Option<Arc<[usize]>>,
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
        let starts = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - length)
        });
        Self { packed: Some(starts.collect()), ..layout }
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
        Self { lengths: lengths.into(), columns, packed: None, device: device.clone() }
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
        match self.packed {
            Some(_) => self.lengths.iter().sum(),
            None => self.rows() * self.columns,
        }
    }

    /// Where the real tokens of a row are in the matrix.
    pub fn row(&self, row: usize) -> Range<usize> {
        let start = self.packed.as_ref().map_or(row * self.columns, |starts| starts[row]);
        start..start + self.lengths[row]
    }

    /// Whether rows follow each other without padding.
    #[cfg(feature = "gpu")]
    pub(crate) fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Whether there are tokens in the matrix that belong to no row.
    pub fn has_padding(&self) -> bool {
        self.packed.is_none() && self.lengths.iter().any(|length| *length < self.columns)
    }

    /// The tokens, padding and all, of these rows, in the order in which [`select_rows`](Self::select_rows) lays them out.
    pub fn tokens_of_rows(&self, rows: &[usize]) -> Vec<usize> {
        let tokens = |row: &usize| match self.packed {
            Some(_) => self.row(*row),
            None => row * self.columns..(row + 1) * self.columns,
        };
        rows.iter().flat_map(tokens).collect()
    }

    /// The layout of these rows alone, in this order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let lengths: Vec<usize> = rows.iter().map(|row| self.lengths[*row]).collect();
        match self.packed {
            Some(_) => Self::packed(&lengths, &self.device),
            None => Self::in_columns(&lengths, self.columns, &self.device),
        }
    }

    /// For each place in the rectangle of all rows, the token that stands there, if the matrix is not that rectangle. In
    /// a place of padding it is some token of the matrix; it is never to be looked at.
    pub(crate) fn token_of_each_place(&self) -> Option<Vec<i32>> {
        self.packed.as_ref()?;
        let place = |row| self.row(row).chain(std::iter::repeat(0)).take(self.columns);
        Some((0..self.rows()).flat_map(place).map(|token| token as i32).collect())
    }

    /// The inverse: the place of each token.
    pub(crate) fn place_of_each_token(&self) -> Option<Vec<i32>> {
        self.packed.as_ref()?;
        let places = |row| row * self.columns..row * self.columns + self.lengths[row];
        Some((0..self.rows()).flat_map(places).map(|place| place as i32).collect())
    }

    /// For each row of the token matrix, the row of the batch that it belongs to.
    pub fn token_rows(&self) -> Vec<usize> {
        match self.packed {
            Some(_) => self.real_token_rows(),
            None => (0..self.rows()).flat_map(|row| std::iter::repeat_n(row, self.columns)).collect(),
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
        let ids: Vec<i32> = match self.packed {
            Some(_) => rows.ids().iter().map(|id| *id as i32).collect(),
            None => rows
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

#[cfg(feature = "flex")]
pub(crate) fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

#[cfg(not(feature = "flex"))]
fn is_cpu(_: &Device) -> bool {
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
    fn a_packed_matrix_and_the_rectangle_of_its_rows_map_to_each_other() {
        let layout = RowLayout::packed(&[3, 1], &Device::flex());
        assert_eq!(layout.token_of_each_place().unwrap(), [0, 1, 2, 3, 0, 0]);
        assert_eq!(layout.place_of_each_token().unwrap(), [0, 1, 2, 3]);
        let full = RowLayout::packed(&[2, 2], &Device::flex());
        assert!(full.token_of_each_place().is_none(), "it is the rectangle");
    }
}
