//! AdamW over the parameters of a model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;

use burn::module::{Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sideburn_adapters::{AdaptedModel, Parameter, for_each_parameter, parameters};
use sideburn_kernels::{AdamWStep, AdamWUpdate, AnyRank, adamw_steps, adamw_undo};

use crate::decay::is_undecayed;
use crate::{TrainConfig, TrainError};

/// AdamW with its moments. An update overwrites parameters and moments where they are, if nothing else holds them.
pub(crate) struct Optimizer {
    config: TrainConfig,
    undecayed: HashSet<ParamId>,
    second_factors: HashSet<ParamId>,
    /// First and second moment of each parameter that has been updated.
    moments: HashMap<ParamId, [Tensor<2>; 2]>,
    /// How often each has been updated.
    times: HashMap<ParamId, u32>,
    /// The updates of the last step, and of the one before it.
    last: HashMap<ParamId, AdamWStep>,
    last_but_one: HashMap<ParamId, AdamWStep>,
}

impl Optimizer {
    pub(crate) fn new(config: &TrainConfig, model: &dyn AdaptedModel) -> Self {
        let parameters = parameters(model);
        let of = |chosen: &dyn Fn(&Parameter<'_>) -> bool| -> HashSet<ParamId> {
            parameters.iter().filter(|parameter| chosen(parameter)).map(Parameter::id).collect()
        };
        Self {
            config: config.clone(),
            undecayed: of(&|parameter| is_undecayed(&parameter.name)),
            second_factors: of(&|parameter| parameter.second_factor),
            moments: HashMap::new(),
            times: HashMap::new(),
            last: HashMap::new(),
            last_but_one: HashMap::new(),
        }
    }

    /// Updates those parameters that have a gradient, which is multiplied by `scale` first; if that is not above zero,
    /// everything stays as it is ([`adamw_steps`]).
    pub(crate) fn step(
        &mut self,
        model: &mut dyn AdaptedModel,
        gradients: &GradientsParams,
        learning_rate: f64,
        scale: Tensor<1>,
    ) {
        self.last_but_one = mem::take(&mut self.last);
        let (mut ids, mut updates) = (Vec::new(), Vec::new());
        for_each_parameter(model, |param| {
            let Some(gradient) = gradients.get::<2>(param.id) else { return };
            // What only the update holds can be overwritten.
            let parameter = take(param).inner();
            // One that stands in several places is updated once.
            if self.last.contains_key(&param.id) {
                return;
            }
            let step = self.next_update(param.id, learning_rate);
            let begun = self.moments.remove(&param.id);
            let moments = begun.unwrap_or_else(|| [parameter.zeros_like(), parameter.zeros_like()]);
            let [parameter, gradient] = [parameter, gradient.inner()].map(AnyRank::from);
            ids.push(param.id);
            updates.push(AdamWUpdate { parameter, gradient, moments: moments.map(AnyRank::from), step });
        });
        let mut updated = HashMap::new();
        for (id, tensors) in ids.into_iter().zip(adamw_steps(updates, scale)) {
            let [parameter, first, second] = tensors.map(AnyRank::into_tensor);
            updated.insert(id, trained(id, parameter));
            self.moments.insert(id, [first, second]);
        }
        for_each_parameter(model, |param| {
            if let Some(updated) = updated.get(&param.id) {
                *param = updated.clone();
            }
        });
    }

    /// Takes the last update but one back, as exactly as [`adamw_undo`] can, if the last has changed nothing. The moments
    /// stay as it left them.
    pub(crate) fn undo(&mut self, model: &mut dyn AdaptedModel) {
        let mut undone = HashMap::new();
        for_each_parameter(model, |param| {
            let Some(step) = self.last_but_one.get(&param.id) else { return };
            let tensor = take(param).inner();
            *param = undone
                .entry(param.id)
                .or_insert_with(|| trained(param.id, adamw_undo(tensor, self.moments[&param.id].clone(), step)))
                .clone();
        });
    }

    /// The moments of all parameters that have been updated, by the names of these.
    pub(crate) fn state(&self, model: &dyn AdaptedModel) -> BTreeMap<String, Moments> {
        let moments = |parameter: &Parameter<'_>| {
            let [first, second] = self.moments.get(&parameter.id())?.clone().map(Tensor::into_data);
            let time = self.times[&parameter.id()];
            Some((parameter.whole_name(), Moments { first, second, time }))
        };
        parameters(model).iter().filter_map(moments).collect()
    }

    /// Goes on with these moments.
    pub(crate) fn restore(
        &mut self,
        model: &dyn AdaptedModel,
        mut state: BTreeMap<String, Moments>,
    ) -> Result<(), TrainError> {
        for parameter in parameters(model).into_iter().filter(Parameter::is_trainable) {
            let (id, name) = (parameter.id(), parameter.whole_name());
            let Some(Moments { first, second, time }) = state.remove(&name) else { continue };
            let (shape, device) = (parameter.tensor.lazy_shape(), parameter.tensor.lazy_device().inner());
            if let Some(other) = [&first, &second].into_iter().find(|moment| *moment.shape() != shape) {
                let (shape, other) = (shape.as_slice(), other.shape().as_slice());
                let message = format!("{name} has the shape {shape:?}, its moments have {other:?}");
                return Err(TrainError::State { message });
            }
            let moment = |data: TensorData| {
                let dtype = data.dtype();
                Tensor::from_data(data, (&device, dtype))
            };
            self.moments.insert(id, [first, second].map(moment));
            self.times.insert(id, time);
        }
        match state.into_keys().next() {
            Some(name) => Err(TrainError::State { message: format!("the model has no trained {name:?}") }),
            None => Ok(()),
        }
    }

    /// The next update of a parameter.
    fn next_update(&mut self, id: ParamId, learning_rate: f64) -> AdamWStep {
        let time = self.times.entry(id).or_default();
        *time += 1;
        let of_group = |group: &HashSet<ParamId>, inside: f64, outside: f64| {
            if group.contains(&id) { inside } else { outside }
        };
        let step = AdamWStep {
            learning_rate: learning_rate * of_group(&self.second_factors, self.config.loraplus_lr_ratio, 1.0),
            weight_decay: of_group(&self.undecayed, 0.0, self.config.weight_decay),
            beta1: self.config.adam_beta1,
            beta2: self.config.adam_beta2,
            epsilon: self.config.adam_epsilon,
            time: *time,
        };
        self.last.insert(id, step);
        step
    }
}

/// What AdamW remembers of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// The running mean of the gradient: `exp_avg` of `torch.optim.AdamW`.
    pub first: TensorData,
    /// The running mean of its square: `exp_avg_sq`.
    pub second: TensorData,
    /// How often the parameter has been updated.
    pub time: u32,
}

/// Takes a parameter's values, and leaves zeros in their place that are allocated when they are first read.
fn take(param: &mut Param<Tensor<2>>) -> Tensor<2> {
    let (shape, device) = (param.lazy_shape(), param.lazy_device());
    let zeros = shape.clone();
    let init = move |device: &Device, _| Tensor::zeros(zeros.clone(), device);
    let placeholder = Param::uninitialized(param.id, init, device, false, shape);
    mem::replace(param, placeholder).into_value()
}

/// A trained parameter with these values.
fn trained(id: ParamId, values: Tensor<2>) -> Param<Tensor<2>> {
    Param::initialized(id, Tensor::from_inner(values).require_grad())
}
