//! Which adapters a model has.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use sideburn_kernels::RowLayout;

use crate::base_weight::BaseWeight;
use crate::method::{CanCombineWith, Method};
use crate::methods::MethodRegistry;
use crate::rule::{InputRule, Prefix};
use crate::slot::{RuledSlot, Slot};
use crate::{AdapterError, Pass, TokenPass};

/// The adapters that a model has; a field of every model that can be adapted.
#[derive(Module, Debug, Default)]
pub struct AdapterSet {
    /// What adapters have at the model's input.
    pub(crate) input: Vec<RuledSlot<Arc<dyn InputRule>>>,
    #[module(skip)]
    pub(crate) entries: Vec<Entry>,
    /// Base weights from before the first merge.
    pub(crate) originals: Vec<Original>,
    #[module(skip)]
    methods: MethodRegistry,
}

/// A weight of the base from before a merge. It moves with the model.
#[derive(Module, Debug)]
pub(crate) struct Original {
    /// Its name, such as `encoder.block.0.layer.0.SelfAttention.q.weight`.
    #[module(skip)]
    pub(crate) name: String,
    pub(crate) weight: BaseWeight,
}

/// One adapter of a model.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(crate) name: String,
    pub(crate) method: Arc<dyn Method>,
    pub(crate) active: bool,
    pub(crate) merged: bool,
    /// Embeddings and heads of its own that its configuration does not name.
    pub(crate) carried: Vec<String>,
    /// Why it cannot be chosen for single rows, if it cannot.
    pub(crate) not_by_row: Option<&'static str>,
}

impl Entry {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration.
    pub fn method(&self) -> &Arc<dyn Method> {
        &self.method
    }

    /// Whether it takes part in forward passes that do not name their adapters.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// Which other adapters may be active beside it.
    pub(crate) fn combines_with(&self) -> CanCombineWith {
        let has_copies = !self.method.meta().modules_to_save.is_empty() || !self.carried.is_empty();
        if has_copies { CanCombineWith::Alone } else { self.method.about().combines_with }
    }

    /// The sites of embeddings and heads that its file holds although its configuration does not name them, and that
    /// differ from those of the base.
    pub fn carried(&self) -> &[String] {
        &self.carried
    }

    /// Whether it is merged into the base.
    pub fn is_merged(&self) -> bool {
        self.merged
    }
}

impl AdapterSet {
    /// The adapters, in the order in which they were attached.
    pub fn list(&self) -> &[Entry] {
        &self.entries
    }

    /// The adapter of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<&Entry, AdapterError> {
        let entry = self.entries.iter().find(|entry| entry.name == name);
        entry.ok_or_else(|| AdapterError::NoSuchAdapter {
            name: name.to_owned(),
            known: self.entries.iter().map(|entry| entry.name.clone()).collect(),
        })
    }

    /// The methods whose adapters the model can load.
    pub fn methods(&self) -> &MethodRegistry {
        &self.methods
    }

    /// The methods whose adapters the model can load, to be added to.
    pub fn methods_mut(&mut self) -> &mut MethodRegistry {
        &mut self.methods
    }

    /// Forgets all adapters and what they have replaced, but not which methods there are.
    pub(crate) fn clear(&mut self) {
        *self = Self { methods: self.methods.clone(), ..Self::default() };
    }

    pub(crate) fn set_merged(&mut self, name: &str, merged: bool) {
        self.entries.iter_mut().filter(|entry| entry.name == name).for_each(|entry| entry.merged = merged);
    }

    /// The pass over the tokens of `layout`, padding and all, which layers take.
    ///
    /// # Errors
    /// If the pass names adapters for another number of rows, or one that is unknown, merged, or cannot be chosen row by
    /// row.
    pub fn enter<'p>(&self, pass: &'p mut Pass, layout: &RowLayout) -> Result<TokenPass<'p>, AdapterError> {
        self.check(pass, layout.rows())?;
        Ok(TokenPass::new(pass, || layout.token_rows(), layout.device()))
    }

    /// The pass over the real tokens of `layout` alone, as [`RowLayout::real_tokens`] picks them.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn enter_real_tokens<'p>(&self, pass: &'p mut Pass, layout: &RowLayout) -> Result<TokenPass<'p>, AdapterError> {
        self.check(pass, layout.rows())?;
        Ok(TokenPass::new(pass, || layout.real_token_rows(), layout.device()))
    }

    fn check(&self, pass: &Pass, rows: usize) -> Result<(), AdapterError> {
        let Some(named) = pass.adapters() else { return Ok(()) };
        if named.len() != rows {
            return Err(AdapterError::RowsWithoutAdapters { named: named.len(), rows });
        }
        for name in named.iter().flatten() {
            let entry = self.get(name)?;
            if entry.merged {
                return Err(AdapterError::IsMerged { name: name.clone() });
            }
            if let Some(reason) = entry.not_by_row {
                return Err(AdapterError::NotByRow { name: name.clone(), kind: entry.method.peft_type(), reason });
            }
        }
        // What is active and not chosen by row would be in every row.
        match self.entries.iter().find(|entry| entry.active && entry.not_by_row.is_some()) {
            Some(Entry { name, method, not_by_row: Some(reason), .. }) => {
                Err(AdapterError::NotByRow { name: name.clone(), kind: method.peft_type(), reason })
            }
            _ => Ok(()),
        }
    }

    /// Embeddings `[tokens, width]` of virtual tokens before those of every source row, or in a model that is a decoder
    /// alone, of every row.
    pub fn virtual_tokens(&self) -> Option<Tensor<2>> {
        self.active_input().find_map(|ruled| ruled.rule.virtual_tokens(&ruled.slot.own()))
    }

    /// Keys and values of virtual tokens for each layer of the decoder.
    pub fn prefix(&self) -> Option<Vec<Prefix>> {
        self.active_input().find_map(|ruled| ruled.rule.prefix(&ruled.slot.own()))
    }

    fn active_input(&self) -> impl Iterator<Item = &RuledSlot<Arc<dyn InputRule>>> {
        self.input.iter().filter(|ruled| ruled.slot.is_active())
    }

    /// What adapters have at the model's input.
    pub fn input_slots(&self) -> impl Iterator<Item = &Slot> {
        self.input.iter().map(|ruled| &ruled.slot)
    }

    pub(crate) fn input_slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.input.iter_mut().map(|ruled| &mut ruled.slot)
    }
}
