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

/// What `#[derive(ExtensionType)]` does, so that Burn's fusion can queue an operation over the list.
#[cfg(feature = "gpu")]
mod queued {
    use std::vec::IntoIter;

    use burn::backend::fusion::custom::{
        ExtensionMetadata, Float, FusionValueAdapter, HandleContainer, OutputTensor, TensorId, TensorIr, TensorSpec,
    };
    use burn::backend::fusion::{ExecutionError, Fusion, FusionBackend, FusionRuntime, FusionTensor};

    use super::{Backend, Many};

    type Handles<B> = HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;
    type Queued<B> = FusionTensor<<B as FusionBackend>::FusionRuntime>;

    impl<B: Backend> ExtensionMetadata for Many<B> {
        type Metadata = Vec<TensorSpec>;
        type Input = Vec<TensorIr>;
        type Output = Vec<OutputTensor>;
    }

    impl<B: FusionBackend> FusionValueAdapter<B> for Many<B> {
        type Metadata = Vec<TensorSpec>;
        type Input = Vec<TensorIr>;
        type Output = Vec<OutputTensor>;
        type Inner = Self;
        type Fused = Many<Fusion<B>>;

        fn to_metadata(value: &Many<Fusion<B>>) -> Vec<TensorSpec> {
            value.0.iter().map(<Float as FusionValueAdapter<B>>::to_metadata).collect()
        }

        fn visit_fused_tensors(value: &Many<Fusion<B>>, visit: &mut impl FnMut(&Queued<B>)) {
            value.0.iter().for_each(visit);
        }

        fn tensor_count(meta: &Vec<TensorSpec>) -> usize {
            meta.len()
        }

        fn append_input_ir(value: Many<Fusion<B>>, inputs: &mut Vec<TensorIr>) -> Vec<TensorIr> {
            let append = |x| <Float as FusionValueAdapter<B>>::append_input_ir(x, inputs);
            value.0.into_iter().map(append).collect()
        }

        fn resolve_inputs(input: &Vec<TensorIr>, handles: &mut Handles<B>) -> Self {
            Self(input.iter().map(|x| <Float as FusionValueAdapter<B>>::resolve_inputs(x, handles)).collect())
        }

        fn append_output_ir(
            meta: &Vec<TensorSpec>,
            out: &mut Vec<TensorIr>,
            create: &mut impl FnMut() -> TensorId,
        ) -> Vec<OutputTensor> {
            meta.iter().map(|x| <Float as FusionValueAdapter<B>>::append_output_ir(x, out, create)).collect()
        }

        fn validate_outputs(
            value: &Self,
            output: &Vec<OutputTensor>,
            device: Option<&B::Device>,
        ) -> Result<(), ExecutionError> {
            let mut pairs = value.0.iter().zip(output);
            pairs.try_for_each(|(x, output)| <Float as FusionValueAdapter<B>>::validate_outputs(x, output, device))
        }

        fn register_output_handles(value: Self, output: &Vec<OutputTensor>, handles: &mut Handles<B>) {
            for (x, output) in value.0.into_iter().zip(output) {
                <Float as FusionValueAdapter<B>>::register_output_handles(x, output, handles);
            }
        }

        fn build_fused_output(meta: &Vec<TensorSpec>, tensors: &mut IntoIter<Queued<B>>) -> Many<Fusion<B>> {
            Many(tensors.by_ref().take(meta.len()).collect())
        }
    }
}
