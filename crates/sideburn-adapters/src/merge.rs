//! Working adapters into the base weights, and taking them out again.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use crate::AdapterError;
use crate::choose::set_active;
use crate::held::retain_slots;
use crate::model::{AdaptedModel, WeightMut};
use crate::outline::Place;
use crate::rule::{AtLinearBound, BoundTable, VectorRule, Weights};
use crate::slot::{Ruled, Slot};
use crate::tensors::in_dtype;

/// Works the active adapters into the base weights, after which they cost nothing. Returns their names.
///
/// The weights from before are kept for [`unmerge`], which costs as much memory as the adapted places; a merged adapter
/// is not active until then. The computed outputs change by rounding alone: the test against `peft` allows 2e-4 where
/// logits have a standard deviation of 4.
///
/// # Errors
/// If an adapter cannot be merged, or would make a weight that is not finite. The model is then as before.
pub fn merge<M: AdaptedModel>(model: &mut M) -> Result<Vec<String>, AdapterError> {
    let active = model.adapters().list().iter().filter(|entry| entry.is_active());
    let names: Vec<String> = active.map(|entry| entry.name().to_owned()).collect();
    if let Some(slot) = model.adapters().input_slots().find(|slot| slot.is_active()) {
        let (name, place) = (slot.name().to_owned(), "the model's input".to_owned());
        return Err(AdapterError::CannotMerge { name, place, reason: "its tokens are no weights" });
    }
    let mut merged = model.clone();
    let mut originals = BTreeMap::new();
    for (name, weight) in merged.weights_mut() {
        let place = Place::name_of(&name);
        match weight {
            WeightMut::Linear(linear) => {
                let before = linear.base();
                let active = linear.ruled().iter().filter(|ruled| ruled.slot.is_active());
                let rules = active.map(|ruled| (&ruled.slot, ruled.rule.bind(&ruled.slot.own())));
                let merge = |rule: &AtLinearBound<'_>, base| rule.steps().merge(base);
                let Some(after) = merged_weights(place, &before, rules, merge)? else { continue };
                replace(linear.weight_mut(), after.weight);
                match (linear.bias_mut(), after.bias) {
                    (Some(bias), Some(after)) => replace(bias, after.squeeze_dim(0)),
                    (None, None) => {}
                    _ => unreachable!("merging neither adds a bias nor takes one away"),
                }
                originals.insert(place.to_owned(), before);
            }
            WeightMut::Table(table) => {
                let before = Weights { weight: table.weight().val(), bias: None };
                let active = || table.ruled().iter().filter(|ruled| ruled.slot.is_active());
                if let Some(ruled) = active().find(|ruled| ruled.slot.is_of_reader()) {
                    let (name, place) = (ruled.slot.name().to_owned(), ruled.slot.site().to_owned());
                    let reason = "other parts of the model read the same embedding";
                    return Err(AdapterError::CannotMerge { name, place, reason });
                }
                let rules = active().map(|ruled| (&ruled.slot, ruled.rule.bind(&ruled.slot.own())));
                let merge = |rule: &Box<dyn BoundTable + '_>, base: Weights| {
                    Ok(Weights { weight: rule.merge(base.weight)?, ..base })
                };
                let Some(after) = merged_weights(place, &before, rules, merge)? else { continue };
                replace(table.weight_mut(), after.weight);
                originals.insert(place.to_owned(), before);
            }
            WeightMut::Vector(vector) => {
                let before = Weights { weight: vector.weight().val().unsqueeze(), bias: None };
                let active = vector.ruled().iter().filter(|ruled| ruled.slot.is_active());
                let rules = active.map(|ruled| (&ruled.slot, ruled));
                let merge = |ruled: &&Ruled<Arc<dyn VectorRule>>, base: Weights| {
                    let value = ruled.rule.value(base.weight.squeeze_dim(0), &ruled.slot.own());
                    Ok(Weights { weight: value.unsqueeze(), ..base })
                };
                let Some(after) = merged_weights(place, &before, rules, merge)? else { continue };
                replace(vector.weight_mut(), after.weight.squeeze_dim(0));
                originals.insert(place.to_owned(), before);
            }
        }
    }
    set_active(&mut merged, &[])?;
    let set = merged.adapters_mut();
    names.iter().for_each(|name| set.set_merged(name, true));
    for (place, before) in originals {
        // After a second merge the weights from before the first count.
        set.originals.entry(place).or_insert(before);
    }
    *model = merged;
    Ok(names)
}

