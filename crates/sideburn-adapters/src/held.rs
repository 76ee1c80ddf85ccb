//! What an adapter has in a model: its slots, and their tensors.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::Tensor;

use crate::AdapterError;
use crate::model::AdaptedModel;
use crate::outline::Place;
use crate::slot::Slot;
use crate::tensors::param_like;

/// Every slot of the adapter called `name`, with the name of its place; the input's is empty.
pub(crate) fn slots_of<'a, M: AdaptedModel>(model: &'a M, name: &str) -> Vec<(String, &'a Slot)> {
    let of = |slot: &&Slot| slot.name() == name;
    let mut slots: Vec<_> = model.adapters().input.iter().filter(of).map(|slot| (String::new(), slot)).collect();
    for (place, weight) in model.weights() {
        slots.extend(weight.slots().iter().filter(of).map(|slot| (Place::name_of(&place).to_owned(), slot)));
    }
    slots
}

/// The tensors of an adapter, by their names in its file; those that are not saved have names of their own.
///
/// # Errors
/// If there is no such adapter.
pub fn adapter_tensors<'a, M: AdaptedModel>(
    model: &'a M,
    name: &str,
) -> Result<BTreeMap<String, &'a Param<Tensor<2>>>, AdapterError> {
    model.adapters().get(name)?;
    let tensors = slots_of(model, name).into_iter().flat_map(|(place, slot)| {
        let named = slot.rule().tensors().into_iter().zip(slot.tensors());
        named.map(|(spec, param)| (spec.name.at(&place), param)).collect::<Vec<_>>()
    });
    Ok(tensors.collect())
}

/// Replaces tensors of an adapter: by the values, in row-major order, that `values` gives for their names, which are those
/// of [`adapter_tensors`]. What is trainable stays so.
///
/// # Errors
/// If there is no such adapter, or there are not as many values as a tensor has. The model is then as before.
pub fn set_adapter_tensors<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    values: impl Fn(&str) -> Option<Vec<f32>>,
) -> Result<(), AdapterError> {
    model.adapters().get(name)?;
    let mut changed = model.clone();
    try_each_slots(&mut changed, |place, slots| {
        for slot in slots.iter_mut().filter(|slot| slot.name() == name) {
            let specs = slot.rule().tensors();
            for (spec, param) in specs.into_iter().zip(slot.tensors_mut()) {
                let tensor = spec.name.at(place);
                let Some(values) = values(&tensor) else { continue };
                let dims = spec.dims();
                if values.len() != dims[0] * dims[1] {
                    return Err(AdapterError::WrongLength { tensor, found: values.len(), shape: spec.shape });
                }
                *param = param_like(param, values, &dims);
            }
        }
        Ok(())
    })?;
    *model = changed;
    Ok(())
}

/// Calls `change` on every list of slots of the model, until it fails.
pub(crate) fn try_each_slots<M: AdaptedModel>(
    model: &mut M,
    mut change: impl FnMut(&str, &mut Vec<Slot>) -> Result<(), AdapterError>,
) -> Result<(), AdapterError> {
    change("", &mut model.adapters_mut().input)?;
    model
        .weights_mut()
        .into_iter()
        .try_for_each(|(name, weight)| change(Place::name_of(&name), weight.into_slots_mut()))
}

/// Calls `change` on every list of slots of the model.
pub(crate) fn for_each_slots<M: AdaptedModel>(model: &mut M, mut change: impl FnMut(&mut Vec<Slot>)) {
    try_each_slots(model, |_, slots| {
        change(slots);
        Ok(())
    })
    .expect("a change that cannot fail");
}
