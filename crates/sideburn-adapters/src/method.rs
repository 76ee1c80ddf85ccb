//! What a kind of adapter is: its configuration, and where it puts which rules.

use std::any::Any;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use serde_json::{Map, Value, json};

use crate::AdapterError;
use crate::fields::Fields;
use crate::in_peft::PeftDifference;
use crate::outline::{ModelOutline, Site};
use crate::rule::{AtLinear, InputRule, LinearRule, LowRankRule, Rule, TableRule, TensorKey, VectorRule};
use crate::targets::Targets;

/// A method of fine-tuning, configured.
///
/// It is what `adapter_config.json` says: a type implementing this trait holds the fields that the method has in `peft`,
/// under the names that they have there. What the method computes are the [`Rule`]s that it [plans](Self::plan) for a
/// model.
pub trait Method: Any + Debug + Send + Sync {
    /// What is asked of every method.
    fn about(&self) -> About<'_>;

    /// `peft_type`.
    fn peft_type(&self) -> &'static str {
        self.about().peft_type
    }

    /// The fields that all methods have.
    fn meta(&self) -> &AdapterMeta {
        self.about().meta
    }

    /// Which sites it names, if its configuration has a field for them.
    fn targets(&self) -> Option<&Targets> {
        self.about().targets
    }

    /// Whether it can adapt such a site, if it is named.
    fn can_target(&self, site: &Site) -> bool {
        site.is_linear()
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// If there is one; the field is named.
    fn validate(&self) -> Result<(), AdapterError> {
        Ok(())
    }

    /// The fields of `adapter_config.json`, without those of [`AdapterMeta`].
    fn fields(&self) -> Map<String, Value>;

    /// Fields that `peft` records of the model that the adapter is for.
    fn model_fields(&self, _model: &ModelOutline) -> Map<String, Value> {
        Map::new()
    }

    /// Refuses what a file cannot hold.
    ///
    /// # Errors
    /// If an adapter that is read back from its file would be another.
    fn check_storable(&self) -> Result<(), AdapterError> {
        Ok(())
    }

    /// What `peft` makes of an adapter of this method that differs from what it does here; nothing that is known, by default.
    ///
    /// # Errors
    /// As for [`plan`](Self::plan).
    fn differences_in_peft(&self, _model: &ModelOutline) -> Result<Vec<PeftDifference>, AdapterError> {
        Ok(Vec::new())
    }

    /// Which rules go where in a model, but for `modules_to_save`.
    ///
    /// # Errors
    /// If there is no such site in the model.
    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError>;

    /// What the method does in a training run of so many steps, beside having its tensors trained; most do nothing.
    ///
    /// # Errors
    /// If the configuration is not for such a run.
    fn training_hook(&self, _steps: u64) -> Result<Option<Box<dyn TrainingHook>>, AdapterError> {
        Ok(None)
    }

    /// The content of `adapter_config.json`, as `peft` writes it for inference.
    fn to_json(&self) -> Value {
        let mut fields = self.fields();
        let meta = self.meta();
        fields.insert("peft_type".into(), json!(self.peft_type()));
        fields.insert("task_type".into(), json!(meta.task_type));
        fields.insert("base_model_name_or_path".into(), json!(meta.base_model_name_or_path));
        if !meta.modules_to_save.is_empty() {
            // Not every method of `peft` has the field.
            fields.insert("modules_to_save".into(), json!(meta.modules_to_save));
        }
        fields.insert("inference_mode".into(), json!(true));
        fields.insert("auto_mapping".into(), Value::Null);
        fields.insert("revision".into(), Value::Null);
        Value::Object(fields)
    }
}

impl dyn Method {
    /// The configuration as its own type.
    pub fn downcast_ref<T: Method>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// What is asked of every method.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// `peft_type`.
    pub peft_type: &'static str,
    /// The fields that every configuration has.
    pub meta: &'a AdapterMeta,
    /// Which sites the configuration names, if it has a field for them.
    pub targets: Option<&'a Targets>,
    /// Which other adapters may be active beside one of this method.
    pub combines_with: CanCombineWith,
}

/// Which other adapters may be active beside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanCombineWith {
    /// Any that also add something to the output of layers, whatever the others add.
    Additive,
    /// Others of the same kind.
    SameKind,
    /// None.
    Alone,
}

/// The fields that every configuration has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterMeta {
    /// The task, in the words of `peft`; only recorded. If it is `None`, files of a language model have `SEQ_2_SEQ_LM` or
    /// `CAUSAL_LM`, as the model is.
    pub task_type: Option<String>,
    /// The base model that the adapter was trained on; only recorded.
    pub base_model_name_or_path: Option<String>,
    /// Parts of the base of which the adapter has, trains and saves a copy of its own.
    pub modules_to_save: Vec<String>,
}

impl AdapterMeta {
    /// Reads the fields.
    ///
    /// # Errors
    /// If one is ill-typed.
    pub fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        Ok(Self {
            task_type: fields.optional("task_type", "a string")?,
            base_model_name_or_path: fields.optional("base_model_name_or_path", "a string")?,
            modules_to_save: fields.optional("modules_to_save", "a list of names")?.unwrap_or_default(),
        })
    }
}

/// Which rules go where in a model, each at a site of its kind.
///
/// A rule for sites of another kind does not compile:
///
/// ```compile_fail,E0277
/// fn plan(plan: &mut sideburn_adapters::author::Plan, layer: &sideburn_adapters::author::Site, rule: impl sideburn_adapters::author::InputRule + 'static) {
///     plan.add_linear(layer, rule);
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub(crate) linears: Vec<(String, AtLinear)>,
    pub(crate) tables: Vec<(String, Arc<dyn TableRule>)>,
    pub(crate) vectors: Vec<(String, Arc<dyn VectorRule>)>,
    pub(crate) input: Option<Arc<dyn InputRule>>,
}

