//! New adapters made of others.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use sideburn_kernels::Key;

use crate::AdapterError;
use crate::attach::add;
use crate::linalg::Svd;
use crate::methods::{LoraConfig, LoraInit, check_rank};
use crate::model::AdaptedModel;
use crate::model_slots::{slots_of, try_each_slot};
use crate::targets::TargetModules;
use crate::tensors::param_like;

/// How several adapters become one; `combination_type` of `peft`.
///
/// Adapter `i` has at a site the factors `A_i` and `B_i`, and `s_i` is its weight there times its scaling. The update
/// that the adapters make together, `sum s_i B_i A_i`, is kept by `Cat` alone. The others but `Svd` add up the factors:
/// `A = sum sign(s_i) sqrt|s_i| A_i` and `B = sum sqrt|s_i| B_i`, so that `B A` has products of factors of different
/// adapters in it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Combination {
    /// The factors as they are.
    Linear,
    /// `A = [s_1 A_1; s_2 A_2; ...]` and `B = [B_1, B_2, ...]`: the exact update, of as high a rank as all have together.
    Cat,
    /// The nearest to the exact update that has this rank, or the largest rank of the adapters.
    Svd {
        /// The rank of the new adapter.
        rank: Option<usize>,
    },
    /// TIES (Yadav et al., 2023): of each factor the elements of the largest magnitude; the sign of an element is that of
    /// its sum, and the mean is taken of those that have this sign.
    Ties {
        /// The share of elements that are kept.
        density: f64,
    },
    /// DARE (Yu et al., 2023): elements dropped at random, the others divided by the density.
    DareLinear {
        /// The share of elements that are kept.
        density: f64,
        /// What they are drawn with.
        key: Key,
    },
    /// Elements dropped as in DARE, and signs elected as in TIES.
    DareTies {
        /// The share of elements that are kept.
        density: f64,
        /// What they are drawn with.
        key: Key,
    },
    /// Of each factor the elements of the largest magnitude.
    MagnitudePrune {
        /// The share of elements that are kept.
        density: f64,
    },
}

/// The factors `A [r, in]` and `B [out, r]` at a site.
type Factors = [Tensor<2>; 2];

/// What one adapter has at a site.
struct Part<'a> {
    adapter: &'a str,
    factors: Factors,
    scale: f64,
}

/// [`Adapters::combine`](crate::Adapters::combine), on a copy of the model.
pub(crate) fn combine(
    model: &mut dyn AdaptedModel,
    name: &str,
    adapters: &[(&str, f64)],
    how: Combination,
) -> Result<(), AdapterError> {
    how.validate()?;
    let mut sites = BTreeMap::<String, Vec<Part<'_>>>::new();
    let (mut configs, mut ranks) = (Vec::new(), Vec::new());
    for (index, (adapter, weight)) in adapters.iter().enumerate() {
        if adapters[..index].iter().any(|(earlier, _)| earlier == adapter) {
            return Err(not_combinable(adapter, "it is named twice; add up its weights"));
        }
        if !weight.is_finite() {
            return Err(not_combinable(adapter, format!("its weight is {weight}; give a finite one")));
        }
        if !model.adapters().get(adapter)?.carried().is_empty() {
            return Err(not_combinable(adapter, "it has an embedding of its own; merge it into the base instead"));
        }
        let (config, factors) = (config(model, adapter)?, factors(model, adapter)?);
        configs.push(config);
        ranks.push(factors.values().map(rank).max().unwrap_or(0));
        for (site, factors) in factors {
            let scale = weight * config.rank_and_scaling(&site)?.1;
            sites.entry(site).or_default().push(Part { adapter, factors, scale });
        }
    }
    let Some(first) = configs.first() else {
        let (found, expected) = ("none".into(), "at least one adapter");
        return Err(AdapterError::InvalidField { field: "adapters", found, expected });
    };
    let r = match how {
        Combination::Cat => ranks.into_iter().sum(),
        Combination::Svd { rank: Some(rank) } => rank,
        _ => ranks.into_iter().max().unwrap_or(0),
    };
    let mut combined = BTreeMap::new();
    for (site, parts) in &sites {
        let factors = how.factors(site, parts, r)?;
        if !factors.iter().all(|factor| factor.clone().is_finite().all().into_scalar::<bool>()) {
            let reason = format!("{site} would not be finite; check all tensors and weights for NaN and infinity");
            return Err(not_combinable(parts[0].adapter, reason));
        }
        combined.insert(site.clone(), factors);
    }
    let config = LoraConfig {
        r,
        lora_alpha: r as f64,
        lora_dropout: first.lora_dropout,
        meta: first.meta.clone(),
        ..LoraConfig::new(TargetModules::Names(sites.into_keys().collect()))
    };
    attach_factors(model, name, config, &combined)
}

