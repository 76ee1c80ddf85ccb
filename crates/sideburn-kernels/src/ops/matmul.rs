//! Matrix products: Burn's on the CPU, and on a GPU those of this crate, of which none is tried out.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
#[cfg(feature = "gpu")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Slice, Tensor};
use sideburn_batch::Dropout;

use super::adamw::in_dtype;
use super::dropout::DropoutOps;
use super::many::Many;
use super::packed::{Layout, Parts, composed_unpacked};
use super::tape::record;
use super::{fused, fused_always};

/// `lhs rhs`, as Burn's `matmul` gives it. On a GPU, `f32` is multiplied as [`MatmulPrecision`](crate::MatmulPrecision)
/// says, exactly if nobody has said anything, and floats of 16 bits are summed in `f32`. No kernel is tried out there,
/// and few are compiled; Burn's own `matmul` promises none of that.
///
/// # Shapes
/// `lhs [.., m, k]` and `rhs [.., k, n]`, with the same sizes before, give `[.., m, n]`.
///
/// # Panics
/// If the shapes do not fit.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use sideburn_kernels::matmul;
///
/// let device = Device::flex();
/// let lhs = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device);
/// let rhs = Tensor::<2>::from_data([[10.0], [1.0]], &device);
/// matmul(lhs, rhs).into_data().assert_eq(&[[12.0f32], [34.0]].into(), true);
/// ```
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    let (left, right) = (lhs.dims(), rhs.dims());
    let fit = D >= 2 && left[..D - 2] == right[..D - 2] && left[D - 1] == right[D - 2];
    assert!(fit, "lhs [.., m, k] and rhs [.., k, n] must fit: {left:?} and {right:?} do not");
    Tensor::from_dispatch(Dispatch::product(lhs.into_dispatch(), rhs.into_dispatch(), 1.0))
}

/// Products on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait MatmulOps: DropoutOps {
    /// `scale * lhs rhs`, in the wider of their dtypes.
    #[fusion(dtype = wider(lhs, rhs), shape = product_shape(lhs, rhs))]
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        composed::<Self>([lhs, rhs], scale)
    }

    /// The same with dropout on one of them.
    #[fusion(dtype = wider(lhs, rhs), shape = product_shape(lhs, rhs))]
    fn dropped_product(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        scale: f64,
        dropout: (Dropout, Side),
    ) -> FloatTensor<Self> {
        composed_dropped::<Self>([lhs, rhs], scale, dropout)
    }

    /// `x weight^T` of each weight, side by side.
    #[fusion(meta = products_spec)]
    fn products(x: FloatTensor<Self>, #[extension_type] weights: Many<Self>) -> FloatTensor<Self> {
        composed_products::<Self>((x, weights))
    }

    /// The gradient of `x` in [`products`](Self::products): the sum of the products of each weight with its columns of
    /// `gradient`.
    #[fusion(meta = products_back_spec)]
    fn products_back(gradient: FloatTensor<Self>, #[extension_type] weights: Many<Self>) -> FloatTensor<Self> {
        composed_products_back::<Self>((gradient, weights))
    }

    /// Adds `lhs rhs`, with dropout if there is one, to the columns of `onto` from `column` on, in its place if nothing else
    /// holds it, and in its dtype.
    #[fusion(dtype = onto, shape = onto)]
    fn product_onto(
        onto: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        column: usize,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self> {
        composed_onto::<Self>([onto, lhs, rhs], column, dropout)
    }

    /// `x W^T` with a packed weight `W [out, in]`, if it is transposed, or `x W`.
    #[fusion(meta = |x, _c, _s, _n, _m, layout, transposed| {
        let [out, input] = layout.form.shape;
        let columns = if *transposed { out } else { input };
        TensorSpec::new(burn::tensor::Shape::from([x.shape[0], columns]), x.dtype)
    })]
    fn packed_product(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        nested: IntTensor<Self>,
        map: FloatTensor<Self>,
        layout: Layout,
        transposed: bool,
    ) -> FloatTensor<Self> {
        composed_packed_product::<Self>(x, Parts { codes, scales, nested, map, layout }, transposed)
    }

    /// A packed weight as floats, in its dtype; or the integers of one in 8 bits, without their scale, in `f32`.
    #[fusion(meta = |_c, _s, _n, _m, layout, scaled| {
        let dtype = if *scaled { layout.form.dtype } else { DType::F32 };
        TensorSpec::new(burn::tensor::Shape::from(layout.form.shape), dtype)
    })]
    fn unpacked(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        nested: IntTensor<Self>,
        map: FloatTensor<Self>,
        layout: Layout,
        scaled: bool,
    ) -> FloatTensor<Self> {
        composed_unpacked::<Self>(Parts { codes, scales, nested, map, layout }, scaled)
    }
}

/// One of the operands of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Lhs,
    Rhs,
}

/// The dtype of a product: that of both, or `f32` where one of them is in 16 bits.
pub(crate) fn wider(lhs: DType, rhs: DType) -> DType {
    if lhs == rhs { lhs } else { DType::F32 }
}

