//! CPU kernels for the Flex backend in `f32`.
//!
//! Work is shared out in tasks whose sizes follow from the shapes alone, and sums are taken in the order of the tasks,
//! so that results do not depend on the number of threads.

mod adamw;
pub(crate) mod adamw_8bit;
mod attention;
mod dropout;
mod embedding;
mod gate;
pub(crate) mod instructions;
mod integers;
mod linear;
mod loss;
mod matmul;
mod norm;
mod packed;
mod products;
mod rotary;
mod simd;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::DType;

use crate::runtime::memory::Buffer;

use products::Mat;

type Primitive = FloatTensor<Flex>;

/// Elements that one task works on: large enough to hide the scheduling, small enough to share out.
const TASK: usize = 16 * 1024;

fn are_f32<'a>(tensors: impl IntoIterator<Item = &'a Primitive>) -> bool {
    tensors.into_iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// The tensors in row-major order, if all are `f32`.
fn row_major<const N: usize>(tensors: [Primitive; N]) -> Result<[Primitive; N], [Primitive; N]> {
    if are_f32(&tensors) { Ok(tensors.map(contiguous)) } else { Err(tensors) }
}

/// What an integer tensor holds, which its caller has seen to be indices.
fn indices(x: IntTensor<Flex>) -> Vec<usize> {
    x.into_data().iter::<i64>().map(|index| index as usize).collect()
}

/// The tensor in row-major order, so that [`values`] can borrow it.
fn contiguous(x: Primitive) -> Primitive {
    if x.layout().contiguous_offsets().is_some() { x } else { x.to_contiguous() }
}

fn values(x: &Primitive) -> &[f32] {
    x.as_slice().expect("a contiguous f32 tensor")
}

/// A contiguous tensor of two dimensions as a matrix.
fn matrix(x: &Primitive) -> Mat<'_> {
    let [rows, columns]: [usize; 2] = x.shape().as_slice().try_into().expect("a matrix");
    Mat::new(values(x), rows, columns)
}

/// The tensor in row-major order, to be overwritten through `storage_mut`: in place if nothing else holds it. Fresh
/// memory costs more than most of these kernels.
fn overwritable(x: Primitive) -> Primitive {
    let x = contiguous(x);
    if x.is_unique() && x.storage::<f32>().len() == values(&x).len() {
        return x;
    }
    let mut copy = Buffer::new(values(&x).len());
    copy.copy_from_slice(values(&x));
    copy.into_tensor(x.shape())
}

/// Rows of `width` elements that make about one task.
fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}
