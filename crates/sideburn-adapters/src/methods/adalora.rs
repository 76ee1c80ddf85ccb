//! AdaLoRA: low-rank adaptation that spends its ranks where they matter most (Zhang et al., 2023).

use std::collections::BTreeMap;

use burn::tensor::{Bool, DType, Tensor, TensorData};
use serde_json::{Map, Value, json};
use sideburn_kernels::low_rank;

use super::lora::number;
use super::{check, check_finite, check_probability, check_rank};
use crate::fields::Fields;
use crate::method::{Common, Company, Method, Outline, Place, Plan};
use crate::rule::{Call, Init, Rule, TensorSpec, Weights};
use crate::targets::Targets;
use crate::tensors::in_dtype;
use crate::{AdaptedModel, AdapterError, Pass, adapter_tensors};

/// What to adapt and how; the fields are named as in `peft.AdaLoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaLoraConfig {
    /// The rank of every layer to begin with.
    pub init_r: usize,
    /// The mean rank of the layers in the end.
    pub target_r: usize,
    /// The numerator of the scaling `lora_alpha / init_r`.
    pub lora_alpha: f64,
    /// The probability with which an element of the branch's input is dropped in training.
    pub lora_dropout: f64,
    /// The last step of training before ranks are taken away.
    pub tinit: usize,
    /// The steps that are left once the last ranks have been taken away.
    pub tfinal: usize,
    /// `deltaT`: ranks are taken away at multiples of this many steps.
    pub delta_t: usize,
    /// How slowly the mean sensitivity of elements changes.
    pub beta1: f64,
    /// How slowly the mean uncertainty of elements changes.
    pub beta2: f64,
    /// The weight of [`adalora_regularisation`] in the loss.
    pub orth_reg_weight: f64,
    /// The steps of training.
    pub total_step: usize,
    /// For layers that have lost ranks, by their names, which of the first ones they still have.
    pub rank_pattern: BTreeMap<String, Vec<bool>>,
    /// Which layers are adapted.
    pub targets: Targets,
    /// The fields that every method has.
    pub common: Common,
}

/// What follows the name of a layer in `rank_pattern`.
const RANKS: &str = ".lora_E";

impl AdaLoraConfig {
    /// `peft`'s defaults, for this many steps of training.
    pub fn new(targets: impl Into<Targets>, total_step: usize) -> Self {
        Self {
            init_r: 12,
            target_r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step,
            rank_pattern: BTreeMap::new(),
            targets: targets.into(),
            common: Common::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        fields.only("bias", "none")?;
        // AdaLoRA has these from LoRA, and `peft` does not use them.
        for unused in ["r", "alpha_pattern", "use_rslora", "fan_in_fan_out"] {
            fields.ignore(unused);
        }
        fields.ignore("init_lora_weights"); // How the factors begin is past.
        let defaults = Self::new(Targets::read(fields)?, fields.required("total_step", "a number of steps")?);
        let steps =
            |name, default| Ok::<_, AdapterError>(fields.optional(name, "a number of steps")?.unwrap_or(default));
        let float = |name, default| Ok::<_, AdapterError>(fields.optional(name, "a number")?.unwrap_or(default));
        let pattern: Option<BTreeMap<String, Vec<bool>>> =
            fields.optional("rank_pattern", "lists of booleans by layer")?;
        let layer = |(name, kept): (String, Vec<bool>)| match name.strip_suffix(RANKS) {
            Some(layer) => Ok((layer.to_owned(), kept)),
            None => Err(AdapterError::InvalidField {
                field: "rank_pattern",
                found: format!("such that it names {name:?}"),
                expected: "names of layers, each followed by `.lora_E`",
            }),
        };
        Ok(Self {
            init_r: fields.optional("init_r", "a rank of at least 1")?.unwrap_or(defaults.init_r),
            target_r: fields.optional("target_r", "a rank of at least 1")?.unwrap_or(defaults.target_r),
            lora_alpha: float("lora_alpha", defaults.lora_alpha)?,
            lora_dropout: float("lora_dropout", defaults.lora_dropout)?,
            tinit: steps("tinit", defaults.tinit)?,
            tfinal: steps("tfinal", defaults.tfinal)?,
            delta_t: steps("deltaT", defaults.delta_t)?,
            beta1: float("beta1", defaults.beta1)?,
            beta2: float("beta2", defaults.beta2)?,
            orth_reg_weight: float("orth_reg_weight", defaults.orth_reg_weight)?,
            rank_pattern: pattern.into_iter().flatten().map(layer).collect::<Result<_, _>>()?,
            common: Common::read(fields)?,
            ..defaults
        })
    }

    /// The step at which the last ranks are taken away.
    fn last_cut(&self) -> usize {
        self.total_step - self.tfinal
    }

    /// How many of `first` ranks may be left after a step, in the end `target`, if some are taken away then.
    fn budget(&self, step: usize, first: usize, target: usize) -> Option<usize> {
        let is_due = step == self.last_cut() || step.is_multiple_of(self.delta_t);
        if !is_due || step <= self.tinit || step > self.last_cut() {
            return None;
        }
        let left = 1.0 - (step - self.tinit) as f64 / (self.last_cut() - self.tinit) as f64;
        Some(((first as f64 - target as f64) * left.powf(3.0) + target as f64) as usize)
    }
}

impl Method for AdaLoraConfig {
    fn peft_type(&self) -> &'static str {
        "ADALORA"
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn targets(&self) -> Option<&Targets> {
        Some(&self.targets)
    }

