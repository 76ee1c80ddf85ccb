//! AdamW over the parameters of a model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId, ParamMapper};
use burn::optim::GradientsParams;
use burn::tensor::container::TensorContainer;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sideburn_adapters::{Adapters, Parameter, is_trainable, parameters};
use sideburn_kernels::{AdamWStep, AdamWUpdate, AnyRank, adamw_steps, adamw_undo};

use crate::decay::is_undecayed;
use crate::{TrainConfig, TrainError};

/// AdamW with its moments. An update overwrites parameters and moments where they are, if nothing else holds them.
pub(crate) struct Optimizer<M> {
    config: TrainConfig,
    undecayed: HashSet<ParamId>,
    second_factors: HashSet<ParamId>,
    /// What parameters are called in every process.
    names: HashMap<ParamId, String>,
    /// First and second moment of each parameter that has been updated.
    moments: HashMap<ParamId, [AnyRank; 2]>,
    /// How often each has been updated.
    times: HashMap<ParamId, u32>,
    /// The updates of the last step, and of the one before it.
    last: HashMap<ParamId, AdamWStep>,
    last_but_one: HashMap<ParamId, AdamWStep>,
    /// The model with placeholders for its parameters, which stands in for it while it is updated: what only the updating
    /// code holds can be overwritten.
    placeholder: M,
}

/// Replaces every parameter by a placeholder.
struct Placeholders;

impl ModuleMapper for Placeholders {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        placeholder(&param)
    }
}

/// A parameter of the same shape. Its zeros are allocated when they are first read, which never happens.
fn placeholder<const D: usize>(param: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    let (shape, device) = (param.lazy_shape(), param.lazy_device());
    let zeros = shape.clone();
    Param::uninitialized(param.id, move |device, _| Tensor::zeros(zeros.clone(), device), device, false, shape)
}

impl<M: Adapters> Optimizer<M> {
    pub(crate) fn new(config: &TrainConfig, model: &M) -> Self {
        let parameters = parameters(model);
        let of = |chosen: &dyn Fn(&Parameter) -> bool| -> HashSet<ParamId> {
            parameters.iter().filter(|parameter| chosen(parameter)).map(|parameter| parameter.id).collect()
        };
        Self {
            config: config.clone(),
            undecayed: of(&|parameter| is_undecayed(&parameter.name)),
            second_factors: of(&|parameter| parameter.second_factor),
            names: parameters.iter().map(|parameter| (parameter.id, parameter.whole_name())).collect(),
            moments: HashMap::new(),
            times: HashMap::new(),
            last: HashMap::new(),
            last_but_one: HashMap::new(),
            placeholder: model.clone().map(&mut Placeholders),
        }
    }

    /// Updates those parameters that have a gradient, which is multiplied by `scale` first; if that is not above zero,
    /// everything stays as it is ([`adamw_steps`]).
    pub(crate) fn step(&mut self, model: &mut M, gradients: &GradientsParams, learning_rate: f64, scale: Tensor<1>) {
        self.last_but_one = mem::take(&mut self.last);
        let whole = mem::replace(model, self.placeholder.clone());
        let (ids, updates, mappers) = (Vec::new(), Vec::new(), TensorContainer::new());
        let mut take = Take { optimizer: self, gradients, learning_rate, ids, updates, mappers };
        let rest = whole.map(&mut take);
        let Take { ids, updates, mappers, .. } = take;
        let mut updated = HashMap::new();
        for (id, [parameter, first, second]) in ids.into_iter().zip(adamw_steps(updates, scale)) {
            updated.insert(id, parameter);
            self.moments.insert(id, [first, second]);
        }
        *model = rest.map(&mut Put { updated, mappers });
    }

    /// Takes the last update but one back, as exactly as [`adamw_undo`] can, if the last has changed nothing. The moments
    /// stay as it left them.
    pub(crate) fn undo(&mut self, model: &mut M) {
        let whole = mem::replace(model, self.placeholder.clone());
        *model = whole.map(&mut Undo { optimizer: self });
    }

    /// The moments of all parameters that have been updated, by the names of these.
    pub(crate) fn state(&self, model: &M) -> BTreeMap<String, Moments> {
        let mut reader = Reader { optimizer: self, state: BTreeMap::new() };
        model.visit(&mut reader);
        reader.state
    }

