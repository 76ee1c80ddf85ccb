//! The adapters of a model: attaching, choosing, and removing them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use sideburn_kernels::{Key, RowLayout};

use crate::method::{Company, Method, Outline, Place, Plan, ends_with};
use crate::methods::{OwnHead, Replace};
use crate::model::{AdaptedModel, ModelShape, WeightMut};
use crate::rule::{Prefix, Rule, Weights};
use crate::slot::{Base, Shared, Slot, values};
use crate::tensors::param_like;
use crate::{AdapterError, Pass, TokenPass, freeze};

/// The adapters that a model has; a field of every model that can be adapted.
#[derive(Module, Debug, Default)]
pub struct AdapterSet {
    /// What adapters have at the model's input.
    input: Vec<Slot>,
    #[module(skip)]
    entries: Vec<Entry>,
    /// Base weights from before the first merge, by the names of their places.
    #[module(skip)]
    pub(crate) originals: HashMap<String, Weights>,
}

/// One adapter of a model.
#[derive(Clone, Debug)]
pub struct Entry {
    name: String,
    method: Arc<dyn Method>,
    active: bool,
    merged: bool,
    /// Embeddings and heads of its own that its configuration does not name.
    carried: Vec<String>,
    /// Why it cannot be chosen for single rows, if it cannot.
    not_by_row: Option<&'static str>,
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

    fn company(&self) -> Company {
        let has_copies = !self.method.common().modules_to_save.is_empty() || !self.carried.is_empty();
        if has_copies { Company::Alone } else { self.method.company() }
    }

    /// The places of embeddings and heads that its file holds although its configuration does not name them, and that
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
    pub fn virtual_tokens(&self, pass: &mut Pass) -> Option<Tensor<2>> {
        let slots = values(self.input.iter().filter(|slot| slot.is_active()));
        slots.iter().find_map(|(rule, own)| rule.virtual_tokens(own, pass))
    }

    /// Keys and values of virtual tokens for each layer of the decoder.
    pub fn prefix(&self, pass: &mut Pass) -> Option<Vec<Prefix>> {
        let slots = values(self.input.iter().filter(|slot| slot.is_active()));
        slots.iter().find_map(|(rule, own)| rule.prefix(own, pass))
    }

    /// What adapters have at the model's input.
    pub fn input_slots(&self) -> &[Slot] {
        &self.input
    }
}

/// Every slot of the adapter called `name`, with the name of its place; the input's is empty.
pub(crate) fn slots_of<'a, M: AdaptedModel>(model: &'a M, name: &str) -> Vec<(String, &'a Slot)> {
    let of = |slot: &&Slot| slot.name() == name;
    let mut slots: Vec<_> = model.adapters().input.iter().filter(of).map(|slot| (String::new(), slot)).collect();
    for (place, weight) in model.weights() {
        slots.extend(weight.slots().iter().filter(of).map(|slot| (Place::name_of(&place).to_owned(), slot)));
    }
    slots
}

/// The tensors of an adapter, by their names in its file; those that are not saved have names of their own.
///
/// # Errors
/// If there is no such adapter.
pub fn adapter_tensors<'a, M: AdaptedModel>(
    model: &'a M,
    name: &str,
) -> Result<BTreeMap<String, &'a Param<Tensor<2>>>, AdapterError> {
    model.adapters().get(name)?;
    let tensors = slots_of(model, name).into_iter().flat_map(|(place, slot)| {
        let named = slot.rule().tensors().into_iter().zip(slot.tensors());
        named.map(|(spec, param)| (spec.name.at(&place), param)).collect::<Vec<_>>()
    });
    Ok(tensors.collect())
}

/// Replaces tensors of an adapter: by the values, in row-major order, that `values` gives for their names, which are those
/// of [`adapter_tensors`]. What is trainable stays so.
///
/// # Errors
/// If there is no such adapter, or there are not as many values as a tensor has. The model is then as before.
pub fn set_adapter_tensors<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    values: impl Fn(&str) -> Option<Vec<f32>>,
) -> Result<(), AdapterError> {
    model.adapters().get(name)?;
    let mut changed = model.clone();
    try_each_slots(&mut changed, |place, slots| {
        for slot in slots.iter_mut().filter(|slot| slot.name() == name) {
            let specs = slot.rule().tensors();
            for (spec, param) in specs.into_iter().zip(slot.tensors_mut()) {
                let tensor = spec.name.at(place);
                let Some(values) = values(&tensor) else { continue };
                let dims = spec.dims();
                if values.len() != dims[0] * dims[1] {
                    return Err(AdapterError::WrongLength { tensor, found: values.len(), shape: spec.shape });
                }
                *param = param_like(param, values, &dims);
            }
        }
        Ok(())
    })?;
    *model = changed;
    Ok(())
}