    fn validate(&self) -> Result<(), AdapterError> {
        check_rank("init_r", self.init_r)?;
        check_rank("target_r", self.target_r)?;
        check_probability("lora_dropout", self.lora_dropout)?;
        check("lora_alpha", self.lora_alpha, self.lora_alpha > 0.0 && self.lora_alpha.is_finite(), "a number above 0")?;
        check("deltaT", self.delta_t, self.delta_t > 0, "a number of steps of at least 1")?;
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            check(field, beta, beta > 0.0 && beta < 1.0, "a number between 0 and 1")?;
        }
        check_finite("orth_reg_weight", self.orth_reg_weight)?;
        check("orth_reg_weight", self.orth_reg_weight, self.orth_reg_weight >= 0.0, "a number of at least 0")?;
        let rest = self.total_step.checked_sub(self.tfinal).and_then(|last| last.checked_sub(self.tinit));
        check(
            "total_step",
            self.total_step,
            rest.is_some_and(|rest| rest > 0),
            "more than `tinit` and `tfinal` together",
        )?;
        let is_whole = self.rank_pattern.values().all(|kept| kept.len() == self.init_r);
        check(
            "rank_pattern",
            format!("{:?}", self.rank_pattern),
            is_whole,
            "as many booleans for each layer as `init_r`",
        )
    }

    fn fields(&self) -> Map<String, Value> {
        let ranks: Map<String, Value> =
            self.rank_pattern.iter().map(|(layer, kept)| (format!("{layer}{RANKS}"), json!(kept))).collect();
        let Value::Object(mut fields) = json!({
            "r": 8,
            "init_r": self.init_r,
            "target_r": self.target_r,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "tinit": self.tinit,
            "tfinal": self.tfinal,
            "deltaT": self.delta_t,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "orth_reg_weight": self.orth_reg_weight,
            "total_step": self.total_step,
            "rank_pattern": (!ranks.is_empty()).then_some(ranks),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
        }) else {
            unreachable!("an object")
        };
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &Outline) -> Result<Plan, AdapterError> {
        let usual: Option<&[&str]> = match model.shape.model_type {
            "t5" => Some(&["q", "k", "v", "o", "wi", "wo"]),
            _ => None,
        };
        let places = self.targets.select(model, Place::is_linear, usual)?;
        let is_adapted = |layer: &&String| places.iter().any(|place| place.name == **layer);
        if let Some(stranger) = self.rank_pattern.keys().find(|layer| !is_adapted(layer)) {
            let (field, found) = ("rank_pattern", format!("such that it names {stranger:?}"));
            return Err(AdapterError::InvalidField { field, found, expected: "names of layers that are adapted" });
        }
        Plan::of(places, |place| {
            let kept = |kept: &Vec<bool>| kept.iter().filter(|kept| **kept).count();
            let r = self.rank_pattern.get(&place.name).map_or(self.init_r, kept);
            let scaling = self.lora_alpha / (self.init_r as f64 + 1e-5);
            Ok(AdaLoraRule { shape: place.linear(), r, scaling, dropout: self.lora_dropout })
        })
    }

