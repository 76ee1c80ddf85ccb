//! Tensors of all shapes together, for operations over many of them at once.

use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Backend, BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, ExtensionType,
    TensorMetadata,
};
use burn::tensor::{Shape, Tensor};

/// A float tensor of any number of dimensions, not tracked by autodiff.
#[derive(Clone, Debug)]
pub struct AnyRank(DispatchTensor);

impl AnyRank {
    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// The tensor with its number of dimensions.
    ///
    /// # Panics
    /// If it has another number of dimensions.
    pub fn into_tensor<const D: usize>(self) -> Tensor<D> {
        assert_eq!(self.shape().num_dims(), D, "a tensor must be taken out with its own number of dimensions");
        Tensor::from_dispatch(self.0)
    }
}

impl<const D: usize> From<Tensor<D>> for AnyRank {
    fn from(tensor: Tensor<D>) -> Self {
        Self(tensor.into_dispatch())
    }
}

/// Tensors on a backend; one at least, so that there is a backend.
#[derive(Clone, Debug)]
pub(crate) struct Many<B: Backend>(pub(crate) Vec<FloatTensor<B>>);

impl Many<Dispatch> {
    /// The first tensors of all rows, the second ones, and so on.
    pub(crate) fn columns<const N: usize>(rows: Vec<[AnyRank; N]>) -> [Self; N] {
        let mut columns = [(); N].map(|()| Self(Vec::with_capacity(rows.len())));
        for row in rows {
            columns.iter_mut().zip(row).for_each(|(column, tensor)| column.0.push(tensor.0));
        }
        columns
    }
}

impl FromIterator<AnyRank> for Many<Dispatch> {
    fn from_iter<I: IntoIterator<Item = AnyRank>>(tensors: I) -> Self {
        Self(tensors.into_iter().map(|tensor| tensor.0).collect())
    }
}

impl IntoIterator for Many<Dispatch> {
    type Item = AnyRank;
    type IntoIter = std::iter::Map<std::vec::IntoIter<DispatchTensor>, fn(DispatchTensor) -> AnyRank>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().map(AnyRank)
    }
}

/// What `#[derive(ExtensionType)]` does for a field that is a tensor, for each of the list.
impl<B: Backend> ExtensionType<B> for Many<B> {
    type Target = Many<Dispatch>;

    fn map_to_dispatch<F>(self, map_kind: F, autodiff: DispatchAutodiffContext) -> Many<Dispatch>
    where
        F: Fn(BackendTensor<B>) -> DispatchTensorKind,
    {
        let wrap = |tensor| DispatchTensor { kind: map_kind(BackendTensor::Float(tensor)), autodiff };
        Many(self.0.into_iter().map(wrap).collect())
    }

    fn map_from_dispatch<F>(target: Many<Dispatch>, unwrap_kind: F) -> Self
    where
        F: Fn(DispatchTensor) -> BackendTensor<B>,
    {
        Self(target.0.into_iter().map(|tensor| unwrap_kind(tensor).float()).collect())
    }

    fn routing_tensor(target: &Many<Dispatch>) -> Option<&DispatchTensor> {
        target.0.first()
    }

    fn routing_float_tensor(target: &Many<Dispatch>) -> Option<&DispatchTensor> {
        target.0.first()
    }

    fn autodiff_context(target: &Many<Dispatch>) -> DispatchAutodiffContext {
        let contexts = target.0.iter().map(|tensor| tensor.autodiff);
        contexts.fold(DispatchAutodiffContext::Disabled, |all, context| all.merge(context))
    }
}