/// Calls `change` on every list of slots of the model, until it fails.
pub(crate) fn try_each_slots<M: AdaptedModel>(
    model: &mut M,
    mut change: impl FnMut(&str, &mut Vec<Slot>) -> Result<(), AdapterError>,
) -> Result<(), AdapterError> {
    change("", &mut model.adapters_mut().input)?;
    model
        .weights_mut()
        .into_iter()
        .try_for_each(|(name, weight)| change(Place::name_of(&name), weight.into_slots_mut()))
}

/// Calls `change` on every list of slots of the model.
pub(crate) fn for_each_slots<M: AdaptedModel>(model: &mut M, mut change: impl FnMut(&mut Vec<Slot>)) {
    try_each_slots(model, |_, slots| {
        change(slots);
        Ok(())
    })
    .expect("a change that cannot fail");
}

/// Attaches a new adapter called `name`, alone active and alone trainable; all that was there before is frozen. Returns
/// the names of the adapted places.
///
/// What is drawn at a place is a function of `key`, of the adapter's and of the place's name. Nothing is copied: the
/// cost grows with the number of places, not with the size of the base.
///
/// # Errors
/// If the name cannot be one or is taken, or the configuration means nothing or does not fit the model: every name in
/// `target_modules` must match something. The model is then as before.
pub fn attach<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    method: impl Method,
    key: Key,
) -> Result<Vec<String>, AdapterError> {
    let outline = Outline::of(model);
    outline.check_not_idle(&method.common().modules_to_save)?;
    if let Some(targets) = method.targets() {
        targets.check_all_match(&outline, |place| method.can_target(place))?;
    }
    attach_dyn(model, name, Arc::new(method), key)
}

pub(crate) fn attach_dyn<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    method: Arc<dyn Method>,
    key: Key,
) -> Result<Vec<String>, AdapterError> {
    let adapted = add(model, name, method, key)?;
    set_trainable(model, &[name])?;
    set_active(model, &[name])?;
    Ok(adapted)
}

/// Adds a new adapter, and leaves all else as it is: the adapter is not active, although its tensors could be trained.
pub(crate) fn add<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    method: Arc<dyn Method>,
    key: Key,
) -> Result<Vec<String>, AdapterError> {
    check_name(name)?;
    if model.adapters().get(name).is_ok() {
        return Err(AdapterError::NameTaken { name: name.to_owned() });
    }
    method.validate()?;
    let outline = Outline::of(model);
    let (plan, not_by_row) = whole_plan(&outline, method.as_ref())?;
    check_size(model, &plan)?;
    let (key, device) = (key.fold_in_name(name), model.device());
    let (mut shared, mut adapted) = (Shared::new(), Vec::new());
    let mut planned: HashMap<String, Vec<Arc<dyn Rule>>> = HashMap::new();
    for (place, rule) in plan.places {
        planned.entry(place).or_default().push(rule);
    }
    for (place, weight) in model.weights_mut() {
        let place = Place::name_of(&place);
        let Some(rules) = planned.remove(place) else { continue };
        let (base, key) = (base_of(&weight), key.fold_in_name(place));
        let slots = weight.into_slots_mut();
        for (index, rule) in rules.into_iter().enumerate() {
            slots.push(Slot::new(name, rule, key.fold_in(index as u64), (base.clone(), &device), &mut shared));
        }
        adapted.push(place.to_owned());
    }
    if let Some(rule) = plan.input {
        let embedding = outline.shape.embedding;
        let base = model.weights_mut().into_iter().find(|(name, _)| Place::name_of(name) == embedding);
        let base = base_of(&base.expect("every model embeds its tokens").1);
        let slot = Slot::new(name, rule, key.fold_in_name("input"), (base, &device), &mut shared);
        model.adapters_mut().input.push(slot);
    }
    let entry = Entry { name: name.to_owned(), method, active: false, merged: false, carried: Vec::new(), not_by_row };
    model.adapters_mut().entries.push(entry);
    Ok(adapted)
}

/// An adapter may have at least so many elements, 1 GiB as `f32`, however small its base is.
const MIN_BOUND: u128 = 1 << 28;
/// And so many times those of its base: twice a copy, as PiSSA keeps of each factor.
const MOST_COPIES: u128 = 4;