/// [`Adapters::to_plain_lora`](crate::Adapters::to_plain_lora), on a copy of the model.
pub(crate) fn to_plain_lora(model: &mut dyn AdaptedModel, adapter: &str, name: &str) -> Result<(), AdapterError> {
    let config = config(model, adapter)?;
    if !config.init_lora_weights.is_part_of_base() {
        return Err(not_combinable(adapter, "it is plain LoRA already"));
    }
    let factors = factors(model, adapter)?;
    // Such that the scaling stays.
    let times = if config.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
    let plain = LoraConfig {
        r: 2 * config.r,
        lora_alpha: times * config.lora_alpha,
        rank_pattern: config.rank_pattern.iter().map(|(pattern, r)| (pattern.clone(), 2 * r)).collect(),
        alpha_pattern: config.alpha_pattern.iter().map(|(pattern, alpha)| (pattern.clone(), times * alpha)).collect(),
        init_lora_weights: LoraInit::Default,
        ..config.clone()
    };
    attach_factors(model, name, plain, &factors)
}

impl Combination {
    fn validate(self) -> Result<(), AdapterError> {
        let invalid = |field, found: String, expected| Err(AdapterError::InvalidField { field, found, expected });
        match (self, self.density_and_key()) {
            (Self::Svd { rank: Some(rank) }, _) => check_rank("svd_rank", rank),
            (_, Some((density, _))) if !(density > 0.0 && density <= 1.0) => {
                invalid("density", density.to_string(), "a share in (0, 1]")
            }
            _ => Ok(()),
        }
    }

    /// The share of elements that are kept, and what they are drawn with if they are.
    fn density_and_key(self) -> Option<(f64, Option<Key>)> {
        match self {
            Self::Linear | Self::Cat | Self::Svd { .. } => None,
            Self::Ties { density } | Self::MagnitudePrune { density } => Some((density, None)),
            Self::DareLinear { density, key } | Self::DareTies { density, key } => Some((density, Some(key))),
        }
    }

    /// The new factors at a site, of rank `r`.
    fn factors(self, site: &str, parts: &[Part<'_>], r: usize) -> Result<Factors, AdapterError> {
        let [a, b] = match self {
            Self::Cat => stacked(parts),
            Self::Svd { .. } => {
                let [a, b] = stacked(parts);
                let Svd { u, s, vt } = Svd::of_product(b, a).leading(r);
                [vt, u * s].map(|factor| factor.cast(DType::F32))
            }
            _ => {
                check_ranks(site, parts)?;
                [self.sum(site, parts, 0), self.sum(site, parts, 1)]
            }
        };
        Ok([padded(a, 0, r), padded(b, 1, r)])
    }

    /// The weighted sum of one factor of all parts, the `index`th.
    fn sum(self, site: &str, parts: &[Part<'_>], index: usize) -> Tensor<2> {
        let thinned = |part: &Part<'_>| {
            let tensor = part.factors[index].clone();
            match self.density_and_key() {
                None => tensor,
                Some((density, None)) => pruned(tensor, density),
                Some((density, Some(key))) => {
                    dropped(tensor, density, key.fold_in_name(site).fold_in_name(part.adapter).fold_in(index as u64))
                }
            }
        };
        let weight = |part: &Part<'_>| part.scale.abs().sqrt() * if index == 0 { part.scale.signum() } else { 1.0 };
        let add = |terms: Vec<Tensor<2>>| terms.into_iter().reduce(|sum, term| sum + term).expect("a part at least");
        let tensors: Vec<Tensor<2>> = parts.iter().map(thinned).collect();
        let weighted = tensors.iter().zip(parts).map(|(tensor, part)| tensor.clone().mul_scalar(weight(part)));
        if !matches!(self, Self::Ties { .. } | Self::DareTies { .. }) {
            return add(weighted.collect());
        }
        let elected = add(tensors.clone()).greater_equal_elem(0.0).float().mul_scalar(2.0).sub_scalar(1.0);
        let agree: Vec<Tensor<2>> =
            tensors.iter().map(|tensor| tensor.clone().sign().equal(elected.clone()).float()).collect();
        add(weighted.zip(&agree).map(|(term, agrees)| term * agrees.clone()).collect()) / add(agree).clamp_min(1.0)
    }
}

/// Refuses parts whose factors cannot be added up.
fn check_ranks(site: &str, parts: &[Part<'_>]) -> Result<(), AdapterError> {
    for pair in parts.windows(2) {
        let [(first, r), (second, other)] = [0, 1].map(|index| (pair[index].adapter, rank(&pair[index].factors)));
        if r != other {
            let reason = format!("its rank at {site} is {other}, that of {first:?} is {r}; take Cat or Svd");
            return Err(not_combinable(second, reason));
        }
    }
    Ok(())
}

/// The elements of the largest magnitude, the earlier ones of equal, and zeros.
fn pruned(tensor: Tensor<2>, density: f64) -> Tensor<2> {
    on_host(tensor, |values| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|i, j| values[*j].abs().total_cmp(&values[*i].abs()));
        let kept = (density * values.len() as f64) as usize;
        order[kept..].iter().for_each(|index| values[*index] = 0.0);
    })
}

