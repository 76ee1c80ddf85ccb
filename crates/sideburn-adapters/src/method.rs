//! What a kind of adapter is: its configuration, and where it puts which rules.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::AdapterError;
use crate::fields::Fields;
use crate::model::{AdaptedModel, ModelShape, Weight};
use crate::rule::Rule;
use crate::targets::Targets;
use crate::training::Regimen;

/// A method of fine-tuning, configured.
///
/// It is what `adapter_config.json` says: a type implementing this trait holds the fields that the method has in `peft`,
/// under the names that they have there. What the method computes are the [`Rule`]s that it [plans](Self::plan) for a
/// model.
pub trait Method: Any + Debug + Send + Sync {
    /// `peft_type`.
    fn peft_type(&self) -> &'static str;

    /// The fields that all methods have.
    fn common(&self) -> &Common;

    /// Which places it names, if its configuration has a field for them.
    fn targets(&self) -> Option<&Targets> {
        None
    }

    /// Whether it can adapt such a place, if it is named.
    fn can_target(&self, place: &Place) -> bool {
        place.is_linear()
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// If there is one; the field is named.
    fn validate(&self) -> Result<(), AdapterError>;

    /// The fields of `adapter_config.json`, without the common ones.
    fn fields(&self) -> Map<String, Value>;

    /// Fields that `peft` records of the model that the adapter is for.
    fn model_fields(&self, _model: &Outline) -> Map<String, Value> {
        Map::new()
    }

    /// Refuses what a file cannot hold.
    ///
    /// # Errors
    /// If an adapter that is read back from its file would be another.
    fn check_storable(&self) -> Result<(), AdapterError> {
        Ok(())
    }

    /// Which rules go where in a model, but for `modules_to_save`.
    ///
    /// # Errors
    /// If there is no such place in the model.
    fn plan(&self, model: &Outline) -> Result<Plan, AdapterError>;

    /// Which other adapters may be active beside one of this kind.
    fn company(&self) -> Company;

    /// What the method does in a training run of so many steps, beside having its tensors trained; most do nothing.
    ///
    /// # Errors
    /// If the configuration is not for such a run.
    fn regimen(&self, _steps: u64) -> Result<Option<Box<dyn Regimen>>, AdapterError> {
        Ok(None)
    }

    /// The content of `adapter_config.json`, as `peft` writes it for inference.
    fn to_json(&self) -> Value {
        let mut fields = self.fields();
        let common = self.common();
        fields.insert("peft_type".into(), json!(self.peft_type()));
        fields.insert("task_type".into(), json!(common.task_type));
        fields.insert("base_model_name_or_path".into(), json!(common.base_model_name_or_path));
        if !common.modules_to_save.is_empty() {
            // Not every method of `peft` has the field.
            fields.insert("modules_to_save".into(), json!(common.modules_to_save));
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

/// Which other adapters may be active beside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Any that also add something to the output of layers, whatever the others add.
    Additive,
    /// Others of the same kind.
    SameKind,
    /// None.
    Alone,
}

/// The fields that every configuration has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// The task, in the words of `peft`, such as `SEQ_2_SEQ_LM`; only recorded.
    pub task_type: Option<String>,
    /// The base model that the adapter was trained on; only recorded.
    pub base_model_name_or_path: Option<String>,
    /// Parts of the base of which the adapter has, trains and saves a copy of its own.
    pub modules_to_save: Vec<String>,
}

impl Common {
    /// Of a model that writes a target from a source.
    pub fn seq_2_seq() -> Self {
        Self { task_type: Some("SEQ_2_SEQ_LM".to_owned()), ..Self::default() }
    }

    /// Of a model that continues a text.
    pub fn causal_lm() -> Self {
        Self { task_type: Some("CAUSAL_LM".to_owned()), ..Self::default() }
    }

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

/// What a model is made of: its places in order.
#[derive(Clone, Debug)]
pub struct Outline {
    /// What kind of model it is.
    pub shape: ModelShape,
    /// Where adapters can attach.
    pub places: Vec<Place>,
}

/// Where an adapter can attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name of the module, as Hugging Face has it: `encoder.block.0.layer.0.SelfAttention.q`, `shared`.
    pub name: String,
    /// What is there.
    pub kind: PlaceKind,
}

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// A linear layer: a site.
    Linear {
        /// The width of its output.
        out: usize,
        /// The width of its input.
        input: usize,
        /// Whether it has a bias.
        bias: bool,
    },
    /// The table that embeds tokens.
    Embedding {
        /// Tokens.
        rows: usize,
        /// The width of their embeddings.
        width: usize,
    },
    /// Any other table.
    Table {
        /// Its rows.
        rows: usize,
        /// Their width.
        width: usize,
    },
    /// A vector.
    Vector {
        /// Its length.
        len: usize,
    },
}

impl Place {
    /// Whether it is a linear layer.
    pub fn is_linear(&self) -> bool {
        matches!(self.kind, PlaceKind::Linear { .. })
    }