/// Refuses what no memory would hold, before anything is drawn.
fn check_size<M: AdaptedModel>(model: &M, plan: &Plan) -> Result<(), AdapterError> {
    let product = |shape: &[usize]| shape.iter().fold(1u128, |product, dim| product.saturating_mul(*dim as u128));
    let base = model.weights().iter().map(|(_, weight)| weight.elements() as u128).sum::<u128>();
    let most = MIN_BOUND.max(MOST_COPIES * base);
    let places = plan.places.iter().map(|(place, rule)| (place.as_str(), rule));
    let (mut elements, mut largest, mut tensor) = (0u128, 0, String::new());
    for (place, rule) in places.chain(plan.input.as_ref().map(|rule| ("", rule))) {
        for spec in rule.tensors() {
            let own = product(&spec.shape);
            elements = elements.saturating_add(own);
            if own > largest {
                (largest, tensor) = (own, spec.name.at(place));
            }
        }
    }
    if elements <= most { Ok(()) } else { Err(AdapterError::TooLarge { elements, tensor, largest, base, most }) }
}

/// Which rules go where, copies of parts of the base among them; and why rows cannot choose the adapter, if they cannot.
fn whole_plan(outline: &Outline, method: &dyn Method) -> Result<(Plan, Option<&'static str>), AdapterError> {
    let mut plan = method.plan(outline)?;
    let modules_to_save = &method.common().modules_to_save;
    let mut copies = outline.saved_modules(modules_to_save)?;
    copies.retain(|place| !outline.is_idle_to_save(place, modules_to_save));
    // A copy takes the place of whatever else the adapter would do there.
    plan.places.retain(|(planned, _)| !copies.iter().any(|copied| copied.name == *planned));
    for copied in copies {
        plan.add(copied, Replace::all(copied));
    }
    let ModelShape { head, tied_head, .. } = outline.shape;
    if tied_head && modules_to_save.iter().any(|name| ends_with(head, name)) {
        for place in outline.places.iter().filter(|place| place.is_embedding()) {
            plan.add(place, OwnHead::new(head, place));
        }
    }
    let not_by_row = match &plan {
        plan if plan.input.is_some() => Some("it acts on the model's input"),
        plan if plan.places.iter().any(|(name, _)| !outline.is_by_row(name)) => {
            Some("it has its own weights for parts that all rows share")
        }
        _ => None,
    };
    Ok((plan, not_by_row))
}

/// Gives the adapter called `name` one more rule at `place`, for what its file holds and its configuration does not name.
pub(crate) fn add_carried<M: AdaptedModel>(model: &mut M, name: &str, place: &Place, rule: Replace) {
    let (device, rule) = (model.device(), Arc::new(rule));
    let entries = &mut model.adapters_mut().entries;
    let Some(entry) = entries.iter_mut().find(|entry| entry.name == name) else { return };
    entry.carried.push(place.name.clone());
    let active = entry.active;
    for (at, weight) in model.weights_mut() {
        if Place::name_of(&at) == place.name {
            let base = base_of(&weight);
            let mut slot = Slot::new(name, rule.clone(), Key::from_seed(0), (base, &device), &mut Shared::new());
            slot.set_active(active);
            weight.into_slots_mut().push(slot);
        }
    }
}

/// Makes the adapter called `name` one of another configuration for the same places. Its tensors stay; they are to be
/// given the shapes of that configuration.
///
/// # Errors
/// If there is no such adapter, or the configuration does not fit the model. The model is then as before.
///
/// # Panics
/// If the places are others.
pub(crate) fn reconfigure<M: AdaptedModel>(
    model: &mut M,
    name: &str,
    method: Arc<dyn Method>,
) -> Result<(), AdapterError> {
    let carried = model.adapters().get(name)?.carried.clone();
    let (plan, not_by_row) = whole_plan(&Outline::of(model), method.as_ref())?;
    let mut planned: HashMap<String, VecDeque<Arc<dyn Rule>>> = HashMap::new();
    for (place, rule) in plan.places.into_iter().chain(plan.input.map(|rule| (String::new(), rule))) {
        planned.entry(place).or_default().push_back(rule);
    }
    try_each_slots(model, |place, slots| {
        for slot in slots.iter_mut().filter(|slot| slot.name() == name) {
            let rule = planned.get_mut(place).and_then(VecDeque::pop_front);
            if rule.is_none() && carried.iter().any(|carried| carried == place) {
                continue; // It is in no configuration.
            }
            slot.set_rule(rule.unwrap_or_else(|| panic!("the new configuration has nothing at {place:?}")));
        }
        Ok(())
    })?;
    let entries = &mut model.adapters_mut().entries;
    for entry in entries.iter_mut().filter(|entry| entry.name == name) {
        (entry.method, entry.not_by_row) = (method.clone(), not_by_row);
    }
    Ok(())
}

