//! Where the rows of a batch lie in the matrix of tokens that layers see.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use sideburn_batch::TokenRows;

/// The map between a matrix of tokens, `[tokens, width]`, which linear layers and norms see, and rows of tokens,
/// `[rows, columns, width]`, which attention sees.
///
/// A batch is *packed* on the CPU: the matrix holds real tokens only, so that padding costs nothing outside attention.
/// On a GPU it is *padded*: the matrix is the rectangle of all rows, with the columns rounded up so that shapes, and
/// with them compiled and tuned kernels, repeat. Either way the lengths say what is padding, never a token's value.
/// No other type knows which of the two a batch is.
#[derive(Clone, Debug)]
pub struct RowLayout {
    lengths: Vec<usize>,
    columns: usize,
    packed: Option<Indices>,
    device: Device,
}

/// The matrix row of each place in the rectangle, and the place of each matrix row.
#[derive(Clone, Debug)]
struct Indices {
    to_rows: Tensor<1, Int>,
    to_tokens: Tensor<1, Int>,
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
        if lengths.iter().all(|length| *length == layout.columns) {
            return layout;
        }
        let (mut to_rows, mut to_tokens, mut token) = (Vec::new(), Vec::new(), 0);
        for (row, length) in lengths.iter().enumerate() {
            for column in 0..layout.columns {
                if column < *length {
                    to_rows.push(token);
                    to_tokens.push((row * layout.columns + column) as i32);
                    token += 1;
                } else {
                    // What stands in a place of padding is never looked at; any finite row will do.
                    to_rows.push(0);
                }
            }
        }
        let indices = Indices { to_rows: int_tensor(to_rows, device), to_tokens: int_tensor(to_tokens, device) };
        Self { packed: Some(indices), ..layout }
    }

    /// A layout of full rows, with the columns rounded up to a multiple of `bucket`.
    ///
    /// # Panics
    /// If there is no row, or an empty one, or `bucket` is zero.
    pub fn padded(lengths: &[usize], bucket: usize, device: &Device) -> Self {
        assert!(!lengths.is_empty() && !lengths.contains(&0), "every row of a batch needs a token");
        let columns = lengths.iter().copied().max().unwrap_or(0).next_multiple_of(bucket);
        Self { lengths: lengths.to_vec(), columns, packed: None, device: device.clone() }
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
        assert_eq!(rows.lengths(), self.lengths, "these rows belong to another layout");
        let ids: Vec<i32> = match self.packed {
            Some(_) => rows.ids().iter().map(|id| *id as i32).collect(),
            None => rows
                .iter()
                .flat_map(|row| (0..self.columns).map(|column| row.get(column).copied().unwrap_or(pad) as i32))
                .collect(),
        };
        int_tensor(ids, &self.device)
    }

    /// Token matrix to rows: `[tokens, width]` to `[rows, columns, width]`.
    pub fn to_rows(&self, x: Tensor<2>) -> Tensor<3> {
        let width = x.dims()[1];
        let x = match &self.packed {
            Some(indices) => x.select(0, indices.to_rows.clone()),
            None => x,
        };
        x.reshape([self.rows(), self.columns, width])
    }

    /// Rows to token matrix: `[rows, columns, width]` to `[tokens, width]`.
    pub fn to_tokens(&self, x: Tensor<3>) -> Tensor<2> {
        let [rows, columns, width] = x.dims();
        let x = x.reshape([rows * columns, width]);
        match &self.packed {
            Some(indices) => x.select(0, indices.to_tokens.clone()),
            None => x,
        }
    }

    /// The rows of the token matrix that hold real tokens, in the order of [`TokenRows::ids`].
    pub fn real_tokens(&self, x: Tensor<2>) -> Tensor<2> {
        if self.packed.is_some() || self.lengths.iter().all(|length| *length == self.columns) {
            return x;
        }
        let real = self.lengths.iter().enumerate();
        let index = real.flat_map(|(row, length)| (0..*length).map(move |column| (row * self.columns + column) as i32));
        x.select(0, int_tensor(index.collect(), &self.device))
    }

    /// True where a key is padding, `[rows, 1, 1, columns]`.
    pub fn key_mask(&self) -> Tensor<4, Bool> {
        let mask: Vec<bool> =
            self.lengths.iter().flat_map(|length| (0..self.columns).map(move |key| key >= *length)).collect();
        bool_tensor(mask, [self.rows(), 1, 1, self.columns], &self.device)
    }

    /// True where a query may not look at a key: padding, and what comes after the query.
    /// `[rows, 1, columns, columns]`.
    pub fn causal_mask(&self) -> Tensor<4, Bool> {
        self.causal_mask_behind(0)
    }

    /// The same, with `before` keys in front of each row that every query may look at:
    /// `[rows, 1, columns, before + columns]`.
    pub fn causal_mask_behind(&self, before: usize) -> Tensor<4, Bool> {
        let columns = self.columns;
        let mask: Vec<bool> = self
            .lengths
            .iter()
            .flat_map(|length| {
                (0..columns).flat_map(move |query| {
                    let own = (0..columns).map(move |key| key > query || key >= *length);
                    std::iter::repeat_n(false, before).chain(own)
                })
            })
            .collect();
        bool_tensor(mask, [self.rows(), 1, columns, before + columns], &self.device)
    }
}

#[cfg(feature = "flex")]
fn is_cpu(device: &Device) -> bool {
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

fn bool_tensor(values: Vec<bool>, shape: [usize; 4], device: &Device) -> Tensor<4, Bool> {
    Tensor::from_data(TensorData::new(values, shape), device)
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
        for layout in [RowLayout::packed(rows.lengths(), &device), RowLayout::padded(rows.lengths(), 4, &device)] {
            let ids: Tensor<2> = layout.ids(&rows, 9).float().unsqueeze_dim(1);
            let spread = layout.to_rows(ids.clone());
            assert_eq!(spread.dims(), [2, layout.columns(), 1]);
            let first: Vec<f32> = spread.clone().slice([0..2, 0..1]).into_data().try_into_vec().unwrap();
            assert_eq!(first, [3.0, 0.0]);
            layout.to_tokens(spread).into_data().assert_eq(&ids.clone().into_data(), true);
            let real = layout.real_tokens(ids);
            real.into_data().assert_eq(&column(&[3.0, 4.0, 5.0, 0.0], &device).into_data(), true);
        }
        assert_eq!(RowLayout::padded(rows.lengths(), 4, &device).columns(), 4);
    }

    #[test]
    fn masks_come_from_lengths() {
        let layout = RowLayout::packed(&[3, 1], &Device::flex());
        let mask = |mask: Tensor<4, Bool>| mask.into_data().iter::<bool>().collect::<Vec<_>>();
        assert_eq!(mask(layout.key_mask()), [false, false, false, false, true, true]);
        let causal = mask(layout.causal_mask());
        assert_eq!(causal[..9], [false, true, true, false, false, true, false, false, false]);
        assert_eq!(causal[9..], [false, true, true, false, true, true, false, true, true]);
    }
}
