//! How many parameters a model has, and how many of them train.

use std::collections::HashSet;
use std::fmt;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

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
    /// Counts the parameters of `model`. Weights that are not initialised yet are counted by their shapes.
    pub fn of<M: Module>(model: &M) -> Self {
        let mut count = Count::default();
        model.visit(&mut count);
        count.report
    }

    /// The trainable share, in percent.
    pub fn percent(&self) -> f64 {
        if self.all == 0 { 0.0 } else { 100.0 * self.trainable as f64 / self.all as f64 }
    }
}

#[derive(Default)]
struct Count {
    report: ParameterReport,
    seen: HashSet<ParamId>,
}

impl ModuleVisitor for Count {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.seen.insert(param.id) {
            return;
        }
        let elements = param.lazy_shape().num_elements() as u64;
        self.report.all += elements;
        if is_trainable(param) {
            self.report.trainable += elements;
        }
    }
}

/// Whether the parameter is set to train, also where its device does not differentiate or it is not initialised yet.
///
/// Burn keeps this setting to itself, but hands it on to a value that is loaded in the parameter's place.
pub fn is_trainable<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    let probe = Tensor::empty([1; D], &param.lazy_device().autodiff());
    param.clone().transform_for_load(probe, param.id).is_require_grad()
}

impl fmt::Display for ParameterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trainable, all) = (grouped(self.trainable), grouped(self.all));
        write!(f, "trainable params: {trainable} || all params: {all} || trainable%: {:.4}", self.percent())
    }
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