/// Of `lhs [.., m, k]` and `rhs [.., k, n]`.
#[cfg(feature = "gpu")]
fn product_shape(lhs: &burn::tensor::Shape, rhs: &burn::tensor::Shape) -> burn::tensor::Shape {
    let (mut shape, last) = (lhs.clone(), lhs.num_dims() - 1);
    shape[last] = rhs[last];
    shape
}

/// Of `x [n, in]` and weights `[out_i, in]`.
#[cfg(feature = "gpu")]
fn products_spec(x: &TensorSpec, weights: &[TensorSpec]) -> TensorSpec {
    let columns = weights.iter().map(|weight| weight.shape[0]).sum();
    TensorSpec::new(burn::tensor::Shape::from([x.shape[0], columns]), x.dtype)
}

/// Of a gradient `[n, out_1 + out_2 + ...]` and weights `[out_i, in]`.
#[cfg(feature = "gpu")]
fn products_back_spec(gradient: &TensorSpec, weights: &[TensorSpec]) -> TensorSpec {
    TensorSpec::new(burn::tensor::Shape::from([gradient.shape[0], weights[0].shape[1]]), gradient.dtype)
}

/// What [`MatmulOps::products`] and [`MatmulOps::products_back`] take.
pub(crate) type Shared<B> = (FloatTensor<B>, Many<B>);

/// [`MatmulOps`] by kernels.
pub(crate) trait MatmulKernels: DropoutOps {
    fn try_product(
        inputs: [FloatTensor<Self>; 2],
        _scale: f64,
        _dropout: Option<(Dropout, Side)>,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }

    fn try_products(inputs: Shared<Self>) -> Result<FloatTensor<Self>, Shared<Self>> {
        Err(inputs)
    }

    fn try_products_back(inputs: Shared<Self>) -> Result<FloatTensor<Self>, Shared<Self>> {
        Err(inputs)
    }

    fn try_product_onto(
        inputs: [FloatTensor<Self>; 3],
        _column: usize,
        _dropout: Option<Dropout>,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 3]> {
        Err(inputs)
    }

    fn try_packed_product(
        inputs: PackedInput<Self>,
        _transposed: bool,
    ) -> Result<FloatTensor<Self>, PackedInput<Self>> {
        Err(inputs)
    }

    fn try_unpacked(weight: Packed<Self>, _scaled: bool) -> Result<FloatTensor<Self>, Packed<Self>> {
        Err(weight)
    }
}

/// A packed weight on a backend.
pub(crate) type Packed<B> = Parts<FloatTensor<B>, IntTensor<B>>;

/// What is multiplied with one, and the weight.
pub(crate) type PackedInput<B> = (FloatTensor<B>, Packed<B>);

/// A product is no less of a primitive than Burn's, and is not composed of anything: the mode does not matter.
impl<B: MatmulKernels> MatmulOps for B {
    fn product(lhs: FloatTensor<B>, rhs: FloatTensor<B>, scale: f64) -> FloatTensor<B> {
        fused_always("product", [lhs, rhs], |x| B::try_product(x, scale, None), |x| composed::<B>(x, scale))
    }

    fn dropped_product(
        lhs: FloatTensor<B>,
        rhs: FloatTensor<B>,
        scale: f64,
        dropout: (Dropout, Side),
    ) -> FloatTensor<B> {
        fused(
            "dropped_product",
            [lhs, rhs],
            |x| B::try_product(x, scale, Some(dropout)),
            |x| composed_dropped::<B>(x, scale, dropout),
        )
    }

    fn products(x: FloatTensor<B>, weights: Many<B>) -> FloatTensor<B> {
        fused_always("products", (x, weights), B::try_products, composed_products::<B>)
    }

    fn products_back(gradient: FloatTensor<B>, weights: Many<B>) -> FloatTensor<B> {
        fused_always("products_back", (gradient, weights), B::try_products_back, composed_products_back::<B>)
    }

    fn product_onto(
        onto: FloatTensor<B>,
        lhs: FloatTensor<B>,
        rhs: FloatTensor<B>,
        column: usize,
        dropout: Option<Dropout>,
    ) -> FloatTensor<B> {
        let kernel = |x| B::try_product_onto(x, column, dropout);
        let composed = |x| composed_onto::<B>(x, column, dropout);
        match dropout {
            None => fused_always("product_onto", [onto, lhs, rhs], kernel, composed),
            Some(_) => fused("product_onto", [onto, lhs, rhs], kernel, composed),
        }
    }

    fn packed_product(
        x: FloatTensor<B>,
        codes: IntTensor<B>,
        scales: FloatTensor<B>,
        nested: IntTensor<B>,
        map: FloatTensor<B>,
        layout: Layout,
        transposed: bool,
    ) -> FloatTensor<B> {
        fused(
            "packed_product",
            (x, Parts { codes, scales, nested, map, layout }),
            |inputs| B::try_packed_product(inputs, transposed),
            |(x, weight)| composed_packed_product::<B>(x, weight, transposed),
        )
    }

