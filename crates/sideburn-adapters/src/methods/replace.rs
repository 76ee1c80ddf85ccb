//! Methods that train copies of base weights: full fine-tuning, LN tuning, and `modules_to_save` of any method.

use burn::tensor::Tensor;
use serde_json::{Map, Value};

use crate::AdapterError;
use crate::fields::Fields;
use crate::in_peft::PeftDifference;
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site, SiteKind};
use crate::rule::{
    BoundLinear, BoundTable, Init, LinearRule, Replacement, Rule, RuleTensors, TableRule, TensorSpec, VectorRule,
    Weights,
};
use crate::targets::Targets;

/// Weights of the adapter's own in place of those of the base.
#[derive(Clone, Debug)]
pub(crate) struct Replace {
    /// What the weight is called, and its shape, if it is replaced.
    weight: Option<(&'static str, Vec<usize>)>,
    /// What the bias is called, and its length, if it is replaced.
    bias: Option<(&'static str, usize)>,
    trainable: bool,
    /// The sites under whose names a file holds the weight, if it is not the one that is replaced.
    sites: Vec<String>,
}

impl Replace {
    /// All that is at `site`.
    pub(crate) fn all(site: &Site) -> Self {
        Self::weight(site, "weight", "bias")
    }

    fn weight(site: &Site, name: &'static str, bias_name: &'static str) -> Self {
        if let (SiteKind::Vector { len }, Some(norm)) = (site.kind, site.norm_of_bias()) {
            // A file has it as a part of the norm.
            let (weight, sites) = (Some((bias_name, vec![len])), vec![norm.to_owned()]);
            return Self { weight, bias: None, trainable: true, sites };
        }
        let (shape, bias) = match site.kind {
            SiteKind::Linear { out, input, bias } => (vec![out, input], bias.then_some((bias_name, out))),
            SiteKind::Embedding { rows, width }
            | SiteKind::Table { rows, width }
            | SiteKind::Reader { rows, width }
            | SiteKind::TiedHead { rows, width } => (vec![rows, width], None),
            SiteKind::Vector { len } => (vec![len], None),
        };
        Self { weight: Some((name, shape)), bias, trainable: true, sites: Vec::new() }
    }

    /// The weight of the base as it is, which is stored and not trained.
    pub(crate) fn base_weight(site: &Site) -> Self {
        Self { trainable: false, bias: None, ..Self::weight(site, "base_layer.weight", "") }
    }

    /// The weight of an embedding or a head, which the file holds at each of `sites` and which is not trained.
    pub(crate) fn carried(site: &Site, sites: &[&str]) -> Self {
        let sites = sites.iter().map(|site| (*site).to_owned()).collect();
        Self { sites, trainable: false, bias: None, ..Self::all(site) }
    }

    /// The bias alone.
    pub(crate) fn bias(name: &'static str, len: usize) -> Self {
        Self { weight: None, bias: Some((name, len)), trainable: true, sites: Vec::new() }
    }

    /// Plans the rule at `site`, whatever that is.
    pub(crate) fn add_to(self, plan: &mut Plan, site: &Site) {
        match site.kind {
            SiteKind::Linear { .. } => plan.add_linear(site, self),
            SiteKind::TiedHead { rows, width } => plan.add_table(site, OwnHead::new([rows, width])),
            SiteKind::Embedding { .. } | SiteKind::Table { .. } | SiteKind::Reader { .. } => {
                plan.add_table(site, self);
            }
            SiteKind::Vector { .. } => plan.add_vector(site, self),
        }
    }

    /// The weight, of a rule that replaces one.
    fn own_weight(&self, own: &RuleTensors) -> Option<Tensor<2>> {
        self.weight.as_ref().map(|(name, _)| own.get(name))
    }
}

impl Rule for Replace {
    fn tensors(&self) -> Vec<TensorSpec> {
        let weight = self.weight.as_ref().map(|(name, shape)| {
            let spec = TensorSpec::new(*name, shape.clone(), Init::from_base(|base| base.weight));
            match self.sites.split_first() {
                None => spec,
                Some((site, copies)) => TensorSpec { copies: copies.to_vec(), ..spec.of_site(site) },
            }
        });
        let bias = self.bias.map(|(name, len)| {
            TensorSpec::new(name, [len], Init::from_base(|base| base.bias.expect("a bias that is replaced")))
        });
        let specs = weight.into_iter().chain(bias);
        specs.map(|spec| if self.trainable { spec } else { spec.frozen() }).collect()
    }
}

impl LinearRule for Replace {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        let bias = self.bias.map(|(name, _)| own.get(name));
        Box::new(OwnWeights(Replacement { weight: self.own_weight(own), bias }))
    }
}

struct OwnWeights(Replacement);

impl BoundLinear for OwnWeights {
    fn replacement(&self) -> Replacement {
        self.0.clone()
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let Replacement { weight, bias } = self.replacement();
        Ok(Weights { weight: weight.unwrap_or(base.weight), bias: bias.or(base.bias) })
    }
}

impl TableRule for Replace {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundTable + '_> {
        Box::new(OwnTable(self.own_weight(own)))
    }
}

/// What stands in for a table.
struct OwnTable(Option<Tensor<2>>);

