//! AdamW over the parameters of a model.

use std::collections::{HashMap, HashSet};
use std::mem;

use burn::module::{ModuleMapper, Param, ParamId, ParamMapper};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::container::TensorContainer;
use sideburn_adapters::AdaptedModel;
use sideburn_kernels::{AdamWStep, AdamWUpdate, AnyRank, adamw_steps, adamw_undo};

use crate::TrainConfig;
use crate::groups::{second_factors, undecayed};

/// AdamW with its moments. An update overwrites parameters and moments where they are, if nothing else holds them.
pub(crate) struct Optimizer<M> {
    config: TrainConfig,
    undecayed: HashSet<ParamId>,
    second_factors: HashSet<ParamId>,
    /// First and second moment of each parameter that has been updated.
    moments: HashMap<ParamId, [AnyRank; 2]>,
    /// How often each has been updated.
    times: HashMap<ParamId, u32>,
    /// The updates of the last step, and of the one before it.
    last: HashMap<ParamId, AdamWStep>,
    last_but_one: HashMap<ParamId, AdamWStep>,
    /// The model with nothing in its parameters, to stand in for it while it is updated: what only the updating code
    /// holds can be overwritten.
    hollow: M,
}

/// Puts placeholders into parameters: zeros that are not made unless they are asked for, which nobody does.
struct Hollow;

impl ModuleMapper for Hollow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        hollow(&param)
    }
}

fn hollow<const D: usize>(param: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    let (shape, device) = (param.lazy_shape(), param.lazy_device());
    let zeros = shape.clone();
    Param::uninitialized(param.id, move |device, _| Tensor::zeros(zeros.clone(), device), device, false, shape)
}

impl<M: AdaptedModel> Optimizer<M> {
    pub(crate) fn new(config: &TrainConfig, model: &M) -> Self {
        Self {
            config: config.clone(),
            undecayed: undecayed(model),
            second_factors: second_factors(model),
            moments: HashMap::new(),
            times: HashMap::new(),
            last: HashMap::new(),
            last_but_one: HashMap::new(),
            hollow: model.clone().map(&mut Hollow),
        }
    }

    /// Updates those parameters that have a gradient, which is multiplied by `scale` first; if that is not above zero,
    /// everything stays as it is ([`adamw_steps`]).
    pub(crate) fn step(&mut self, model: &mut M, gradients: &GradientsParams, learning_rate: f64, scale: Tensor<1>) {
        self.last_but_one = mem::take(&mut self.last);
        let whole = mem::replace(model, self.hollow.clone());
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
        let whole = mem::replace(model, self.hollow.clone());
        *model = whole.map(&mut Undo { optimizer: self });
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

impl<M: AdaptedModel> ModuleMapper for Take<'_, M> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return param };
        let hollow = hollow(&param);
        let (id, tensor, mapper) = param.consume();
        if self.mappers.get::<ParamMapper<Tensor<D>>>(&id).is_some() {
            return hollow;
        }
        let step = self.optimizer.next_update(id, self.learning_rate);
        let tensor = tensor.inner();
        let begun = self.optimizer.moments.remove(&id);
        let moments = begun.unwrap_or_else(|| [tensor.zeros_like(), tensor.zeros_like()].map(AnyRank::from));
        let (parameter, gradient) = (tensor.into(), gradient.inner().into());
        self.ids.push(id);
        self.updates.push(AdamWUpdate { parameter, gradient, moments, step });
        self.mappers.register(id, mapper);
        hollow
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