    fn unpacked(
        codes: IntTensor<B>,
        scales: FloatTensor<B>,
        nested: IntTensor<B>,
        map: FloatTensor<B>,
        layout: Layout,
        scaled: bool,
    ) -> FloatTensor<B> {
        fused(
            "unpacked",
            Parts { codes, scales, nested, map, layout },
            |weight| B::try_unpacked(weight, scaled),
            |weight| composed_unpacked::<B>(weight, scaled),
        )
    }
}

fn composed<B: Backend>([lhs, rhs]: [FloatTensor<B>; 2], scale: f64) -> FloatTensor<B> {
    let dtype = wider(lhs.dtype(), rhs.dtype());
    let [lhs, rhs] = [lhs, rhs].map(|x| in_dtype::<B>(x, dtype));
    let product = B::float_matmul(lhs, rhs);
    if scale == 1.0 { product } else { B::float_mul_scalar(product, scale.into()) }
}

fn composed_dropped<B: MatmulOps>(
    [lhs, rhs]: [FloatTensor<B>; 2],
    scale: f64,
    (dropout, side): (Dropout, Side),
) -> FloatTensor<B> {
    match side {
        Side::Lhs => B::product(B::keyed_dropout(lhs, dropout), rhs, scale),
        Side::Rhs => B::product(lhs, B::keyed_dropout(rhs, dropout), scale),
    }
}

fn composed_products<B: MatmulOps>((x, weights): Shared<B>) -> FloatTensor<B> {
    B::float_cat(weights.0.into_iter().map(|weight| product_with_transposed::<B>(x.clone(), weight)).collect(), 1)
}

fn composed_products_back<B: MatmulOps>((gradient, weights): Shared<B>) -> FloatTensor<B> {
    let mut column = 0;
    let sum = weights.0.into_iter().fold(None, |sum, weight| {
        let columns = column..column + weight.shape()[0];
        column = columns.end;
        let own = B::float_slice(gradient.clone(), &[Slice::full(), columns.into()]);
        Some(match sum {
            Some(sum) => B::product_onto(sum, own, weight, 0, None),
            None => B::product(own, weight, 1.0),
        })
    });
    sum.expect("one weight at least")
}

fn composed_onto<B: MatmulOps>(
    [onto, lhs, rhs]: [FloatTensor<B>; 3],
    column: usize,
    dropout: Option<Dropout>,
) -> FloatTensor<B> {
    let product = B::product(lhs, rhs, 1.0);
    let product = match dropout {
        Some(dropout) => B::keyed_dropout(product, dropout),
        None => product,
    };
    let product = in_dtype::<B>(product, onto.dtype());
    let columns = product.shape()[1];
    if columns == onto.shape()[1] {
        return B::float_add(onto, product);
    }
    let slices = [Slice::full(), (column..column + columns).into()];
    let sum = B::float_add(B::float_slice(onto.clone(), &slices), product);
    B::float_slice_assign(onto, &slices, sum)
}

/// `lhs rhs`.
pub(crate) fn product<B: MatmulOps>(lhs: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
    B::product(lhs, rhs, 1.0)
}

/// `x weight^T`.
pub(crate) fn product_with_transposed<B: MatmulOps>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    product::<B>(x, transposed::<B>(weight))
}

/// [`MatmulOps::packed_product`] of the weight as floats.
fn composed_packed_product<B: MatmulOps>(
    x: FloatTensor<B>,
    parts: Parts<FloatTensor<B>, IntTensor<B>>,
    transposed: bool,
) -> FloatTensor<B> {
    let Parts { codes, scales, nested, map, layout } = parts;
    let weight = in_dtype::<B>(B::unpacked(codes, scales, nested, map, layout, true), x.dtype());
    if transposed { product_with_transposed::<B>(x, weight) } else { B::product(x, weight, 1.0) }
}

/// The last two dimensions exchanged.
pub(crate) fn transposed<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dims = x.shape().num_dims();
    B::float_swap_dims(x, dims - 2, dims - 1)
}

impl<B: MatmulOps, C: CheckpointStrategy> MatmulOps for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        // Each is kept for the gradient of the other.
        let keeps = [rhs.is_tracked(), lhs.is_tracked()];
        record::<B, C, _, 2>(
            [lhs, rhs],
            |[lhs, rhs]| {
                let kept = [keeps[0].then(|| lhs.clone()), keeps[1].then(|| rhs.clone())];
                (B::product(lhs, rhs, scale), (kept, scale))
            },
            |([lhs, rhs], scale), gradient, _| {
                let of_lhs = rhs.map(|rhs| B::product(gradient.clone(), transposed::<B>(rhs), scale));
                let of_rhs = lhs.map(|lhs| B::product(transposed::<B>(lhs), gradient, scale));
                [of_lhs, of_rhs]
            },
        )
    }
}
