//! Rotary positions.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Slice, Tensor};

use super::tape::record;
use super::{fused, without_gradient};

/// Turns pairs of elements of each head by the angles of its token (Su et al., 2021): with `c` and `s` the cosine and the
/// sine of pair `i`, elements `i` of the first half of a head and `i` of the second, `(a, b)`, become `(a c - b s, b c + a s)`.
/// The backward pass turns the gradient back; it keeps the angles.
///
/// # Shapes
/// `x [tokens, heads * width]`, `cos_sin [tokens, width]`, the cosines of a token's pairs and then their sines, give
/// `[tokens, heads * width]`. There is no gradient of `cos_sin`.
///
/// # Panics
/// If the shapes do not fit.
pub fn rotary(x: Tensor<2>, cos_sin: Tensor<2>) -> Tensor<2> {
    assert_turns(x.dims(), cos_sin.dims());
    Tensor::from_dispatch(Dispatch::rotary(x.into_dispatch(), without_gradient(&cos_sin).into_dispatch(), false))
}

/// Panics unless `cos_sin` has an angle for each pair of each head of `x`.
pub(crate) fn assert_turns([tokens, columns]: [usize; 2], cos_sin: [usize; 2]) {
    let [angles, width] = cos_sin;
    assert!(width > 0 && width.is_multiple_of(2), "heads {width} wide do not have two halves");
    assert!(
        angles == tokens && columns.is_multiple_of(width),
        "cos_sin {cos_sin:?} does not fit [{tokens}, {columns}]"
    );
}

/// Rotary positions on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait RotaryOps: Backend {
    /// See [`rotary`]; or the other way round.
    #[fusion(dtype = x, shape = x)]
    fn rotary(x: FloatTensor<Self>, cos_sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        composed::<Self>([x, cos_sin], back)
    }
}

/// [`RotaryOps`] by kernels.
pub(crate) trait RotaryKernels: Backend {
    /// Of `x` and the angles.
    fn try_rotary(inputs: [FloatTensor<Self>; 2], _back: bool) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }
}

impl<B: RotaryKernels> RotaryOps for B {
    fn rotary(x: FloatTensor<B>, cos_sin: FloatTensor<B>, back: bool) -> FloatTensor<B> {
        fused("rotary", [x, cos_sin], |inputs| B::try_rotary(inputs, back), |inputs| composed::<B>(inputs, back))
    }
}

fn composed<B: Backend>([x, cos_sin]: [FloatTensor<B>; 2], back: bool) -> FloatTensor<B> {
    let (shape, width) = (x.shape(), cos_sin.shape()[1]);
    let (tokens, heads, half) = (shape[0], shape[1] / width, width / 2);
    let cos_sin = B::float_cast(cos_sin, x.dtype().into());
    let halves = |x: FloatTensor<B>, heads: usize| {
        let x = B::float_reshape(x, Shape::from([tokens, heads, width]));
        [0, half].map(|start| B::float_slice(x.clone(), &[Slice::full(), Slice::full(), (start..start + half).into()]))
    };
    let [a, b] = halves(x, heads);
    let [cos, sin] = halves(cos_sin, 1).map(|x| B::float_expand(x, Shape::from([tokens, heads, half])));
    let sin = if back { B::float_neg(sin) } else { sin };
    let product = |x: &FloatTensor<B>, y: &FloatTensor<B>| B::float_mul(x.clone(), y.clone());
    let first = B::float_sub(product(&a, &cos), product(&b, &sin));
    let second = B::float_add(product(&b, &cos), product(&a, &sin));
    B::float_reshape(B::float_cat(vec![first, second], 2), shape)
}

impl<B: RotaryOps, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn rotary(x: FloatTensor<Self>, cos_sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        record::<B, C, _, 2>(
            [x, cos_sin],
            |[x, cos_sin]| (B::rotary(x, cos_sin.clone(), back), (cos_sin, back)),
            |(cos_sin, back), gradient, _| [Some(B::rotary(gradient, cos_sin, !back)), None],
        )
    }
}