    fn company(&self) -> Company {
        Company::Additive
    }
}

/// An update in the form of a singular value decomposition, with the vectors `lora_A [r, in]` and `lora_B [out, r]` and the
/// values `lora_E [r, 1]`: `y + s ((dropout(x) A^T) * E^T) B^T`, where `s = lora_alpha / (init_r + 1e-5)`.
///
/// The vectors are orthogonal as far as [`adalora_regularisation`] makes them so. A layer can lose ranks, even all of them;
/// the scaling stays.
#[derive(Clone, Debug)]
struct AdaLoraRule {
    shape: [usize; 2],
    r: usize,
    scaling: f64,
    dropout: f64,
}

impl Rule for AdaLoraRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let ([out, input], r) = (self.shape, self.r);
        vec![
            TensorSpec::new("lora_A", [r, input], Init::Normal(0.02)),
            TensorSpec::new("lora_B", [out, r], Init::Normal(0.02)),
            TensorSpec::new("lora_E", [r, 1], Init::Zeros),
        ]
    }

    fn output(&self, y: Tensor<2>, call: &Call<'_>, own: &[Tensor<2>], pass: &mut Pass) -> Tensor<2> {
        let dropout = pass.next_dropout(self.dropout);
        if self.r == 0 {
            return y;
        }
        let (outer, [a, b, e]) = (y.dtype(), [0, 1, 2].map(|index| own[index].clone()));
        let x = in_dtype(call.x.clone(), a.dtype());
        y + in_dtype(low_rank(x, a * e, b, self.scaling, dropout), outer)
    }

    fn merge(&self, base: Weights, own: &[Tensor<2>]) -> Result<Weights, &'static str> {
        if self.r == 0 {
            return Ok(base);
        }
        let [a, b, e] = [0, 1, 2].map(|index| own[index].clone());
        let delta = b.matmul(a * e).mul_scalar(self.scaling);
        Ok(Weights { weight: in_dtype(base.weight, delta.dtype()) + delta, ..base })
    }
}

/// What `peft` adds to the loss in training with AdaLoRA, to keep the singular vectors orthogonal: `orth_reg_weight` times
/// the mean, over the `A` and `B` of all layers, of the norms `|A A^T - 1|` and `|B^T B - 1|`.
///
/// It is a function of the adapter alone, to be added once for each step. `None` if the model has no AdaLoRA adapter of
/// that name, or one that has lost all its ranks.
pub fn adalora_regularisation<M: AdaptedModel>(model: &M, name: &str) -> Option<Tensor<1>> {
    let method = model.adapters().get(name).ok()?.method();
    let weight = method.downcast_ref::<AdaLoraConfig>()?.orth_reg_weight;
    let (mut norms, mut factors) = (Vec::new(), 0);
    for (tensor, param) in adapter_tensors(model, name).ok()? {
        let rows = match tensor.rsplit('.').next() {
            Some("lora_A") => param.val(),
            Some("lora_B") => param.val().transpose(),
            _ => continue,
        };
        factors += 1;
        let [r, _] = rows.dims();
        if r > 0 {
            let one = in_dtype(Tensor::eye(r, &rows.device()), rows.dtype());
            let difference = rows.clone().matmul(rows.transpose()) - one;
            // The root of zero has no derivative.
            norms.push(difference.square().sum().add_scalar(1e-30).sqrt());
        }
    }
    Some(norms.into_iter().reduce(|sum, norm| sum + norm)?.mul_scalar(weight / f64::from(factors)))
}

