//! Loading, saving, freezing and quantising the base weights of a model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::mpsc;

use burn::tensor::{DType, bf16, f16};
use sideburn_kernels::is_cpu;
use sideburn_quant::{Packed, Quantization, QuantizationConfig};
use sideburn_weights::{Dtype, Tensor, TensorInfo, TensorSource, write_safetensors_lazily};

use crate::base_weight::{BaseWeight, Precision};
use crate::linear::AdaptedLinear;
use crate::memory::{available_memory, loading};
use crate::model::{AdaptedModel, Weight, WeightMut};
use crate::model_slots::for_each_slot;
use crate::outline::Site;
use crate::tensors::set_trainable;
use crate::{AdapterError, Misshapen};

/// Freezes every weight of `model` and every tensor of its adapters; what is attached afterwards trains.
pub(crate) fn freeze(model: &mut dyn AdaptedModel) {
    for (name, weight) in model.weights_mut() {
        weight.into_tensors_mut(&name).for_each(|(_, weight)| weight.freeze());
    }
    for_each_slot(model, |slot| {
        slot.tensors_mut().for_each(|(_, tensor)| set_trainable(tensor, false));
    });
}

/// [`Adapters::load_base`](crate::Adapters::load_base) and
/// [`load_base_quantized`](crate::Adapters::load_base_quantized).
pub(crate) fn load_base(
    model: &mut dyn AdaptedModel,
    source: &dyn TensorSource,
    name_of: &dyn Fn(&str) -> Option<&str>,
    config: Option<&QuantizationConfig>,
) -> Result<(), AdapterError> {
    let sites = config.map(|config| quantized_sites(model, config));
    let kept = model.keep_in_fp32_modules();
    let mut loader = Loader {
        source,
        unplaced: source.names().filter_map(|name| Some((name_of(name)?.to_owned(), name))).collect(),
        missing: Vec::new(),
        misshapen: Vec::new(),
        found: Vec::new(),
    };
    for (name, weight) in model.weights_mut() {
        let is_linear = matches!(weight, WeightMut::Linear(_));
        let is_quantized = sites.as_ref().is_some_and(|sites| sites.contains(&name));
        for (index, (tensor, weight)) in weight.into_tensors_mut(&name).enumerate() {
            // The bias of a layer is not packed.
            let may_be_packed = is_linear && index == 0;
            let narrow = |stored| narrow(config?, Some(stored), weight, kept, &name);
            let narrow = loader.stored_dtype(&tensor).and_then(narrow);
            let form = match (is_quantized && may_be_packed, narrow) {
                (true, _) => Form::ToPack,
                (false, Some(dtype)) => Form::Narrow(dtype),
                (false, None) => Form::Floats,
            };
            loader.find(&tensor, weight, may_be_packed, form);
        }
    }
    let quantization = config.map(|config| config.quantization);
    let found = loader.finish()?;
    check_memory(source, &found, quantization)?;
    fill(source, found, quantization)
}

/// Refuses what would not fit into main memory, before anything is read.
fn check_memory(
    source: &dyn TensorSource,
    found: &[Found<'_>],
    quantization: Option<Quantization>,
) -> Result<(), AdapterError> {
    let Some(available) = available_memory().filter(|_| found.iter().all(|found| is_cpu(&found.weight.device())))
    else {
        return Ok(());
    };
    let elements = |found: &Found<'_>| found.weight.dims().iter().product::<usize>();
    let stored = |name: &str| source.info(name).map_or(0, TensorInfo::num_bytes);
    let bytes = |found: &Found<'_>| match (found.form, quantization) {
        (Form::Narrow(_), _) => 2 * elements(found),
        (Form::Packed, _) => {
            stored(found.stored)
                + Packed::stored_beside(source, found.stored).iter().map(|name| stored(name)).sum::<usize>()
        }
        (Form::ToPack, Some(quantization)) => quantization.bytes(found.weight.dims()),
        _ => elements(found) * found.weight.held_dtype().size(),
    } as u64;
    let read = |found: &Found<'_>| match found.form {
        Form::Packed => bytes(found),
        Form::Narrow(dtype) if source.info(found.stored).is_some_and(|info| info.dtype == dtype) => bytes(found),
        Form::ToPack => stored(found.stored) as u64,
        Form::Narrow(_) | Form::Floats => (elements(found) * size_of::<f32>()) as u64,
    };
    let sizes: Vec<(u64, u64)> = found.iter().map(|found| (bytes(found), read(found))).collect();
    let (weights, needed) = (sizes.iter().map(|(own, _)| own).sum(), loading(&sizes));
    match needed > available {
        true => Err(AdapterError::TooLittleMemory { path: source.path().to_owned(), weights, needed, available }),
        false => Ok(()),
    }
}

