//! What is quantised: numbers in memory, or as a file stores them.

use std::ops::Range;

use sideburn_weights::Tensor;

/// The values of a matrix, row after row. Those of a stored tensor become `f32` a few at a time, so that no copy of all is made.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// As they are.
    Floats(&'a [f32]),
    /// As a file has them, in F32, F16, BF16 or F64.
    Stored(&'a Tensor),
}

impl Values<'_> {
    /// How many there are.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Floats(floats) => floats.len(),
            Self::Stored(tensor) => tensor.shape().iter().product(),
        }
    }

    /// Some of them, for which there is a `store`.
    ///
    /// # Panics
    /// If a stored tensor is none of floats.
    pub(crate) fn part<'s>(&'s self, range: Range<usize>, store: &'s mut Vec<f32>) -> &'s [f32] {
        match self {
            Self::Floats(floats) => &floats[range],
            Self::Stored(tensor) => {
                store.clear();
                tensor.extend_f32(range, store).expect("a tensor of floats");
                store
            }
        }
    }
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(floats: &'a [f32]) -> Self {
        Self::Floats(floats)
    }
}

impl<'a, const N: usize> From<&'a [f32; N]> for Values<'a> {
    fn from(floats: &'a [f32; N]) -> Self {
        Self::Floats(floats)
    }
}

impl<'a> From<&'a Vec<f32>> for Values<'a> {
    fn from(floats: &'a Vec<f32>) -> Self {
        Self::Floats(floats)
    }
}

impl<'a> From<&'a Tensor> for Values<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Stored(tensor)
    }
}
