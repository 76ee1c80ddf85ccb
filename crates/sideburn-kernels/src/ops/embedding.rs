//! Rows of a table.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{IndexingUpdateOp, Int, Shape, Tensor};

use super::matrix::Matrix;
use super::tape::record;
use super::{assert_below, fused};

/// The rows `ids` of `table`, in that order; a row may be asked for any number of times. Of a packed table they come unpacked.
///
/// The gradient of the table is summed in the order of `ids`, whatever the number of threads.
///
/// # Shapes
/// `table [n, d]`, `ids [tokens]` with values in `0..n`, give `[tokens, d]`.
///
/// # Panics
/// On the CPU, if an id is no row. A GPU is not asked: it would have to be waited for.
pub fn embedding(table: impl Into<Matrix>, ids: Tensor<1, Int>) -> Tensor<2> {
    let table = table.into();
    let [rows, _] = table.shape();
    assert_below(rows, &ids, |id| format!("id {id} is none of the table's {rows} rows"));
    if let Some(packed) = table.packed() {
        return packed.rows(ids);
    }
    Tensor::from_dispatch(Dispatch::table_rows(table.dense().into_dispatch(), ids.into_dispatch()))
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

/// A float and an integer tensor.
type Pair<B> = (FloatTensor<B>, IntTensor<B>);

/// [`EmbeddingOps`] by kernels: of the table and the ids; of the gradient and the ids.
pub(crate) trait EmbeddingKernels: Backend {
    fn try_table_rows(inputs: Pair<Self>) -> Result<FloatTensor<Self>, Pair<Self>> {
        Err(inputs)
    }

    fn try_table_rows_backward(inputs: Pair<Self>, _rows: usize) -> Result<FloatTensor<Self>, Pair<Self>> {
        Err(inputs)
    }
}

impl<B: EmbeddingKernels> EmbeddingOps for B {
    fn table_rows(table: FloatTensor<B>, ids: IntTensor<B>) -> FloatTensor<B> {
        fused("table_rows", (table, ids), B::try_table_rows, |(table, ids)| B::float_select(table, 0, ids))
    }

    fn table_rows_backward(ids: IntTensor<B>, gradient: FloatTensor<B>, rows: usize) -> FloatTensor<B> {
        fused(
            "table_rows_backward",
            (gradient, ids),
            |inputs| B::try_table_rows_backward(inputs, rows),
            |(gradient, ids)| composed_backward::<B>(ids, gradient, rows),
        )
    }
}

fn composed_backward<B: Backend>(ids: IntTensor<B>, gradient: FloatTensor<B>, rows: usize) -> FloatTensor<B> {
    let shape = Shape::from([rows, gradient.shape()[1]]);
    let zeros = B::float_zeros(shape, &gradient.device(), gradient.dtype().into());
    B::float_select_assign(zeros, 0, ids, gradient, IndexingUpdateOp::Add)
}

impl<B: EmbeddingOps, C: CheckpointStrategy> EmbeddingOps for Autodiff<B, C> {
    fn table_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [table],
            |[table]| {
                let rows = table.shape()[0];
                (B::table_rows(table, ids.clone()), (ids, rows))
            },
            |(ids, rows), gradient, _| [Some(B::table_rows_backward(ids, gradient, rows))],
        )
    }
}
