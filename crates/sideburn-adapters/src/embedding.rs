//! Tables and vectors with adapter slots.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor};
use sideburn_kernels::{Matrix, embedding, linear};

use crate::base_weight::BaseWeight;
use crate::rule::{BoundTable, TableRule, VectorRule};
use crate::slot::{RuledSlot, Slot, is_adapted};
use crate::tensors::in_dtype;
use crate::{Pass, TokenPass};

/// A table that adapters can attach to, such as an embedding `[rows, width]`.
#[derive(Module, Debug)]
pub struct AdaptedTable {
    weight: BaseWeight,
    slots: Vec<RuledSlot<Arc<dyn TableRule>>>,
}

/// Rules at a table, with their tensors.
type Bound<'a> = [Box<dyn BoundTable + 'a>];

impl AdaptedTable {
    /// A table around existing weights.
    pub fn new(weight: Param<Tensor<2>>) -> Self {
        Self { weight: BaseWeight::of_matrix(weight), slots: Vec::new() }
    }

    /// The rows of the tokens `ids [n]`: `[n, width]`.
    pub fn rows(&self, ids: Tensor<1, Int>, pass: &TokenPass<'_>) -> Tensor<2> {
        self.read(None, ids, pass)
    }

    /// The rows of the tokens `ids [n]`, `[n, width]`, as a part of the model reads them that `transformers` gives an
    /// embedding of its own; `reader` is its name, such as `encoder.embed_tokens`.
    pub fn rows_as(&self, reader: &str, ids: Tensor<1, Int>, pass: &TokenPass<'_>) -> Tensor<2> {
        self.read(Some(reader), ids, pass)
    }

    fn read(&self, reader: Option<&str>, ids: Tensor<1, Int>, pass: &TokenPass<'_>) -> Tensor<2> {
        let rows = |ids: &Tensor<1, Int>, routed| {
            let rules = self.bound(routed, reader);
            let rows = in_dtype(embedding(self.table_in(&rules, pass), ids.clone()), self.dtype());
            rules.iter().fold(rows, |rows, rule| rule.rows(rows, ids))
        };
        let rows = match pass.routes() {
            None => rows(&ids, None),
            Some(routes) => {
                let parts = routes.adapters().iter().zip(routes.split_ids(&ids));
                routes.join(parts.map(|(adapter, ids)| rows(&ids, Some(adapter.as_deref()))).collect())
            }
        };
        if let Some(watch) = pass.watch() {
            watch.look(self.weight.place(), false, rows.clone());
        }
        rows
    }

    /// The products of `x [n, width]` with all rows: `[n, rows]`, where the table is an output head as well.
    pub fn scores(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        let scores = |x: Tensor<2>, routed, pass: &mut Pass| {
            let rules = self.bound(routed, None);
            let head = rules.iter().rev().find_map(|rule| rule.head()).map(|head| in_dtype(head, self.dtype()));
            let head = head.map_or_else(|| self.table_in(&rules, pass), Matrix::from);
            let scores = linear(x.clone(), head);
            rules.iter().fold(scores, |scores, rule| rule.scores(scores, &x, pass))
        };
        match pass.routes() {
            None => scores(x, None, pass),
            Some(routes) => {
                let parts = routes.adapters().iter().zip(routes.split(x));
                routes.join(parts.map(|(adapter, x)| scores(x, Some(adapter.as_deref()), pass)).collect())
            }
        }
    }

    /// The table as it is held, if that is floats and all that there is to the output head in this pass.
    pub fn plain_table(&self, pass: &TokenPass<'_>) -> Option<Tensor<2>> {
        let of_table = self.slots.iter().filter(|ruled| !ruled.slot.is_of_reader());
        self.weight.floats().filter(|_| !is_adapted(of_table, pass)).map(Param::val)
    }

