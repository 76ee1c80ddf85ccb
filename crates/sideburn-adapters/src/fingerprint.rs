//! Telling base models apart.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use sideburn_kernels::Key;

use crate::AdaptedModel;
use crate::base_weight::BaseWeight;

/// How many elements of each weight are looked at.
const SAMPLES: usize = 64;

/// [`Adapters::fingerprint`](crate::Adapters::fingerprint).
pub(crate) fn fingerprint(model: &dyn AdaptedModel) -> String {
    let weights = model.weights();
    let mut weights: BTreeMap<String, &BaseWeight> =
        weights.iter().flat_map(|(name, weight)| weight.tensors(name)).collect();
    weights.extend(model.adapters().originals.iter().map(|original| (original.name.clone(), &original.weight)));
    // The samples of all weights are fetched from the device at once.
    let mut key = Key::from_seed(0);
    let mut samples = Vec::with_capacity(weights.len());
    for (name, weight) in weights {
        key = weight.dims().iter().fold(key.fold_in_name(&name), |key, size| key.fold_in(*size as u64));
        samples.push(weight.sample(SAMPLES));
    }
    let samples: Vec<f32> = match samples.is_empty() {
        true => Vec::new(),
        false => Tensor::cat(samples, 0).into_data().try_into_vec().expect("a tensor that was cast to f32"),
    };
    let hash = samples.iter().fold(key, |key, value| key.fold_in(value.to_bits().into()));
    format!("v1-{:016x}", hash.bits(0))
}
