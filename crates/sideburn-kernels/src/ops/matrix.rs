//! The weight of a linear layer.

use burn::tensor::{DType, Device, Tensor};

/// The weight `[out, in]` of a linear layer, as PyTorch stores it.
///
/// How it is held is for this crate alone to know, so that other forms than floats can join. `F` is the type of its
/// tensors.
#[derive(Clone, Debug)]
pub struct Matrix<F = Tensor<2>> {
    floats: F,
}

impl From<Tensor<2>> for Matrix {
    fn from(floats: Tensor<2>) -> Self {
        Self { floats }
    }
}

impl Matrix {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.floats.dims()
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        self.floats.device()
    }

    /// The dtype of what it is multiplied with, and of the product.
    pub fn dtype(&self) -> DType {
        self.floats.dtype()
    }

    /// The weight as floats: here the tensor that it was made from.
    pub fn dense(&self) -> Tensor<2> {
        self.floats.clone()
    }
}

impl<F> Matrix<F> {
    /// The same of other tensors.
    pub(crate) fn map<G>(self, floats: impl FnOnce(F) -> G) -> Matrix<G> {
        Matrix { floats: floats(self.floats) }
    }

    /// The weight as floats.
    pub(crate) fn floats(&self) -> &F {
        &self.floats
    }
}
