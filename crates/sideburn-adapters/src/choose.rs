//! Which adapters of a model run, train, and stay.

use crate::AdapterError;
use crate::base::freeze;
use crate::method::CanCombineWith;
use crate::model::AdaptedModel;
use crate::model_slots::{for_each_slot, retain_slots};
use crate::set::Entry;
use crate::tensors;

/// [`Adapters::set_active`](crate::Adapters::set_active).
pub(crate) fn set_active(model: &mut dyn AdaptedModel, names: &[&str]) -> Result<(), AdapterError> {
    let set = model.adapters();
    let entries: Vec<&Entry> = names.iter().map(|name| set.get(name)).collect::<Result<_, _>>()?;
    if let Some(entry) = entries.iter().find(|entry| entry.merged) {
        return Err(AdapterError::IsMerged { name: entry.name.clone() });
    }
    check_combination(&entries)?;
    for entry in &mut model.adapters_mut().entries {
        entry.active = names.contains(&entry.name.as_str());
    }
    for_each_slot(model, |slot| slot.set_active(names.contains(&slot.name())));
    Ok(())
}

/// Whether these adapters can be active at once.
pub(crate) fn check_combination(entries: &[&Entry]) -> Result<(), AdapterError> {
    for (index, first) in entries.iter().enumerate() {
        for second in &entries[index + 1..] {
            let same_kind = first.method.peft_type() == second.method.peft_type();
            let reason = match [first.combines_with(), second.combines_with()] {
                _ if first.name == second.name => "it is one and the same",
                [CanCombineWith::Additive, CanCombineWith::Additive] => continue,
                [CanCombineWith::SameKind, CanCombineWith::SameKind] if same_kind => continue,
                [CanCombineWith::Alone, _] | [_, CanCombineWith::Alone] => "one of them can only be active alone",
                _ => "their kinds do not combine",
            };
            let adapters = [first, second].map(|entry| (entry.name.clone(), entry.method.peft_type())).into();
            return Err(AdapterError::CannotCombine { adapters, reason });
        }
    }
    Ok(())
}

/// [`Adapters::without_adapters`](crate::Adapters::without_adapters).
pub(crate) fn without_adapters<M: AdaptedModel + Clone, T>(model: &M, run: impl FnOnce(&M) -> T) -> T {
    let mut base = model.clone();
    set_active(&mut base, &[]).expect("none can always be active");
    run(&base)
}

/// [`Adapters::set_trainable`](crate::Adapters::set_trainable).
pub(crate) fn set_trainable(model: &mut dyn AdaptedModel, names: &[&str]) -> Result<(), AdapterError> {
    for name in names {
        model.adapters().get(name)?;
    }
    freeze(model);
    for_each_slot(model, |slot| {
        if names.contains(&slot.name()) {
            for (spec, tensor) in slot.tensors_mut() {
                tensors::set_trainable(tensor, spec.trainable);
            }
        }
    });
    Ok(())
}

/// [`Adapters::delete`](crate::Adapters::delete).
pub(crate) fn delete(model: &mut dyn AdaptedModel, name: &str) -> Result<(), AdapterError> {
    if model.adapters().get(name)?.merged {
        return Err(AdapterError::IsMerged { name: name.to_owned() });
    }
    model.adapters_mut().entries.retain(|entry| entry.name != name);
    retain_slots(model, |slot| slot.name() != name);
    Ok(())
}
