//! Making adapters: what a method plans becomes slots of a model.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Device;
use sideburn_kernels::Key;

use crate::AdapterError;
use crate::base_weight::BaseWeight;
use crate::choose::{set_active, set_trainable};
use crate::method::{Method, Plan};
use crate::methods::Replace;
use crate::model::{AdaptedModel, WeightMut};
use crate::outline::{ModelOutline, Site, SiteKind};
use crate::rule::{AtLinear, Rule, Weights};
use crate::set::Entry;
use crate::slot::{Base, RuledSlot, Shared, Slot};

/// [`Adapters::attach`](crate::Adapters::attach).
pub(crate) fn attach(
    model: &mut dyn AdaptedModel,
    name: &str,
    method: Arc<dyn Method>,
    key: Key,
) -> Result<Vec<String>, AdapterError> {
    let outline = model.outline();
    outline.check_not_idle(&method.meta().modules_to_save)?;
    if let Some(targets) = method.targets() {
        targets.check_all_match(&outline, |site| method.can_target(site))?;
    }
    attach_alone(model, &outline, name, method, key)
}

/// Attaches an adapter to a model with this outline, alone active and alone trainable.
pub(crate) fn attach_alone(
    model: &mut dyn AdaptedModel,
    outline: &ModelOutline,
    name: &str,
    method: Arc<dyn Method>,
    key: Key,
) -> Result<Vec<String>, AdapterError> {
    let adapted = add(model, outline, name, method, key)?;
    set_trainable(model, &[name])?;
    set_active(model, &[name])?;
    Ok(adapted)
}

/// Adds a new adapter, and leaves all else as it is: the adapter is not active, although its tensors could be trained.
pub(crate) fn add(
    model: &mut dyn AdaptedModel,
    outline: &ModelOutline,
    name: &str,
    method: Arc<dyn Method>,
    key: Key,
) -> Result<Vec<String>, AdapterError> {
    check_name(name)?;
    if model.adapters().get(name).is_ok() {
        return Err(AdapterError::NameTaken { name: name.to_owned() });
    }
    method.validate()?;
    let (plan, not_by_row) = whole_plan(outline, method.as_ref())?;
    check_size(model, &plan)?;
    let (key, device) = (key.fold_in_name(name), model.device());
    let (mut shared, mut adapted) = (Shared::new(), Vec::new());
    let Plan { linears, tables, vectors, input } = plan;
    let (mut linears, mut tables, mut vectors) = (grouped(linears), grouped(tables), grouped(vectors));
    for (site, weight) in model.weights_mut() {
        let site = Site::name_of(&site);
        let base = base_of(&weight);
        let attaching =
            |site| Attaching { name, site, key: key.fold_in_name(site), base: base.clone(), device: &device };
        let adapted_now = match weight {
            WeightMut::Linear(linear) => {
                let rules = linears.remove(site);
                attaching(site).attach(linear.ruled_mut(), rules, AtLinear::rule, &mut shared).then_some(site)
            }
            WeightMut::Vector(vector) => {
                let rules = vectors.remove(site);
                attaching(site).attach(vector.ruled_mut(), rules, |rule| &**rule, &mut shared).then_some(site)
            }
            WeightMut::Table(table) => {
                for named in outline.names_of(site).filter(|named| named.name != site) {
                    let (before, rules) = (table.ruled_mut().len(), tables.remove(&named.name));
                    if attaching(&named.name).attach(table.ruled_mut(), rules, |rule| &**rule, &mut shared) {
                        adapted.push(named.name.clone());
                    }
                    if matches!(named.kind, SiteKind::Reader { .. }) {
                        table.ruled_mut()[before..].iter_mut().for_each(|ruled| ruled.slot.set_reader());
                    }
                }
                let rules = tables.remove(site);
                attaching(site).attach(table.ruled_mut(), rules, |rule| &**rule, &mut shared).then_some(site)
            }
        };
        adapted.extend(adapted_now.map(str::to_owned));
    }
    if let Some(rule) = input {
        let embedding = outline.shape.embedding;
        let base = model.weights_mut().into_iter().find(|(name, _)| Site::name_of(name) == embedding);
        let base = (base_of(&base.expect("every model embeds its tokens").1), &device);
        let slot = Slot::new(name, "", rule.tensors(), key.fold_in_name("input"), base, &mut shared);
        model.adapters_mut().input.push(RuledSlot { slot, rule });
    }
    let entry = Entry { name: name.to_owned(), method, active: false, merged: false, carried: Vec::new(), not_by_row };
    model.adapters_mut().entries.push(entry);
    Ok(adapted)
}

