//! Kernels for the CubeCL backends in `f32`, `f16` and `bf16`.
//!
//! Numbers are read and written in the tensors' dtype, and everything between is `f32`. Sums are taken in an order that
//! follows from the shapes alone, without atomic additions: the same inputs give the same bytes. No kernel needs
//! subgroups, so that any GPU runs them, and software as well.

mod adamw;
mod attention;
pub(crate) mod checked;
mod dropout;
mod embedding;
mod gate;
mod linear;
mod loss;
mod mask;
mod matmul;
mod norm;
mod packed;
mod rotary;
mod sums;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::server::CubeCountSelection;
use burn_cubecl::kernel::into_contiguous as contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{CubeBackend, cubecl};

type Primitive = FloatTensor<CubeBackend>;

/// Units of a cube that works on one row together.
const UNITS: usize = 256;

/// The tensors, if the kernels take them. Indices are 32 bits wide.
fn accepted<const N: usize>(tensors: [Primitive; N]) -> Result<[Primitive; N], [Primitive; N]> {
    let fits = |tensor: &Primitive| {
        let elements = tensor.shape().num_elements();
        let same = tensor.dtype == tensors[0].dtype && tensor.device == tensors[0].device;
        same && !tensor.meta.is_tiled() && elements > 0 && span(tensor) < 1 << 32
    };
    if float(tensors[0].dtype).is_some() && tensors.iter().all(fits) { Ok(tensors) } else { Err(tensors) }
}

/// The elements of memory between the first and the last of a tensor, both included.
fn span(tensor: &Primitive) -> u64 {
    let dims = tensor.meta.shape().iter().zip(tensor.meta.strides().iter());
    1 + dims.map(|(size, stride)| (size.saturating_sub(1) * stride) as u64).sum::<u64>()
}

/// CubeCL's name of a dtype that the kernels take.
fn float(dtype: DType) -> Option<ElemType> {
    match dtype {
        DType::F32 => Some(ElemType::Float(FloatKind::F32)),
        DType::F16 => Some(ElemType::Float(FloatKind::F16)),
        DType::BF16 => Some(ElemType::Float(FloatKind::BF16)),
        _ => None,
    }
}

/// The same of a tensor that is [`accepted`].
fn element(tensor: &Primitive) -> ElemType {
    float(tensor.dtype).expect("a dtype that the kernels take")
}

/// Fresh memory in row-major order, on the device and in the dtype of `like`.
fn fresh(like: &Primitive, shape: impl Into<Shape>) -> Primitive {
    fresh_of(like, shape, like.dtype)
}

fn fresh_of(like: &Primitive, shape: impl Into<Shape>, dtype: DType) -> Primitive {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// Elements that one unit takes at once, where a kernel goes through `count` elements of each of these tensors in a
/// row: four if they can be read as vectors, otherwise one. A draw of a mask decides four.
fn together(count: usize, tensors: &[&Primitive]) -> usize {
    let aligned = |tensor: &&Primitive| {
        let strides = tensor.meta.strides();
        let rows = &strides[..strides.len() - 1];
        let offset = tensor.handle.offset_start.unwrap_or(0);
        rows.iter().all(|stride| stride.is_multiple_of(4)) && offset.is_multiple_of(4 * tensor.dtype.size() as u64)
    };
    if count.is_multiple_of(4) && tensors.iter().all(aligned) { 4 } else { 1 }
}

/// How to share `units` units of independent work out.
fn shared_out(client: &Client, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, units);
    (cubecl::calculate_cube_count_elemwise(client, units, dim), dim)
}

/// One cube for each of `rows` pieces of work that its units do together.
fn cube_each(client: &Client, rows: usize) -> (CubeCount, CubeDim) {
    (CubeCountSelection::new(client, rows as u32).cube_count(), CubeDim::new_1d(UNITS as u32))
}
