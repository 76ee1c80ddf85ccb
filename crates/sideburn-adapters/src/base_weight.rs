//! A weight of the base, and how it is held.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_kernels::Matrix;
use sideburn_weights::{self as weights, TensorSource};

use crate::AdapterError;
use crate::tensors::{frozen_param, is_trainable, to_file};

/// A weight of the base: the matrix of a linear layer, a table, or a vector.
///
/// How it is held is for this type alone to know, so that other forms than floats can join: what computes with it takes
/// the [operand](Self::operand), and what must have floats asks for them by [`dense`](Self::dense), which may cost a
/// matrix.
#[derive(Module, Debug)]
pub struct BaseWeight {
    /// `[rows, columns]`; a vector is one row.
    floats: Param<Tensor<2>>,
    is_vector: bool,
}

impl BaseWeight {
    /// A matrix `[rows, columns]`.
    pub(crate) fn of_matrix(floats: Param<Tensor<2>>) -> Self {
        Self { floats, is_vector: false }
    }

    /// A vector `[n]`, which is trainable until it is frozen.
    pub(crate) fn of_vector(floats: Tensor<1>) -> Self {
        Self { floats: Param::from_tensor(floats.unsqueeze().detach()), is_vector: true }
    }

    /// Its shape in a file, `[rows, columns]` or `[n]`. Nothing is initialised.
    pub fn shape(&self) -> Vec<usize> {
        self.dims()[usize::from(self.is_vector)..].to_vec()
    }

    /// `[rows, columns]`, of a vector `[1, n]`. Nothing is initialised.
    pub fn dims(&self) -> [usize; 2] {
        let shape = self.floats.lazy_shape();
        [shape[0], shape[1]]
    }

    /// Where it is, or will be initialised.
    pub fn device(&self) -> Device {
        self.floats.lazy_device()
    }

    /// The weight as the fused operations take it.
    pub fn operand(&self) -> Matrix {
        self.floats.val().into()
    }

    /// The weight as floats `[rows, columns]`, of a vector `[1, n]`. Where it is held in another form, this makes a matrix.
    pub fn dense(&self) -> Tensor<2> {
        self.floats.val()
    }

    /// The parameter that it is.
    pub(crate) fn floats(&self) -> &Param<Tensor<2>> {
        &self.floats
    }

    pub(crate) fn floats_mut(&mut self) -> &mut Param<Tensor<2>> {
        &mut self.floats
    }

    /// Whether it is set to train, also where its device does not differentiate.
    pub fn is_trainable(&self) -> bool {
        is_trainable(&self.floats)
    }

    /// Puts floats `[rows, columns]` in its place, in its dtype. If it is trainable, it stays so.
    ///
    /// # Panics
    /// If they are of another shape.
    pub fn replace(&mut self, dense: Tensor<2>) {
        assert_eq!(dense.dims(), self.dims(), "the new weight has another shape");
        let (dtype, trainable) = (self.floats.val().dtype(), self.is_trainable());
        let dense = dense.cast(dtype);
        let is_lifted = self.device().is_autodiff() && !dense.device().is_autodiff();
        let dense = if is_lifted { Tensor::from_inner(dense) } else { dense.detach() };
        self.floats = Param::from_tensor(dense).set_require_grad(trainable);
    }

    pub(crate) fn freeze(&mut self) {
        self.floats = self.floats.clone().no_grad();
    }

    /// Reads it from a tensor of the same shape, frozen and in `f32`.
    ///
    /// # Errors
    /// If the tensor cannot be read.
    pub(crate) fn load(&mut self, source: &dyn TensorSource, name: &str) -> Result<(), AdapterError> {
        self.floats = frozen_param(source.read_f32(name)?, &self.dims(), &self.device());
        Ok(())
    }

    /// The weight in `f32`, as a file has it.
    pub(crate) fn stored(&self) -> weights::Tensor {
        to_file(self.dense(), self.shape())
    }

    /// At most `count` elements as `f32`, evenly spread over the rows laid end to end.
    pub(crate) fn sample(&self, count: usize) -> Tensor<1> {
        let [rows, columns] = self.dims();
        let count = count.min(rows * columns);
        let places = (0..count).map(|sample| sample * (rows * columns) / count);
        let (rows, columns): (Vec<i32>, Vec<i32>) =
            places.map(|place| ((place / columns) as i32, (place % columns) as i32)).unzip();
        let index = |values| Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &self.device());
        let (rows, columns) = (index(rows), index(columns).unsqueeze_dim(1));
        self.dense().detach().select(0, rows).gather(1, columns).squeeze_dim(1).cast(DType::F32)
    }
}