/// Takes ranks away in training, the least important first, as `peft`'s class of that name does.
///
/// Of an element `w` with the gradient `g`, the sensitivity `|w g|` is averaged over steps (`I`, with `beta1`), and so is
/// its distance from that average (`U`, with `beta2`); the score of the element is `I U`. The score of rank `k` of a layer
/// is that of `E[k]`, and the means of those of `A[k, :]` and of `B[:, k]`. Between the steps `tinit` and
/// `total_step - tfinal` the number of ranks falls from all to `target_r` for each layer, as the cube of the time left;
/// what is taken away becomes zero in `E`, and may come back until the last cut.
#[derive(Clone, Debug)]
pub struct RankAllocator {
    config: AdaLoraConfig,
    scores: BTreeMap<String, [Smoothed; 3]>,
    kept: BTreeMap<String, Vec<bool>>,
}

/// The tensors of AdaLoRA at one layer, each with its gradient.
#[derive(Clone, Debug)]
pub struct Triplets {
    /// `lora_A`.
    pub a: (Tensor<2>, Tensor<2>),
    /// `lora_B`.
    pub b: (Tensor<2>, Tensor<2>),
    /// `lora_E`.
    pub e: (Tensor<2>, Tensor<2>),
}

/// Averages over steps of the sensitivity of each element of a tensor, and of its distance from that average.
#[derive(Clone, Debug)]
struct Smoothed {
    sensitivity: Tensor<2>,
    uncertainty: Tensor<2>,
}

impl Smoothed {
    fn new(like: &Tensor<2>) -> Self {
        let zeros = like.clone().inner().zeros_like();
        Self { sensitivity: zeros.clone(), uncertainty: zeros }
    }

    fn update(&mut self, (value, gradient): &(Tensor<2>, Tensor<2>), config: &AdaLoraConfig) {
        let smooth = |mean: &Tensor<2>, new: Tensor<2>, beta: f64| mean.clone() * beta + new * (1.0 - beta);
        let now = (value.clone().inner() * gradient.clone().inner()).abs();
        self.sensitivity = smooth(&self.sensitivity, now.clone(), config.beta1);
        let distance = (now - self.sensitivity.clone()).abs();
        self.uncertainty = smooth(&self.uncertainty, distance, config.beta2);
    }

    fn score(&self) -> Tensor<2> {
        self.sensitivity.clone() * self.uncertainty.clone()
    }
}

impl RankAllocator {
    /// For training with this configuration.
    ///
    /// # Errors
    /// If it means nothing.
    pub fn new(config: &AdaLoraConfig) -> Result<Self, AdapterError> {
        config.validate()?;
        Ok(Self { config: config.clone(), scores: BTreeMap::new(), kept: BTreeMap::new() })
    }

    /// To be called after the update of every step, counted from 0, with the updated tensors of all layers, by name, and
    /// the gradients that they were updated with. Returns what must now stand in `lora_E` of some of the layers.
    ///
    /// # Panics
    /// If the tensors of a layer have other shapes than at the step before.
    pub fn update(&mut self, step: usize, layers: &BTreeMap<String, Triplets>) -> BTreeMap<String, Tensor<2>> {
        let last_cut = self.config.last_cut();
        if step < last_cut {
            for (layer, Triplets { a, b, e }) in layers {
                let begin = || [a, b, e].map(|(value, _)| Smoothed::new(value));
                let scores = self.scores.entry(layer.clone()).or_insert_with(begin);
                scores.iter_mut().zip([a, b, e]).for_each(|(score, tensor)| score.update(tensor, &self.config));
            }
        }
        let first = layers.values().map(|layer| layer.e.0.dims()[0]).sum();
        match self.config.budget(step, first, self.config.target_r * layers.len()) {
            Some(budget) => self.cut(budget),
            None if step <= last_cut => return BTreeMap::new(),
            None => {}
        }
        if step >= last_cut {
            self.scores.clear();
        }
        let masked = |(layer, kept): (&String, &Vec<bool>)| {
            let e = layers.get(layer)?.e.0.clone().inner();
            let lost: Vec<bool> = kept.iter().map(|kept| !kept).collect();
            let lost = Tensor::<2, Bool>::from_data(TensorData::new(lost, [kept.len(), 1]), &e.device());
            Some((layer.clone(), e.mask_fill(lost, 0.0)))
        };
        self.kept.iter().filter_map(masked).collect()
    }

