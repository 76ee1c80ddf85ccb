//! What LoHa and LoKr have in common; both are of the LyCORIS library (Yeh et al., 2023).

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Map, Value};
use sideburn_kernels::Dropout;

use super::checks::{check_finite, check_probability, check_rank};
use super::lora::{number, pattern_value};
use crate::fields::{Fields, fields};
use crate::outline::Site;
use crate::tensors::in_dtype;
use crate::{AdapterError, Pass};

/// The fields that LoHa and LoKr share; they are named as in `peft.tuners.lycoris_utils.LycorisConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lycoris {
    /// The rank of what the update is made of.
    pub r: usize,
    /// The numerator of the scaling `alpha / r`.
    pub alpha: f64,
    /// The probability with which a row of the update is left out in training.
    pub rank_dropout: f64,
    /// The probability with which the update of a layer is left out in training.
    pub module_dropout: f64,
    /// Ranks of layers whose names end with a pattern.
    pub rank_pattern: BTreeMap<String, usize>,
    /// The same for `alpha`.
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for Lycoris {
    /// `peft`'s defaults: r 8, alpha 8, no dropout.
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            rank_dropout: 0.0,
            module_dropout: 0.0,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

impl Lycoris {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        fields.ignore("use_effective_conv2d"); // Layers are linear.
        fields.ignore("init_weights"); // How the factors begin is past.
        Ok(Self {
            r: fields.required("r", "a rank of at least 1")?,
            alpha: fields.required("alpha", "a number")?,
            rank_dropout: fields.optional("rank_dropout", "a probability in [0, 1)")?.unwrap_or(0.0),
            module_dropout: fields.optional("module_dropout", "a probability in [0, 1)")?.unwrap_or(0.0),
            rank_pattern: fields.optional("rank_pattern", "ranks by pattern")?.unwrap_or_default(),
            alpha_pattern: fields.optional("alpha_pattern", "numbers by pattern")?.unwrap_or_default(),
        })
    }

    pub(super) fn write(&self) -> Map<String, Value> {
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(pattern, alpha)| (pattern.clone(), number(*alpha))).collect();
        fields! {
            "r": self.r,
            "alpha": number(self.alpha),
            "rank_dropout": self.rank_dropout,
            "module_dropout": self.module_dropout,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": alphas,
            "use_effective_conv2d": false,
            "init_weights": true,
        }
    }

    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        check_rank("r", self.r)?;
        check_finite("alpha", self.alpha)?;
        check_probability("rank_dropout", self.rank_dropout)?;
        check_probability("module_dropout", self.module_dropout)?;
        self.rank_pattern.values().try_for_each(|r| check_rank("rank_pattern", *r))?;
        self.alpha_pattern.values().try_for_each(|alpha| check_finite("alpha_pattern", *alpha))
    }

    /// What holds at `site`; `rescale` says whether rows that are kept in training make up for those that are not.
    pub(super) fn update(&self, site: &Site, rescale: bool) -> Result<Update, AdapterError> {
        let r = pattern_value("rank_pattern", &self.rank_pattern, &site.name)?.unwrap_or(self.r);
        let alpha = pattern_value("alpha_pattern", &self.alpha_pattern, &site.name)?.unwrap_or(self.alpha);
        let (rank_dropout, module_dropout) = (self.rank_dropout, self.module_dropout);
        Ok(Update { r, scaling: alpha / r as f64, rank_dropout, rescale, module_dropout })
    }
}

/// How a layer takes up an update of its weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    pub(super) r: usize,
    pub(super) scaling: f64,
    rank_dropout: f64,
    rescale: bool,
    module_dropout: f64,
}

impl Update {
    /// `y + x dW^T`, where `times` gives `x dW^T` in the dtype of the factors; in training without what is dropped.
    pub(super) fn add(
        &self,
        y: Tensor<2>,
        x: &Tensor<2>,
        dtype: DType,
        pass: &mut Pass,
        times: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let [rows, module] = [self.rank_dropout, self.module_dropout].map(|p| pass.next_dropout(p));
        if module.is_some_and(|dropout| dropout.key().uniform(0) < dropout.probability()) {
            return y;
        }
        let delta = times(in_dtype(x.clone(), dtype));
        let delta = match rows {
            Some(dropout) => self.drop_rows(delta, dropout),
            None => delta,
        };
        let outer = y.dtype();
        y + in_dtype(delta, outer)
    }

    /// Without rows of the update, which are columns of what it gives.
    fn drop_rows(&self, delta: Tensor<2>, dropout: Dropout) -> Tensor<2> {
        let [_, out] = delta.dims();
        let is_kept = |row: usize| dropout.key().uniform(row as u64) >= dropout.probability();
        let kept = (0..out).filter(|row| is_kept(*row)).count();
        let factor = if self.rescale { out as f32 / kept.max(1) as f32 } else { 1.0 };
        let factors: Vec<f32> = (0..out).map(|row| if is_kept(row) { factor } else { 0.0 }).collect();
        let factors = Tensor::<2>::from_data(TensorData::new(factors, [1, out]), &delta.device());
        let dtype = delta.dtype();
        delta * in_dtype(factors, dtype)
    }
}

#[cfg(test)]
mod tests {
    use sideburn_kernels::Key;

    use super::super::testing::random;
    use super::*;

    /// `y + x`, with `y` zero and `x` one.
    fn sum(lycoris: &Lycoris, rescale: bool, seed: u64) -> Vec<f32> {
        let update = lycoris.update(&Site::of("q", [100, 100]), rescale).unwrap();
        let x = random([1, 100], 0.0, 0) + 1.0;
        let mut pass = Pass::train(Key::from_seed(seed));
        let y = update.add(x.zeros_like(), &x, DType::F32, &mut pass, |x| x);
        y.into_data().try_into_vec().unwrap()
    }

    #[test]
    fn rows_are_left_out() {
        let lycoris = Lycoris { rank_dropout: 0.25, ..Lycoris::default() };
        let [plain, rescaled] = [false, true].map(|rescale| sum(&lycoris, rescale, 1));
        let kept = plain.iter().filter(|value| **value == 1.0).count();
        assert!((60..90).contains(&kept) && plain.iter().all(|value| *value == 1.0 || *value == 0.0), "{plain:?}");
        assert!(plain.iter().zip(&rescaled).all(|(a, b)| a * 100.0 / kept as f32 == *b), "{rescaled:?}");
        assert_eq!(plain, sum(&lycoris, false, 1), "a function of the key");
    }

    #[test]
    fn whole_updates_are_left_out() {
        let lycoris = Lycoris { module_dropout: 0.25, ..Lycoris::default() };
        let sums: Vec<f32> = (0..400).map(|seed| sum(&lycoris, true, seed).iter().sum()).collect();
        let kept = sums.iter().filter(|sum| **sum == 100.0).count();
        assert!((270..330).contains(&kept) && sums.iter().all(|sum| *sum == 100.0 || *sum == 0.0), "{kept} of 400");
    }
}
