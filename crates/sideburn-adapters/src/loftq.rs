//! LoftQ: factors of LoRA that begin as what quantising the base has lost (Li et al., 2023, "LoftQ: LoRA-Fine-Tuning-Aware
//! Quantization", algorithm 1).

use std::collections::HashMap;

use burn::tensor::{DType, Tensor, TensorData};
use sideburn_kernels::{Key, matmul};
use sideburn_quant::Packed;
use sideburn_weights::TensorSource;

use crate::linalg::{Svd, wide};
use crate::methods::LoraConfig;
use crate::model::AdaptedModel;
use crate::model_slots::try_each_slot;
use crate::outline::Site;
use crate::tensors::param_like;
use crate::{AdapterError, Misshapen};

/// How the factors are found; the defaults are those of `peft`'s `LoftQConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoftqConfig {
    /// `loftq_iter`: how often the base is packed and what is lost decomposed. From the second time on, what is packed is the
    /// weight without the product of the factors, so that the base becomes another one.
    pub loftq_iter: usize,
    /// Rounds of randomised subspace iteration, which is much faster for large layers; all singular values are computed if
    /// `None`, as in `peft`.
    pub iterations: Option<usize>,
}

impl Default for LoftqConfig {
    fn default() -> Self {
        Self { loftq_iter: 1, iterations: None }
    }
}

/// [`Adapters::init_loftq`](crate::Adapters::init_loftq), on a copy of the model.
pub(crate) fn init_loftq(
    model: &mut dyn AdaptedModel,
    name: &str,
    original: &dyn TensorSource,
    config: LoftqConfig,
) -> Result<Vec<String>, AdapterError> {
    let refused = |reason: &str| AdapterError::NoLoftq { name: name.to_owned(), reason: reason.to_owned() };
    let entry = model.adapters().get(name)?;
    if entry.is_merged() {
        return Err(AdapterError::IsMerged { name: name.to_owned() });
    }
    let Some(lora) = entry.method().downcast_ref::<LoraConfig>().filter(|lora| lora.is_plain()).cloned() else {
        return Err(refused("it is not plain LoRA"));
    };
    if config.loftq_iter == 0 {
        let (field, found) = ("loftq_iter", "0".to_owned());
        return Err(AdapterError::InvalidField { field, found, expected: "at least 1" });
    }
    let mut factors: HashMap<String, Factors> = HashMap::new();
    for (site, linear) in model.linears_mut() {
        let site = Site::name_of(&site).to_owned();
        let is_adapted = linear.slots().any(|slot| slot.name() == name);
        let Some(packed) = linear.weight().packed().filter(|_| is_adapted) else { continue };
        let (r, scaling) = lora.rank_and_scaling(&site)?;
        let shape = packed.shape();
        if r > shape[0].min(shape[1]) || scaling <= 0.0 {
            let reason =
                format!("rank {r} and scaling {scaling} at {site}, which is {shape:?}: there is no such part of it");
            return Err(refused(&reason));
        }
        let (quantization, tensor) = (packed.quantization(), format!("{site}.weight"));
        let values = read(original, &tensor, shape)?;
        let device = packed.device().inner();
        let weight = wide(Tensor::<2>::from_data(TensorData::new(values, shape), (&device, DType::F32)));
        let mut packed = packed.to_packed();
        let mut parts: Option<[Tensor<2>; 2]> = None;
        for _ in 0..config.loftq_iter {
            if let Some([a, b]) = parts.take() {
                let rest: Vec<f32> = to_f32(weight.clone() - matmul(b, a));
                packed = Packed::quantize(&tensor, &rest, shape, quantization)?;
            }
            let held = Tensor::<2>::from_data(TensorData::new(packed.dequantize(), shape), (&device, DType::F32));
            parts = Some(decomposed(weight.clone() - wide(held), r, config.iterations, &site));
        }
        if config.loftq_iter > 1 {
            linear.weight_mut().set_packed(packed, quantization);
        }
        let root = scaling.sqrt();
        factors.insert(site, parts.expect("at least one round").map(|factor| to_f32(factor.div_scalar(root))));
    }
    if factors.is_empty() {
        return Err(refused("no layer that it adapts is packed; quantise the base first"));
    }
    try_each_slot(model, name, |slot| {
        let Some([a, b]) = factors.get(slot.site()) else { return Ok(()) };
        for (spec, param) in slot.tensors_mut() {
            let values = if spec.part == "lora_A.weight" { a } else { b };
            *param = param_like(param, values.clone(), &spec.dims());
        }
        Ok(())
    })?;
    let mut sites: Vec<String> = factors.into_keys().collect();
    sites.sort_unstable();
    Ok(sites)
}

/// `A [r, in]` and `B [out, r]`.
type Factors = [Vec<f32>; 2];

/// The original of a weight.
fn read(original: &dyn TensorSource, tensor: &str, shape: [usize; 2]) -> Result<Vec<f32>, AdapterError> {
    let not_fitting = |missing, misshapen| {
        let path = original.path().to_owned();
        Err(AdapterError::TensorsDoNotFit { path, missing, unexpected: Vec::new(), misshapen })
    };
    match original.info(tensor) {
        None => not_fitting(vec![tensor.to_owned()], Vec::new()),
        Some(info) if info.shape != shape => {
            let (found, expected) = (info.shape.to_vec(), shape.to_vec());
            not_fitting(Vec::new(), vec![Misshapen { tensor: tensor.to_owned(), found, expected }])
        }
        Some(_) => {
            let values = original.read_f32(tensor)?;
            match values.iter().position(|value| !value.is_finite()) {
                None => Ok(values),
                Some(index) => {
                    let (path, tensor) = (original.path().to_owned(), tensor.to_owned());
                    Err(AdapterError::NotFinite { path, tensor, index, value: values[index] })
                }
            }
        }
    }
}

/// The factors of rank `r` whose product is nearest to what is lost: `sqrt(S) V^T` and `U sqrt(S)`.
fn decomposed(lost: Tensor<2>, r: usize, iterations: Option<usize>, site: &str) -> [Tensor<2>; 2] {
    let svd = match iterations {
        None => Svd::of(lost),
        Some(rounds) => Svd::sketched(lost, r, rounds, Key::from_seed(0).fold_in_name(site)),
    };
    let Svd { u, s, vt } = svd.leading(r);
    let root = s.sqrt();
    [vt * root.clone().transpose(), u * root]
}

fn to_f32(tensor: Tensor<2>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_into_vec().expect("a tensor that was cast to f32")
}