/// A weight, and where its tensor is.
struct Found<'a> {
    weight: &'a mut BaseWeight,
    stored: &'a str,
    form: Form,
}

/// What is to become of a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// It is floats.
    Floats,
    /// It is floats that are held in these 16 bits.
    Narrow(Dtype),
    /// It is floats that are to be packed.
    ToPack,
    /// It is packed as it is.
    Packed,
}

struct Loader<'a> {
    source: &'a dyn TensorSource,
    /// The tensors that no weight has asked for yet, by the model's names for them.
    unplaced: BTreeMap<String, &'a str>,
    missing: Vec<String>,
    misshapen: Vec<Misshapen>,
    found: Vec<Found<'a>>,
}

impl<'a> Loader<'a> {
    /// What a tensor is stored in, by the model's name for it.
    fn stored_dtype(&self, name: &str) -> Option<Dtype> {
        Some(self.source.info(self.unplaced.get(name)?)?.dtype)
    }

    /// Looks for the tensor of a weight, of which this form is to be made if it is not packed already.
    fn find(&mut self, name: &str, weight: &'a mut BaseWeight, may_be_packed: bool, form: Form) {
        let Some((stored, info)) =
            self.unplaced.remove(name).and_then(|stored| Some((stored, self.source.info(stored)?)))
        else {
            self.missing.push(match self.source.promised(name) {
                Some(shard) => format!("{name} (the index has it in {shard}, which does not hold it)"),
                None => name.to_owned(),
            });
            return;
        };
        if may_be_packed && Packed::is_stored(self.source, stored) {
            let beside: BTreeSet<String> = Packed::stored_beside(self.source, stored).into_iter().collect();
            self.unplaced.retain(|_, stored| !beside.contains(*stored));
            self.found.push(Found { weight, stored, form: Form::Packed });
            return;
        }
        let expected = weight.shape();
        if info.shape != expected {
            self.misshapen.push(Misshapen { tensor: stored.to_owned(), found: info.shape.to_vec(), expected });
            return;
        }
        self.found.push(Found { weight, stored, form });
    }

    fn finish(self) -> Result<Vec<Found<'a>>, AdapterError> {
        let Self { source, unplaced, missing, misshapen, found } = self;
        if missing.is_empty() && misshapen.is_empty() && unplaced.is_empty() {
            return Ok(found);
        }
        let path = source.path().to_owned();
        let unexpected = unplaced.into_values().map(str::to_owned).collect();
        Err(AdapterError::TensorsDoNotFit { path, missing, unexpected, misshapen })
    }
}

/// What has been read of a tensor.
enum Read {
    Floats(Vec<f32>),
    /// Floats that are to be packed, as they are stored.
    ToPack(Tensor),
    /// Little-endian floats of 16 bits.
    Narrow(Vec<u8>, DType),
    Packed(Packed),
}

/// Fills the weights, tensor by tensor: while one is packed, the next is read. No more than two are in memory beside what is
/// filled already.
fn fill(
    source: &dyn TensorSource,
    found: Vec<Found<'_>>,
    quantization: Option<Quantization>,
) -> Result<(), AdapterError> {
    let jobs: Vec<(String, [usize; 2], Form)> =
        found.iter().map(|found| (found.stored.to_owned(), found.weight.dims(), found.form)).collect();
    let read = |(name, dims, form): &(String, [usize; 2], Form)| match form {
        Form::Packed => Ok::<_, AdapterError>(Read::Packed(Packed::read(source, name, *dims)?)),
        Form::Floats => Ok(Read::Floats(source.read_f32(name)?)),
        Form::ToPack => {
            let tensor = source.read(name)?;
            // Other numbers are refused by name.
            let is_float = tensor.extend_f32(0..0, &mut Vec::new()).is_ok();
            if is_float {
                Ok(Read::ToPack(tensor))
            } else {
                Err(tensor.to_f32_named(source.path(), name).unwrap_err().into())
            }
        }
        Form::Narrow(dtype) => Ok(Read::Narrow(read_narrow(source, name, *dtype)?, burn_dtype(*dtype))),
    };
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(0);
        scope.spawn(move || {
            for job in &jobs {
                if sender.send(read(job)).is_err() {
                    break; // Nobody listens any more.
                }
            }
        });
        for Found { weight, stored, .. } in found {
            let read = receiver.recv().expect("as much is read as is asked for")?;
            match (read, quantization) {
                (Read::Packed(packed), quantization) => weight.set_packed(packed, quantization),
                (Read::Narrow(bytes, dtype), _) => weight.set_narrow(bytes, dtype),
                (Read::ToPack(tensor), Some(quantization)) => {
                    let packed = Packed::quantize(stored, &tensor, weight.dims(), quantization)?;
                    weight.set_packed(packed, quantization);
                }
                (Read::ToPack(_), None) => unreachable!("a quantisation is asked for"),
                (Read::Floats(values), _) => weight.set_floats(values),
            }
        }
        Ok(())
    })
}

