//! One adapter at one site: its tensors, and the rule that computes with them.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use sideburn_kernels::Key;

use crate::TokenPass;
use crate::rule::{Init, RuleTensors, TensorKey, TensorSpec, Weights};
use crate::tensors::{ADAPTER_DTYPE, in_dtype, lazy_adapter, lazy_tensor};

/// The tensors of an adapter at one site of a model; it may have several slots at a site.
#[derive(Module, Debug)]
pub struct Slot {
    name: String,
    site: String,
    /// Whether the site is a part of the model that reads the table, and not the table.
    reader: bool,
    active: bool,
    tensors: Vec<Param<Tensor<2>>>,
    #[module(skip)]
    specs: Arc<[TensorSpec]>,
    #[module(skip)]
    keys: Arc<[TensorKey]>,
}

/// A slot with the rule that computes with its tensors; `R` is the kind of rule that its site takes.
#[derive(Module, Debug)]
pub(crate) struct RuledSlot<R> {
    pub(crate) slot: Slot,
    #[module(skip)]
    pub(crate) rule: R,
}

/// Tensors of a new adapter that several of its sites may have in common.
pub(crate) type Shared = HashMap<TensorKey, Param<Tensor<2>>>;

impl Slot {
    /// The slot at `site` of a new adapter, which is not active yet; what is drawn follows from `key`.
    pub(crate) fn new(
        name: &str,
        site: &str,
        specs: Vec<TensorSpec>,
        key: Key,
        (base, device): (Base, &Device),
        shared: &mut Shared,
    ) -> Self {
        let (name, at) = (name.to_owned(), site.to_owned());
        let mut slot = Self {
            name,
            site: at,
            reader: false,
            active: false,
            tensors: Vec::new(),
            specs: [].into(),
            keys: [].into(),
        };
        slot.set_specs(specs);
        let tensor = |(index, (spec, tensor)): (usize, (&TensorSpec, &TensorKey))| {
            let init = || init(spec, (key, index as u64), base.clone(), device);
            shared.entry(tensor.clone()).or_insert_with(init).clone()
        };
        slot.tensors = slot.specs.iter().zip(slot.keys.iter()).enumerate().map(tensor).collect();
        slot
    }

    /// The adapter that this belongs to.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the site; empty at the model's input.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// Whether it takes part in forward passes that do not name their adapters.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// Its tensors, each with what the rule says of it.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorSpec, &Param<Tensor<2>>)> {
        self.specs.iter().zip(&self.tensors)
    }

    /// The same, to be changed.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = (&TensorSpec, &mut Param<Tensor<2>>)> {
        self.specs.iter().zip(&mut self.tensors)
    }

    /// Its tensors by their names.
    pub(crate) fn keyed(&self) -> impl Iterator<Item = (&TensorKey, &Param<Tensor<2>>)> {
        self.keys.iter().zip(&self.tensors)
    }

    /// The same, to be changed.
    pub(crate) fn keyed_mut(&mut self) -> impl Iterator<Item = (&TensorKey, &mut Param<Tensor<2>>)> {
        self.keys.iter().zip(&mut self.tensors)
    }

    /// The values of its tensors.
    pub(crate) fn own(&self) -> RuleTensors {
        RuleTensors::new(self.specs.clone(), self.tensors.iter().map(Param::val).collect())
    }

    /// Describes its tensors anew, in the same order.
    pub(crate) fn set_specs(&mut self, specs: Vec<TensorSpec>) {
        self.keys = specs.iter().map(|spec| spec.key(&self.site)).collect();
        self.specs = specs.into();
    }

    pub(crate) fn set_reader(&mut self) {
        self.reader = true;
    }

    /// Whether only the part of the model sees it that its site names.
    pub(crate) fn is_of_reader(&self) -> bool {
        self.reader
    }

    pub(crate) fn set_active(&mut self, active: bool) {
        self.active = active;
    }
}

impl<R> RuledSlot<R> {
    /// Whether the adapter takes part where the pass names `routed`, or none.
    pub(crate) fn is_chosen(&self, routed: Option<Option<&str>>) -> bool {
        match routed {
            None => self.slot.active,
            Some(adapter) => Some(self.slot.name.as_str()) == adapter,
        }
    }
}

/// The base weights of a site, to be asked for when they are needed.
pub(crate) type Base = Arc<dyn Fn() -> Weights + Send + Sync>;

/// The tensor with this index, of a slot with this key.
fn init(spec: &TensorSpec, (slot, index): (Key, u64), base: Base, device: &Device) -> Param<Tensor<2>> {
    let (dims, key) = (spec.dims(), slot.fold_in(index));
    let param = match &spec.init {
        Init::Zeros => lazy_adapter(dims, device, |_| 0.0),
        Init::Ones => lazy_adapter(dims, device, |_| 1.0),
        Init::Constant(value) => {
            let value = *value as f32;
            lazy_adapter(dims, device, move |_| value)
        }
        Init::Uniform(bound) => {
            let bound = *bound;
            lazy_adapter(dims, device, move |index| ((2.0 * key.uniform(index) - 1.0) * bound) as f32)
        }
        Init::Normal(deviation) => {
            let deviation = *deviation;
            lazy_adapter(dims, device, move |index| (deviation * key.normal(index)) as f32)
        }
        Init::Values(values) => {
            let values = values.clone();
            lazy_tensor(dims, device, move |device| {
                Tensor::from_data(TensorData::new(values(), dims), (device, ADAPTER_DTYPE))
            })
        }
        Init::FromBase(compute) => {
            let compute = compute.clone();
            lazy_tensor(dims, device, move |device| {
                // A base that trains is a leaf, and so is what is detached from it; what comes of that would be none.
                let values = compute(base(), slot).detach().set_require_grad(false);
                in_dtype(values.to_device(device), ADAPTER_DTYPE)
            })
        }
    };
    if spec.trainable { param } else { param.no_grad() }
}

/// Whether adapters may take part at a site with these slots.
pub(crate) fn is_adapted<'a, R: 'a>(slots: impl IntoIterator<Item = &'a RuledSlot<R>>, pass: &TokenPass<'_>) -> bool {
    let mut slots = slots.into_iter();
    match pass.routes() {
        Some(_) => slots.next().is_some(),
        None => slots.any(|ruled| ruled.slot.active),
    }
}
