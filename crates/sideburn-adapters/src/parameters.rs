//! The parameters of a model, by names that are the same in every process.

use std::collections::HashSet;

use burn::module::ParamId;

use crate::model::AdaptedModel;
use crate::slot::Slot;

/// A parameter of a model or of one of its adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its adapter; none if it is the base's.
    pub adapter: Option<String>,
    /// Its name: of the base as `transformers` has it, such as `shared.weight`; of an adapter the site and the part, such as
    /// `encoder.block.0.layer.0.SelfAttention.q.lora_A.weight`.
    pub name: String,
    /// What Burn knows it by, in this process.
    pub id: ParamId,
    /// Whether it is a second factor, or one number for each output, which LoRA+ trains at another rate.
    pub second_factor: bool,
}

impl Parameter {
    /// Its name among all parameters of the model, with the adapter before a colon: `default:shared.lora_embedding_A`.
    pub fn whole_name(&self) -> String {
        match &self.adapter {
            Some(adapter) => format!("{adapter}:{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Every parameter of `model`, each once, trained or not.
pub fn parameters(model: &dyn AdaptedModel) -> Vec<Parameter> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    let mut add = |parameter: Parameter| {
        if seen.insert(parameter.id) {
            found.push(parameter);
        }
    };
    let of_base = |name: String, id| Parameter { adapter: None, name, id, second_factor: false };
    let weights = model.weights();
    for (name, weight) in &weights {
        weight.tensors(name).for_each(|(name, weight)| add(of_base(name, weight.id())));
    }
    let of_slot = |slot: &Slot| -> Vec<Parameter> {
        let tensors = slot.tensors().zip(slot.keyed());
        let parameter = tensors.map(|((spec, param), (key, _))| Parameter {
            adapter: Some(slot.name().to_owned()),
            name: key.to_string(),
            id: param.id,
            second_factor: spec.second_factor,
        });
        parameter.collect()
    };
    let slots = model.adapters().input_slots().chain(weights.iter().flat_map(|(_, weight)| weight.slots()));
    slots.flat_map(of_slot).for_each(add);
    found
}
