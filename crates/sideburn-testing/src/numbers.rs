//! Reference numbers, and how results are compared with them.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::{Decoder, GenerationConfig, generate};
use sideburn_weights::{Dtype, SafetensorsFile, TensorSource};

use crate::path;

/// What is written behind each prompt of `decoder`, which must be possible.
pub fn written<D: Decoder<Error: std::fmt::Debug>>(decoder: D, config: &GenerationConfig) -> Vec<Vec<u32>> {
    generate(decoder, config).unwrap().into_iter().map(|answer| answer.tokens).collect()
}

/// A file of named reference tensors.
pub struct Golden(SafetensorsFile);

impl Golden {
    /// Opens a file of `testdata`.
    pub fn open(relative: &str) -> Self {
        Self(SafetensorsFile::open(path(relative)).unwrap())
    }

    /// The names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.0.names().map(str::to_owned).collect()
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.0.info(name).unwrap_or_else(|| panic!("no tensor {name}")).shape.clone()
    }

    /// A tensor as it is stored.
    pub fn tensor(&self, name: &str) -> sideburn_weights::Tensor {
        self.0.read(name).unwrap()
    }

    /// The numbers of a tensor of floats, row by row.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.0.read_f32(name).unwrap()
    }

    /// The numbers of a tensor of `i64`, row by row.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        let tensor = self.tensor(name);
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        tensor.bytes().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// The rows of a padded rectangle of ids, cut to their `lengths`.
    pub fn rows(&self, name: &str, lengths: &[usize]) -> TokenRows {
        let ids: Vec<u32> = self.integers(name).into_iter().map(|id| id.max(0) as u32).collect();
        TokenRows::from_padded(&ids, self.shape(name)[1], lengths).unwrap()
    }

    /// The rows of a rectangle of ids at their full width, padding included.
    pub fn full_rows(&self, name: &str) -> TokenRows {
        let [rows, columns] = self.shape(name)[..] else { panic!("{name} is no rectangle") };
        self.rows(name, &vec![columns; rows])
    }

    /// The inputs without their padding.
    pub fn source(&self) -> TokenRows {
        self.rows("input_ids", &self.mask_lengths("attention_mask"))
    }

    /// The batch of a decoder alone, whose rows are prompt and answer, padded on any side: `input_ids` and the like with
    /// this behind their names. Only the answers have labels.
    pub fn prompts_and_answers(&self, suffix: &str) -> PromptBatch {
        let [ids, mask, labels] =
            ["input_ids", "attention_mask", "labels"].map(|name| self.integers(&format!("{name}{suffix}")));
        let columns = self.shape(&format!("input_ids{suffix}"))[1];
        let row = |row: usize, is_label: bool| {
            let places = (row * columns..(row + 1) * columns).filter(|at| mask[*at] == 1);
            places.filter(|at| (labels[*at] != -100) == is_label).map(|at| ids[at] as u32).collect::<Vec<u32>>()
        };
        let rows = |is_label| TokenRows::from_rows((0..ids.len() / columns).map(|at| row(at, is_label))).unwrap();
        PromptBatch::new(rows(false), rows(true)).unwrap()
    }

    /// The batch of the inputs and labels, without their padding.
    pub fn batch(&self) -> PromptBatch {
        PromptBatch::new(self.source(), self.rows("labels", &self.label_lengths("labels"))).unwrap()
    }

    /// The lengths of the rows of a right-padded mask.
    pub fn mask_lengths(&self, name: &str) -> Vec<usize> {
        let width = self.shape(name)[1];
        self.integers(name).chunks(width).map(|row| row.iter().filter(|kept| **kept == 1).count()).collect()
    }

    /// The lengths of rows of labels, which are -100 behind their ends.
    pub fn label_lengths(&self, name: &str) -> Vec<usize> {
        let width = self.shape(name)[1];
        self.integers(name).chunks(width).map(|row| row.iter().filter(|label| **label != -100).count()).collect()
    }
}

/// The numbers of a tensor, row by row.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// All parameters of a model, in the order of Burn's visitors.
pub fn parameters<M: Module>(model: &M) -> Vec<f32> {
    struct Values(Vec<f32>);
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(param.val().into_data().iter::<f32>());
        }
    }
    let mut values = Values(Vec::new());
    model.visit(&mut values);
    values.0
}

/// The largest absolute difference; not a number if any is.
pub fn max_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "as many values");
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, x| if x > max || x.is_nan() { x } else { max })
}

/// The largest absolute difference over the largest absolute expected value.
pub fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    let scale = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    max_difference(found, expected) / scale
}