/// Elements drawn with `key`, divided by the density, and zeros.
fn dropped(tensor: Tensor<2>, density: f64, key: Key) -> Tensor<2> {
    on_host(tensor, |values| {
        for (index, value) in values.iter_mut().enumerate() {
            *value = if key.uniform(index as u64) < density { *value / density as f32 } else { 0.0 };
        }
    })
}

/// The tensor, of `f32`, with its values changed.
fn on_host(tensor: Tensor<2>, change: impl FnOnce(&mut [f32])) -> Tensor<2> {
    let (shape, device) = (tensor.dims(), tensor.device());
    let mut values: Vec<f32> = tensor.into_data().try_into_vec().expect("a tensor that was cast to f32");
    change(&mut values);
    Tensor::from_data(TensorData::new(values, shape), &device)
}

/// `[s_1 A_1; s_2 A_2; ...]` and `[B_1, B_2, ...]`.
fn stacked(parts: &[Part<'_>]) -> Factors {
    let a = parts.iter().map(|part| part.factors[0].clone().mul_scalar(part.scale)).collect();
    let b = parts.iter().map(|part| part.factors[1].clone()).collect();
    [Tensor::cat(a, 0), Tensor::cat(b, 1)]
}

/// The tensor with zeros up to `size` in a dimension.
fn padded(tensor: Tensor<2>, dim: usize, size: usize) -> Tensor<2> {
    let mut shape = tensor.dims();
    shape[dim] = size - shape[dim];
    if shape[dim] == 0 {
        return tensor;
    }
    let zeros = Tensor::zeros(shape, &tensor.device());
    Tensor::cat(vec![tensor, zeros], dim)
}

fn rank(factors: &Factors) -> usize {
    factors[0].dims()[0]
}

/// The configuration of a LoRA adapter that is not merged.
fn config<'a>(model: &'a dyn AdaptedModel, name: &str) -> Result<&'a LoraConfig, AdapterError> {
    let entry = model.adapters().get(name)?;
    if entry.is_merged() {
        return Err(AdapterError::IsMerged { name: name.to_owned() });
    }
    let kind = entry.method().peft_type();
    entry.method().downcast_ref().ok_or_else(|| not_combinable(name, format!("it is {kind}; take adapters of LORA")))
}

/// The factors of a LoRA adapter that has nothing but these, by site. Those that began as a part of the base are followed
/// by what takes it out: `[A; A_0]` and `[B, -B_0]`.
fn factors(model: &dyn AdaptedModel, name: &str) -> Result<BTreeMap<String, Factors>, AdapterError> {
    let mut factors = BTreeMap::new();
    for slot in slots_of(model, name) {
        let names: Vec<&str> = slot.tensors().map(|(spec, _)| spec.part.as_ref()).collect();
        let own: Vec<_> = slot.tensors().map(|(_, param)| param.val().inner().cast(DType::F32)).collect();
        let site = slot.site();
        let [a, b] = match (&names[..], &own[..]) {
            (["lora_A.weight", "lora_B.weight"] | ["lora_embedding_A", "lora_embedding_B"], [a, b]) => {
                [a.clone(), b.clone()]
            }
            (["lora_A.weight", "lora_B.weight", "initial_A", "initial_B"], [a, b, first_a, first_b]) => [
                Tensor::cat(vec![a.clone(), first_a.clone()], 0),
                Tensor::cat(vec![b.clone(), first_b.clone().neg()], 1),
            ],
            _ => {
                let names = names.join(" and ");
                let reason = format!("it has {names} at {site}; take adapters that are nothing but factors of LoRA");
                return Err(not_combinable(name, reason));
            }
        };
        factors.insert(site.to_owned(), [a, b]);
    }
    Ok(factors)
}

/// Attaches a LoRA adapter with these factors, neither active nor trainable.
fn attach_factors(
    model: &mut dyn AdaptedModel,
    name: &str,
    config: LoraConfig,
    factors: &BTreeMap<String, Factors>,
) -> Result<(), AdapterError> {
    let outline = model.outline();
    add(model, &outline, name, Arc::new(config), Key::from_seed(0))?;
    try_each_slot(model, name, |slot| {
        let factors = factors.get(slot.site());
        for (index, (_, param)) in slot.tensors_mut().enumerate() {
            *param = match factors {
                Some(factors) => {
                    let values = factors[index].clone().into_data().try_into_vec().expect("factors in f32");
                    param_like(param, values, &factors[index].dims()).no_grad()
                }
                None => param.clone().set_require_grad(false),
            };
        }
        Ok(())
    })
}

fn not_combinable(name: &str, reason: impl Into<String>) -> AdapterError {
    AdapterError::NotCombinable { name: name.to_owned(), reason: reason.into() }
}
