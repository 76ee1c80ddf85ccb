//! LoRA: low-rank adaptation (Hu et al., 2021), with rsLoRA (Kalajdzievski, 2023) and DoRA (Liu et al., 2024).

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sideburn_kernels::{LowRank, embedding, low_rank};

use super::checks::check_rank;
use super::lora_init::LoraInit;
use super::replace::Replace;
use super::trainable_tokens::TokenRows;
use crate::fields::{Fields, fields};
use crate::in_peft::PeftDifference;
use crate::method::{About, Common, Company, Method, Plan};
use crate::outline::{Outline, Place, PlaceKind};
use crate::pattern::{Pattern, ends_with_literal, is_literal};
use crate::rule::{Call, Init, Rule, TensorSpec, Weights};
use crate::targets::{TargetModules, Targets};
use crate::tensors::in_dtype;
use crate::{AdapterError, Pass};

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
/// use sideburn_adapters::LoraConfig;
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
    pub common: Common,
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
            common: Common::default(),
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
            common: Common::read(fields)?,
        })
    }

    /// Whether `peft` puts the base's output head into the file: it does where a target names the head.
    fn stores_head(&self, model: &Outline) -> Result<bool, AdapterError> {
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
        let elsewhere = self.bias != LoraBias::None || !self.common.modules_to_save.is_empty();
        !extra && !elsewhere && self.trainable_token_indices.is_empty()
    }

    fn rule(&self, place: &Place) -> Result<LoraRule, AdapterError> {
        let (r, scaling) = self.rank_and_scaling(&place.name)?;
        self.init_lora_weights.check(place, r, scaling)?;
        Ok(LoraRule {
            kind: place.kind,
            r,
            scaling,
            dropout: self.lora_dropout,
            init: self.init_lora_weights,
            dora: self.use_dora,
            bias: self.lora_bias,
        })
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
        let company = match self.use_dora || self.bias != LoraBias::None || !self.trainable_token_indices.is_empty() {
            true => Company::Alone,
            false => Company::Additive,
        };
        About { peft_type: "LORA", common: &self.common, targets: Some(&self.targets), company }
    }

    fn can_target(&self, place: &Place) -> bool {
        place.is_linear() || place.is_embedding()
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

    fn plan(&self, model: &Outline) -> Result<Plan, AdapterError> {
        let places = self.targets.select(model, |place| self.can_target(place), model.shape.usual.lora)?;
        let part_of_base = self.init_lora_weights.is_part_of_base();
        let only_linear = self.use_dora || self.lora_bias || part_of_base;
        if let Some(place) = places.iter().find(|place| place.is_embedding() && only_linear) {
            return Err(AdapterError::InvalidField {
                field: "target_modules",
                found: format!("such that it selects the embedding {}", place.name),
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
            for place in places.iter().filter(|place| place.name == model.shape.head) {
                plan.add(place, Replace::base_weight(place));
            }
        }
        for place in &model.places {
            let adapted = places.iter().any(|adapted| adapted.name == place.name);
            match (self.bias, place.kind) {
                (LoraBias::All | LoraBias::LoraOnly, PlaceKind::Linear { out, bias: true, .. }) if adapted => {
                    plan.add(place, Replace::bias("base_layer.bias", out));
                }
                (LoraBias::All, PlaceKind::Linear { out, bias: true, .. }) => {
                    plan.add(place, Replace::bias("bias", out));
                }
                _ => {}
            }
        }
        for place in places {
            plan.add(place, self.rule(place)?);
        }
        if !self.trainable_token_indices.is_empty() {
            let indices = &self.trainable_token_indices;
            for place in model.places.iter().filter(|place| place.is_embedding()) {
                plan.add(place, TokenRows::new(place, indices, "token_adapter.trainable_tokens_delta", &[])?);
            }
        }
        Ok(plan)
    }

    fn differences_in_peft(&self, model: &Outline) -> Result<Vec<PeftDifference>, AdapterError> {
        let places = self.targets.select(model, |place| self.can_target(place), model.shape.usual.lora)?;
        let unread = if places.iter().any(|place| place.is_embedding()) { model.unread_embedding() } else { None };
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

/// The factors at one place.
///
/// At a linear layer `lora_A [r, in]` and `lora_B [out, r]`: `y + s (dropout(x) A^T) B^T`. At an embedding
/// `lora_embedding_A [r, rows]` and `lora_embedding_B [width, r]`: the table `W + s (B A)^T`. Neither is ever formed.
///
/// Factors that begin as a part of the base weight have frozen copies of their first values `A_0`, `B_0`, which take it out
/// of the base: `y - s (x A_0^T) B_0^T + s (dropout(x) A^T) B^T`.
///
/// DoRA's magnitude `m [out]`, by default the norms of the rows of `W`, makes of this `W' = m (W + s B A) / |W + s B A|`
/// with the norm of each row, through which no gradient goes (section 4.3 of the paper).
#[derive(Clone, Debug)]
struct LoraRule {
    kind: PlaceKind,
    r: usize,
    scaling: f64,
    dropout: f64,
    init: LoraInit,
    dora: bool,
    bias: bool,
}

impl LoraRule {
    /// The norms of the rows of `W + s B A`, `[1, out]`, without forming it or letting a gradient through:
    /// `|w + s b A|^2 = |w|^2 + 2 s b (W A^T) + s^2 b (A A^T) b^T` for a row `w` of `W` and the row `b` of `B`.
    fn norms(&self, weight: &Tensor<2>, a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
        let (weight, a, b) = (weight.clone().detach(), a.clone().detach(), b.clone().detach());
        let own = weight.clone().square().sum_dim(1);
        let mixed = weight.matmul(a.clone().transpose()).mul(b.clone()).sum_dim(1).mul_scalar(2.0 * self.scaling);
        let delta = b.clone().matmul(a.clone().matmul(a.transpose())).mul(b).sum_dim(1);
        // Rounding can leave a little less than nothing of a row that the factors cancel.
        (own + mixed + delta.mul_scalar(self.scaling * self.scaling)).clamp_min(0.0).sqrt().transpose()
    }

    /// What DoRA multiplies each row by, `[1, out]`: `m / |W + s B A|`, and 1 for a row of zeros, which has no direction.
    /// A row that is zero in the base alone gets one as soon as `B` moves.
    fn gain(&self, weight: &Tensor<2>, [a, b, magnitude]: [&Tensor<2>; 3]) -> Tensor<2> {
        let norms = self.norms(weight, a, b);
        let is_zero = norms.clone().equal_elem(0.0);
        (magnitude.clone() / norms.mask_fill(is_zero.clone(), 1.0)).mask_fill(is_zero, 1.0)
    }

    /// What the factors began as, if that is a part of the base.
    fn initial(&self, own: &[Tensor<2>]) -> Option<[Tensor<2>; 2]> {
        self.init.is_part_of_base().then(|| [own[2].clone(), own[3].clone()])
    }

    /// `W + s B A`, or for an embedding `W + s (B A)^T`.
    fn merged(&self, weight: Tensor<2>, a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
        let delta = b.clone().matmul(a.clone()).mul_scalar(self.scaling);
        let delta = if matches!(self.kind, PlaceKind::Embedding { .. }) { delta.transpose() } else { delta };
        weight + delta
    }
}

impl Rule for LoraRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let r = self.r;
        if let PlaceKind::Embedding { rows, width } = self.kind {
            return vec![
                TensorSpec::new("lora_embedding_A", [r, rows], Init::Zeros),
                TensorSpec::new("lora_embedding_B", [width, r], Init::Normal(1.0)),
            ];
        }
        let PlaceKind::Linear { out, input, .. } = self.kind else { unreachable!("no target of LoRA") };
        let mut tensors = self.init.tensors([out, input], r, self.scaling);
        if self.bias {
            tensors.push(TensorSpec::new("lora_B.bias", [out], Init::Zeros));
        }
        if self.dora {
            let norms = |base: Weights| base.weight.square().sum_dim(1).sqrt().transpose();
            tensors.push(TensorSpec::new("lora_magnitude_vector", [out], Init::from_base(norms)));
        }
        tensors
    }

    fn output(&self, y: Tensor<2>, call: &Call<'_>, own: &[Tensor<2>], pass: &mut Pass) -> Tensor<2> {
        let [a, b] = [own[0].clone(), own[1].clone()];
        let outer = y.dtype();
        let x = in_dtype(call.x.clone(), a.dtype());
        let dropout = pass.next_dropout(self.dropout);
        if !self.dora {
            let mut delta = low_rank(x.clone(), a, b, self.scaling, dropout);
            if let Some([a, b]) = self.initial(own) {
                // It makes the base what is left of it, of which nothing is dropped.
                delta = delta - low_rank(x, a, b, self.scaling, None);
            }
            if self.bias {
                delta = delta + own[2].clone().mul_scalar(self.scaling);
            }
            return y + in_dtype(delta, outer);
        }
        let Weights { weight, bias } = call.weights.clone();
        let weight = in_dtype(weight, a.dtype());
        let gain = self.gain(&weight, [&a, &b, &own[2]]);
        if dropout.is_none() {
            let y = in_dtype(y, a.dtype());
            let (bare, bias) = match bias {
                Some(bias) => (y - bias.clone(), Some(bias)),
                None => (y, None),
            };
            let scaled = (bare + low_rank(x, a, b, self.scaling, None)) * gain;
            return in_dtype(bias.into_iter().fold(scaled, |y, bias| y + bias), outer);
        }
        let x = sideburn_kernels::dropout(x, dropout);
        let bare = x.clone().matmul(weight.transpose());
        let delta = bare * gain.clone().sub_scalar(1.0) + low_rank(x, a, b, self.scaling, None) * gain;
        y + in_dtype(delta, outer)
    }

    fn low_rank(&self, own: &[Tensor<2>], pass: &mut Pass) -> Option<LowRank> {
        if self.dora || self.bias || self.init.is_part_of_base() {
            return None;
        }
        let dropout = pass.next_dropout(self.dropout);
        Some(LowRank { a: own[0].clone(), b: own[1].clone(), scale: self.scaling, dropout, rows: None })
    }

    fn rows(&self, rows: Tensor<2>, ids: &Tensor<1, Int>, own: &[Tensor<2>]) -> Tensor<2> {
        let picked = embedding(own[0].clone().transpose(), ids.clone());
        let delta = picked.matmul(own[1].clone().transpose()).mul_scalar(self.scaling);
        let outer = rows.dtype();
        rows + in_dtype(delta, outer)
    }

    fn scores(&self, scores: Tensor<2>, x: &Tensor<2>, own: &[Tensor<2>]) -> Tensor<2> {
        let outer = scores.dtype();
        let x = in_dtype(x.clone(), own[0].dtype());
        let delta = low_rank(x, own[1].clone().transpose(), own[0].clone().transpose(), self.scaling, None);
        scores + in_dtype(delta, outer)
    }

    fn merge(&self, base: Weights, own: &[Tensor<2>]) -> Result<Weights, &'static str> {
        let (a, b) = (&own[0], &own[1]);
        let mut weight = self.merged(base.weight.clone(), a, b);
        if let Some([a, b]) = self.initial(own) {
            weight = self.merged(weight, &a, &b.neg());
        }
        if self.dora {
            weight = weight * self.gain(&base.weight, [a, b, &own[2]]).transpose();
        }
        let bias = match (self.bias, base.bias) {
            (true, None) => return Err("the layer has no bias to take up that of `lora_bias`"),
            (true, Some(bias)) => Some(bias + own[2].clone().mul_scalar(self.scaling)),
            (false, bias) => bias,
        };
        Ok(Weights { weight, bias })
    }
}

#[cfg(test)]
mod tests {
    use sideburn_kernels::Key;

    use super::super::testing::{assert_merged_as_computed, random};
    use super::*;

    #[test]
    fn what_is_left_of_the_base_sees_no_dropout() {
        let config =
            LoraConfig { r: 2, lora_dropout: 0.5, init_lora_weights: LoraInit::Olora, ..LoraConfig::new(["q"]) };
        let rule = config.rule(&Place::of("q", [5, 7])).unwrap();
        assert_merged_as_computed(&rule, [5, 7]);

        let own = [[2, 7], [5, 2], [2, 7], [5, 2]].map(|dims| random(dims, 1.0, dims[0] as u64));
        let (x, y, weights) = (random([4, 7], 1.0, 3), random([4, 5], 1.0, 4), random([5, 7], 1.0, 5));
        let call = Call { x: &x, weights: &Weights { weight: weights, bias: None } };
        let pass = || Pass::train(Key::from_seed(6));
        let found = rule.output(y.clone(), &call, &own, &mut pass());
        let [a, b, first_a, first_b] = own;
        let trained = low_rank(x.clone(), a, b, rule.scaling, pass().next_dropout(0.5));
        let expected = y + (trained - low_rank(x.clone(), first_a, first_b, rule.scaling, None));
        assert_eq!((found - expected).abs().max().into_scalar::<f32>(), 0.0);
    }
}
