//! Quantised weights of linear layers, packed on a device.

use burn::backend::tensor::{Device as BackendDevice, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Shape, Slice, Tensor, TensorData};
use sideburn_quant::{Absmax, Blockwise, FourBit, Int8, Packed, QuantType, Quantization};

use super::adamw::in_dtype;
use crate::runtime::row_layout::is_cpu;

/// A quantised weight `[out, in]` on a device: codes as bytes on the CPU, in words of 32 bits elsewhere, and what they are
/// scaled by. `F` and `I` are the types of its float and integer tensors.
///
/// It is frozen: no gradient is taken with respect to it. As a [`Module`] it has no parameters.
#[derive(Clone, Debug)]
pub struct PackedMatrix<F = Tensor<2>, I = Tensor<1, Int>> {
    pub(crate) form: Form,
    pub(crate) codes: I,
    pub(crate) scales: Scales<F, I>,
}

/// What the tensors of a packed matrix are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// `[out, in]`.
    pub(crate) shape: [usize; 2],
    pub(crate) kind: Kind,
    /// The dtype of what it is multiplied with, and of the product.
    pub(crate) dtype: DType,
    /// Whether codes are in words of 32 bits, the first in the lowest bits.
    pub(crate) in_words: bool,
}

/// What a code is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    FourBit { quant_type: QuantType, block_size: usize },
    Int8 { inputs: Inputs },
}

/// How a weight of 8 bits takes what it is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Inputs {
    /// As it is.
    Floats,
    /// Each row as integers of 8 bits.
    Rounded,
    /// The same after rounding to `f16`, but for columns with outliers: values from this size on, if it is above 0 (LLM.int8()).
    LlmInt8 { threshold: f32 },
}

/// What codes are scaled by: of 4 bits each block, of 8 bits each row.
#[derive(Clone, Debug)]
pub(crate) enum Scales<F, I> {
    /// `[1, n]`.
    Floats(F),
    Nested {
        codes: I,
        /// `[1, n / 256]`.
        absmax: F,
        /// `[1, 256]`.
        map: F,
        offset: f32,
    },
}

impl<F, I> PackedMatrix<F, I> {
    /// The same of other tensors.
    pub(crate) fn map<G, J>(self, mut floats: impl FnMut(F) -> G, mut ints: impl FnMut(I) -> J) -> PackedMatrix<G, J> {
        let codes = ints(self.codes);
        let scales = match self.scales {
            Scales::Floats(scales) => Scales::Floats(floats(scales)),
            Scales::Nested { codes, absmax, map, offset } => {
                Scales::Nested { codes: ints(codes), absmax: floats(absmax), map: floats(map), offset }
            }
        };
        PackedMatrix { form: self.form, codes, scales }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.form.shape
    }

    /// The dtype of what it is multiplied with, and of the product.
    pub fn dtype(&self) -> DType {
        self.form.dtype
    }

    /// What it is quantised to.
    pub fn quantization(&self) -> Quantization {
        match self.form.kind {
            Kind::FourBit { quant_type, block_size } => {
                let double_quant = matches!(self.scales, Scales::Nested { .. });
                Quantization::FourBit { quant_type, block_size, double_quant }
            }
            Kind::Int8 { inputs: Inputs::LlmInt8 { threshold } } => Quantization::Int8 { threshold },
            Kind::Int8 { .. } => Quantization::Int8 { threshold: 0.0 },
        }
    }

    /// The same that takes its input as floats. Otherwise 8-bit weights quantise each row of it (LLM.int8()).
    pub fn with_float_inputs(self) -> Self {
        self.with_inputs(Inputs::Floats)
    }

    /// The same that, of 8 bits, rounds each row of its input to integers as it is, however large its values are: 127 stands
    /// for the largest. LLM.int8() rounds to `f16` first and leaves outliers out. As CTranslate2 does with `int8`.
    pub fn with_rounded_inputs(self) -> Self {
        self.with_inputs(Inputs::Rounded)
    }