/// The base weights of a place, as a function that shares them.
fn base_of(weight: &WeightMut<'_>) -> Base {
    match weight {
        WeightMut::Linear(linear) => {
            let (weight, bias) = (linear.weight().clone(), linear.bias().cloned());
            Arc::new(move || Weights { weight: weight.val(), bias: bias.as_ref().map(|bias| bias.val().unsqueeze()) })
        }
        WeightMut::Vector(vector) => {
            let weight = vector.weight().clone();
            Arc::new(move || Weights { weight: weight.val().unsqueeze(), bias: None })
        }
        WeightMut::Table(table) => {
            let weight: Param<Tensor<2>> = table.weight().clone();
            Arc::new(move || Weights { weight: weight.val(), bias: None })
        }
    }
}

/// What `peft` calls the base in a batch of several adapters.
const BASE: &str = "__base__";

fn check_name(name: &str) -> Result<(), AdapterError> {
    let reason = match name {
        "" => "it is empty",
        BASE => "that is the base",
        "." | ".." => "it would be a folder",
        _ if name.len() > 200 => "it has more than 200 bytes",
        _ if name.chars().any(|c| matches!(c, '/' | '\\') || c.is_control()) => {
            "names of adapters become names of folders, which have no separators or control characters"
        }
        _ => return Ok(()),
    };
    Err(AdapterError::InvalidName { name: name.to_owned(), reason })
}

/// Makes the adapters called `names`, and no others, active. With none, the model is its base.
///
/// Costs a visit to every place; nothing is copied or initialised. What is trainable stays so.
///
/// # Errors
/// If one is unknown, named twice or merged, or they cannot be active at once. The model is then as before.
pub fn set_active<M: AdaptedModel>(model: &mut M, names: &[&str]) -> Result<(), AdapterError> {
    let set = model.adapters();
    let entries: Vec<&Entry> = names.iter().map(|name| set.get(name)).collect::<Result<_, _>>()?;
    if let Some(entry) = entries.iter().find(|entry| entry.merged) {
        return Err(AdapterError::IsMerged { name: entry.name.clone() });
    }
    check_company(&entries)?;
    for entry in &mut model.adapters_mut().entries {
        entry.active = names.contains(&entry.name.as_str());
    }
    for_each_slots(model, |slots| {
        slots.iter_mut().for_each(|slot| slot.set_active(names.contains(&slot.name())));
    });
    Ok(())
}

fn check_company(entries: &[&Entry]) -> Result<(), AdapterError> {
    for (index, first) in entries.iter().enumerate() {
        for second in &entries[index + 1..] {
            let same_kind = first.method.peft_type() == second.method.peft_type();
            let reason = match [first.company(), second.company()] {
                _ if first.name == second.name => "it is one and the same",
                [Company::Additive, Company::Additive] => continue,
                [Company::SameKind, Company::SameKind] if same_kind => continue,
                [Company::Alone, _] | [_, Company::Alone] => "one of them can only be active alone",
                _ => "their kinds do not combine",
            };
            let adapters = [first, second].map(|entry| (entry.name.clone(), entry.method.peft_type())).into();
            return Err(AdapterError::CannotCombine { adapters, reason });
        }
    }
    Ok(())
}

/// What `run` makes of the bare base; the active adapters are the same before and after.
pub fn without_adapters<M: AdaptedModel, T>(model: &M, run: impl FnOnce(&M) -> T) -> T {
    let mut base = model.clone();
    set_active(&mut base, &[]).expect("none can always be active");
    run(&base)
}

/// Makes the adapters called `names`, and nothing else of the model, trainable.
///
/// # Errors
/// If one is unknown. The model is then as before.
pub fn set_trainable<M: AdaptedModel>(model: &mut M, names: &[&str]) -> Result<(), AdapterError> {
    for name in names {
        model.adapters().get(name)?;
    }
    freeze(model);
    for_each_slots(model, |slots| {
        for slot in slots.iter_mut().filter(|slot| names.contains(&slot.name())) {
            let trainable: Vec<bool> = slot.rule().tensors().into_iter().map(|spec| spec.trainable).collect();
            for (tensor, trainable) in slot.tensors_mut().iter_mut().zip(trainable) {
                *tensor = tensor.clone().set_require_grad(trainable);
            }
        }
    });
    Ok(())
}

/// Removes an adapter with all its tensors.
///
/// # Errors
/// If it is unknown, or merged into the base.
pub fn delete<M: AdaptedModel>(model: &mut M, name: &str) -> Result<(), AdapterError> {
    if model.adapters().get(name)?.merged {
        return Err(AdapterError::IsMerged { name: name.to_owned() });
    }
    model.adapters_mut().entries.retain(|entry| entry.name != name);
    for_each_slots(model, |slots| slots.retain(|slot| slot.name() != name));
    Ok(())
}