    /// Goes on with these moments.
    pub(crate) fn restore(&mut self, model: &M, state: BTreeMap<String, Moments>) -> Result<(), TrainError> {
        let mut restorer = Restorer { optimizer: self, state, wrong: None };
        model.visit(&mut restorer);
        let unknown = restorer.state.into_keys().next().map(|name| format!("the model has no trained {name:?}"));
        match restorer.wrong.or(unknown) {
            Some(message) => Err(TrainError::State { message }),
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

/// Reads the moments of parameters.
struct Reader<'a, M> {
    optimizer: &'a Optimizer<M>,
    state: BTreeMap<String, Moments>,
}

impl<M> ModuleVisitor for Reader<'_, M> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (Some(moments), Some(name)) = (self.optimizer.moments.get(&param.id), self.optimizer.names.get(&param.id))
        else {
            return;
        };
        let [first, second] = moments.clone().map(|moment| moment.into_tensor::<D>().into_data());
        let time = self.optimizer.times[&param.id];
        self.state.insert(name.clone(), Moments { first, second, time });
    }
}

/// Puts moments back.
struct Restorer<'a, M> {
    optimizer: &'a mut Optimizer<M>,
    /// What is not put back yet.
    state: BTreeMap<String, Moments>,
    /// What does not fit.
    wrong: Option<String>,
}

impl<M> ModuleVisitor for Restorer<'_, M> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(name) = self.optimizer.names.get(&param.id) else { return };
        if !is_trainable(param) {
            return;
        }
        let Some(Moments { first, second, time }) = self.state.remove(name) else { return };
        let shape = param.lazy_shape();
        if let Some(other) = [&first, &second].into_iter().find(|moment| *moment.shape() != shape) {
            let message =
                format!("{name} has the shape {:?}, its moments have {:?}", shape.as_slice(), other.shape().as_slice());
            self.wrong.get_or_insert(message);
            return;
        }
        let device = param.lazy_device().inner();
        let moment = |data: TensorData| {
            let dtype = data.dtype();
            AnyRank::from(Tensor::<D>::from_data(data, (&device, dtype)))
        };
        self.optimizer.moments.insert(param.id, [moment(first), moment(second)]);
        self.optimizer.times.insert(param.id, time);
    }
}

/// Takes the parameters that have a gradient out of a model, so that nothing else holds them.
struct Take<'a, M> {
    optimizer: &'a mut Optimizer<M>,
    gradients: &'a GradientsParams,
    learning_rate: f64,
    /// What is to be updated. A parameter that stands in several places is updated once.
    ids: Vec<ParamId>,
    updates: Vec<AdamWUpdate>,
    /// What its `Param` has beside the tensor.
    mappers: TensorContainer<ParamId>,
}

impl<M: Adapters> ModuleMapper for Take<'_, M> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return param };
        let placeholder = placeholder(&param);
        let (id, tensor, mapper) = param.consume();
        if self.mappers.get::<ParamMapper<Tensor<D>>>(&id).is_some() {
            return placeholder;
        }
        let step = self.optimizer.next_update(id, self.learning_rate);
        let tensor = tensor.inner();
        let begun = self.optimizer.moments.remove(&id);
        let moments = begun.unwrap_or_else(|| [tensor.zeros_like(), tensor.zeros_like()].map(AnyRank::from));
        let (parameter, gradient) = (tensor.into(), gradient.inner().into());
        self.ids.push(id);
        self.updates.push(AdamWUpdate { parameter, gradient, moments, step });
        self.mappers.register(id, mapper);
        placeholder
    }
}

/// Puts updated parameters back.
struct Put {
    updated: HashMap<ParamId, AnyRank>,
    mappers: TensorContainer<ParamId>,
}

impl ModuleMapper for Put {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (Some(updated), Some(mapper)) = (self.updated.get(&param.id), self.mappers.get(&param.id)) else {
            return param;
        };
        let tensor = Tensor::<D>::from_inner(updated.clone().into_tensor()).require_grad();
        Param::from_mapped_value(param.id, tensor, mapper)
    }
}

struct Undo<'a, M> {
    optimizer: &'a mut Optimizer<M>,
}

impl<M> ModuleMapper for Undo<'_, M> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Optimizer { last_but_one, moments, .. } = &*self.optimizer;
        let Some(step) = last_but_one.get(&param.id) else { return param };
        let (id, tensor, mapper) = param.consume();
        let moments = moments.get(&id).expect("moments of what was updated").clone().map(AnyRank::into_tensor);
        let tensor = adamw_undo(tensor.inner(), moments, step);
        Param::from_mapped_value(id, Tensor::from_inner(tensor).require_grad(), mapper)
    }
}
