//! AdamW over the parameters of a model.

use std::collections::{HashMap, HashSet};
use std::mem;

use burn::module::{ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::container::TensorContainer;
use sideburn_adapters::AdaptedModel;
use sideburn_kernels::{AdamWStep, adamw_step, adamw_undo};

use crate::TrainConfig;
use crate::groups::{second_factors, undecayed};

/// AdamW with its moments. An update overwrites parameters and moments where they are, if nothing else holds them.
pub(crate) struct Optimizer<M> {
    config: TrainConfig,
    undecayed: HashSet<ParamId>,
    second_factors: HashSet<ParamId>,
    /// First and second moment of each parameter that has been updated.
    moments: [TensorContainer<ParamId>; 2],
    /// The last update of each, and at which step it was.
    last: HashMap<ParamId, (AdamWStep, u64)>,
    /// How many steps there were.
    steps: u64,
    /// The model with nothing in its parameters, to stand in for it while it is updated: what only the updating code
    /// holds can be overwritten.
    hollow: M,
}

/// Puts placeholders into parameters: zeros that are not made unless they are asked for, which nobody does.
struct Hollow;

impl ModuleMapper for Hollow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        let zeros = shape.clone();
        Param::uninitialized(param.id, move |device, _| Tensor::zeros(zeros.clone(), device), device, false, shape)
    }
}

impl<M: AdaptedModel> Optimizer<M> {
    pub(crate) fn new(config: &TrainConfig, model: &M) -> Self {
        Self {
            config: config.clone(),
            undecayed: undecayed(model),
            second_factors: second_factors(model),
            moments: [TensorContainer::new(), TensorContainer::new()],
            last: HashMap::new(),
            steps: 0,
            hollow: model.clone().map(&mut Hollow),
        }
    }

    /// Updates those parameters that have a gradient, which is multiplied by `gradient_scale` first.
    pub(crate) fn step(&mut self, model: &mut M, gradients: &GradientsParams, learning_rate: f64, gradient_scale: f64) {
        self.steps += 1;
        let whole = mem::replace(model, self.hollow.clone());
        let updated = TensorContainer::new();
        *model = whole.map(&mut Update { optimizer: self, gradients, learning_rate, gradient_scale, updated });
    }

    /// Takes the last update back, as exactly as [`adamw_undo`] can. The moments stay as it left them.
    pub(crate) fn undo(&mut self, model: &mut M) {
        let whole = mem::replace(model, self.hollow.clone());
        *model = whole.map(&mut Undo { optimizer: self });
    }

    fn settings(&self, id: ParamId, learning_rate: f64, gradient_scale: f64) -> AdamWStep {
        let of_group = |group: &HashSet<ParamId>, inside: f64, outside: f64| {
            if group.contains(&id) { inside } else { outside }
        };
        AdamWStep {
            learning_rate: learning_rate * of_group(&self.second_factors, self.config.loraplus_lr_ratio, 1.0),
            weight_decay: of_group(&self.undecayed, 0.0, self.config.weight_decay),
            beta1: self.config.adam_beta1,
            beta2: self.config.adam_beta2,
            epsilon: self.config.adam_epsilon,
            time: self.last.get(&id).map_or(0, |(last, _)| last.time) + 1,
            gradient_scale,
        }
    }
}

struct Update<'a, M> {
    optimizer: &'a mut Optimizer<M>,
    gradients: &'a GradientsParams,
    learning_rate: f64,
    gradient_scale: f64,
    /// What has been updated: a parameter that stands in several places is updated once.
    updated: TensorContainer<ParamId>,
}

impl<M: AdaptedModel> ModuleMapper for Update<'_, M> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return param };
        let (id, tensor, mapper) = param.consume();
        if let Some(updated) = self.updated.get::<Tensor<D>>(&id) {
            return Param::from_mapped_value(id, Tensor::from_inner(updated).require_grad(), mapper);
        }
        let settings = self.optimizer.settings(id, self.learning_rate, self.gradient_scale);
        let (tensor, [first, second]) = (tensor.inner(), &mut self.optimizer.moments);
        let moments =
            [first, second].map(|moments| moments.remove::<Tensor<D>>(&id).unwrap_or_else(|| tensor.zeros_like()));
        let [tensor, first, second] = adamw_step(tensor, gradient.inner(), moments, &settings);
        self.optimizer.moments[0].register(id, first);
        self.optimizer.moments[1].register(id, second);
        self.optimizer.last.insert(id, (settings, self.optimizer.steps));
        self.updated.register(id, tensor.clone());
        Param::from_mapped_value(id, Tensor::from_inner(tensor).require_grad(), mapper)
    }
}

struct Undo<'a, M> {
    optimizer: &'a mut Optimizer<M>,
}

impl<M> ModuleMapper for Undo<'_, M> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Optimizer { last, steps, moments: [first, second], .. } = &*self.optimizer;
        // Those that had no gradient at the last step were not updated.
        let Some((settings, _)) = last.get(&param.id).filter(|(_, step)| step == steps) else { return param };
        let (id, tensor, mapper) = param.consume();
        let moments = [first, second].map(|moments| moments.get(&id).expect("moments of what was updated"));
        let tensor = adamw_undo(tensor.inner(), moments, settings);
        Param::from_mapped_value(id, Tensor::from_inner(tensor).require_grad(), mapper)
    }
}
