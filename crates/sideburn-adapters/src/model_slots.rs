//! What an adapter has in a model: its slots, and their tensors.

use burn::module::Param;
use burn::tensor::Tensor;

use crate::AdapterError;
use crate::model::AdaptedModel;
use crate::rule::TensorKey;
use crate::slot::Slot;

/// Every slot of the adapter called `name`, that of the input first.
pub(crate) fn slots_of<'a>(model: &'a dyn AdaptedModel, name: &str) -> Vec<&'a Slot> {
    let input = model.adapters().input_slots();
    let slots = input.chain(model.weights().into_iter().flat_map(|(_, weight)| weight.slots()));
    slots.filter(|slot| slot.name() == name).collect()
}

/// The tensors of the adapter called `name`.
pub(crate) fn tensors_of<'a>(
    model: &'a dyn AdaptedModel,
    name: &str,
) -> impl Iterator<Item = (&'a TensorKey, &'a Param<Tensor<2>>)> {
    slots_of(model, name).into_iter().flat_map(Slot::keyed)
}

/// Calls `change` on every slot of the adapter called `name`, until it fails.
pub(crate) fn try_each_slot(
    model: &mut dyn AdaptedModel,
    name: &str,
    mut change: impl FnMut(&mut Slot) -> Result<(), AdapterError>,
) -> Result<(), AdapterError> {
    let mut change = |slot: &mut Slot| if slot.name() == name { change(slot) } else { Ok(()) };
    model.adapters_mut().input_slots_mut().try_for_each(&mut change)?;
    model.weights_mut().into_iter().flat_map(|(_, weight)| weight.into_slots_mut()).try_for_each(change)
}

/// Calls `change` on every slot of the model.
pub(crate) fn for_each_slot(model: &mut dyn AdaptedModel, mut change: impl FnMut(&mut Slot)) {
    model.adapters_mut().input_slots_mut().for_each(&mut change);
    model.weights_mut().into_iter().flat_map(|(_, weight)| weight.into_slots_mut()).for_each(change);
}

/// Removes slots.
pub(crate) fn retain_slots(model: &mut dyn AdaptedModel, is_kept: impl Fn(&Slot) -> bool) {
    model.adapters_mut().input.retain(|ruled| is_kept(&ruled.slot));
    model.weights_mut().into_iter().for_each(|(_, weight)| weight.retain(&is_kept));
}