    fn with_inputs(mut self, of_int8: Inputs) -> Self {
        if let Kind::Int8 { inputs } = &mut self.form.kind {
            *inputs = of_int8;
        }
        self
    }
}

impl PackedMatrix {
    /// Puts a quantised weight on a device. Of 8 bits, `llm_int8_threshold` says which inputs are outliers, computed in
    /// floats; at 0 none is.
    pub fn new(packed: Packed, llm_int8_threshold: f32, device: &Device) -> Self {
        let floats = |values: Vec<f32>| {
            let shape = [1, values.len()];
            Tensor::<2>::from_data(TensorData::new(values, shape), (device, DType::F32))
        };
        let in_words = !is_cpu(device);
        let form = |shape, kind| Form { shape, kind, dtype: device.settings().float_dtype.into(), in_words };
        match packed {
            Packed::FourBit(matrix) => {
                let kind = Kind::FourBit { quant_type: matrix.quant_type(), block_size: matrix.block_size() };
                let form = form(matrix.shape(), kind);
                let (codes, absmax) = matrix.into_parts();
                let scales = match absmax {
                    Absmax::Floats(absmax) => Scales::Floats(floats(absmax)),
                    Absmax::Nested { rest: Blockwise { codes, absmax, code, .. }, offset } => Scales::Nested {
                        codes: bytes(codes, in_words, device),
                        absmax: floats(absmax),
                        map: floats(code.to_vec()),
                        offset,
                    },
                };
                Self { form, codes: bytes(codes, in_words, device), scales }
            }
            Packed::Int8(matrix) => {
                let form =
                    form(matrix.shape(), Kind::Int8 { inputs: Inputs::LlmInt8 { threshold: llm_int8_threshold } });
                let (codes, scb) = matrix.into_parts();
                let codes = match in_words {
                    true => bytes(codes.into_iter().map(|code| code as u8).collect(), true, device),
                    false => {
                        let shape = [codes.len()];
                        Tensor::from_data(TensorData::new(codes, shape), (device, DType::I8))
                    }
                };
                Self { form, codes, scales: Scales::Floats(floats(scb)) }
            }
        }
    }

    /// The quantised weight, read back from the device.
    pub fn to_packed(&self) -> Packed {
        let floats = |x: &Tensor<2>| x.to_data().try_into_vec::<f32>().expect("scales are f32");
        let bytes = |x: &Tensor<1, Int>, count: usize| {
            let mut bytes = x.to_data().into_bytes().to_vec();
            bytes.truncate(count);
            bytes
        };
        let [rows, columns] = self.form.shape;
        let count = rows * columns;
        match (self.form.kind, &self.scales) {
            (Kind::Int8 { .. }, scales) => {
                let Scales::Floats(scb) = scales else { unreachable!("rows have scales in floats") };
                let codes = bytes(&self.codes, count).into_iter().map(|byte| byte as i8).collect();
                Packed::Int8(Int8::from_parts(self.form.shape, codes, floats(scb)))
            }
            (Kind::FourBit { quant_type, block_size }, scales) => {
                let blocks = count.div_ceil(block_size);
                let absmax = match scales {
                    Scales::Floats(absmax) => Absmax::Floats(floats(absmax)),
                    Scales::Nested { codes, absmax, map, offset } => {
                        let code = Box::new(floats(map).try_into().expect("a map of 256 values"));
                        let (codes, absmax) = (bytes(codes, blocks), floats(absmax));
                        let rest = Blockwise { codes, absmax, code, block_size: FourBit::NESTED_BLOCK_SIZE };
                        Absmax::Nested { rest, offset: *offset }
                    }
                };
                let codes = bytes(&self.codes, count.div_ceil(2));
                Packed::FourBit(FourBit::from_parts(self.form.shape, quant_type, block_size, codes, absmax))
            }
        }
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        self.codes.device()
    }
}

