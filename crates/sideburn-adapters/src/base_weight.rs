//! A weight of the base, and how it is held.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_kernels::{Matrix, PackedMatrix, is_cpu};
use sideburn_quant::{Packed, QuantError, Quantization};
use sideburn_weights as weights;

use crate::Pass;
use crate::tensors::{frozen_param, in_dtype, is_trainable, set_trainable, to_file};

/// A weight of the base: the matrix of a linear layer, a table, or a vector.
///
/// How it is held is for this type alone to know: as floats, or, a matrix, packed in 4 or 8 bits. What computes with it takes
/// the [operand](Self::operand), and what must have floats asks for them by [`dense`](Self::dense), which may cost a
/// matrix.
///
/// A frozen matrix beside packed ones can be held in 16 bits where `f32` is computed: the embedding of Falcon-7B takes 0.59 GB in
/// `bf16` and 1.18 GB in `f32`. It is widened, which is exact, a few rows at a time. On a CPU in 16 bits all matrices are held so,
/// and vectors in `f32`; what layers give each other is `f32`.
#[derive(Module, Debug)]
pub struct BaseWeight {
    held: Held,
    is_vector: bool,
    /// The dtype that it is multiplied in, if that is not the one that it is held in, or that the device makes.
    #[module(skip)]
    computed: Option<DType>,
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
    /// 4 bytes a value, but for matrices that are held in 16 bits.
    #[default]
    F32,
    /// 2 bytes a value, rounded to the nearest.
    Bf16,
}

/// `llm_int8_threshold` where no configuration says another.
const LLM_INT8_THRESHOLD: f32 = 6.0;

/// Whether floats of this dtype have 16 bits, and a CPU computes with them: in `f32`.
fn is_narrow_on_cpu(dtype: DType, device: &Device) -> bool {
    matches!(dtype, DType::F16 | DType::BF16) && is_cpu(device)
}

impl BaseWeight {
    /// A matrix `[rows, columns]` in `f32`, whatever the device makes.
    pub(crate) fn of_matrix_in_f32(floats: Param<Tensor<2>>) -> Self {
        Self { computed: Some(DType::F32), ..Self::of_matrix(floats) }
    }

    /// A matrix `[rows, columns]`.
    pub(crate) fn of_matrix(floats: Param<Tensor<2>>) -> Self {
        Self { held: Held::Floats(floats), is_vector: false, computed: None }
    }

    /// A vector `[n]`, which is trainable until it is frozen.
    pub(crate) fn of_vector(floats: Tensor<1>) -> Self {
        let computed = is_narrow_on_cpu(floats.dtype(), &floats.device()).then_some(DType::F32);
        let dtype = computed.unwrap_or_else(|| floats.dtype());
        let floats = Param::from_tensor(in_dtype(floats.unsqueeze().detach(), dtype));
        Self { held: Held::Floats(floats), is_vector: true, computed }
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
        let dtype = self.computed.unwrap_or_else(|| self.held_dtype());
        if is_narrow_on_cpu(dtype, &self.device()) { DType::F32 } else { dtype }
    }

    /// The dtype of the floats that it is held in, or of what a packed one is multiplied with. Nothing is initialised.
    pub(crate) fn held_dtype(&self) -> DType {
        match &self.held {
            Held::Floats(floats) if floats.is_initialized() => floats.val().dtype(),
            Held::Floats(floats) => self.made_dtype(&floats.lazy_device()),
            Held::Packed(packed) => packed.dtype(),
        }
    }

    /// The 16 bits that it is held in, if it is multiplied in more.
    pub(crate) fn narrow_dtype(&self) -> Option<weights::Dtype> {
        let dtype = match self.held_dtype() {
            DType::BF16 => weights::Dtype::BF16,
            DType::F16 => weights::Dtype::F16,
            _ => return None,
        };
        (self.packed().is_none() && self.dtype() == DType::F32).then_some(dtype)
    }

    /// The dtype of floats that are made on `device`.
    fn made_dtype(&self, device: &Device) -> DType {
        self.computed.unwrap_or_else(|| device.settings().float_dtype.into())
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

    /// The weight as floats `[rows, columns]`, of a vector `[1, n]`, in the dtype that it is multiplied in. Of a packed weight, and
    /// one that is held in 16 bits beside it, this makes a matrix.
    pub fn dense(&self) -> Tensor<2> {
        in_dtype(self.operand().dense(), self.dtype())
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
        let (dtype, trainable) = (self.dtype(), self.is_trainable());
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
        let data = TensorData::new(values, self.dims());
        self.held = Held::Floats(frozen_param(data, &device, self.made_dtype(&device)));
    }

    /// Puts little-endian values of this dtype of 16 bits, in row-major order, in the place of a matrix: frozen, and held as they
    /// are.
    pub(crate) fn set_narrow(&mut self, bytes: Vec<u8>, dtype: DType) {
        let device = self.device();
        self.computed = Some(self.made_dtype(&device));
        let data = TensorData::from_bytes_vec(bytes, self.dims(), dtype);
        self.held = Held::Floats(frozen_param(data, &device, dtype));
    }

    pub(crate) fn freeze(&mut self) {
        if let Held::Floats(floats) = &mut self.held {
            set_trainable(floats, false);
        }
    }

    /// The tensor that a file has of the weight, if that is one of floats: it is not packed, or may not be so there.
    pub(crate) fn stored_floats(&self, precision: Precision, may_be_packed: bool) -> Option<weights::TensorInfo> {
        let dtype = match (precision, self.narrow_dtype()) {
            (Precision::Bf16, _) => weights::Dtype::BF16,
            (Precision::F32, Some(dtype)) => dtype,
            (Precision::F32, None) => weights::Dtype::F32,
        };
        let is_packed = may_be_packed && self.packed().is_some();
        (!is_packed).then(|| weights::TensorInfo { dtype, shape: self.shape() })
    }

    /// The tensors that a file has of the weight `name`: one of floats in this precision, or those of a packed weight if it
    /// `may_be_packed` there.
    pub(crate) fn stored(
        &self,
        name: &str,
        precision: Precision,
        may_be_packed: bool,
    ) -> Result<Vec<(String, weights::Tensor)>, weights::WeightsError> {
        match (self.stored_floats(precision, may_be_packed), &self.held) {
            (None, Held::Packed(packed)) => Ok(packed.to_packed().stored(name)),
            (info, _) => {
                let floats = to_file(self.dense(), self.shape());
                let dtype = info.map_or(weights::Dtype::F32, |info| info.dtype);
                Ok(vec![(name.to_owned(), if dtype == floats.dtype() { floats } else { floats.cast(dtype)? })])
            }
        }
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
        self.operand().dense().detach().select(0, rows).gather(1, columns).squeeze_dim(1).cast(DType::F32)
    }
}
