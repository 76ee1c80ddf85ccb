//! The weight of a linear layer.

use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, Int, Tensor};

use super::matmul::{MatmulOps, product_with_transposed};
use super::packed::PackedMatrix;
use super::packed_products;

/// The weight `[out, in]` of a linear layer, as PyTorch stores it: floats, or a [`PackedMatrix`].
///
/// How it is held is for this crate alone to know. `F` and `I` are the types of its float and integer tensors.
#[derive(Clone, Debug)]
pub struct Matrix<F = Tensor<2>, I = Tensor<1, Int>>(Held<F, I>);

#[derive(Clone, Debug)]
enum Held<F, I> {
    Floats(F),
    Packed(PackedMatrix<F, I>),
}

impl From<Tensor<2>> for Matrix {
    fn from(floats: Tensor<2>) -> Self {
        Self(Held::Floats(floats))
    }
}

impl From<PackedMatrix> for Matrix {
    fn from(packed: PackedMatrix) -> Self {
        Self(Held::Packed(packed))
    }
}

impl Matrix {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match &self.0 {
            Held::Floats(floats) => floats.dims(),
            Held::Packed(packed) => packed.shape(),
        }
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        match &self.0 {
            Held::Floats(floats) => floats.device(),
            Held::Packed(packed) => packed.device(),
        }
    }

    /// The dtype of what it is multiplied with, and of the product.
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Held::Floats(floats) => floats.dtype(),
            Held::Packed(packed) => packed.dtype(),
        }
    }

    /// The weight as floats: the tensor that it was made from, or a matrix made from a packed one.
    pub fn dense(&self) -> Tensor<2> {
        match &self.0 {
            Held::Floats(floats) => floats.clone(),
            Held::Packed(packed) => packed.dense(),
        }
    }
}

impl<F, I> Matrix<F, I> {
    /// The same of other tensors.
    pub(crate) fn map<G, J>(self, mut floats: impl FnMut(F) -> G, ints: impl FnMut(I) -> J) -> Matrix<G, J> {
        Matrix(match self.0 {
            Held::Floats(x) => Held::Floats(floats(x)),
            Held::Packed(packed) => Held::Packed(packed.map(floats, ints)),
        })
    }

    /// The weight, if it is floats.
    pub(crate) fn floats(&self) -> Option<&F> {
        match &self.0 {
            Held::Floats(floats) => Some(floats),
            Held::Packed(_) => None,
        }
    }

    /// The weight, if it is packed.
    pub(crate) fn packed(&self) -> Option<&PackedMatrix<F, I>> {
        match &self.0 {
            Held::Floats(_) => None,
            Held::Packed(packed) => Some(packed),
        }
    }
}

impl<F: TensorMetadata, I> Matrix<F, I> {
    /// `[out, in]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match &self.0 {
            Held::Floats(floats) => [floats.shape()[0], floats.shape()[1]],
            Held::Packed(packed) => packed.shape(),
        }
    }
}

/// `x W^T`, of primitives.
pub(crate) fn product<B: MatmulOps>(
    x: FloatTensor<B>,
    weight: &Matrix<FloatTensor<B>, IntTensor<B>>,
) -> FloatTensor<B> {
    match &weight.0 {
        Held::Floats(floats) => product_with_transposed::<B>(x, floats.clone()),
        Held::Packed(packed) => packed_products::product::<B>(x, packed),
    }
}

/// `x W`, of primitives.
pub(crate) fn product_back<B: MatmulOps>(
    x: FloatTensor<B>,
    weight: &Matrix<FloatTensor<B>, IntTensor<B>>,
) -> FloatTensor<B> {
    match &weight.0 {
        Held::Floats(floats) => B::product(x, floats.clone(), 1.0),
        Held::Packed(packed) => packed_products::float_product::<B>(x, packed, false),
    }
}
