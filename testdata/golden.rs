//! Reading the reference numbers beside this file; included by the tests that need them.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use sideburn_batch::TokenRows;
use sideburn_weights::{Dtype, SafetensorsFile};

/// A file or folder of reference numbers.
pub(crate) fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(relative)
}

/// A file of named reference tensors.
pub(crate) struct Golden(SafetensorsFile);

impl Golden {
    pub(crate) fn open(relative: &str) -> Self {
        Self(SafetensorsFile::open(path(relative)).unwrap())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.names().map(str::to_owned).collect()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.0.info(name).unwrap_or_else(|| panic!("no tensor {name}")).shape.clone()
    }

    pub(crate) fn tensor(&self, name: &str) -> sideburn_weights::Tensor {
        self.0.read(name).unwrap()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.0.read_f32(name).unwrap()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let tensor = self.tensor(name);
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        tensor.bytes().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// The rows of a padded rectangle of ids, cut to their `lengths`.
    pub(crate) fn rows(&self, name: &str, lengths: &[usize]) -> TokenRows {
        let ids: Vec<u32> = self.integers(name).into_iter().map(|id| id.max(0) as u32).collect();
        TokenRows::from_padded(&ids, self.shape(name)[1], lengths).unwrap()
    }

    /// The lengths of the rows of a right-padded mask.
    pub(crate) fn mask_lengths(&self, name: &str) -> Vec<usize> {
        let width = self.shape(name)[1];
        self.integers(name).chunks(width).map(|row| row.iter().filter(|kept| **kept == 1).count()).collect()
    }

    /// The lengths of rows of labels, which are -100 behind their ends.
    pub(crate) fn label_lengths(&self, name: &str) -> Vec<usize> {
        let width = self.shape(name)[1];
        self.integers(name).chunks(width).map(|row| row.iter().filter(|label| **label != -100).count()).collect()
    }
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The largest absolute difference; not a number if any is.
pub(crate) fn max_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "as many values");
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, x| if x > max || x.is_nan() { x } else { max })
}

/// The largest absolute difference over the largest absolute expected value.
pub(crate) fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    let scale = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    max_difference(found, expected) / scale
}