/// The rules of each site, in their order.
fn grouped<R>(planned: Vec<(String, R)>) -> HashMap<String, Vec<R>> {
    let mut by_site: HashMap<String, Vec<R>> = HashMap::new();
    for (site, rule) in planned {
        by_site.entry(site).or_default().push(rule);
    }
    by_site
}

/// Where the slots of a new adapter are made.
struct Attaching<'a> {
    /// The adapter.
    name: &'a str,
    site: &'a str,
    /// What its tensors there are drawn with.
    key: Key,
    base: Base,
    device: &'a Device,
}

impl Attaching<'_> {
    /// Makes a slot for each of these rules. Returns whether there are any.
    fn attach<R>(
        &self,
        slots: &mut Vec<RuledSlot<R>>,
        rules: Option<Vec<R>>,
        as_rule: impl Fn(&R) -> &dyn Rule,
        shared: &mut Shared,
    ) -> bool {
        let Self { name, site, key, base, device } = self;
        let rules = rules.unwrap_or_default();
        let is_adapted = !rules.is_empty();
        for (index, rule) in rules.into_iter().enumerate() {
            let (key, base) = (key.fold_in(index as u64), (base.clone(), *device));
            let slot = Slot::new(name, site, as_rule(&rule).tensors(), key, base, shared);
            slots.push(RuledSlot { slot, rule });
        }
        is_adapted
    }
}

/// An adapter may have at least so many elements, 1 GiB as `f32`, however small its base is.
const MIN_BOUND: u128 = 1 << 28;
/// And so many times those of its base: twice a copy, as PiSSA keeps of each factor.
const MOST_COPIES: u128 = 4;

/// Refuses what no memory would hold, before anything is drawn.
fn check_size(model: &dyn AdaptedModel, plan: &Plan) -> Result<(), AdapterError> {
    let product = |shape: &[usize]| shape.iter().fold(1u128, |product, dim| product.saturating_mul(*dim as u128));
    let base = model.weights().iter().map(|(_, weight)| product(&weight.weight().dims())).sum::<u128>();
    let most = MIN_BOUND.max(MOST_COPIES * base);
    let (mut elements, mut largest, mut tensor) = (0u128, 0, String::new());
    for (site, rule) in plan.rules() {
        for spec in rule.tensors() {
            let own = product(&spec.shape);
            elements = elements.saturating_add(own);
            if own > largest {
                (largest, tensor) = (own, spec.key(site).to_string());
            }
        }
    }
    if elements <= most { Ok(()) } else { Err(AdapterError::TooLarge { elements, tensor, largest, base, most }) }
}

/// Which rules go where, copies of parts of the base among them; and why rows cannot choose the adapter, if they cannot.
fn whole_plan(outline: &ModelOutline, method: &dyn Method) -> Result<(Plan, Option<&'static str>), AdapterError> {
    let mut plan = method.plan(outline)?;
    let modules_to_save = &method.meta().modules_to_save;
    let mut copies = outline.saved_modules(modules_to_save)?;
    copies.retain(|site| !outline.is_idle_to_save(site, modules_to_save));
    // A copy takes the place of whatever else the adapter would do there.
    plan.clear(|planned| copies.iter().any(|copied| copied.name == planned));
    for copied in copies {
        Replace::all(copied).add_to(&mut plan, copied);
    }
    if outline.vocabulary() == 0 && (plan.input.is_some() || plan.rules().next().is_none()) {
        return Err(AdapterError::NoEmbedding { peft_type: method.peft_type().to_owned() });
    }
    let not_by_row = match &plan {
        plan if plan.input.is_some() => Some("it acts on the model's input"),
        plan if plan.rules().any(|(site, _)| !outline.is_by_row(site)) => {
            Some("it has its own weights for parts that all rows share")
        }
        _ => None,
    };
    Ok((plan, not_by_row))
}

