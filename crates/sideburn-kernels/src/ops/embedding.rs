//! Rows of a table.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{IndexingUpdateOp, Int, Shape, Tensor};

/// The rows `ids` of `table`, in that order; a row may be asked for any number of times.
///
/// The gradient of the table is summed in the order of `ids`, whatever the number of threads.
///
/// # Shapes
/// `table [n, d]`, `ids [tokens]` with values in `0..n`, give `[tokens, d]`.
///
/// # Panics
/// On the CPU, if an id is no row. A GPU is not asked: it would have to be waited for.
pub fn embedding(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::table_rows(table.into_dispatch(), ids.into_dispatch()))
}

/// The rows on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait EmbeddingOps: Backend {
    /// See [`embedding`].
    #[fusion(default)]
    fn table_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        Self::float_select(table, 0, ids)
    }

    /// The gradient `[rows, d]` of the table, from the gradient `[tokens, d]` of its rows.
    #[fusion(default)]
    fn table_rows_backward(ids: IntTensor<Self>, gradient: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        composed_backward::<Self>(ids, gradient, rows)
    }
}

pub(crate) fn composed_backward<B: Backend>(
    ids: IntTensor<B>,
    gradient: FloatTensor<B>,
    rows: usize,
) -> FloatTensor<B> {
    let shape = Shape::from([rows, gradient.shape()[1]]);
    let zeros = B::float_zeros(shape, &gradient.device(), gradient.dtype().into());
    B::float_select_assign(zeros, 0, ids, gradient, IndexingUpdateOp::Add)
}

impl<B: EmbeddingOps, C: CheckpointStrategy> EmbeddingOps for Autodiff<B, C> {
    fn table_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Embedding;
        impl<B: EmbeddingOps> Backward<B, 1> for Embedding {
            type State = (IntTensor<B>, usize);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (ids, rows) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |gradient| B::table_rows_backward(ids, gradient, rows));
            }
        }

        let (table, node) = table.into_parts();
        match Backward::<B, 1>::prepare::<C>(Embedding, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((ids.clone(), table.shape()[0]), B::table_rows(table, ids)),
            OpsKind::UnTracked(prep) => prep.finish(B::table_rows(table, ids)),
        }
    }
}
