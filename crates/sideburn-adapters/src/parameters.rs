//! The parameters of a model, by names that are the same in every process.

use std::collections::HashSet;

use burn::module::{Param, ParamId};
use burn::tensor::Tensor;

use crate::base_weight::BaseWeight;
use crate::model::AdaptedModel;
use crate::model_slots::for_each_slot;
use crate::slot::Slot;
use crate::tensors::is_trainable;

/// A parameter of a model or of one of its adapters.
#[derive(Clone, Debug)]
pub struct Parameter<'a> {
    /// Its adapter; none if it is the base's.
    pub adapter: Option<&'a str>,
    /// Its name: of the base as `transformers` has it, such as `shared.weight`; of an adapter the site and the part, such as
    /// `encoder.block.0.layer.0.SelfAttention.q.lora_A.weight`.
    pub name: String,
    /// Its values.
    pub tensor: &'a Param<Tensor<2>>,
    /// Whether it is a second factor or has one dimension, and so is trained at another rate by LoRA+.
    pub second_factor: bool,
}

impl Parameter<'_> {
    /// What Burn knows it by, in this process.
    pub fn id(&self) -> ParamId {
        self.tensor.id
    }

    /// Whether it is set to train, also where its device does not differentiate.
    pub fn is_trainable(&self) -> bool {
        is_trainable(self.tensor)
    }

    /// Its name among all parameters of the model, with the adapter before a colon: `default:shared.lora_embedding_A`.
    pub fn whole_name(&self) -> String {
        match &self.adapter {
            Some(adapter) => format!("{adapter}:{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Every parameter of `model`, each once, trained or not. A packed weight is none.
pub fn parameters(model: &dyn AdaptedModel) -> Vec<Parameter<'_>> {
    fn of_slot(slot: &Slot) -> impl Iterator<Item = Parameter<'_>> {
        slot.tensors().zip(slot.keyed()).map(|((spec, tensor), (key, _))| Parameter {
            adapter: Some(slot.name()),
            name: key.to_string(),
            tensor,
            second_factor: spec.second_factor,
        })
    }
    let weights = model.weights();
    let of_base = weights.iter().flat_map(|(name, weight)| weight.tensors(name)).filter_map(|(name, weight)| {
        Some(Parameter { adapter: None, name, tensor: weight.floats()?, second_factor: weight.shape().len() == 1 })
    });
    let slots = model.adapters().input_slots().chain(weights.iter().flat_map(|(_, weight)| weight.slots()));
    let mut seen = HashSet::new();
    of_base.chain(slots.flat_map(of_slot)).filter(|parameter| seen.insert(parameter.id())).collect()
}

/// Calls `change` on every parameter of `model`; on one that stands in several places, at each of them.
pub fn for_each_parameter(model: &mut dyn AdaptedModel, mut change: impl FnMut(&mut Param<Tensor<2>>)) {
    for (_, weight) in model.weights_mut() {
        let (weight, bias) = weight.into_parts();
        [Some(weight), bias].into_iter().flatten().filter_map(BaseWeight::floats_mut).for_each(&mut change);
    }
    for_each_slot(model, |slot| slot.tensors_mut().for_each(|(_, tensor)| change(tensor)));
}