    /// Keeps the `budget` ranks of the highest scores, and fewer if there are equal ones.
    fn cut(&mut self, budget: usize) {
        let scores: BTreeMap<&String, Vec<f32>> =
            self.scores.iter().map(|(layer, scores)| (layer, ranked(scores))).collect();
        let mut sorted: Vec<f32> = scores.values().flatten().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let highest_lost = sorted.len().checked_sub(budget + 1).map(|index| sorted[index]);
        let is_kept = |score: &f32| highest_lost.is_none_or(|lost| *score > lost);
        self.kept =
            scores.into_iter().map(|(layer, scores)| (layer.clone(), scores.iter().map(is_kept).collect())).collect();
    }

    /// Which ranks are left: the `rank_pattern` of an adapter that holds only those.
    pub fn rank_pattern(&self) -> &BTreeMap<String, Vec<bool>> {
        &self.kept
    }
}

/// The score of each rank of a layer.
fn ranked([a, b, e]: &[Smoothed; 3]) -> Vec<f32> {
    let scores = e.score() + (a.score().mean_dim(1) + b.score().mean_dim(0).transpose());
    scores.cast(DType::F32).into_data().try_into_vec().expect("scores that were cast to f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::tests::assert_merged_as_computed;

    fn config() -> AdaLoraConfig {
        AdaLoraConfig { init_r: 4, target_r: 2, tinit: 2, tfinal: 5, ..AdaLoraConfig::new(["q"], 20) }
    }

    #[test]
    fn with_and_without_ranks() {
        for r in [0, 1, 3] {
            assert_merged_as_computed(&AdaLoraRule { shape: [7, 5], r, scaling: 2.0, dropout: 0.0 }, [7, 5]);
        }
    }

    /// The ranks that `peft` leaves of 16, step by step, in the golden trajectory.
    #[test]
    fn the_budget_falls_as_the_cube_of_the_time_left() {
        let budgets = |config: &AdaLoraConfig| (0..20).map(|step| config.budget(step, 16, 8)).collect::<Vec<_>>();
        let expected = [14, 12, 11, 10, 9, 9, 8, 8, 8, 8, 8, 8, 8];
        let expected = [None; 3].into_iter().chain(expected.map(Some)).chain([None; 4]);
        assert_eq!(budgets(&config()), expected.collect::<Vec<_>>());
        let expected =
            (0..20).map(|step| [(5, 11), (10, 8), (15, 8)].into_iter().find(|due| due.0 == step).map(|due| due.1));
        assert_eq!(budgets(&AdaLoraConfig { delta_t: 5, ..config() }), expected.collect::<Vec<_>>());
    }

    /// One layer of two ranks, with numbers small enough to follow by hand.
    #[test]
    fn the_least_important_rank_goes_first() {
        let tensor = |values: [f32; 2], dims: [usize; 2]| {
            Tensor::<1>::from_floats(values, &burn::tensor::Device::flex()).reshape(dims)
        };
        let layers = |e: [f32; 2]| {
            let [a, b] = [[2, 1], [1, 2]].map(|dims| (tensor([1.0, 1.0], dims), tensor([0.5, -0.5], dims)));
            BTreeMap::from([("q".to_owned(), Triplets { a, b, e: (tensor(e, [2, 1]), tensor([1.0, 1.0], [2, 1])) })])
        };
        let config = AdaLoraConfig { init_r: 2, target_r: 1, tinit: 1, tfinal: 1, ..AdaLoraConfig::new(["q"], 4) };
        let mut allocator = RankAllocator::new(&config).unwrap();
        assert!(allocator.update(0, &layers([3.0, -2.0])).is_empty());
        assert!(allocator.update(1, &layers([3.0, -2.0])).is_empty() && allocator.rank_pattern().is_empty());
        let masked = allocator.update(2, &layers([-2.0, 3.0]));
        assert_eq!(allocator.rank_pattern()["q"], [true, false], "it mattered for longer");
        let values =
            |masked: BTreeMap<String, Tensor<2>>| -> Vec<f32> { masked["q"].to_data().try_into_vec().unwrap() };
        assert_eq!(values(masked), [-2.0, 0.0]);
        allocator.update(3, &layers([1.0, 1.0]));
        assert_eq!(values(allocator.update(4, &layers([4.0, 5.0]))), [4.0, 0.0], "lost for good");
    }
}
