//! Methods that train copies of base weights: full fine-tuning, LN tuning, and `modules_to_save` of any method.

use burn::tensor::Tensor;
use serde_json::{Map, Value};

use crate::AdapterError;
use crate::fields::Fields;
use crate::in_peft::PeftDifference;
use crate::method::{About, Common, Company, Method, Plan};
use crate::outline::{Outline, Place, PlaceKind};
use crate::rule::{Init, Rule, TensorName, TensorSpec, Weights};
use crate::targets::Targets;

/// Weights of the adapter's own in place of those of the base.
#[derive(Clone, Debug)]
pub(crate) struct Replace {
    /// The name in the file and the shape of the weight, if it is replaced.
    weight: Option<(&'static str, Vec<usize>)>,
    /// The name in the file and the length of the bias, if it is replaced.
    bias: Option<(&'static str, usize)>,
    trainable: bool,
    /// What the file calls the weight, if its name does not follow from that of the place.
    names: Vec<String>,
}

impl Replace {
    /// All that is at `place`.
    pub(crate) fn all(place: &Place) -> Self {
        Self::weight(place, "weight", "bias")
    }

    fn weight(place: &Place, name: &'static str, bias_name: &'static str) -> Self {
        let (shape, bias) = match place.kind {
            PlaceKind::Linear { out, input, bias } => (vec![out, input], bias.then_some((bias_name, out))),
            PlaceKind::Embedding { rows, width } | PlaceKind::Table { rows, width } => (vec![rows, width], None),
            PlaceKind::Vector { len } => (vec![len], None),
        };
        Self { weight: Some((name, shape)), bias, trainable: true, names: Vec::new() }
    }

    /// The weight of the base as it is, which is stored and not trained.
    pub(crate) fn base_weight(place: &Place) -> Self {
        Self { trainable: false, bias: None, ..Self::weight(place, "base_layer.weight", "") }
    }

    /// The weight of an embedding or a head, which the file holds under each of `names` and which is not trained.
    pub(crate) fn carried(place: &Place, names: Vec<String>) -> Self {
        Self { names, trainable: false, bias: None, ..Self::all(place) }
    }

    /// The bias alone.
    pub(crate) fn bias(name: &'static str, len: usize) -> Self {
        Self { weight: None, bias: Some((name, len)), trainable: true, names: Vec::new() }
    }
}

impl Rule for Replace {
    fn tensors(&self) -> Vec<TensorSpec> {
        let weight = self
            .weight
            .as_ref()
            .map(|(name, shape)| TensorSpec::new(name, shape.clone(), Init::from_base(|base| base.weight)))
            .map(|spec| match self.names.split_first() {
                None => spec,
                Some((name, copies)) => {
                    TensorSpec { name: TensorName::Whole(name.clone()), copies: copies.to_vec(), ..spec }
                }
            });
        let bias = self.bias.map(|(name, len)| {
            TensorSpec::new(name, [len], Init::from_base(|base| base.bias.expect("a bias that is replaced")))
        });
        let specs = weight.into_iter().chain(bias);
        specs.map(|spec| if self.trainable { spec } else { spec.frozen() }).collect()
    }

    fn replacement(&self, base: Weights, own: &[Tensor<2>]) -> Weights {
        let mut own = own.iter().cloned();
        Weights {
            weight: if self.weight.is_some() { own.next().expect("a weight") } else { base.weight },
            bias: if self.bias.is_some() { own.next() } else { base.bias },
        }
    }

    fn replaces(&self) -> bool {
        true
    }

    fn merge(&self, base: Weights, own: &[Tensor<2>]) -> Result<Weights, &'static str> {
        Ok(self.replacement(base, own))
    }
}

/// An output head of the adapter's own, where the base has its embedding for one.
#[derive(Clone, Debug)]
pub(crate) struct OwnHead {
    name: String,
    shape: [usize; 2],
}

impl OwnHead {
    /// A head called `head`, that begins as a copy of the embedding at `place`.
    pub(crate) fn new(head: &str, place: &Place) -> Self {
        let PlaceKind::Embedding { rows, width } = place.kind else { panic!("{} is no embedding", place.name) };
        Self { name: format!("base_model.model.{head}.weight"), shape: [rows, width] }
    }
}

impl Rule for OwnHead {
    fn tensors(&self) -> Vec<TensorSpec> {
        let name = TensorName::Whole(self.name.clone());
        vec![TensorSpec { name, ..TensorSpec::new("", self.shape, Init::from_base(|base| base.weight)) }]
    }