/// Bytes on a device, in words of 32 bits if need be.
fn bytes(mut bytes: Vec<u8>, in_words: bool, device: &Device) -> Tensor<1, Int> {
    if !in_words {
        let shape = [bytes.len()];
        return Tensor::from_data(TensorData::new(bytes, shape), (device, DType::U8));
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let words: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect();
    let shape = [words.len()];
    Tensor::from_data(TensorData::new(words, shape), (device, DType::I32))
}

impl Module for PackedMatrix {
    fn visit<V: ModuleVisitor>(&self, _: &mut V) {}

    fn map<M: ModuleMapper>(self, _: &mut M) -> Self {
        self
    }

    fn to_device(self, device: &Device) -> Self {
        assert_eq!(is_cpu(device), !self.form.in_words, "bytes are for the CPU and words for other devices");
        PackedMatrix::map(self, |floats| floats.to_device(device), |ints| ints.to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        self.to_device(device)
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.codes.collect_devices(devices)
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        PackedMatrix::map(self.clone(), Tensor::without_autodiff, Tensor::without_autodiff)
    }

    fn train(self) -> Self {
        PackedMatrix::map(self, Tensor::from_inner, Tensor::from_inner)
    }
}

impl ModuleDisplayDefault for PackedMatrix {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_single(&format!("{:?} {:?}", self.form.kind, self.form.shape)).optional()
    }
}

impl ModuleDisplay for PackedMatrix {}

/// A packed matrix on a backend's tensors.
pub(crate) type BackendPacked<B> = PackedMatrix<FloatTensor<B>, IntTensor<B>>;

/// A packed matrix as an operation takes it: the codes, what they are scaled by, and for nested scales their codes, which
/// `scales` then scale, and the map; otherwise anything stands in for these two.
#[derive(Clone)]
pub(crate) struct Parts<F, I> {
    pub(crate) codes: I,
    pub(crate) scales: F,
    pub(crate) nested: I,
    pub(crate) map: F,
    pub(crate) layout: Layout,
}

/// What the tensors of [`Parts`] are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) form: Form,
    /// Of nested scales.
    pub(crate) offset: Option<f32>,
}

impl<F: Clone, I: Clone> PackedMatrix<F, I> {
    pub(super) fn parts(&self) -> Parts<F, I> {
        let (codes, form) = (self.codes.clone(), self.form);
        match &self.scales {
            Scales::Floats(scales) => {
                let layout = Layout { form, offset: None };
                Parts { nested: codes.clone(), codes, map: scales.clone(), scales: scales.clone(), layout }
            }
            Scales::Nested { codes: nested, absmax, map, offset } => {
                let layout = Layout { form, offset: Some(*offset) };
                Parts { codes, scales: absmax.clone(), nested: nested.clone(), map: map.clone(), layout }
            }
        }
    }
}

impl<F, I> From<Parts<F, I>> for PackedMatrix<F, I> {
    fn from(Parts { codes, scales, nested, map, layout: Layout { form, offset } }: Parts<F, I>) -> Self {
        let scales = match offset {
            None => Scales::Floats(scales),
            Some(offset) => Scales::Nested { codes: nested, absmax: scales, map, offset },
        };
        Self { form, codes, scales }
    }
}

/// [`MatmulOps::unpacked`](super::matmul::MatmulOps::unpacked) by primitives.
pub(crate) fn composed_unpacked<B: Backend>(
    parts: Parts<FloatTensor<B>, IntTensor<B>>,
    scaled: bool,
) -> FloatTensor<B> {
    let packed: &BackendPacked<B> = &parts.into();
    let Form { shape: [out, input], kind, dtype, .. } = packed.form;
    let count = out * input;
    let values = match kind {
        Kind::FourBit { quant_type, block_size } => {
            let indices = fields::<B>(packed.codes.clone(), packed.form.in_words, 4);
            let values = B::float_select(constant::<B>(quant_type.code(), &packed.codes.device()), 0, indices);
            let blocks = count.div_ceil(block_size);
            let absmax = B::float_reshape(scales::<B>(packed, blocks), Shape::from([blocks, 1]));
            let absmax = B::float_repeat_dim(absmax, 1, block_size);
            let absmax = B::float_reshape(absmax, Shape::from([blocks * block_size]));
            let first = |x| B::float_slice(x, &[Slice::from(0..count)]);
            B::float_reshape(B::float_mul(first(values), first(absmax)), Shape::from([out, input]))
        }
        Kind::Int8 { .. } if !scaled => return composed_integers::<B>(packed),
        Kind::Int8 { .. } => {
            let scb = B::float_reshape(scales::<B>(packed, out), Shape::from([out, 1]));
            B::float_mul_scalar(B::float_mul(composed_integers::<B>(packed), scb), (1.0f32 / 127.0).into())
        }
    };
    in_dtype::<B>(values, dtype)
}

