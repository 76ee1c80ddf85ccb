//! A weight of the base, and how it is held.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_kernels::{Matrix, PackedMatrix};
use sideburn_quant::{Packed, QuantError, Quantization};
use sideburn_weights as weights;

use crate::Pass;
use crate::tensors::{frozen_param, is_trainable, set_trainable, to_file};

/// A weight of the base: the matrix of a linear layer, a table, or a vector.
///
/// How it is held is for this type alone to know: as floats, or, a matrix, packed in 4 or 8 bits. What computes with it takes
/// the [operand](Self::operand), and what must have floats asks for them by [`dense`](Self::dense), which may cost a
/// matrix.
#[derive(Module, Debug)]
pub struct BaseWeight {
    held: Held,
    is_vector: bool,
    /// Whether floats are in `f32`, whatever the device makes.
    in_f32: bool,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are no more of them than weights")]
enum Held {
    /// `[rows, columns]`; a vector is one row.
    Floats(Param<Tensor<2>>),
    /// It is frozen, and no parameter.
    Packed(PackedMatrix),
}

/// How weights of floats are stored in a file. Packed ones are stored as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 4 bytes a value, as in memory.
    #[default]
    F32,
    /// 2 bytes a value, rounded to the nearest.
    Bf16,
}

/// `llm_int8_threshold` where no configuration says another.
const LLM_INT8_THRESHOLD: f32 = 6.0;

impl BaseWeight {
    /// A matrix `[rows, columns]` in `f32`, whatever the device makes.
    pub(crate) fn of_matrix_in_f32(floats: Param<Tensor<2>>) -> Self {
        Self { in_f32: true, ..Self::of_matrix(floats) }
    }

    /// A matrix `[rows, columns]`.
    pub(crate) fn of_matrix(floats: Param<Tensor<2>>) -> Self {
        Self { held: Held::Floats(floats), is_vector: false, in_f32: false }
    }

    /// A vector `[n]`, which is trainable until it is frozen.
    pub(crate) fn of_vector(floats: Tensor<1>) -> Self {
        let floats = Param::from_tensor(floats.unsqueeze().detach());
        Self { held: Held::Floats(floats), is_vector: true, in_f32: false }
    }

    /// Its shape in a file of floats, `[rows, columns]` or `[n]`. Nothing is initialised.
    pub fn shape(&self) -> Vec<usize> {
        self.dims()[usize::from(self.is_vector)..].to_vec()
    }

    /// `[rows, columns]`, of a vector `[1, n]`. Nothing is initialised.
    pub fn dims(&self) -> [usize; 2] {
        match &self.held {
            Held::Floats(floats) => {
                let shape = floats.lazy_shape();
                [shape[0], shape[1]]
            }
            Held::Packed(packed) => packed.shape(),
        }
    }

    /// Where it is, in the model that a pass borrows.
    pub(crate) fn place(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// The dtype that it is multiplied in. Nothing is initialised.
    pub(crate) fn dtype(&self) -> DType {
        match &self.held {
            Held::Floats(floats) if floats.is_initialized() => floats.val().dtype(),
            Held::Floats(floats) => self.float_dtype(&floats.lazy_device()),
            Held::Packed(packed) => packed.dtype(),
        }
    }

    /// The dtype of floats that are made on `device`.
    fn float_dtype(&self, device: &Device) -> DType {
        if self.in_f32 { DType::F32 } else { device.settings().float_dtype.into() }
    }

    /// Where it is, or will be initialised.
    pub fn device(&self) -> Device {
        match &self.held {
            Held::Floats(floats) => floats.lazy_device(),
            Held::Packed(packed) => packed.device(),
        }
    }

    /// The weight as the fused operations take it.
    pub fn operand(&self) -> Matrix {
        match &self.held {
            Held::Floats(floats) => floats.val().into(),
            Held::Packed(packed) => packed.clone().into(),
        }
    }

    /// The operand of this pass. As in bitsandbytes on the CPU, an 8-bit weight takes its input as it is in training, and
    /// otherwise as integers.
    pub(crate) fn operand_in(&self, pass: &Pass) -> Matrix {
        match self.packed() {
            Some(packed) if pass.is_train() => packed.clone().with_float_inputs().into(),
            _ => self.operand(),
        }
    }

    /// The weight as floats `[rows, columns]`, of a vector `[1, n]`. Of a packed weight this makes a matrix.
    pub fn dense(&self) -> Tensor<2> {
        self.operand().dense()
    }

    /// The weight as it is packed, if it is.
    pub fn packed(&self) -> Option<&PackedMatrix> {
        match &self.held {
            Held::Floats(_) => None,
            Held::Packed(packed) => Some(packed),
        }
    }

    /// The parameter that it is, unless it is packed.
    pub(crate) fn floats(&self) -> Option<&Param<Tensor<2>>> {
        match &self.held {
            Held::Floats(floats) => Some(floats),
            Held::Packed(_) => None,
        }
    }

    pub(crate) fn floats_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        match &mut self.held {
            Held::Floats(floats) => Some(floats),
            Held::Packed(_) => None,
        }
    }

