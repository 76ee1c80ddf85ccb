//! LoRA: low-rank adaptation (Hu et al., 2021), with rsLoRA (Kalajdzievski, 2023) and DoRA (Liu et al., 2024).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::checks::check_rank;
use super::lora_init::LoraInit;
use super::lora_rules::{Dora, Factors, HeadFactors, PartOfBase, TableFactors, WithBias};
use super::replace::{OwnHead, Replace};
use super::trainable_tokens::TokenRows;
use crate::AdapterError;
use crate::fields::{Fields, fields};
use crate::in_peft::PeftDifference;
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site, SiteKind};
use crate::pattern::{Pattern, ends_with_literal, is_literal};
use crate::targets::{TargetModules, Targets};

/// Which biases of the base are trained beside the factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoraBias {
    /// None of them.
    #[default]
    None,
    /// All that linear layers have.
    All,
    /// Those of the adapted layers.
    LoraOnly,
}

/// What to adapt and how; the fields are named as in `peft.LoraConfig`.
///
/// ```
/// use sideburn_adapters::methods::LoraConfig;
///
/// let config = LoraConfig { r: 32, lora_alpha: 64.0, lora_dropout: 0.05, ..LoraConfig::new(["q", "v"]) };
/// assert_eq!(config.scaling(), 2.0);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// The rank of the update.
    pub r: usize,
    /// The numerator of the scaling `lora_alpha / r`.
    pub lora_alpha: f64,
    /// The probability with which an element of the branch's input is dropped in training.
    pub lora_dropout: f64,
    /// Which layers are adapted.
    pub targets: Targets,
    /// Which biases of the base are trained.
    pub bias: LoraBias,
    /// How the factors begin.
    pub init_lora_weights: LoraInit,
    /// Whether the scaling is `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Whether the norms of the adapted weight's rows are trained apart from their directions.
    pub use_dora: bool,
    /// Whether the second factor has a bias.
    pub lora_bias: bool,
    /// Ranks of layers whose names end with a pattern.
    pub rank_pattern: BTreeMap<String, usize>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Tokens whose embeddings are trained as well.
    pub trainable_token_indices: Vec<usize>,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl LoraConfig {
    /// `peft`'s defaults: r 8, alpha 8, no dropout, no task.
    pub fn new(targets: impl Into<Targets>) -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            targets: targets.into(),
            bias: LoraBias::None,
            init_lora_weights: LoraInit::Default,
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            trainable_token_indices: Vec::new(),
            meta: AdapterMeta::default(),
        }
    }

    /// What the product of the factors is multiplied by, where no pattern says otherwise: `lora_alpha / r`, or
    /// `lora_alpha / sqrt(r)`.
    pub fn scaling(&self) -> f64 {
        self.scaling_of(self.r, self.lora_alpha)
    }

    fn scaling_of(&self, r: usize, lora_alpha: f64) -> f64 {
        lora_alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        let tokens = fields.optional::<TokenIndices>("trainable_token_indices", "a list of token ids")?;
        fields.ignore("fan_in_fan_out"); // Says how other kinds of layers store their weights.
        for settings in ["eva_config", "corda_config", "lora_ga_config", "loftq_config"] {
            fields.ignore(settings); // Of how factors begin; `init_lora_weights` says whether that changed the base.
        }
        Ok(Self {
            r: fields.optional("r", "a rank of at least 1")?.unwrap_or(8),
            lora_alpha: fields.optional("lora_alpha", "a number")?.unwrap_or(8.0),
            lora_dropout: fields.optional("lora_dropout", "a probability in [0, 1)")?.unwrap_or(0.0),
            targets: Targets::read(fields)?,
            bias: fields.optional("bias", "\"none\", \"all\" or \"lora_only\"")?.unwrap_or_default(),
            init_lora_weights: LoraInit::read(fields)?,
            use_rslora: fields.flag("use_rslora")?,
            use_dora: fields.flag("use_dora")?,
            lora_bias: fields.flag("lora_bias")?,
            rank_pattern: fields.optional("rank_pattern", "ranks by pattern")?.unwrap_or_default(),
            alpha_pattern: fields.optional("alpha_pattern", "numbers by pattern")?.unwrap_or_default(),
            trainable_token_indices: tokens.map(TokenIndices::into_vec).unwrap_or_default(),
            meta: AdapterMeta::read(fields)?,
        })
    }

    /// Whether `peft` puts the base's output head into the file: it does where a target names the head.
    fn stores_head(&self, model: &ModelOutline) -> Result<bool, AdapterError> {
        Ok(match &self.targets.target_modules {
            Some(TargetModules::Names(names)) => names.iter().any(|name| name == model.shape.head),
            Some(TargetModules::Pattern(pattern)) => {
                Pattern::of_whole_name("target_modules", pattern)?.is_match(model.shape.head)?
            }
            None => false,
        } && self.trainable_token_indices.is_empty())
    }

    /// The rank at a layer, and what the product of its factors is multiplied by.
    ///
    /// # Errors
    /// If a pattern is not a regular expression.
    pub fn rank_and_scaling(&self, site: &str) -> Result<(usize, f64), AdapterError> {
        let r = pattern_value("rank_pattern", &self.rank_pattern, site)?.unwrap_or(self.r);
        let alpha = pattern_value("alpha_pattern", &self.alpha_pattern, site)?.unwrap_or(self.lora_alpha);
        Ok((r, self.scaling_of(r, alpha)))
    }

    /// Whether there are two factors at each layer and nothing else, nor anywhere else.
    pub(crate) fn is_plain(&self) -> bool {
        let extra = self.use_dora || self.lora_bias || self.init_lora_weights.is_part_of_base();
        let elsewhere = self.bias != LoraBias::None || !self.meta.modules_to_save.is_empty();
        !extra && !elsewhere && self.trainable_token_indices.is_empty()
    }

    /// Plans the factors at a site, and what else there is beside them.
    fn add_to(&self, plan: &mut Plan, site: &Site) -> Result<(), AdapterError> {
        let (r, scaling) = self.rank_and_scaling(&site.name)?;
        let factors = |shape| {
            let (dropout, init) = (self.lora_dropout, self.init_lora_weights);
            Factors { shape, r, scaling, dropout, init }
        };
        let factors = match site.kind {
            SiteKind::Linear { out, input, .. } => factors([out, input]),
            SiteKind::TiedHead { rows, width } => {
                plan.add_table(site, HeadFactors(factors([rows, width])));
                return Ok(());
            }
            SiteKind::Embedding { rows, width } | SiteKind::Reader { rows, width } => {
                plan.add_table(site, TableFactors { shape: [rows, width], r, scaling });
                return Ok(());
            }
            SiteKind::Table { .. } | SiteKind::Vector { .. } => unreachable!("no target of LoRA"),
        };
        let init = self.init_lora_weights;
        init.check(site, r, scaling)?;
        if init.is_part_of_base() {
            plan.add_linear(site, PartOfBase(factors));
        } else if self.use_dora {
            plan.add_linear(site, Dora(factors));
        } else if self.lora_bias {
            plan.add_linear(site, WithBias(factors));
        } else {
            plan.add_branch(site, factors);
        }
        Ok(())
    }
}