    /// The whole table, with whatever stands in for it. Adapters that rows choose have nothing here, which
    /// [`AdapterSet::enter`](crate::AdapterSet::enter) sees to.
    pub fn value(&self, pass: &TokenPass<'_>) -> Tensor<2> {
        in_dtype(self.table_in(&self.bound(None, None), pass).dense(), self.dtype())
    }

    /// The table, or what stands in for it, as it is read or multiplied in this pass.
    fn table_in(&self, rules: &Bound<'_>, pass: &Pass) -> Matrix {
        match rules.iter().rev().find_map(|rule| rule.replacement()) {
            Some(table) => in_dtype(table, self.dtype()).into(),
            None => self.weight.operand_in(pass),
        }
    }

    /// What is done here, as `reader` sees it, by the active adapters, or by the one that a route names.
    fn bound(&self, routed: Option<Option<&str>>, reader: Option<&str>) -> Vec<Box<dyn BoundTable + '_>> {
        let is_seen = |slot: &Slot| !slot.is_of_reader() || Some(slot.site()) == reader;
        let chosen = self.slots.iter().filter(|ruled| ruled.is_chosen(routed) && is_seen(&ruled.slot));
        chosen.map(|ruled| ruled.rule.bind(&ruled.slot.own())).collect()
    }

    /// `[rows, width]`, without initialising the table.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.dims()
    }

    /// Where the table is, or will be initialised.
    pub fn device(&self) -> Device {
        self.weight.device()
    }

    /// The dtype of its rows, in which the model computes.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// The table of the base.
    pub fn weight(&self) -> &BaseWeight {
        &self.weight
    }

    /// The table of the base, to be replaced.
    pub fn weight_mut(&mut self) -> &mut BaseWeight {
        &mut self.weight
    }

    /// What adapters have here, in the order in which they were attached.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = &Slot> {
        self.slots.iter().map(|ruled| &ruled.slot)
    }

    pub(crate) fn ruled(&self) -> &[RuledSlot<Arc<dyn TableRule>>] {
        &self.slots
    }

    pub(crate) fn ruled_mut(&mut self) -> &mut Vec<RuledSlot<Arc<dyn TableRule>>> {
        &mut self.slots
    }
}

/// A vector that adapters can stand in for, such as the scale of a norm.
#[derive(Module, Debug)]
pub struct AdaptedVector {
    weight: BaseWeight,
    slots: Vec<RuledSlot<Arc<dyn VectorRule>>>,
}

impl AdaptedVector {
    /// A vector around existing weights, which are trainable until they are frozen.
    pub fn new(weight: Tensor<1>) -> Self {
        Self { weight: BaseWeight::of_vector(weight), slots: Vec::new() }
    }

    /// The vector, or what an active adapter has in its place. Adapters that rows choose have nothing here, which
    /// [`AdapterSet::enter`](crate::AdapterSet::enter) sees to.
    pub fn value(&self, _pass: &TokenPass<'_>) -> Tensor<1> {
        let active = self.slots.iter().filter(|ruled| ruled.slot.is_active());
        let base: Tensor<1> = self.weight.dense().squeeze_dim(0);
        let dtype = base.dtype();
        in_dtype(active.fold(base, |value, ruled| ruled.rule.value(value, &ruled.slot.own())), dtype)
    }

    /// Its length, without initialising it.
    pub fn len(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The vector of the base.
    pub fn weight(&self) -> &BaseWeight {
        &self.weight
    }

    /// The vector of the base, to be replaced.
    pub fn weight_mut(&mut self) -> &mut BaseWeight {
        &mut self.weight
    }

    /// What adapters have here, in the order in which they were attached.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = &Slot> {
        self.slots.iter().map(|ruled| &ruled.slot)
    }

    pub(crate) fn ruled(&self) -> &[RuledSlot<Arc<dyn VectorRule>>] {
        &self.slots
    }

    pub(crate) fn ruled_mut(&mut self) -> &mut Vec<RuledSlot<Arc<dyn VectorRule>>> {
        &mut self.slots
    }
}
