//! Products with packed weights, of primitives.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Dispatch, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{DType, FloatDType, Int, Shape, Tensor, TensorData};
use sideburn_quant::INT8_PRODUCT_SCALE;

use super::adamw::in_dtype;
use super::matmul::{MatmulOps, product_with_transposed};
use super::packed::{BackendPacked, Inputs, Kind, PackedMatrix, Parts, Scales, scales};
use crate::runtime::row_layout::is_cpu;

impl PackedMatrix {
    /// The rows `ids` as floats, `[ids, in]`. On the CPU, of 8 bits, no other row is unpacked.
    pub(crate) fn rows(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        let (Kind::Int8 { .. }, Scales::Floats(scb), false) = (self.form.kind, &self.scales, self.form.in_words) else {
            return self.dense().select(0, ids);
        };
        let codes = self.codes.clone().reshape(self.form.shape).select(0, ids.clone()).float().cast(DType::F32);
        let scb = scb.clone().reshape([self.form.shape[0], 1]).select(0, ids);
        (codes * scb * (1.0 / 127.0)).cast(self.form.dtype)
    }

    /// The weight as floats `[out, in]`.
    pub(crate) fn dense(&self) -> Tensor<2> {
        if is_cpu(&self.device()) {
            let data = TensorData::new(self.to_packed().dequantize(), self.form.shape);
            return Tensor::from_data(data, (&self.device(), self.form.dtype));
        }
        let packed = self.clone().map(Tensor::into_dispatch, Tensor::into_dispatch);
        Tensor::from_dispatch(dense::<Dispatch>(&packed))
    }
}

/// The weight as floats `[out, in]`, of primitives.
pub(crate) fn dense<B: MatmulOps>(packed: &BackendPacked<B>) -> FloatTensor<B> {
    let Parts { codes, scales, nested, map, layout } = packed.parts();
    B::unpacked(codes, scales, nested, map, layout, true)
}

/// The integers of an 8-bit matrix as floats `[out, in]`.
fn integers<B: MatmulOps>(packed: &BackendPacked<B>) -> FloatTensor<B> {
    let Parts { codes, scales, nested, map, layout } = packed.parts();
    B::unpacked(codes, scales, nested, map, layout, false)
}

/// `x W^T`, or `x W`, of floats.
pub(crate) fn float_product<B: MatmulOps>(
    x: FloatTensor<B>,
    packed: &BackendPacked<B>,
    transposed: bool,
) -> FloatTensor<B> {
    let Parts { codes, scales, nested, map, layout } = packed.parts();
    B::packed_product(x, codes, scales, nested, map, layout, transposed)
}

/// `x W^T`, of primitives.
pub(crate) fn product<B: MatmulOps>(x: FloatTensor<B>, packed: &BackendPacked<B>) -> FloatTensor<B> {
    let (threshold, to_f16) = match packed.form.kind {
        Kind::Int8 { inputs: Inputs::LlmInt8 { threshold } } => (threshold, B::supports_dtype(&x.device(), DType::F16)),
        Kind::Int8 { inputs: Inputs::Rounded } => (0.0, false),
        Kind::Int8 { inputs: Inputs::Floats } | Kind::FourBit { .. } => return float_product::<B>(x, packed, true),
    };
    let ([out, _], outer, device) = (packed.form.shape, x.dtype(), x.device());
    let x = in_dtype::<B>(x, DType::F32);
    let rounded = match to_f16 {
        true => in_dtype::<B>(B::float_cast(x.clone(), FloatDType::F16), DType::F32),
        false => x.clone(),
    };
    // [1, in]: 1 for a column in which a row has an outlier.
    let (bounded, outliers) = if threshold > 0.0 {
        let is_outlier = B::float_greater_equal_elem(
            B::float_abs(rounded.clone()),
            threshold.into(),
            get_or_init_device_settings::<B>(&device).bool_dtype,
        );
        let columns = B::float_max_dim(B::bool_into_float(is_outlier.clone(), FloatDType::F32), 0);
        (B::float_mask_fill(rounded, is_outlier, 0.0.into()), Some(columns))
    } else {
        (rounded, None)
    };
    let absmax = B::float_max_abs_dim(bounded.clone(), 1);
    // A row of zeros stays one; f16 has nothing else below.
    let factor = B::float_recip(B::float_clamp_min(absmax.clone(), 1e-30.into()));
    let factor = B::float_mul_scalar(factor, 127.0.into());
    let mut codes = B::float_round(B::float_mul(bounded, factor));
    if let Some(columns) = &outliers {
        let kept = B::float_add_scalar(B::float_mul_scalar(columns.clone(), (-1.0).into()), 1.0.into());
        codes = B::float_mul(codes, kept);
    }
    let product = product_with_transposed::<B>(codes, integers::<B>(packed));
    let scb = B::float_reshape(scales::<B>(packed, out), Shape::from([1, out]));
    let y = B::float_mul_scalar(B::float_mul(product, B::float_mul(absmax, scb)), INT8_PRODUCT_SCALE.into());
    let y = match outliers {
        None => y,
        Some(columns) => {
            let dense = in_dtype::<B>(dense::<B>(packed), DType::F32);
            B::float_add(y, product_with_transposed::<B>(B::float_mul(x, columns), dense))
        }
    };
    in_dtype::<B>(y, outer)
}
