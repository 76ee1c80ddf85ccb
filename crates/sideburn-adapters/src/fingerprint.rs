//! Telling base models apart.

use std::collections::BTreeMap;

use burn::tensor::{DType, Int, Tensor, TensorData};
use sideburn_kernels::Key;

use crate::AdaptedModel;
use crate::outline::Place;

/// How many elements of each weight are looked at.
const SAMPLES: usize = 64;

/// A short text that tells the base weights of `model` from those of another, whatever adapters it has, merged ones too.
///
/// It depends on the names and shapes of all weights, and on at most 64 elements of each, evenly spread, as `f32`; so it
/// costs little however large the model is. Equal weights have equal fingerprints on every device, but the same model
/// stored in another precision has another: rounding changes the elements.
pub fn fingerprint<M: AdaptedModel>(model: &M) -> String {
    let originals = &model.adapters().originals;
    let mut weights = BTreeMap::new();
    for (name, weight) in model.weights() {
        let place = Place::name_of(&name);
        let base = originals.get(place).cloned().unwrap_or_else(|| weight.base());
        if let Some(bias) = base.bias {
            weights.insert(format!("{place}.bias"), bias);
        }
        weights.insert(format!("{place}.weight"), base.weight);
    }
    // The samples of all weights are fetched from the device at once.
    let mut key = Key::from_seed(0);
    let mut samples = Vec::with_capacity(weights.len());
    for (name, weight) in weights {
        key = weight.dims().iter().fold(key.fold_in_name(&name), |key, size| key.fold_in(*size as u64));
        samples.push(sample(weight));
    }
    let samples: Vec<f32> = match samples.is_empty() {
        true => Vec::new(),
        false => Tensor::cat(samples, 0).into_data().try_into_vec().expect("a tensor that was cast to f32"),
    };
    let hash = samples.iter().fold(key, |key, value| key.fold_in(value.to_bits().into()));
    format!("v1-{:016x}", hash.bits(0))
}

/// Some elements of a weight, evenly spread over its rows laid end to end.
fn sample(weight: Tensor<2>) -> Tensor<1> {
    let [rows, columns] = weight.dims();
    let count = SAMPLES.min(rows * columns);
    let places = (0..count).map(|sample| sample * (rows * columns) / count);
    let (rows, columns): (Vec<i32>, Vec<i32>) =
        places.map(|place| ((place / columns) as i32, (place % columns) as i32)).unzip();
    let index = |values| Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &weight.device());
    let (rows, columns) = (index(rows), index(columns).unsqueeze_dim(1));
    weight.clone().detach().select(0, rows).gather(1, columns).squeeze_dim(1).cast(DType::F32)
}