/// The 16 bits that a weight which is not packed is held in beside packed ones: those that `config` asks for, or else those
/// that it is stored in, if they are known. Vectors, such as the scales of norms, are few and stay in `f32`, and so does
/// in `f16` what the family keeps in `f32`, as in `transformers`.
pub(crate) fn narrow(
    config: &QuantizationConfig,
    stored: Option<Dtype>,
    weight: &BaseWeight,
    kept: &[&str],
    site: &str,
) -> Option<Dtype> {
    let is_float = stored.is_none_or(|stored| matches!(stored, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16));
    let dtype = config.dtype.or(stored).filter(|_| is_float && weight.shape().len() == 2)?;
    let fits = match dtype {
        Dtype::BF16 => true,
        Dtype::F16 => !kept.iter().any(|kept| is_meant(kept, site)),
        _ => false,
    };
    let is_narrower = fits && weight.dtype() == DType::F32;
    (is_narrower && weight.device().supports_dtype(burn_dtype(dtype))).then_some(dtype)
}

/// Burn's name of 16 bits.
fn burn_dtype(dtype: Dtype) -> DType {
    if dtype == Dtype::BF16 { DType::BF16 } else { DType::F16 }
}

/// A tensor of floats in 16 bits, rounded to the nearest if it is stored in more.
fn read_narrow(source: &dyn TensorSource, name: &str, dtype: Dtype) -> Result<Vec<u8>, AdapterError> {
    if source.info(name).is_some_and(|info| info.dtype == dtype) {
        return Ok(source.read(name)?.into_bytes());
    }
    let rounded = |x: f32| match dtype {
        Dtype::BF16 => bf16::from_f32(x).to_le_bytes(),
        _ => f16::from_f32(x).to_le_bytes(),
    };
    Ok(source.read_f32(name)?.into_iter().flat_map(rounded).collect())
}

/// The linear layers that a configuration quantises: all but those that it names or, where it names none, the output head;
/// and those that the family of models keeps in f32 only if it says so.
pub(crate) fn quantized_sites(model: &dyn AdaptedModel, config: &QuantizationConfig) -> BTreeSet<String> {
    let head = model.shape().head;
    let usual = [head.to_owned()];
    let named = config.llm_int8_skip_modules.as_deref().unwrap_or(if head.is_empty() { &[] } else { &usual });
    let in_fp32 = if config.keep_in_fp32_modules { model.keep_in_fp32_modules() } else { &[] };
    let kept: Vec<&str> = named.iter().map(String::as_str).chain(in_fp32.iter().copied()).collect();
    let names = model.linears().into_iter().map(|(name, _)| name);
    names.filter(|name| !kept.iter().any(|kept| is_meant(kept, name))).collect()
}

/// Whether an entry of `llm_int8_skip_modules` means a site: it is its name, the end of it, or a part of the model that it
/// is in (`should_convert_module` of transformers' `quantizers_utils.py`).
fn is_meant(entry: &str, site: &str) -> bool {
    site.ends_with(entry) || site.strip_prefix(entry).is_some_and(|rest| rest.starts_with('.'))
}

