//! One adapter at one place: its tensors, and the rule that computes with them.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use sideburn_kernels::{Key, LowRank};

use crate::TokenPass;
use crate::rule::{Init, Rule, TensorName, TensorSpec, Weights};
use crate::tensors::lazy_weight;

/// What an adapter has at one place of a model; it may have several slots at a place.
#[derive(Module, Debug)]
pub struct Slot {
    name: String,
    active: bool,
    tensors: Vec<Param<Tensor<2>>>,
    #[module(skip)]
    rule: Arc<dyn Rule>,
}

/// Tensors of one adapter that several of its places have in common.
pub(crate) type Shared = HashMap<String, Param<Tensor<2>>>;

impl Slot {
    /// The slot of a new adapter, which is not active yet; what is drawn follows from `key`.
    pub(crate) fn new(
        name: &str,
        rule: Arc<dyn Rule>,
        key: Key,
        (base, device): (Base, &Device),
        shared: &mut Shared,
    ) -> Self {
        let mut tensor = |(index, spec): (usize, TensorSpec)| {
            let init = || init(&spec, (key, index as u64), base.clone(), device);
            match &spec.name {
                TensorName::AtPlace(_) | TensorName::UnsavedAtPlace(_) => init(),
                TensorName::Whole(whole) | TensorName::Unsaved(whole) => {
                    shared.entry(whole.clone()).or_insert_with(init).clone()
                }
            }
        };
        let tensors = rule.tensors().into_iter().enumerate().map(&mut tensor).collect();
        Self { name: name.to_owned(), active: false, tensors, rule }
    }

    /// The adapter that this belongs to.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it takes part in forward passes that do not name their adapters.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// What it does.
    pub fn rule(&self) -> &dyn Rule {
        self.rule.as_ref()
    }

    /// Its tensors, in the order of the rule's.
    pub fn tensors(&self) -> &[Param<Tensor<2>>] {
        &self.tensors
    }

    /// Its branch of a linear layer on tensors of this kind, if that is all that it does there.
    pub(crate) fn low_rank(&self, dtype: DType, pass: &mut TokenPass<'_>) -> Option<LowRank> {
        let own: Vec<Tensor<2>> = self.tensors.iter().map(Param::val).collect();
        own.iter().all(|tensor| tensor.dtype() == dtype).then(|| self.rule.low_rank(&own, pass))?
    }

    pub(crate) fn tensors_mut(&mut self) -> &mut [Param<Tensor<2>>] {
        &mut self.tensors
    }

    pub(crate) fn set_rule(&mut self, rule: Arc<dyn Rule>) {
        self.rule = rule;
    }

    pub(crate) fn set_active(&mut self, active: bool) {
        self.active = active;
    }
}

/// The base weights of a place, to be asked for when they are needed.
pub(crate) type Base = Arc<dyn Fn() -> Weights + Send + Sync>;

/// The tensor with this index, of a slot with this key.
fn init(spec: &TensorSpec, (slot, index): (Key, u64), base: Base, device: &Device) -> Param<Tensor<2>> {
    let (dims, key) = (spec.dims(), slot.fold_in(index));
    let param = match &spec.init {
        Init::Zeros => lazy_weight(dims, device, |_| 0.0),
        Init::Ones => lazy_weight(dims, device, |_| 1.0),
        Init::Constant(value) => {
            let value = *value as f32;
            lazy_weight(dims, device, move |_| value)
        }
        Init::Uniform(bound) => {
            let bound = *bound;
            lazy_weight(dims, device, move |index| ((2.0 * key.uniform(index) - 1.0) * bound) as f32)
        }
        Init::Normal(deviation) => {
            let deviation = *deviation;
            lazy_weight(dims, device, move |index| (deviation * key.normal(index)) as f32)
        }
        Init::Values(values) => {
            let values = values.clone();
            let init = move |device: &Device, require_grad| {
                Tensor::from_data(TensorData::new(values(), dims), device).set_require_grad(require_grad)
            };
            Param::uninitialized(ParamId::new(), init, device.clone(), true, dims.into())
        }
        Init::FromBase(compute) => {
            let compute = compute.clone();
            let init = move |device: &Device, require_grad| {
                compute(base(), slot).detach().to_device(device).set_require_grad(require_grad)
            };
            Param::uninitialized(ParamId::new(), init, device.clone(), true, dims.into())
        }
    };
    if spec.trainable { param } else { param.no_grad() }
}

/// The rules of `slots`, each with the values of its tensors.
pub(crate) fn values<'a>(slots: impl Iterator<Item = &'a Slot>) -> Vec<(&'a dyn Rule, Vec<Tensor<2>>)> {
    slots.map(|slot| (slot.rule(), slot.tensors().iter().map(Param::val).collect())).collect()
}

/// Whether adapters may take part at a place with these slots.
pub(crate) fn is_adapted(slots: &[Slot], pass: &TokenPass<'_>) -> bool {
    match pass.routes() {
        Some(_) => !slots.is_empty(),
        None => slots.iter().any(Slot::is_active),
    }
}

/// What the base weights of a place are, with what stands in for them.
pub(crate) fn replaced(base: Weights, slots: &[(&dyn Rule, Vec<Tensor<2>>)]) -> Weights {
    slots.iter().fold(base, |weights, (rule, own)| rule.replacement(weights, own))
}
