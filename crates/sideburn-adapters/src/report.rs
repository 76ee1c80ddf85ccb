//! How many parameters a model has, and how many of them train.

use std::fmt;

use sideburn_files::grouped;

use crate::model::AdaptedModel;
use crate::parameters::parameters;

/// The number of trainable and of all parameters; printed in the words of `peft`.
///
/// ```
/// use sideburn_adapters::ParameterReport;
///
/// let report = ParameterReport { trainable: 1_376_256, all: 78_337_408 };
/// assert_eq!(report.to_string(), "trainable params: 1,376,256 || all params: 78,337,408 || trainable%: 1.7568");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterReport {
    /// Elements of tensors that the optimiser changes.
    pub trainable: u64,
    /// Elements of all tensors; a shared one counts once.
    pub all: u64,
}

impl ParameterReport {
    /// Counts the parameters of `model`. Weights that are not initialised yet are counted by their shapes, packed ones by what
    /// they stand for.
    pub fn of(model: &dyn AdaptedModel) -> Self {
        let mut report = Self::default();
        for parameter in parameters(model) {
            let elements = parameter.tensor.lazy_shape().num_elements() as u64;
            report.all += elements;
            report.trainable += if parameter.is_trainable() { elements } else { 0 };
        }
        let weights = model.weights();
        let packed = weights.iter().filter_map(|(_, weight)| weight.weight().packed());
        report.all += packed.map(|packed| packed.shape().iter().product::<usize>() as u64).sum::<u64>();
        report
    }

    /// The trainable share, in percent.
    pub fn percent(&self) -> f64 {
        if self.all == 0 { 0.0 } else { 100.0 * self.trainable as f64 / self.all as f64 }
    }
}

impl fmt::Display for ParameterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trainable, all) = (grouped(self.trainable), grouped(self.all));
        write!(f, "trainable params: {trainable} || all params: {all} || trainable%: {:.4}", self.percent())
    }
}