/// [`Adapters::quantize_base`](crate::Adapters::quantize_base).
pub(crate) fn quantize_base(
    model: &mut dyn AdaptedModel,
    config: &QuantizationConfig,
) -> Result<Vec<String>, AdapterError> {
    let sites = quantized_sites(model, config);
    let mut packed = Vec::new();
    for (name, linear) in model.linears() {
        if sites.contains(&name) {
            let mut weight = linear.weight().clone();
            weight.quantize(&format!("{name}.weight"), config.quantization)?;
            packed.push((name, weight));
        }
    }
    let mut packed: HashMap<String, BaseWeight> = packed.into_iter().collect();
    for (name, linear) in model.linears_mut() {
        if let Some(weight) = packed.remove(Site::name_of(&name)) {
            *linear.weight_mut() = weight;
        }
    }
    Ok(sites.into_iter().collect())
}

/// [`Adapters::compute_in_int8`](crate::Adapters::compute_in_int8).
pub(crate) fn compute_in_int8(model: &mut dyn AdaptedModel) -> Result<(), AdapterError> {
    let embedding = model.shape().embedding;
    for (name, weight) in model.weights_mut() {
        let is_multiplied = match weight {
            WeightMut::Linear(_) => true,
            WeightMut::Table(_) => Site::name_of(&name) == embedding,
            WeightMut::Vector(_) => false,
        };
        // The bias of a layer is not packed.
        if let Some((name, weight)) = weight.into_tensors_mut(&name).next().filter(|_| is_multiplied) {
            weight.round(&name)?;
        }
    }
    Ok(())
}

/// [`Adapters::quantization`](crate::Adapters::quantization).
pub(crate) fn quantization(model: &dyn AdaptedModel) -> Option<QuantizationConfig> {
    let (packed, rest): (Vec<_>, Vec<_>) =
        model.linears().into_iter().partition(|(name, linear)| is_stored_packed(model, name, linear));
    let quantization = packed.iter().find_map(|(_, linear)| Some(linear.weight().packed()?.quantization()))?;
    let mut config = QuantizationConfig::from(quantization);
    if packed.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>() != quantized_sites(model, &config) {
        config.llm_int8_skip_modules = Some(rest.into_iter().map(|(name, _)| name).collect());
    }
    let narrow = |(_, weight): (_, Weight<'_>)| weight.weight().narrow_dtype();
    config.dtype = model.weights().into_iter().find_map(narrow);
    Some(config)
}

/// Whether a file has the layer packed: not where the family keeps it in f32, whatever it is computed in.
fn is_stored_packed(model: &dyn AdaptedModel, name: &str, linear: &AdaptedLinear) -> bool {
    linear.weight().packed().is_some() && !model.keep_in_fp32_modules().iter().any(|kept| is_meant(kept, name))
}

/// [`Adapters::save_base`](crate::Adapters::save_base).
pub(crate) fn save_base(model: &dyn AdaptedModel, file: &Path, precision: Precision) -> Result<(), AdapterError> {
    /// Bytes from which on a part of a packed weight is made anew when it is written, so that one at a time is in memory beside the
    /// model. What is floats is made once.
    const LARGE: usize = 1 << 20;
    let weights = model.weights();
    let (mut infos, mut small, mut rest) = (Vec::new(), HashMap::new(), HashMap::new());
    for (name, weight) in &weights {
        let may_be_packed = matches!(weight, Weight::Linear(linear) if is_stored_packed(model, name, linear));
        for (of, weight) in weight.tensors(name) {
            if let Some(info) = weight.stored_floats(precision, may_be_packed) {
                infos.push((of.clone(), info));
                rest.insert(of.clone(), (of, weight, may_be_packed));
                continue;
            }
            for (part, tensor) in weight.stored(&of, precision, may_be_packed)? {
                infos.push((part.clone(), tensor.info()));
                if tensor.bytes().len() < LARGE {
                    small.insert(part, tensor);
                } else {
                    rest.insert(part, (of.clone(), weight, may_be_packed));
                }
            }
        }
    }
    let make = |name: &str| -> Result<Tensor, AdapterError> {
        if let Some(tensor) = small.remove(name) {
            return Ok(tensor);
        }
        let (of, weight, may_be_packed) = &rest[name];
        let parts = weight.stored(of, precision, *may_be_packed)?;
        Ok(parts.into_iter().find_map(|(part, tensor)| (part == name).then_some(tensor)).expect("the same as before"))
    };
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors_lazily(file, infos, make, Some(metadata))
}
