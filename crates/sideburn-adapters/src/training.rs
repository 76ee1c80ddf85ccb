//! What methods do in training beside having their tensors trained.

use std::collections::BTreeMap;
use std::fmt::Debug;

use burn::module::{Param, ParamId};
use burn::tensor::{Tensor, TensorData};

use crate::attach::reconfigure;
use crate::method::{Finished, TrainingHook, Updated};
use crate::model_slots::{slots_of, tensors_of, try_each_slot};
use crate::rule::TensorKey;
use crate::slot::Slot;
use crate::tensors::is_trainable;
use crate::{AdaptedModel, AdapterError};

/// The hooks of all adapters of a model that are active and trained: what a training loop must do for them, whatever
/// they are.
#[derive(Debug, Default)]
pub struct TrainingHooks {
    of_adapters: Vec<(String, Box<dyn TrainingHook>)>,
}

impl Clone for TrainingHooks {
    fn clone(&self) -> Self {
        Self { of_adapters: self.of_adapters.iter().map(|(name, hook)| (name.clone(), hook.boxed())).collect() }
    }
}

impl TrainingHooks {
    /// For a run of `steps` steps over `model`.
    ///
    /// # Errors
    /// If the configuration of an adapter is not for such a run.
    pub fn begin(model: &dyn AdaptedModel, steps: u64) -> Result<Self, AdapterError> {
        let mut of_adapters = Vec::new();
        for entry in model.adapters().list().iter().filter(|entry| entry.is_active()) {
            let is_trained = tensors_of(model, entry.name()).any(|(_, param)| is_trainable(param));
            if !is_trained {
                continue;
            }
            if let Some(hook) = entry.method().training_hook(steps)? {
                of_adapters.push((entry.name().to_owned(), hook));
            }
        }
        Ok(Self { of_adapters })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.of_adapters.is_empty()
    }

    /// What each remembers from step to step, by the names of the adapters.
    pub fn state(&self) -> BTreeMap<String, BTreeMap<String, TensorData>> {
        let states = self.of_adapters.iter().map(|(name, hook)| (name.clone(), hook.state()));
        states.filter(|(_, state)| !state.is_empty()).collect()
    }

    /// Goes on from what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// If it is the state of other adapters.
    pub fn restore(
        &mut self,
        model: &dyn AdaptedModel,
        mut state: BTreeMap<String, BTreeMap<String, TensorData>>,
    ) -> Result<(), AdapterError> {
        let wrong = |adapter: &str, message| AdapterError::TrainingState { name: adapter.to_owned(), message };
        for (name, hook) in &mut self.of_adapters {
            let own = state.remove(name).unwrap_or_default();
            hook.restore(own, values(model, name)).map_err(|message| wrong(name, message))?;
        }
        match state.into_keys().next() {
            Some(name) => Err(wrong(&name, "the adapter has none".to_owned())),
            None => Ok(()),
        }
    }

    /// What is added to the mean loss of a step, if anything is.
    pub fn penalty(&self, model: &dyn AdaptedModel) -> Option<Tensor<1>> {
        let penalties = self.of_adapters.iter().filter_map(|(name, hook)| hook.penalty(values(model, name)));
        penalties.reduce(|sum, penalty| sum + penalty)
    }

    /// To be called after the update of each step, counted from 0. `gradient` gives the gradient that a parameter was
    /// updated with, after clipping.
    pub fn after_update(
        &mut self,
        model: &mut dyn AdaptedModel,
        step: u64,
        gradient: impl Fn(ParamId) -> Option<Tensor<2>>,
    ) {
        for (name, hook) in &mut self.of_adapters {
            let updated = |(key, param): (&TensorKey, &Param<Tensor<2>>)| {
                let value = param.val().inner();
                let gradient = gradient(param.id).map_or_else(|| value.zeros_like(), Tensor::inner);
                (key.clone(), Updated { value, gradient })
            };
            let changed = hook.after_update(step, tensors_of(model, name).map(updated).collect());
            replace(model, name, &changed);
        }
    }

    /// To be called at the end of training, whatever ended it: makes of every adapter what its training has made of it.
    ///
    /// # Panics
    /// If a hook has made something of an adapter that does not fit the model.
    pub fn finish(self, model: &mut dyn AdaptedModel) {
        for (name, hook) in self.of_adapters {
            if let Some(Finished { method, tensors }) = hook.finish(values(model, &name)) {
                reconfigure(model, &name, method).expect("a configuration for the same model");
                replace(model, &name, &tensors);
                for (spec, param) in slots_of(model, &name).into_iter().flat_map(Slot::tensors) {
                    let (found, planned) = (param.lazy_shape(), spec.dims());
                    assert_eq!(found.as_slice(), planned, "{}", spec.part);
                }
            }
        }
    }
}

/// The tensors of an adapter.
fn values(model: &dyn AdaptedModel, name: &str) -> BTreeMap<TensorKey, Tensor<2>> {
    tensors_of(model, name).map(|(key, param)| (key.clone(), param.val())).collect()
}

/// Puts tensors in the place of those of an adapter. What is trainable stays so.
fn replace(model: &mut dyn AdaptedModel, name: &str, tensors: &BTreeMap<TensorKey, Tensor<2>>) {
    if tensors.is_empty() {
        return;
    }
    try_each_slot(model, name, |slot| {
        for (key, param) in slot.keyed_mut() {
            let Some(tensor) = tensors.get(key) else { continue };
            let (tensor, trainable) = (tensor.clone().inner(), is_trainable(param));
            let tensor = if param.lazy_device().is_autodiff() { Tensor::from_inner(tensor) } else { tensor };
            *param = Param::initialized(param.id, tensor).set_require_grad(trainable);
        }
        Ok(())
    })
    .expect("a change that cannot fail");
}
