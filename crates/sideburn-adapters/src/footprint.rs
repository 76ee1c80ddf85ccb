//! How many bytes a base takes in memory.

use sideburn_quant::QuantizationConfig;
use sideburn_weights::Dtype;

use crate::base::{narrow, quantized_sites};
use crate::memory::loading;
use crate::model::{AdaptedModel, Weight};

/// Bytes of the base weights of a model, which need not be there yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseBytes {
    /// Of linear layers that are packed, or are to be.
    pub packed: u64,
    /// Of all that is floats: norms, embeddings, and linear layers that are not packed.
    pub floats: u64,
    /// The most that is held while the model is loaded: what is there already, the weight that is put in its place, as it is stored if
    /// it is to be packed, and the next one.
    pub loading: u64,
}

impl BaseBytes {
    /// Of the whole base.
    pub fn total(self) -> u64 {
        self.packed + self.floats
    }
}

/// [`Adapters::base_bytes`](crate::Adapters::base_bytes).
pub(crate) fn base_bytes(model: &dyn AdaptedModel, config: Option<&QuantizationConfig>) -> BaseBytes {
    const FLOAT: u64 = size_of::<f32>() as u64;
    // Of an element that is to be packed, as a file has it.
    let is_half = |config: &QuantizationConfig| matches!(config.dtype, Some(Dtype::F16 | Dtype::BF16));
    let stored = if config.is_some_and(is_half) { 2 } else { FLOAT };
    let sites = config.map(|config| quantized_sites(model, config)).unwrap_or_default();
    let (mut bytes, mut sizes) = (BaseBytes::default(), Vec::new());
    for (name, weight) in model.weights() {
        let is_linear = matches!(weight, Weight::Linear(_));
        for (index, (_, held)) in weight.tensors(&name).enumerate() {
            let shape = held.dims();
            let asked = config.filter(|_| is_linear && index == 0 && sites.contains(&name));
            let quantization =
                held.packed().map(|packed| packed.quantization()).or(asked.map(|config| config.quantization));
            let elements = (shape[0] * shape[1]) as u64;
            let narrow = config.and_then(|config| narrow(config, None, held, model.keep_in_fp32_modules(), &name));
            let (own, read) = match (quantization, narrow) {
                (Some(quantization), _) => (quantization.bytes(shape) as u64, stored * elements),
                (None, Some(_)) => (2 * elements, 2 * elements),
                (None, None) => (held.held_dtype().size() as u64 * elements, FLOAT * elements),
            };
            *if quantization.is_some() { &mut bytes.packed } else { &mut bytes.floats } += own;
            sizes.push((own, read));
        }
    }
    BaseBytes { loading: loading(&sizes), ..bytes }
}
