//! Tables and vectors with adapter slots.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use sideburn_kernels::{embedding, linear};

use crate::TokenPass;
use crate::rule::{Rule, Weights};
use crate::slot::{Slot, is_adapted, replaced, values};

/// A table that adapters can attach to, such as an embedding `[rows, width]`.
#[derive(Module, Debug)]
pub struct AdaptedTable {
    weight: Param<Tensor<2>>,
    slots: Vec<Slot>,
}

impl AdaptedTable {
    /// A table around existing weights.
    pub fn new(weight: Param<Tensor<2>>) -> Self {
        Self { weight, slots: Vec::new() }
    }

    /// The rows of the tokens `ids [n]`: `[n, width]`.
    pub fn rows(&self, ids: Tensor<1, Int>, pass: &TokenPass<'_>) -> Tensor<2> {
        let rows = |ids: &Tensor<1, Int>, slots: Vec<(&dyn Rule, Vec<Tensor<2>>)>| {
            let rows = embedding(self.table(&slots), ids.clone());
            slots.iter().fold(rows, |rows, (rule, own)| rule.rows(rows, ids, own))
        };
        match pass.routes() {
            None => rows(&ids, self.active()),
            Some(routes) => {
                let parts = routes.adapters().iter().zip(routes.split_ids(&ids));
                routes.join(parts.map(|(adapter, ids)| rows(&ids, self.of(adapter.as_deref()))).collect())
            }
        }
    }

    /// The products of `x [n, width]` with all rows: `[n, rows]`, where the table is an output head as well.
    pub fn scores(&self, x: Tensor<2>, pass: &TokenPass<'_>) -> Tensor<2> {
        let scores = |x: Tensor<2>, slots: Vec<(&dyn Rule, Vec<Tensor<2>>)>| {
            let scores = linear(x.clone(), self.table(&slots));
            slots.iter().fold(scores, |scores, (rule, own)| rule.scores(scores, &x, own))
        };
        match pass.routes() {
            None => scores(x, self.active()),
            Some(routes) => {
                let parts = routes.adapters().iter().zip(routes.split(x));
                routes.join(parts.map(|(adapter, x)| scores(x, self.of(adapter.as_deref()))).collect())
            }
        }
    }

    /// The table, if it is all that there is to the output head in this pass.
    pub fn plain_table(&self, pass: &TokenPass<'_>) -> Option<Tensor<2>> {
        (!is_adapted(&self.slots, pass)).then(|| self.weight.val())
    }

    /// The whole table, with whatever stands in for it. Adapters that rows choose have nothing here, which
    /// [`AdapterSet::enter`](crate::AdapterSet::enter) sees to.
    pub fn value(&self, _pass: &TokenPass<'_>) -> Tensor<2> {
        self.table(&self.active())
    }

    fn table(&self, slots: &[(&dyn Rule, Vec<Tensor<2>>)]) -> Tensor<2> {
        replaced(Weights { weight: self.weight.val(), bias: None }, slots).weight
    }

    fn active(&self) -> Vec<(&dyn Rule, Vec<Tensor<2>>)> {
        values(self.slots.iter().filter(|slot| slot.is_active()))
    }

    fn of(&self, adapter: Option<&str>) -> Vec<(&dyn Rule, Vec<Tensor<2>>)> {
        values(self.slots.iter().filter(|slot| Some(slot.name()) == adapter))
    }

    /// `[rows, width]`, without initialising the table.
    pub fn shape(&self) -> [usize; 2] {
        let shape = self.weight.lazy_shape();
        [shape[0], shape[1]]
    }

    /// Where the table is, or will be initialised.
    pub fn device(&self) -> Device {
        self.weight.lazy_device()
    }

    /// The table of the base.
    pub fn weight(&self) -> &Param<Tensor<2>> {
        &self.weight
    }

    /// The table of the base, to be replaced.
    pub fn weight_mut(&mut self) -> &mut Param<Tensor<2>> {
        &mut self.weight
    }

    /// What adapters have here, in the order in which they were attached.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn slots_mut(&mut self) -> &mut Vec<Slot> {
        &mut self.slots
    }
}

/// A vector that adapters can stand in for, such as the scale of a norm.
#[derive(Module, Debug)]
pub struct AdaptedVector {
    weight: Param<Tensor<1>>,
    slots: Vec<Slot>,
}

impl AdaptedVector {
    /// A vector around existing weights.
    pub fn new(weight: Param<Tensor<1>>) -> Self {
        Self { weight, slots: Vec::new() }
    }

    /// The vector, or what an active adapter has in its place. Adapters that rows choose have nothing here, which
    /// [`AdapterSet::enter`](crate::AdapterSet::enter) sees to.
    pub fn value(&self, _pass: &TokenPass<'_>) -> Tensor<1> {
        let active = values(self.slots.iter().filter(|slot| slot.is_active()));
        if active.is_empty() {
            return self.weight.val();
        }
        replaced(Weights { weight: self.weight.val().unsqueeze(), bias: None }, &active).weight.squeeze_dim(0)
    }

    /// Its length, without initialising it.
    pub fn len(&self) -> usize {
        self.weight.lazy_shape()[0]
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The vector of the base.
    pub fn weight(&self) -> &Param<Tensor<1>> {
        &self.weight
    }

    /// The vector of the base, to be replaced.
    pub fn weight_mut(&mut self) -> &mut Param<Tensor<1>> {
        &mut self.weight
    }

    /// What adapters have here, in the order in which they were attached.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn slots_mut(&mut self) -> &mut Vec<Slot> {
        &mut self.slots
    }
}
