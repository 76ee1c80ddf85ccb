//! An optimiser over the parameters of a model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;

use burn::module::{Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use sideburn_adapters::{AdaptedModel, Parameter, for_each_parameter, parameters};
use sideburn_kernels::{AdamWStep, AdamWUpdate, AnyRank, Moment8Bit, adamw_8bit_step, adamw_steps, adamw_undo};
use sideburn_quant::DynamicMap;

use crate::decay::is_undecayed;
use crate::optim::{MIN_8BIT_SIZE, Optim, Update, sum_dtype};
use crate::{TrainConfig, TrainError};

/// An optimiser with what it remembers. AdamW overwrites parameters and moments where they are, if nothing else holds them.
pub(crate) struct Optimizer {
    config: TrainConfig,
    undecayed: HashSet<ParamId>,
    second_factors: HashSet<ParamId>,
    /// What is remembered of each parameter that has been updated.
    memory: HashMap<ParamId, Memory>,
    /// How often each has been updated.
    times: HashMap<ParamId, u32>,
    /// The updates of the last step, and of the one before it.
    last: HashMap<ParamId, AdamWStep>,
    last_but_one: HashMap<ParamId, AdamWStep>,
}

/// What is remembered of a parameter.
#[derive(Clone)]
enum Memory {
    /// Tensors in the order of [`Optim::state`].
    Floats(Vec<Tensor<2>>),
    /// First and second moment.
    EightBit(Box<[Moment8Bit; 2]>),
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
            memory: HashMap::new(),
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
        let (mut adamw_ids, mut adamw, mut updated) = (Vec::new(), Vec::new(), HashMap::new());
        for_each_parameter(model, |param| {
            let Some(gradient) = gradients.get::<2>(param.id) else { return };
            // What only the update holds can be overwritten.
            let (id, parameter, gradient) = (param.id, take(param).inner(), gradient.inner());
            // One that stands in several places is updated once.
            if self.last.contains_key(&id) {
                return;
            }
            let step = self.next_update(id, learning_rate);
            match self.memory.remove(&id).unwrap_or_else(|| self.nothing_yet(&parameter)) {
                Memory::EightBit(moments) => {
                    let (parameter, moments) = adamw_8bit_step(parameter, gradient, *moments, scale.clone(), &step);
                    updated.insert(id, trained(id, parameter));
                    self.memory.insert(id, Memory::EightBit(Box::new(moments)));
                }
                Memory::Floats(state) if self.is_adamw() => {
                    let moments = state.try_into().expect("two moments");
                    adamw_ids.push(id);
                    adamw.push(adamw_update(parameter, gradient, moments, step));
                }
                Memory::Floats(state) => {
                    let update = Update { parameter, gradient, state, step };
                    let (parameter, state) = update.apply(self.config.optim, &self.config.optim_args, &scale);
                    updated.insert(id, trained(id, parameter));
                    self.memory.insert(id, Memory::Floats(state));
                }
            }
        });
        for (id, tensors) in adamw_ids.into_iter().zip(adamw_steps(adamw, scale)) {
            let [parameter, first, second] = tensors.map(AnyRank::into_tensor);
            updated.insert(id, trained(id, parameter));
            self.memory.insert(id, Memory::Floats(vec![first, second]));
        }
        for_each_parameter(model, |param| {
            if let Some(updated) = updated.get(&param.id) {
                *param = updated.clone();
            }
        });
    }

    fn is_adamw(&self) -> bool {
        matches!(self.config.optim, Optim::AdamwTorch | Optim::AdamwBnb8bit)
    }

    /// Whether [`undo`](Self::undo) can take an update back.
    pub(crate) fn can_undo(&self) -> bool {
        self.config.optim == Optim::AdamwTorch
    }

    /// What is remembered of a parameter before its first update: zeros. AdamW's moments are in the parameter's dtype.
    fn nothing_yet(&self, parameter: &Tensor<2>) -> Memory {
        let (shape, device) = (parameter.dims(), parameter.device());
        if self.is_in_8_bits(shape) {
            let zeros = |map| Moment8Bit::zeros(shape[0] * shape[1], map, &device);
            return Memory::EightBit(Box::new([DynamicMap::signed(), DynamicMap::unsigned()].map(zeros)));
        }
        let dtype = if self.is_adamw() { parameter.dtype() } else { sum_dtype(parameter.dtype()) };
        let state = self.config.optim.state(&self.config.optim_args, shape);
        Memory::Floats(state.into_iter().map(|(_, shape)| Tensor::zeros(shape, (&device, dtype))).collect())
    }

    fn is_in_8_bits(&self, [rows, columns]: [usize; 2]) -> bool {
        self.config.optim == Optim::AdamwBnb8bit && rows * columns >= MIN_8BIT_SIZE
    }

    /// Takes the last update but one back, as exactly as [`adamw_undo`] can, if the last has changed nothing. The moments
    /// stay as it left them. Only where [`can_undo`](Self::can_undo).
    pub(crate) fn undo(&mut self, model: &mut dyn AdaptedModel) {
        let mut undone = HashMap::new();
        for_each_parameter(model, |param| {
            let Some(step) = self.last_but_one.get(&param.id) else { return };
            let Some(Memory::Floats(moments)) = self.memory.get(&param.id) else { return };
            let (tensor, moments) = (take(param).inner(), [moments[0].clone(), moments[1].clone()]);
            *param =
                undone.entry(param.id).or_insert_with(|| trained(param.id, adamw_undo(tensor, moments, step))).clone();
        });
    }

    /// What is remembered of all parameters that have been updated, by the names of these.
    pub(crate) fn state(&self, model: &dyn AdaptedModel) -> BTreeMap<String, BTreeMap<String, TensorData>> {
        let state = |parameter: &Parameter<'_>| {
            let shape = dims(parameter);
            let names = self.config.optim.state(&self.config.optim_args, shape).into_iter().map(|(name, _)| name);
            let memory = self.memory.get(&parameter.id())?;
            let time = i64::from(self.times[&parameter.id()]);
            let mut tensors = BTreeMap::from([(STEP.to_owned(), TensorData::new(vec![time], [1]))]);
            match memory {
                Memory::Floats(state) => {
                    let state = state.iter().map(Tensor::to_data);
                    tensors.extend(names.map(str::to_owned).zip(state));
                }
                Memory::EightBit(moments) => {
                    for ((name, absmax_name), moment) in names.zip(ABSMAX).zip(moments.iter()) {
                        let (codes, absmax) = moment.to_parts();
                        let blocks = absmax.len();
                        tensors.insert(name.to_owned(), TensorData::new(codes, shape));
                        tensors.insert(absmax_name.to_owned(), TensorData::new(absmax, [blocks]));
                    }
                }
            }
            Some((parameter.whole_name(), tensors))
        };
        parameters(model).iter().filter_map(state).collect()
    }

    /// Goes on with this state.
    pub(crate) fn restore(
        &mut self,
        model: &dyn AdaptedModel,
        mut state: BTreeMap<String, BTreeMap<String, TensorData>>,
    ) -> Result<(), TrainError> {
        for parameter in parameters(model).into_iter().filter(Parameter::is_trainable) {
            let (id, name) = (parameter.id(), parameter.whole_name());
            let Some(tensors) = state.remove(&name) else { continue };
            let remembered = self.remembered(&parameter, tensors);
            let (memory, time) =
                remembered.map_err(|message| TrainError::State { message: format!("{name} {message}") })?;
            self.memory.insert(id, memory);
            self.times.insert(id, time);
        }
        match state.into_keys().next() {
            Some(name) => Err(TrainError::State { message: format!("the model has no trained {name:?}") }),
            None => Ok(()),
        }
    }

    /// What these tensors say of a parameter, or what is wrong with them.
    fn remembered(
        &self,
        parameter: &Parameter<'_>,
        mut tensors: BTreeMap<String, TensorData>,
    ) -> Result<(Memory, u32), String> {
        let (shape, device) = (dims(parameter), parameter.tensor.lazy_device().inner());
        let mut next = |name: &str, expected: &[usize]| {
            let data = tensors.remove(name).ok_or_else(|| format!("has no state {name:?}"))?;
            match data.shape().as_slice() {
                found if found == expected => Ok(data),
                found => {
                    Err(format!("has the shape {shape:?}, its state {name:?} has {found:?}, expected {expected:?}"))
                }
            }
        };
        let time = next(STEP, &[1])?.iter::<i64>().next().and_then(|time| u32::try_from(time).ok());
        let time = time.ok_or("has a number of updates that is none")?;
        let state = self.config.optim.state(&self.config.optim_args, shape);
        let memory = if self.is_in_8_bits(shape) {
            let blocks = (shape[0] * shape[1]).div_ceil(Moment8Bit::BLOCK_SIZE);
            let mut moment = |index: usize, map: &'static DynamicMap| {
                let codes = next(state[index].0, &shape)?.try_into_vec().map_err(|_| "has codes that are no bytes")?;
                let absmax = next(ABSMAX[index], &[blocks])?.try_into_vec();
                let absmax = absmax.map_err(|_| "has largest values that are no f32")?;
                Ok::<_, String>(Moment8Bit::from_parts(codes, absmax, map, &device))
            };
            Memory::EightBit(Box::new([moment(0, DynamicMap::signed())?, moment(1, DynamicMap::unsigned())?]))
        } else {
            let mut floats = |(name, shape): (&str, [usize; 2])| {
                let data = next(name, &shape)?;
                let dtype = data.dtype();
                if !dtype.is_float() {
                    return Err(format!("has the state {name:?} in {dtype:?}, expected floats"));
                }
                Ok(Tensor::from_data(data, (&device, dtype)))
            };
            Memory::Floats(state.into_iter().map(&mut floats).collect::<Result<_, String>>()?)
        };
        match tensors.into_keys().next() {
            Some(name) => Err(format!("has a state {name:?}, which is none of this optimiser's")),
            None => Ok((memory, time)),
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

/// The names of the largest values of blocks of moments in 8 bits.
const ABSMAX: [&str; 2] = ["absmax1", "absmax2"];

/// How often a parameter has been updated, as PyTorch calls it.
const STEP: &str = "step";

/// The shape of a parameter, which is not initialised for that.
fn dims(parameter: &Parameter<'_>) -> [usize; 2] {
    let shape = parameter.tensor.lazy_shape();
    [shape[0], shape[1]]
}

fn adamw_update(parameter: Tensor<2>, gradient: Tensor<2>, moments: [Tensor<2>; 2], step: AdamWStep) -> AdamWUpdate {
    let [parameter, gradient] = [parameter, gradient].map(AnyRank::from);
    AdamWUpdate { parameter, gradient, moments: moments.map(AnyRank::from), step }
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
