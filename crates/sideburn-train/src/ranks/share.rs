//! What rank 0 has of a run, on all ranks.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};
use sideburn_adapters::{Adapters, Parameter, parameters};
use sideburn_weights::{SafetensorsFile, safetensors_bytes};

use super::Ranks;
use crate::checkpoint::{fill, tensors_in, to_file, values};
use crate::{Run, RunState, TrainConfig, TrainError};

/// What messages call the bytes that go from rank to rank.
const NAME: &str = "the state of rank 0";
/// The key of what is no tensor.
const REST: &str = "state";

/// What is no tensor in a state.
#[derive(Serialize, Deserialize)]
struct Rest {
    config: TrainConfig,
    step: u64,
}

/// Gives all ranks the state that rank 0 goes on from, if it has one, and fills their models with its trained weights: only rank
/// 0 need see the directory of the run.
///
/// # Errors
/// If a rank is gone, or a model is not that of rank 0.
pub fn share_state<M: Adapters>(
    ranks: &dyn Ranks,
    model: &mut M,
    state: Option<RunState>,
) -> Result<Option<RunState>, TrainError> {
    if ranks.count() == 1 {
        return Ok(state);
    }
    let bytes = match &state {
        Some(state) if ranks.rank() == 0 => pack(state, model)?,
        _ => Vec::new(),
    };
    let bytes = ranks.broadcast(bytes)?;
    match ranks.rank() {
        0 => Ok(state),
        _ if bytes.is_empty() => Ok(None),
        _ => unpack(bytes, model).map(Some),
    }
}

/// Gives all ranks the run and the model of rank 0, if its observers have put others in the place of those after `steps` steps.
pub(crate) fn share_end<M: Adapters>(
    ranks: &dyn Ranks,
    steps: u64,
    run: &mut Run<M>,
    model: &mut M,
) -> Result<(), TrainError> {
    let is_another = ranks.rank() == 0 && run.next_step() != steps;
    let state = is_another.then(|| run.state(model));
    if let Some(state) = share_state(ranks, model, state)?
        && ranks.rank() > 0
    {
        *run = Run::resume(model, state)?;
    }
    Ok(())
}

/// A state and the trained weights as the bytes of a safetensors file.
fn pack<M: Adapters>(state: &RunState, model: &M) -> Result<Vec<u8>, TrainError> {
    let mut tensors = Vec::new();
    for parameter in parameters(model).into_iter().filter(Parameter::is_trainable) {
        tensors.push((format!("model/{}", parameter.whole_name()), to_file(&values(parameter.tensor).into_data())));
    }
    for (kind, named) in [("optimizer", &state.optimizer), ("adapters", &state.adapters)] {
        for (name, parts) in named {
            tensors.extend(parts.iter().map(|(part, data)| (format!("{kind}/{name}\n{part}"), to_file(data))));
        }
    }
    let rest = Rest { config: state.config.clone(), step: state.step };
    let rest = serde_json::to_string(&rest).expect("a struct of plain fields");
    Ok(safetensors_bytes(NAME, tensors, Some([(REST.to_owned(), rest)].into()))?)
}

fn unpack<M: Adapters>(bytes: Vec<u8>, model: &mut M) -> Result<RunState, TrainError> {
    let unusable = |message: String| TrainError::State { message };
    let file = SafetensorsFile::from_bytes(NAME, bytes)?;
    let rest = file.all_metadata().get(REST).map(String::as_str).unwrap_or_default();
    let Rest { config, step } = serde_json::from_str(rest).map_err(|error| unusable(error.to_string()))?;
    let mut weights = BTreeMap::new();
    let [mut optimizer, mut adapters] = [(); 2].map(|()| BTreeMap::<String, BTreeMap<String, TensorData>>::new());
    for (name, data) in tensors_in(&file, Path::new(NAME))? {
        if let Some(name) = name.strip_prefix("model/") {
            weights.insert(name.to_owned(), data);
            continue;
        }
        let (kind, rest) = name.split_once('/').unwrap_or_default();
        let (of, part) = rest.split_once('\n').unwrap_or_default();
        let named = if kind == "optimizer" { &mut optimizer } else { &mut adapters };
        named.entry(of.to_owned()).or_default().insert(part.to_owned(), data);
    }
    fill(model, weights).map_err(unusable)?;
    Ok(RunState { config, step, optimizer, adapters })
}