impl Plan {
    /// A rule at each of these linear layers.
    ///
    /// # Errors
    /// If `rule` fails for one.
    ///
    /// # Panics
    /// If one is no linear layer.
    pub fn of_linears<R: LinearRule + 'static>(
        sites: impl IntoIterator<Item = impl Borrow<Site>>,
        rule: impl Fn(&Site) -> Result<R, AdapterError>,
    ) -> Result<Self, AdapterError> {
        let mut plan = Self::default();
        for site in sites {
            plan.add_linear(site.borrow(), rule(site.borrow())?);
        }
        Ok(plan)
    }

    /// A rule at the model's input, and nothing else.
    pub fn at_input(rule: impl InputRule + 'static) -> Self {
        Self { input: Some(Arc::new(rule)), ..Self::default() }
    }

    /// One more rule at a linear layer, which adds a low-rank branch and nothing else.
    ///
    /// # Panics
    /// If the site is no linear layer.
    pub fn add_branch(&mut self, site: &Site, rule: impl LowRankRule + 'static) {
        self.add_at_linear(site, AtLinear::Branch(Arc::new(rule)));
    }

    /// One more rule at a linear layer.
    ///
    /// # Panics
    /// If the site is no linear layer.
    pub fn add_linear(&mut self, site: &Site, rule: impl LinearRule + 'static) {
        self.add_at_linear(site, AtLinear::General(Arc::new(rule)));
    }

    fn add_at_linear(&mut self, site: &Site, rule: AtLinear) {
        assert!(site.is_linear(), "{} is no linear layer", site.name);
        self.linears.push((site.name.clone(), rule));
    }

    /// One more rule at a table.
    ///
    /// # Panics
    /// If the site is no table.
    pub fn add_table(&mut self, site: &Site, rule: impl TableRule + 'static) {
        assert!(site.is_table(), "{} is no table", site.name);
        self.tables.push((site.name.clone(), Arc::new(rule)));
    }

    /// One more rule at a vector.
    ///
    /// # Panics
    /// If the site is no vector.
    pub fn add_vector(&mut self, site: &Site, rule: impl VectorRule + 'static) {
        assert!(site.is_vector(), "{} is no vector", site.name);
        self.vectors.push((site.name.clone(), Arc::new(rule)));
    }

    /// All rules with the names of their sites; that of the input is empty.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (&str, &dyn Rule)> {
        let linears = self.linears.iter().map(|(site, rule)| (site.as_str(), rule.rule()));
        let tables = self.tables.iter().map(|(site, rule)| (site.as_str(), rule.as_ref() as &dyn Rule));
        let vectors = self.vectors.iter().map(|(site, rule)| (site.as_str(), rule.as_ref() as &dyn Rule));
        let input = self.input.iter().map(|rule| ("", rule.as_ref() as &dyn Rule));
        linears.chain(tables).chain(vectors).chain(input)
    }

    /// Takes away all rules at these sites.
    pub(crate) fn clear(&mut self, is_cleared: impl Fn(&str) -> bool) {
        self.linears.retain(|(site, _)| !is_cleared(site));
        self.tables.retain(|(site, _)| !is_cleared(site));
        self.vectors.retain(|(site, _)| !is_cleared(site));
    }
}

/// What a method does in the training of one adapter: what it adds to the loss, and what it makes of an update.
///
/// Tensors are given and returned by their sites and parts. Every method has a default that does nothing.
/// What a hook remembers from step to step is in it, so that a copy of it goes on from where it was copied.
pub trait TrainingHook: Debug + Send {
    /// What is added to the mean loss of a step, once for all its micro-batches: a function of the tensors alone.
    fn penalty(&self, _tensors: BTreeMap<TensorKey, Tensor<2>>) -> Option<Tensor<1>> {
        None
    }

    /// Takes note of the update of a step, counted from 0. Returns what must now stand in some of the tensors.
    fn after_update(&mut self, _step: u64, _tensors: BTreeMap<TensorKey, Updated>) -> BTreeMap<TensorKey, Tensor<2>> {
        BTreeMap::new()
    }

    /// What the adapter is at the end of training, if that is another than the one that was trained.
    fn finish(&self, _tensors: BTreeMap<TensorKey, Tensor<2>>) -> Option<Finished> {
        None
    }

    /// What it remembers from step to step, by names of its own, to be kept with a run that is to go on.
    fn state(&self) -> BTreeMap<String, TensorData> {
        BTreeMap::new()
    }

    /// Goes on from what [`state`](Self::state) gave, over an adapter with these tensors.
    ///
    /// # Errors
    /// Why that is no state of it.
    fn restore(
        &mut self,
        state: BTreeMap<String, TensorData>,
        _tensors: BTreeMap<TensorKey, Tensor<2>>,
    ) -> Result<(), String> {
        match state.into_keys().next() {
            Some(name) => Err(format!("{name:?} is unknown")),
            None => Ok(()),
        }
    }

    /// A copy.
    fn boxed(&self) -> Box<dyn TrainingHook>;
}

/// A trained tensor after an update, not tracked by autodiff.
#[derive(Clone, Debug)]
pub struct Updated {
    /// What stands in it now.
    pub value: Tensor<2>,
    /// The gradient that it was updated with, clipped; zero if it had none.
    pub gradient: Tensor<2>,
}

/// An adapter that training has made another.
#[derive(Debug)]
pub struct Finished {
    /// Its configuration, which has rules for the same sites.
    pub method: Arc<dyn Method>,
    /// Those tensors that are others, with the shapes that the configuration gives them.
    pub tensors: BTreeMap<TensorKey, Tensor<2>>,
}