    /// Whether it embeds tokens.
    pub fn is_embedding(&self) -> bool {
        matches!(self.kind, PlaceKind::Embedding { .. })
    }

    /// A linear layer, for tests.
    #[cfg(test)]
    pub(crate) fn of(name: &str, [out, input]: [usize; 2]) -> Self {
        Self { name: name.to_owned(), kind: PlaceKind::Linear { out, input, bias: false } }
    }

    /// The name of the place that a weight is, from the weight's own.
    pub(crate) fn name_of(weight: &str) -> &str {
        weight.strip_suffix(".weight").unwrap_or(weight)
    }

    /// `[out, in]`, of a linear layer.
    ///
    /// # Panics
    /// If it is none.
    pub fn linear(&self) -> [usize; 2] {
        match self.kind {
            PlaceKind::Linear { out, input, .. } => [out, input],
            _ => panic!("{} is no linear layer", self.name),
        }
    }
}

impl Outline {
    /// The outline of `model`. Nothing is initialised.
    pub fn of<M: AdaptedModel>(model: &M) -> Self {
        let shape = model.shape();
        let place = |(name, weight): (String, Weight<'_>)| {
            let name = Place::name_of(&name).to_owned();
            let kind = match weight {
                Weight::Linear(linear) => {
                    let [out, input] = linear.shape();
                    PlaceKind::Linear { out, input, bias: linear.bias().is_some() }
                }
                Weight::Vector(vector) => PlaceKind::Vector { len: vector.len() },
                Weight::Table(table) => {
                    let [rows, width] = table.shape();
                    match name == shape.embedding {
                        true => PlaceKind::Embedding { rows, width },
                        false => PlaceKind::Table { rows, width },
                    }
                }
            };
            Place { name, kind }
        };
        Self { shape, places: model.weights().into_iter().map(place).collect() }
    }

    /// The places that `modules_to_save` names: a place itself, or all those inside a part of that name. As in `peft`, the
    /// end of a name is enough: `layer_norm` means `final_layer_norm`, too.
    ///
    /// # Errors
    /// If a name means nothing.
    pub(crate) fn saved_modules(&self, names: &[String]) -> Result<Vec<&Place>, AdapterError> {
        let within = |place: &Place, name: &str| {
            let mut ends = place.name.match_indices('.').map(|(end, _)| end).chain([place.name.len()]);
            ends.any(|end| ends_with(&place.name[..end], name))
        };
        let is_part_of_embedding = |name: &&String| {
            let mut copies = self.shape.embedding_copies.iter().filter(|copy| **copy != self.shape.head);
            copies.any(|copy| ends_with(copy, name))
        };
        if let Some(name) = names.iter().find(is_part_of_embedding) {
            return Err(AdapterError::InvalidField {
                field: "modules_to_save",
                found: format!("{names:?}, in which {name} is the embedding of one half of the model"),
                expected: "other modules, as both halves and the head have one embedding here",
            });
        }
        let idle: Vec<String> = names
            .iter()
            .filter(|name| !self.places.iter().any(|place| within(place, name)))
            .filter(|name| !(self.shape.tied_head && ends_with(self.shape.head, name)))
            .cloned()
            .collect();
        if !idle.is_empty() {
            let places = self.places.iter().map(|place| place.name.clone()).collect();
            return Err(AdapterError::UnmatchedModulesToSave { names: idle, places });
        }
        Ok(self.places.iter().filter(|place| names.iter().any(|name| within(place, name))).collect())
    }