    /// Whether it is set to train, also where its device does not differentiate.
    pub fn is_trainable(&self) -> bool {
        self.floats().is_some_and(is_trainable)
    }

    /// Puts floats `[rows, columns]` in its place, in the dtype that it is multiplied in. If it is trainable, it stays so; what
    /// was packed is frozen floats afterwards.
    ///
    /// # Panics
    /// If they are of another shape.
    pub fn replace(&mut self, dense: Tensor<2>) {
        assert_eq!(dense.dims(), self.dims(), "the new weight has another shape");
        let (dtype, trainable) = (self.operand().dtype(), self.is_trainable());
        let dense = dense.cast(dtype);
        let is_lifted = self.device().is_autodiff() && !dense.device().is_autodiff();
        let dense = if is_lifted { Tensor::from_inner(dense) } else { dense.detach() };
        self.held = Held::Floats(Param::from_tensor(dense).set_require_grad(trainable));
    }

    /// Packs it, frozen; messages call it `name`. What is packed already is packed anew.
    pub(crate) fn quantize(&mut self, name: &str, quantization: Quantization) -> Result<(), QuantError> {
        let values = self.dense().cast(DType::F32).into_data();
        let values: Vec<f32> = values.try_into_vec().expect("a tensor that was cast to f32");
        self.set_packed(Packed::quantize(name, &values, self.dims(), quantization)?, quantization);
        Ok(())
    }

    /// Packs it in 8 bits, frozen, so that it rounds each row of what it is multiplied with, too; messages call it `name`. What
    /// is packed already is packed anew.
    pub(crate) fn round(&mut self, name: &str) -> Result<(), QuantError> {
        self.quantize(name, Quantization::Int8 { threshold: 0.0 })?;
        if let Held::Packed(packed) = &mut self.held {
            *packed = packed.clone().with_rounded_inputs();
        }
        Ok(())
    }

    /// Puts a packed matrix in its place. Of 8 bits, `quantization` says which inputs are outliers.
    pub(crate) fn set_packed(&mut self, packed: Packed, quantization: impl Into<Option<Quantization>>) {
        let threshold = match quantization.into() {
            Some(Quantization::Int8 { threshold }) => threshold,
            _ => LLM_INT8_THRESHOLD,
        };
        self.held = Held::Packed(PackedMatrix::new(packed, threshold, &self.device()));
    }

    /// Puts values, in row-major order, in its place: frozen, and in the dtype of the device.
    pub(crate) fn set_floats(&mut self, values: Vec<f32>) {
        let device = self.device();
        self.held = Held::Floats(frozen_param(values, &self.dims(), &device, self.float_dtype(&device)));
    }

    pub(crate) fn freeze(&mut self) {
        if let Held::Floats(floats) = &mut self.held {
            set_trainable(floats, false);
        }
    }

    /// The tensors that a file has of the weight `name`: one of floats in this precision, or those of a packed weight if it
    /// `may_be_packed` there.
    pub(crate) fn stored(
        &self,
        name: &str,
        precision: Precision,
        may_be_packed: bool,
    ) -> Result<Vec<(String, weights::Tensor)>, weights::WeightsError> {
        if let (Held::Packed(packed), true) = (&self.held, may_be_packed) {
            return Ok(packed.to_packed().stored(name));
        }
        let floats = to_file(self.dense(), self.shape());
        let floats = match precision {
            Precision::F32 => floats,
            Precision::Bf16 => floats.to_bf16()?,
        };
        Ok(vec![(name.to_owned(), floats)])
    }

    /// At most `count` elements as `f32`, evenly spread over the rows laid end to end.
    pub(crate) fn sample(&self, count: usize) -> Tensor<1> {
        let [rows, columns] = self.dims();
        let count = count.min(rows * columns);
        let places = (0..count).map(|sample| sample * (rows * columns) / count);
        if let Held::Packed(packed) = &self.held {
            let packed = packed.to_packed();
            let values: Vec<f32> = places.map(|place| packed.value(place)).collect();
            return Tensor::from_data(TensorData::new(values, [count]), (&self.device(), DType::F32));
        }
        let (rows, columns): (Vec<i32>, Vec<i32>) =
            places.map(|place| ((place / columns) as i32, (place % columns) as i32)).unzip();
        let index = |values| Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &self.device());
        let (rows, columns) = (index(rows), index(columns).unsqueeze_dim(1));
        self.dense().detach().select(0, rows).gather(1, columns).squeeze_dim(1).cast(DType::F32)
    }
}