    fn scores(&self, _scores: Tensor<2>, x: &Tensor<2>, own: &[Tensor<2>]) -> Tensor<2> {
        x.clone().matmul(own[0].clone().transpose())
    }

    fn merge(&self, _base: Weights, _own: &[Tensor<2>]) -> Result<Weights, &'static str> {
        Err("the base has no output head of its own to take it up")
    }
}

/// Full fine-tuning as an adapter: a trained copy of every weight, while the base stays as it is.
///
/// Not a method of `peft`: its `peft_type` is `FULL`. The file holds every weight under the name that `modules_to_save`
/// would give it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FullConfig {
    /// The fields that every method has.
    pub common: Common,
}

impl FullConfig {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        Ok(Self { common: Common::read(fields)? })
    }
}

impl Method for FullConfig {
    fn about(&self) -> About<'_> {
        About { peft_type: "FULL", common: &self.common, targets: None, company: Company::Alone }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        match self.common.modules_to_save.is_empty() {
            true => Ok(()),
            false => Err(AdapterError::InvalidField {
                field: "modules_to_save",
                found: format!("{:?}", self.common.modules_to_save),
                expected: "nothing, as full fine-tuning saves every module",
            }),
        }
    }

    fn fields(&self) -> Map<String, Value> {
        Map::new()
    }

    fn differences_in_peft(&self, _model: &Outline) -> Result<Vec<PeftDifference>, AdapterError> {
        Ok(vec![PeftDifference::NoSuchMethod { peft_type: self.peft_type() }])
    }

    fn plan(&self, model: &Outline) -> Result<Plan, AdapterError> {
        Plan::of(&model.places, |place| Ok(Replace::all(place)))
    }
}

/// LN tuning: training the norms alone (Zhao et al., 2023, "Tuning LayerNorm in Attention").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LnTuningConfig {
    /// Which norms; all of them by default.
    pub targets: Targets,
    /// The fields that every method has.
    pub common: Common,
}

impl LnTuningConfig {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        Ok(Self { targets: Targets::read(fields)?, common: Common::read(fields)? })
    }
}

impl Method for LnTuningConfig {
    fn about(&self) -> About<'_> {
        About { peft_type: "LN_TUNING", common: &self.common, targets: Some(&self.targets), company: Company::Alone }
    }

    fn can_target(&self, place: &Place) -> bool {
        matches!(place.kind, PlaceKind::Vector { .. })
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        self.targets.write(&mut fields);
        // `peft` has no choice of layers here, and warns of fields that it does not know.
        fields.retain(|field, value| !(field.starts_with("layers_") && value.is_null()));
        fields
    }

    fn differences_in_peft(&self, _model: &Outline) -> Result<Vec<PeftDifference>, AdapterError> {
        let (peft_type, field) = (self.peft_type(), "layers_to_transform");
        let is_chosen = self.targets.layers_to_transform.is_some();
        Ok(is_chosen.then_some(PeftDifference::NoSuchField { peft_type, field }).into_iter().collect())
    }

    fn plan(&self, model: &Outline) -> Result<Plan, AdapterError> {
        let places = self.targets.select(model, |place| self.can_target(place), model.shape.usual.norms)?;
        Plan::of(places, |place| Ok(Replace::weight(place, "ln_tuning_layers.weight", "ln_tuning_layers.bias")))
    }
}