/// Gives the adapter called `name` one more rule at `site`, for what its file holds and its configuration does not name.
pub(crate) fn add_carried(model: &mut dyn AdaptedModel, name: &str, site: &Site, rule: &Replace) {
    let device = model.device();
    let entries = &mut model.adapters_mut().entries;
    let Some(entry) = entries.iter_mut().find(|entry| entry.name == name) else { return };
    entry.carried.push(site.name.clone());
    let active = entry.active;
    for (at, weight) in model.weights_mut() {
        if Site::name_of(&at) == site.name {
            let base = (base_of(&weight), &device);
            let mut slot = Slot::new(name, &site.name, rule.tensors(), Key::from_seed(0), base, &mut Shared::new());
            slot.set_active(active);
            match weight {
                WeightMut::Linear(linear) => {
                    linear.ruled_mut().push(RuledSlot { slot, rule: AtLinear::General(Arc::new(rule.clone())) });
                }
                WeightMut::Table(table) => table.ruled_mut().push(RuledSlot { slot, rule: Arc::new(rule.clone()) }),
                WeightMut::Vector(vector) => vector.ruled_mut().push(RuledSlot { slot, rule: Arc::new(rule.clone()) }),
            }
        }
    }
}

/// Makes the adapter called `name` one of another configuration for the same sites. Its tensors stay; they are to be
/// given the shapes of that configuration.
///
/// # Errors
/// If there is no such adapter, or the configuration does not fit the model. The model is then as before.
///
/// # Panics
/// If the sites are others.
pub(crate) fn reconfigure(
    model: &mut dyn AdaptedModel,
    name: &str,
    method: Arc<dyn Method>,
) -> Result<(), AdapterError> {
    let carried = model.adapters().get(name)?.carried.clone();
    let outline = model.outline();
    let (plan, not_by_row) = whole_plan(&outline, method.as_ref())?;
    let Plan { linears, tables, vectors, input } = plan;
    let (mut linears, mut tables, mut vectors) = (grouped(linears), grouped(tables), grouped(vectors));
    for (site, weight) in model.weights_mut() {
        let site = Site::name_of(&site);
        // What is carried is in no configuration.
        let of = (name, site, carried.iter().any(|carried| carried == site));
        match weight {
            WeightMut::Linear(linear) => replan(linear.ruled_mut(), of, linears.remove(site), AtLinear::rule),
            WeightMut::Table(table) => {
                for named in outline.names_of(site).filter(|named| named.name != site) {
                    let of = (name, named.name.as_str(), false);
                    replan(table.ruled_mut(), of, tables.remove(&named.name), |rule| &**rule);
                }
                replan(table.ruled_mut(), of, tables.remove(site), |rule| &**rule);
            }
            WeightMut::Vector(vector) => replan(vector.ruled_mut(), of, vectors.remove(site), |rule| &**rule),
        }
    }
    let input = input.map(|rule| vec![rule]);
    replan(&mut model.adapters_mut().input, (name, "", false), input, |rule| &**rule);
    let entries = &mut model.adapters_mut().entries;
    for entry in entries.iter_mut().filter(|entry| entry.name == name) {
        (entry.method, entry.not_by_row) = (method.clone(), not_by_row);
    }
    Ok(())
}

/// Gives the slots of an adapter at a site their new rules.
fn replan<R>(
    slots: &mut [RuledSlot<R>],
    (name, site, is_carried): (&str, &str, bool),
    rules: Option<Vec<R>>,
    as_rule: impl Fn(&R) -> &dyn Rule,
) {
    let mut rules = rules.into_iter().flatten();
    let of_site = |slot: &Slot| slot.name() == name && slot.site() == site;
    for RuledSlot { slot, rule } in slots.iter_mut().filter(|ruled| of_site(&ruled.slot)) {
        match rules.next() {
            Some(new) => {
                slot.set_specs(as_rule(&new).tensors());
                *rule = new;
            }
            None => assert!(is_carried, "the new configuration has nothing at {site:?}"),
        }
    }
}

/// The base weights of a site, as a function that shares them.
fn base_of(weight: &WeightMut<'_>) -> Base {
    let (weight, bias) = (weight.as_weight().weight().clone(), weight.as_weight().bias().cloned());
    Arc::new(move || Weights { weight: weight.dense(), bias: bias.as_ref().map(BaseWeight::dense) })
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
