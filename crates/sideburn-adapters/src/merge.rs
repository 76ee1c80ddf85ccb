//! Working adapters into the base weights, and taking them out again.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor};

use crate::AdapterError;
use crate::base_weight::BaseWeight;
use crate::choose::set_active;
use crate::model::{AdaptedModel, Weight};
use crate::model_slots::retain_slots;
use crate::outline::Site;
use crate::rule::{RuleTensors, Weights};
use crate::set::Original;
use crate::slot::RuledSlot;
use crate::tensors::in_dtype;

/// [`Adapters::merge`](crate::Adapters::merge), on a copy of the model.
pub(crate) fn merge(model: &mut dyn AdaptedModel) -> Result<Vec<String>, AdapterError> {
    let active = model.adapters().list().iter().filter(|entry| entry.is_active());
    let names: Vec<String> = active.map(|entry| entry.name().to_owned()).collect();
    if let Some(slot) = model.adapters().input_slots().find(|slot| slot.is_active()) {
        let (name, site) = (slot.name().to_owned(), "the model's input".to_owned());
        return Err(AdapterError::CannotMerge { name, site, reason: "its tokens are no weights" });
    }
    let mut originals: Vec<Original> = Vec::new();
    for (name, weight) in model.weights_mut() {
        let site = Site::name_of(&name);
        let Some(after) = merged_weights(site, &weight.as_weight())? else { continue };
        let before = weight.as_weight().tensors(&name).map(|(name, weight)| Original { name, weight: weight.clone() });
        originals.extend(before);
        let after = [after.weight].into_iter().chain(after.bias);
        weight.into_tensors_mut(&name).zip(after).for_each(|((_, weight), after)| weight.replace(after));
    }
    set_active(model, &[])?;
    let set = model.adapters_mut();
    names.iter().for_each(|name| set.set_merged(name, true));
    // After a second merge the weights from before the first count.
    originals.retain(|original| set.originals.iter().all(|earlier| earlier.name != original.name));
    set.originals.extend(originals);
    Ok(names)
}

/// [`Adapters::merge_drift`](crate::Adapters::merge_drift).
pub(crate) fn merge_drift<M: AdaptedModel + Clone, E: From<AdapterError>, const D: usize>(
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

/// [`Adapters::unmerge`](crate::Adapters::unmerge), on a copy of the model.
pub(crate) fn unmerge(model: &mut dyn AdaptedModel) -> Result<Vec<String>, AdapterError> {
    let merged = model.adapters().list().iter().filter(|entry| entry.is_merged() || entry.is_active());
    let names: Vec<String> = merged.map(|entry| entry.name().to_owned()).collect();
    let originals = std::mem::take(&mut model.adapters_mut().originals);
    let mut originals: HashMap<String, BaseWeight> =
        originals.into_iter().map(|Original { name, weight }| (name, weight)).collect();
    for (name, weight) in model.weights_mut() {
        for (name, weight) in weight.into_tensors_mut(&name) {
            if let Some(before) = originals.remove(&name) {
                *weight = before;
            }
        }
    }
    names.iter().for_each(|name| model.adapters_mut().set_merged(name, false));
    set_active(model, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(names)
}

/// [`Adapters::merge_and_unload`](crate::Adapters::merge_and_unload), on a copy of the model.
pub(crate) fn merge_and_unload(model: &mut dyn AdaptedModel) -> Result<Vec<String>, AdapterError> {
    let names = merge(model)?;
    retain_slots(model, |_| false);
    model.adapters_mut().clear();
    Ok(names)
}

/// The weights of a site with its active adapters worked in; none if there are none.
fn merged_weights(site: &str, weight: &Weight<'_>) -> Result<Option<Weights>, AdapterError> {
    let base = || Weights { weight: weight.weight().dense(), bias: weight.bias().map(BaseWeight::dense) };
    match weight {
        Weight::Linear(linear) => {
            worked_in(site, base, linear.ruled(), |rule, own, base| rule.bind(own).steps().merge(base))
        }
        Weight::Table(table) => {
            let of_reader = |ruled: &&RuledSlot<_>| ruled.slot.is_active() && ruled.slot.is_of_reader();
            if let Some(RuledSlot { slot, .. }) = table.ruled().iter().find(of_reader) {
                let (name, site) = (slot.name().to_owned(), slot.site().to_owned());
                let reason = "other parts of the model read the same embedding";
                return Err(AdapterError::CannotMerge { name, site, reason });
            }
            worked_in(site, base, table.ruled(), |rule, own, base| {
                Ok(Weights { weight: rule.bind(own).merge(base.weight)?, ..base })
            })
        }
        Weight::Vector(vector) => worked_in(site, base, vector.ruled(), |rule, own, base| {
            Ok(Weights { weight: rule.value(base.weight.squeeze_dim(0), own).unsqueeze(), ..base })
        }),
    }
}

/// The same, of a site whose rules `merge` works in.
fn worked_in<R>(
    site: &str,
    base: impl Fn() -> Weights,
    slots: &[RuledSlot<R>],
    merge: impl Fn(&R, &RuleTensors, Weights) -> Result<Weights, &'static str>,
) -> Result<Option<Weights>, AdapterError> {
    let mut merged = None;
    for RuledSlot { slot, rule } in slots.iter().filter(|ruled| ruled.slot.is_active()) {
        let (name, site) = (slot.name().to_owned(), site.to_owned());
        let mut weights = merged.take().unwrap_or_else(&base);
        if let Some((_, own)) = slot.tensors().next() {
            let dtype = own.val().dtype();
            weights.weight = in_dtype(weights.weight, dtype);
            weights.bias = weights.bias.map(|bias| in_dtype(bias, dtype));
        }
        weights = match merge(rule, &slot.own(), weights) {
            Ok(weights) => weights,
            Err(reason) => return Err(AdapterError::CannotMerge { name, site, reason }),
        };
        let parts = [Some(&weights.weight), weights.bias.as_ref()];
        if parts.into_iter().flatten().any(|part| !is_finite(part)) {
            return Err(AdapterError::MergeNotFinite { name, site });
        }
        merged = Some(weights);
    }
    Ok(merged)
}

fn is_finite(tensor: &Tensor<2>) -> bool {
    tensor.clone().is_finite().all().into_scalar::<bool>()
}
