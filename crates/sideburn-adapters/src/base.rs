//! Loading, saving and freezing the base weights of a model.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use sideburn_weights::{TensorSource, write_safetensors};

use crate::base_weight::BaseWeight;
use crate::model::AdaptedModel;
use crate::model_slots::for_each_slot;
use crate::{AdapterError, Misshapen};

/// Freezes every weight of `model` and every tensor of its adapters; what is attached afterwards trains.
pub(crate) fn freeze(model: &mut dyn AdaptedModel) {
    for (name, weight) in model.weights_mut() {
        weight.into_tensors_mut(&name).for_each(|(_, weight)| weight.freeze());
    }
    for_each_slot(model, |slot| {
        slot.tensors_mut().for_each(|(_, tensor)| *tensor = tensor.clone().no_grad());
    });
}

/// [`Adapters::load_base`](crate::Adapters::load_base).
pub(crate) fn load_base(
    model: &mut dyn AdaptedModel,
    source: &dyn TensorSource,
    name_of: &dyn Fn(&str) -> Option<&str>,
) -> Result<(), AdapterError> {
    let mut loader = Loader {
        source,
        unplaced: source.names().filter_map(|name| Some((name_of(name)?.to_owned(), name))).collect(),
        missing: Vec::new(),
        misshapen: Vec::new(),
    };
    for (name, weight) in model.weights_mut() {
        weight.into_tensors_mut(&name).try_for_each(|(tensor, weight)| loader.fill(&tensor, weight))?;
    }
    loader.finish()
}

struct Loader<'a> {
    source: &'a dyn TensorSource,
    /// The tensors that no weight has asked for yet, by the model's names for them.
    unplaced: BTreeMap<String, &'a str>,
    missing: Vec<String>,
    misshapen: Vec<Misshapen>,
}

impl Loader<'_> {
    fn fill(&mut self, name: &str, weight: &mut BaseWeight) -> Result<(), AdapterError> {
        let Some((stored, info)) =
            self.unplaced.remove(name).and_then(|stored| Some((stored, self.source.info(stored)?)))
        else {
            self.missing.push(match self.source.promised(name) {
                Some(shard) => format!("{name} (the index has it in {shard}, which does not hold it)"),
                None => name.to_owned(),
            });
            return Ok(());
        };
        let expected = weight.shape();
        if info.shape != expected {
            self.misshapen.push(Misshapen { tensor: stored.to_owned(), found: info.shape.to_vec(), expected });
            return Ok(());
        }
        weight.load(self.source, stored)
    }

    fn finish(self) -> Result<(), AdapterError> {
        let Self { source, unplaced, missing, misshapen } = self;
        if missing.is_empty() && misshapen.is_empty() && unplaced.is_empty() {
            return Ok(());
        }
        let path = source.path().to_owned();
        let unexpected = unplaced.into_values().map(str::to_owned).collect();
        Err(AdapterError::TensorsDoNotFit { path, missing, unexpected, misshapen })
    }
}

/// How weights are stored in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 4 bytes a value, as in memory.
    #[default]
    F32,
    /// 2 bytes a value, rounded to the nearest.
    Bf16,
}

/// [`Adapters::save_base`](crate::Adapters::save_base).
pub(crate) fn save_base(model: &dyn AdaptedModel, file: &Path, precision: Precision) -> Result<(), AdapterError> {
    let mut tensors = BTreeMap::new();
    for (name, weight) in model.weights() {
        tensors.extend(weight.tensors(&name).map(|(tensor, weight)| (tensor, weight.stored())));
    }
    if precision == Precision::Bf16 {
        tensors.values_mut().try_for_each(|tensor| tensor.to_bf16().map(|rounded| *tensor = rounded))?;
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(file, tensors, Some(metadata))?;
    Ok(())
}
