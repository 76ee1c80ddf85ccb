//! Whether one system is better than another.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bootstrap::{BootstrapConfig, Interval, bootstrap, for_each_sample};
use crate::error::EvalError;

/// How two systems differ that were scored on the same examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The mean of the first system's values less the second's, and its paired bootstrap interval.
    pub difference: Interval,
    /// How likely a difference at least as large is, in either direction, if it is chance which of the two outputs for
    /// an example is whose.
    pub p_value: f64,
}

/// Compares two systems by their values for the same examples, in the same order.
///
/// The interval is that of the paired bootstrap (Koehn, 2004): test sets are drawn with replacement, and both systems
/// are averaged over each. The p-value is that of an approximate randomisation test (Noreen, 1989; Riezler and Maxwell,
/// 2005): for each sample the two values of an example change places or not, with equal chance, and
/// `p = (as many samples with a difference at least as large + 1) / (samples + 1)`. Both have `config.samples` samples.
///
/// ```
/// use sideburn_eval::{BootstrapConfig, compare};
///
/// let (a, b) = ([0.5, 0.4, 0.6, 0.5, 0.7, 0.4, 0.5, 0.6], [0.3, 0.4, 0.5, 0.4, 0.5, 0.3, 0.4, 0.4]);
/// let found = compare(&a, &b, &BootstrapConfig::default())?;
/// assert_eq!(format!("{:.3}", found.difference.mean), "0.125");
/// // Of the 2^7 ways to give the seven differences that are not zero a sign, two are as far from zero: 1.6 %.
/// assert!((0.008..0.025).contains(&found.p_value), "{}", found.p_value);
/// # Ok::<(), sideburn_eval::EvalError>(())
/// ```
///
/// # Errors
/// [`EvalError::Unpaired`] if there are not as many values of both, and those of [`bootstrap`].
pub fn compare(first: &[f64], second: &[f64], config: &BootstrapConfig) -> Result<Comparison, EvalError> {
    if first.len() != second.len() {
        return Err(EvalError::Unpaired { first: first.len(), second: second.len() });
    }
    let differences: Vec<f64> = first.iter().zip(second).map(|(first, second)| first - second).collect();
    let difference = bootstrap(&differences, config)?;
    // Sums that are equal but for the order in which they were rounded count as equal.
    let size: f64 = differences.iter().map(|difference| difference.abs()).sum();
    let observed = differences.iter().sum::<f64>().abs() - 1e-12 * size;
    let is_as_large = for_each_sample(config, |draws| {
        let draws = draws.fold_in_name("signs");
        let signed = differences.iter().zip(0..).map(|(x, place)| if draws.below(place, 2) == 0 { *x } else { -x });
        signed.sum::<f64>().abs() >= observed
    });
    let as_large = is_as_large.into_iter().filter(|is| *is).count();
    let p_value = (as_large + 1) as f64 / (config.samples + 1) as f64;
    Ok(Comparison { difference, p_value })
}

/// `+1.25 [0.40, 2.10], p 0.004, n 500`, of numbers as they are.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { difference: Interval { mean, low, high, n, .. }, p_value } = self;
        write!(f, "{mean:+.2} [{low:.2}, {high:.2}], p {p_value:.3}, n {n}")
    }
}