    /// Whether `modules_to_save` names this place and `peft` would make a copy there that no layer reads: the layers of a
    /// T5 hold `encoder.embed_tokens` and `decoder.embed_tokens`, and `shared` beside them is read by none.
    pub(crate) fn is_idle_to_save(&self, place: &Place, names: &[String]) -> bool {
        let is_read_elsewhere = self.shape.embedding_copies.iter().any(|copy| *copy != self.shape.head);
        place.is_embedding() && is_read_elsewhere && names.iter().any(|name| ends_with(&place.name, name))
    }

    /// Refuses modules of a new adapter that would be trained for nothing.
    ///
    /// # Errors
    /// If there is one.
    pub(crate) fn check_not_idle(&self, names: &[String]) -> Result<(), AdapterError> {
        match self.places.iter().find(|place| self.is_idle_to_save(place, names)) {
            Some(place) => Err(AdapterError::InvalidField {
                field: "modules_to_save",
                found: format!("{names:?}, in which {} has no effect in `peft`: no layer reads its copy", place.name),
                expected: "other modules, or `trainable_token_indices` or FULL to train embeddings",
            }),
            None => Ok(()),
        }
    }

    /// How many tokens the model knows; 0 if it embeds none.
    pub fn vocabulary(&self) -> usize {
        let rows = |place: &Place| if let PlaceKind::Embedding { rows, .. } = place.kind { Some(rows) } else { None };
        self.places.iter().find_map(rows).unwrap_or(0)
    }

    /// Whether rows of a batch can differ in what is at the place called `name`.
    pub(crate) fn is_by_row(&self, name: &str) -> bool {
        self.places.iter().any(|place| place.name == name && (place.is_linear() || place.is_embedding()))
    }

    /// Of nothing but linear layers, for tests.
    #[cfg(test)]
    pub(crate) fn of_linear(names: &[&str]) -> Self {
        let kind = PlaceKind::Linear { out: 2, input: 3, bias: false };
        let shape = ModelShape { head: "lm_head", ..ModelShape::of_layers() };
        Self { shape, places: names.iter().map(|name| Place { name: (*name).to_owned(), kind }).collect() }
    }
}

/// How `modules_to_save` matches names.
pub(crate) fn ends_with(module: &str, name: &str) -> bool {
    !name.is_empty() && module.ends_with(name)
}

/// Which rules go where.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Rules at places, by the places' names.
    pub places: Vec<(String, Arc<dyn Rule>)>,
    /// A rule at the model's input.
    pub input: Option<Arc<dyn Rule>>,
}

impl Plan {
    /// One rule for each of `places`.
    ///
    /// # Errors
    /// If `rule` fails for one.
    pub fn of<R: Rule + 'static>(
        places: impl IntoIterator<Item = impl std::borrow::Borrow<Place>>,
        rule: impl Fn(&Place) -> Result<R, AdapterError>,
    ) -> Result<Self, AdapterError> {
        let planned = |place: &Place| Ok((place.name.clone(), Arc::new(rule(place)?) as Arc<dyn Rule>));
        let places = places.into_iter().map(|place| planned(place.borrow())).collect::<Result<_, AdapterError>>()?;
        Ok(Self { places, input: None })
    }

    /// A rule at the model's input, and nothing else.
    pub fn at_input(rule: impl Rule + 'static) -> Self {
        Self { places: Vec::new(), input: Some(Arc::new(rule)) }
    }

    /// One more rule at a place.
    pub fn add(&mut self, place: &Place, rule: impl Rule + 'static) {
        self.places.push((place.name.clone(), Arc::new(rule)));
    }
}

/// Reads a configuration of any method that this crate has.
///
/// # Errors
/// If the method is unknown, or a field is missing, ill-typed, out of range, or asks for something that would change the
/// result and is not supported.
pub fn read_config(value: &Value) -> Result<Arc<dyn Method>, AdapterError> {
    let fields = Fields::new(value)?;
    let peft_type: String = fields.required("peft_type", "the name of a method")?;
    let Some((_, read)) = crate::methods::ALL.iter().find(|(name, _)| *name == peft_type) else {
        return Err(AdapterError::UnknownMethod { peft_type, known: crate::methods::peft_types().collect() });
    };
    let method = read(&fields)?;
    fields.finish()?;
    method.validate()?;
    Ok(method)
}