/// How far merging the active adapters would move what `compute` makes of the model: the largest absolute difference, or
/// NaN if there is one. The model stays as it is.
///
/// For logits of a batch, say, it tells before [`merge`] what rounding will cost there.
///
/// # Errors
/// As for [`merge`], or if `compute` fails.
///
/// # Panics
/// If `compute` gives tensors of two shapes.
pub fn merge_drift<M: AdaptedModel, E: From<AdapterError>, const D: usize>(
    model: &M,
    compute: impl Fn(&M) -> Result<Tensor<D>, E>,
) -> Result<f32, E> {
    let before = compute(model)?;
    let mut merged = model.clone();
    merge(&mut merged)?;
    let distance = compute(&merged)?.sub(before).abs().cast(DType::F32).into_data();
    let distance: Vec<f32> = distance.try_into_vec().expect("a tensor that was cast to f32");
    Ok(distance.into_iter().fold(0.0, |max, x| if max.is_nan() || max > x { max } else { x }))
}

/// Restores the base weights from before all merges, bit for bit, and makes the adapters that were merged active.
///
/// # Errors
/// If the adapters that were merged one after the other cannot be active at once. The model is then as before.
pub fn unmerge<M: AdaptedModel>(model: &mut M) -> Result<Vec<String>, AdapterError> {
    let merged = model.adapters().list().iter().filter(|entry| entry.is_merged() || entry.is_active());
    let names: Vec<String> = merged.map(|entry| entry.name().to_owned()).collect();
    let mut restored = model.clone();
    let mut originals = std::mem::take(&mut restored.adapters_mut().originals);
    for (name, weight) in restored.weights_mut() {
        let Some(Weights { weight: before, bias }) = originals.remove(Place::name_of(&name)) else { continue };
        match weight {
            WeightMut::Linear(linear) => {
                replace(linear.weight_mut(), before);
                if let (Some(place), Some(bias)) = (linear.bias_mut(), bias) {
                    replace(place, bias.squeeze_dim(0));
                }
            }
            WeightMut::Table(table) => replace(table.weight_mut(), before),
            WeightMut::Vector(vector) => replace(vector.weight_mut(), before.squeeze_dim(0)),
        }
    }
    names.iter().for_each(|name| restored.adapters_mut().set_merged(name, false));
    set_active(&mut restored, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    *model = restored;
    Ok(names)
}

/// Works the active adapters into the base weights, and removes all adapters: what is left is a plain base model.
///
/// # Errors
/// As for [`merge`]. The model is then as before.
pub fn merge_and_unload<M: AdaptedModel>(model: &mut M) -> Result<Vec<String>, AdapterError> {
    let names = merge(model)?;
    retain_slots(model, |_| false);
    model.adapters_mut().clear();
    Ok(names)
}

/// The weights of a place with these rules worked in; none if there are none.
fn merged_weights<'a, R>(
    place: &str,
    base: &Weights,
    rules: impl Iterator<Item = (&'a Slot, R)>,
    merge: impl Fn(&R, Weights) -> Result<Weights, &'static str>,
) -> Result<Option<Weights>, AdapterError> {
    let mut merged = None;
    for (slot, rule) in rules {
        let (name, place) = (slot.name().to_owned(), place.to_owned());
        let mut weights: Weights = merged.take().unwrap_or_else(|| base.clone());
        if let Some((_, own)) = slot.tensors().next() {
            let dtype = own.val().dtype();
            weights.weight = in_dtype(weights.weight, dtype);
            weights.bias = weights.bias.map(|bias| in_dtype(bias, dtype));
        }
        weights = match merge(&rule, weights) {
            Ok(weights) => weights,
            Err(reason) => return Err(AdapterError::CannotMerge { name, place, reason }),
        };
        let parts = [Some(&weights.weight), weights.bias.as_ref()];
        if parts.into_iter().flatten().any(|part| !is_finite(part)) {
            return Err(AdapterError::MergeNotFinite { name, place });
        }
        merged = Some(weights);
    }
    Ok(merged)
}

fn is_finite(tensor: &Tensor<2>) -> bool {
    tensor.clone().is_finite().all().into_scalar::<bool>()
}

/// Puts frozen values in the place of a parameter's.
fn replace<const D: usize>(param: &mut Param<Tensor<D>>, values: Tensor<D>) {
    let dtype = param.val().dtype();
    *param = Param::from_tensor(values.detach().cast(dtype)).no_grad();
}