impl BoundTable for OwnTable {
    fn replacement(&self) -> Option<Tensor<2>> {
        self.0.clone()
    }

    fn merge(&self, table: Tensor<2>) -> Result<Tensor<2>, &'static str> {
        Ok(self.0.clone().unwrap_or(table))
    }
}

impl VectorRule for Replace {
    fn value(&self, base: Tensor<1>, own: &RuleTensors) -> Tensor<1> {
        self.own_weight(own).map_or(base, |weight| weight.squeeze_dim(0))
    }
}

/// An output head of the adapter's own, where the base has its embedding for one.
#[derive(Clone, Debug)]
pub(crate) struct OwnHead {
    part: &'static str,
    shape: [usize; 2],
    trainable: bool,
}

impl OwnHead {
    /// A trained head, which begins as a copy of the embedding `[rows, width]`.
    pub(crate) fn new(shape: [usize; 2]) -> Self {
        Self { part: "weight", shape, trainable: true }
    }

    /// The embedding as it is, which is stored and not trained.
    pub(crate) fn of_base(shape: [usize; 2]) -> Self {
        Self { part: "base_layer.weight", shape, trainable: false }
    }
}

/// Why a head cannot be merged.
pub(super) const NO_HEAD: &str = "the base has no output head of its own to take it up";

impl Rule for OwnHead {
    fn tensors(&self) -> Vec<TensorSpec> {
        let spec = TensorSpec::new(self.part, self.shape, Init::from_base(|base| base.weight));
        vec![if self.trainable { spec } else { spec.frozen() }]
    }
}

impl TableRule for OwnHead {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundTable + '_> {
        Box::new(BoundHead(own.get(self.part)))
    }
}

struct BoundHead(Tensor<2>);

impl BoundTable for BoundHead {
    fn head(&self) -> Option<Tensor<2>> {
        Some(self.0.clone())
    }

    fn merge(&self, _table: Tensor<2>) -> Result<Tensor<2>, &'static str> {
        Err(NO_HEAD)
    }
}

/// Full fine-tuning as an adapter: a trained copy of every weight, while the base stays as it is.
///
/// Not a method of `peft`: its `peft_type` is `FULL`. The file holds every weight under the name that `modules_to_save`
/// would give it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FullConfig {
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl FullConfig {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        Ok(Self { meta: AdapterMeta::read(fields)? })
    }
}

impl Method for FullConfig {
    fn about(&self) -> About<'_> {
        About { peft_type: "FULL", meta: &self.meta, targets: None, combines_with: CanCombineWith::Alone }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        match self.meta.modules_to_save.is_empty() {
            true => Ok(()),
            false => Err(AdapterError::InvalidField {
                field: "modules_to_save",
                found: format!("{:?}", self.meta.modules_to_save),
                expected: "nothing, as full fine-tuning saves every module",
            }),
        }
    }

    fn fields(&self) -> Map<String, Value> {
        Map::new()
    }

    fn differences_in_peft(&self, _model: &ModelOutline) -> Result<Vec<PeftDifference>, AdapterError> {
        Ok(vec![PeftDifference::NoSuchMethod { peft_type: self.peft_type() }])
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let mut plan = Plan::default();
        // A copy of the embedding is one under all its names.
        let sites = model.sites.iter().filter(|site| !site.is_name_of_embedding());
        sites.for_each(|site| Replace::all(site).add_to(&mut plan, site));
        Ok(plan)
    }
}

/// LN tuning: training the norms alone (Zhao et al., 2023, "Tuning LayerNorm in Attention").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LnTuningConfig {
    /// Which norms; all of them by default.
    pub targets: Targets,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl LnTuningConfig {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        Ok(Self { targets: Targets::read(fields)?, meta: AdapterMeta::read(fields)? })
    }
}

impl Method for LnTuningConfig {
    fn about(&self) -> About<'_> {
        About {
            peft_type: "LN_TUNING",
            meta: &self.meta,
            targets: Some(&self.targets),
            combines_with: CanCombineWith::Alone,
        }
    }

    fn can_target(&self, site: &Site) -> bool {
        site.is_vector() && site.norm_of_bias().is_none()
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        self.targets.write(&mut fields);
        // `peft` has no choice of layers here, and warns of fields that it does not know.
        fields.retain(|field, value| !(field.starts_with("layers_") && value.is_null()));
        fields
    }

    fn differences_in_peft(&self, _model: &ModelOutline) -> Result<Vec<PeftDifference>, AdapterError> {
        let (peft_type, field) = (self.peft_type(), "layers_to_transform");
        let is_chosen = self.targets.layers_to_transform.is_some();
        Ok(is_chosen.then_some(PeftDifference::NoSuchField { peft_type, field }).into_iter().collect())
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, |site| self.can_target(site), model.shape.usual.norms)?;
        let mut plan = Plan::default();
        for norm in sites {
            let bias = model.sites.iter().filter(|site| site.norm_of_bias() == Some(norm.name.as_str()));
            for site in bias.chain([norm]) {
                plan.add_vector(site, Replace::weight(site, "ln_tuning_layers.weight", "ln_tuning_layers.bias"));
            }
        }
        Ok(plan)
    }
}