/// The value of the first pattern that a name matches, as `peft` reads patterns: `(.*\.)?(PATTERN)$`. They are in the order
/// in which `peft` stores them: sorted. `field` is where they stand.
pub(super) fn pattern_value<T: Copy>(
    field: &'static str,
    patterns: &BTreeMap<String, T>,
    name: &str,
) -> Result<Option<T>, AdapterError> {
    for (pattern, value) in patterns {
        let is_match = match name.is_ascii() && is_literal(pattern) {
            true => ends_with_literal(name, pattern),
            false => Pattern::of_name_end(field, pattern)?.is_match(name)?,
        };
        if is_match {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// A list of ids, or one for each embedding.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIndices {
    List(Vec<usize>),
    ByEmbedding(BTreeMap<String, Vec<usize>>),
}

impl TokenIndices {
    /// T5 and Falcon have one embedding.
    fn into_vec(self) -> Vec<usize> {
        match self {
            Self::List(list) => list,
            Self::ByEmbedding(lists) => lists.into_values().next().unwrap_or_default(),
        }
    }
}

/// A number as Python writes it: whole ones without a point.
pub(super) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

impl Method for LoraConfig {
    fn about(&self) -> About<'_> {
        let combines_with =
            match self.use_dora || self.bias != LoraBias::None || !self.trainable_token_indices.is_empty() {
                true => CanCombineWith::Alone,
                false => CanCombineWith::Additive,
            };
        About { peft_type: "LORA", meta: &self.meta, targets: Some(&self.targets), combines_with }
    }

    fn can_target(&self, site: &Site) -> bool {
        site.is_linear() || site.is_embedding() || site.is_name_of_embedding()
    }

    fn validate(&self) -> Result<(), AdapterError> {
        let invalid = |field, found: String, expected| Err(AdapterError::InvalidField { field, found, expected });
        check_rank("r", self.r)?;
        if !self.lora_alpha.is_finite() {
            return invalid("lora_alpha", self.lora_alpha.to_string(), "a finite number");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return invalid("lora_dropout", self.lora_dropout.to_string(), "a probability in [0, 1)");
        }
        self.rank_pattern.values().try_for_each(|r| check_rank("rank_pattern", *r))?;
        if self.alpha_pattern.values().any(|alpha| !alpha.is_finite()) {
            return invalid("alpha_pattern", format!("{:?}", self.alpha_pattern), "finite numbers");
        }
        if self.use_dora && self.lora_bias {
            return invalid("lora_bias", "true".into(), "false, as DoRA has no place for a bias");
        }
        if self.init_lora_weights.is_part_of_base() && (self.use_dora || self.lora_bias) {
            let init = self.init_lora_weights.to_json().to_string();
            return invalid("init_lora_weights", init, "another one, where DoRA or a bias of LoRA's is used");
        }
        Ok(())
    }

    fn fields(&self) -> Map<String, Value> {
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(pattern, alpha)| (pattern.clone(), number(*alpha))).collect();
        let mut fields = fields! {
            "r": self.r,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "bias": self.bias,
            "init_lora_weights": self.init_lora_weights.to_json(),
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "lora_bias": self.lora_bias,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": alphas,
            "fan_in_fan_out": false,
        };
        if !self.trainable_token_indices.is_empty() {
            // Older versions of `peft` do not know the field, so that it is only written when it is in use.
            fields.insert("trainable_token_indices".into(), json!(self.trainable_token_indices));
        }
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, |site| self.can_target(site), model.shape.usual.lora)?;
        let part_of_base = self.init_lora_weights.is_part_of_base();
        let only_linear = self.use_dora || self.lora_bias || part_of_base;
        if let Some(site) = sites.iter().find(|site| !site.is_linear() && only_linear) {
            return Err(AdapterError::InvalidField {
                field: "target_modules",
                found: format!("such that it selects the embedding {}", site.name),
                expected: "linear layers, where DoRA, a bias of LoRA's, PiSSA or OLoRA is used",
            });
        }
        if part_of_base && self.stores_head(model)? {
            return Err(AdapterError::InvalidField {
                field: "target_modules",
                found: format!("such that it names the output head {}", model.shape.head),
                expected: "other layers, as `peft` stores the head without the part that PiSSA or OLoRA trains",
            });
        }
        let mut plan = Plan::default();
        // Copies of base weights come first, as the factors add to whatever the weights are.
        if self.stores_head(model)? {
            for site in sites.iter().filter(|site| site.name == model.shape.head) {
                match site.kind {
                    SiteKind::TiedHead { rows, width } => plan.add_table(site, OwnHead::of_base([rows, width])),
                    _ => plan.add_linear(site, Replace::base_weight(site)),
                }
            }
        }
        for site in &model.sites {
            let adapted = sites.iter().any(|adapted| adapted.name == site.name);
            match (self.bias, site.kind) {
                (LoraBias::All | LoraBias::LoraOnly, SiteKind::Linear { out, bias: true, .. }) if adapted => {
                    plan.add_linear(site, Replace::bias("base_layer.bias", out));
                }
                (LoraBias::All, SiteKind::Linear { out, bias: true, .. }) => {
                    plan.add_linear(site, Replace::bias("bias", out));
                }
                (LoraBias::All, SiteKind::Vector { .. }) if site.norm_of_bias().is_some() => {
                    plan.add_vector(site, Replace::all(site));
                }
                _ => {}
            }
        }
        for site in sites {
            self.add_to(&mut plan, site)?;
        }
        if !self.trainable_token_indices.is_empty() {
            let indices = ("trainable_token_indices", self.trainable_token_indices.as_slice());
            for site in model.sites.iter().filter(|site| site.is_embedding()) {
                plan.add_table(site, TokenRows::new(site, indices, "token_adapter.trainable_tokens_delta", &[])?);
            }
        }
        Ok(plan)
    }

    fn differences_in_peft(&self, model: &ModelOutline) -> Result<Vec<PeftDifference>, AdapterError> {
        let sites = self.targets.select(model, |site| self.can_target(site), model.shape.usual.lora)?;
        let unread = if sites.iter().any(|site| site.is_embedding()) { model.unread_embedding() } else { None };
        let has_tokens = !self.trainable_token_indices.is_empty();
        let taken = if has_tokens { model.head_taken_for_embedding() } else { None };
        Ok(unread.into_iter().chain(taken).collect())
    }

    fn check_storable(&self) -> Result<(), AdapterError> {
        match self.init_lora_weights {
            LoraInit::Pissa { iterations: Some(_) } => Err(AdapterError::NotStorable {
                field: "init_lora_weights",
                value: self.init_lora_weights.to_json().to_string(),
                remedy: "convert the adapter before it is saved, by `to_plain_lora` or in `peft` with \
                         `path_initial_model_for_weight_conversion`",
            }),
            _ => Ok(()),
        }
    }
}