/// What codes are scaled by, `[count]`.
pub(super) fn scales<B: Backend>(packed: &BackendPacked<B>, count: usize) -> FloatTensor<B> {
    match &packed.scales {
        Scales::Floats(scales) => B::float_reshape(scales.clone(), Shape::from([count])),
        Scales::Nested { codes, absmax, map, offset } => {
            let size = FourBit::NESTED_BLOCK_SIZE;
            let blocks = count.div_ceil(size);
            let indices = fields::<B>(codes.clone(), packed.form.in_words, 8);
            let rest = B::float_select(B::float_reshape(map.clone(), Shape::from([256])), 0, indices);
            let absmax = B::float_repeat_dim(B::float_reshape(absmax.clone(), Shape::from([blocks, 1])), 1, size);
            let absmax = B::float_reshape(absmax, Shape::from([blocks * size]));
            let first = |x| B::float_slice(x, &[Slice::from(0..count)]);
            B::float_add_scalar(B::float_mul(first(rest), first(absmax)), (*offset).into())
        }
    }
}

/// The fields of 4 or 8 bits that lie in bytes or words, of a byte the upper first.
fn fields<B: Backend>(codes: IntTensor<B>, in_words: bool, bits: usize) -> IntTensor<B> {
    let codes = if in_words { codes } else { B::int_cast(codes, IntDType::I32) };
    let length = codes.shape()[0];
    let in_byte: &[i64] = if bits == 4 { &[4, 0] } else { &[0] };
    let offsets =
        (0..if in_words { 4 } else { 1 }).flat_map(|byte| in_byte.iter().map(move |offset| 8 * byte + offset));
    let field = |offset: i64| {
        let shifted = B::bitwise_right_shift_scalar(codes.clone(), offset.into());
        B::int_reshape(B::bitwise_and_scalar(shifted, ((1i64 << bits) - 1).into()), Shape::from([length, 1]))
    };
    let fields: Vec<_> = offsets.map(field).collect();
    let count = length * fields.len();
    B::int_reshape(B::int_cat(fields, 1), Shape::from([count]))
}

fn composed_integers<B: Backend>(packed: &BackendPacked<B>) -> FloatTensor<B> {
    let [out, input] = packed.form.shape;
    let integers = if packed.form.in_words {
        let bytes = B::int_into_float(fields::<B>(packed.codes.clone(), true, 8), FloatDType::F32);
        let bytes = B::float_slice(bytes, &[Slice::from(0..out * input)]);
        // 128 to 255 are the negative ones.
        let bool_dtype = get_or_init_device_settings::<B>(&packed.codes.device()).bool_dtype;
        let is_negative = B::float_greater_equal_elem(bytes.clone(), 128.0.into(), bool_dtype);
        let wrapped = B::float_mul_scalar(B::bool_into_float(is_negative, FloatDType::F32), 256.0.into());
        B::float_sub(bytes, wrapped)
    } else {
        B::int_into_float(packed.codes.clone(), FloatDType::F32)
    };
    B::float_reshape(integers, Shape::from([out, input]))
}

fn constant<B: Backend>(values: &[f32], device: &BackendDevice<B>) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}
