//! From numbers to their mean and how certain it is.

#[cfg(feature = "threads")]
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sideburn_batch::{GOLDEN, Key};

use crate::error::EvalError;

/// How [`bootstrap`] resamples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapConfig {
    /// Number of resampled test sets. Default: 1000.
    pub samples: usize,
    /// Share of the resampled means inside the interval, from 0 to 1. Default: 0.95.
    pub confidence: f64,
    /// Seed of the draws. Default: 0.
    pub seed: u64,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self { samples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl BootstrapConfig {
    /// The largest number of samples: more would change no digit that matters.
    pub const MAX_SAMPLES: usize = 1_000_000;

    fn check(&self) -> Result<(), EvalError> {
        if !(1..=Self::MAX_SAMPLES).contains(&self.samples) {
            return Err(EvalError::BootstrapSamples { found: self.samples, max: Self::MAX_SAMPLES });
        }
        if !(0.0..=1.0).contains(&self.confidence) {
            return Err(EvalError::Confidence { found: self.confidence });
        }
        Ok(())
    }
}

/// A mean, and a bootstrap confidence interval of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean itself.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Median of the resampled means: close to the mean, not equal to it (`mid` in `rouge_score`).
    pub median: f64,
    /// Upper end.
    pub high: f64,
    /// How many values it is the mean of.
    pub n: usize,
}

/// The mean of `values`, and its bootstrap confidence interval (Efron, 1979), as `BootstrapAggregator` of `rouge_score`
/// computes it: `samples` test sets of the same size are drawn with replacement, and the interval lies between the
/// percentiles of their means, interpolated as `numpy.percentile` does.
///
/// The draws are a function of the seed, the number of the resample and the place in it: the result does not depend on
/// threads, and two columns of numbers of the same outputs are resampled alike. They are not those of `numpy`, so that
/// the last digits differ from one run of the Python class, as two of its own runs do.
///
/// ```
/// use sideburn_eval::{BootstrapConfig, bootstrap};
///
/// let interval = bootstrap(&[0.2, 0.4, 0.4, 0.6], &BootstrapConfig::default())?;
/// assert_eq!(interval.mean, 0.4);
/// assert!(interval.low < 0.4 && interval.high > 0.4);
/// # Ok::<(), sideburn_eval::EvalError>(())
/// ```
///
/// # Errors
/// [`EvalError::NoValues`] if there are none, and [`EvalError::BootstrapSamples`] or [`EvalError::Confidence`] for a
/// config out of range.
pub fn bootstrap(values: &[f64], config: &BootstrapConfig) -> Result<Interval, EvalError> {
    config.check()?;
    if values.is_empty() {
        return Err(EvalError::NoValues);
    }
    let len = values.len() as u64;
    let mut means = for_each_sample(config, |draws| {
        (0..len).map(|place| values[draws.below(place, len) as usize]).sum::<f64>() / len as f64
    });
    means.sort_unstable_by(f64::total_cmp);

    let tail = (1.0 - config.confidence) / 2.0;
    let [low, median, high] = [tail, 0.5, 1.0 - tail].map(|quantile| percentile(&means, 100.0 * quantile));
    Ok(Interval { mean: values.iter().sum::<f64>() / len as f64, low, median, high, n: values.len() })
}

/// What `compute` makes of the draws of each sample.
pub(crate) fn for_each_sample<T: Send>(config: &BootstrapConfig, compute: impl Fn(Key) -> T + Sync) -> Vec<T> {
    let numbers = 0..config.samples as u64;
    #[cfg(feature = "threads")]
    let numbers = numbers.into_par_iter();
    numbers.map(|number| compute(draws(config.seed, number))).collect()
}

/// The draws of a resample. Published intervals depend on them: they are what they were before there were [`Key`]s.
fn draws(seed: u64, resample: u64) -> Key {
    let mix = |bits: u64| Key::from_seed(bits.wrapping_sub(GOLDEN)).start();
    let [seed, resample] = [seed.wrapping_add(GOLDEN), resample.wrapping_add(1).wrapping_mul(GOLDEN)];
    Key::from_seed((mix(seed) ^ mix(resample)).wrapping_sub(GOLDEN))
}

/// `numpy.percentile` with its default, linear method; `sorted` is not empty.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * (percent / 100.0);
    let below = (place.floor() as usize).min(sorted.len() - 1);
    let above = (below + 1).min(sorted.len() - 1);
    let (a, b, t) = (sorted[below], sorted[above], place - below as f64);
    // numpy interpolates from the nearer end, so that t = 1 gives b exactly.
    if t < 0.5 { a + (b - a) * t } else { b - (b - a) * (1.0 - t) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_interpolated() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!([0.0, 50.0, 100.0].map(|percent| percentile(&sorted, percent)), [1.0, 3.0, 8.0]);
        assert_eq!(percentile(&sorted, 90.0), 6.800000000000001);
        assert_eq!(percentile(&[0.25], 97.5), 0.25);
    }

    #[test]
    fn configs_out_of_range_are_errors() {
        let of = |config: BootstrapConfig| bootstrap(&[1.0], &config).unwrap_err();
        for samples in [0, BootstrapConfig::MAX_SAMPLES + 1, usize::MAX] {
            let found = of(BootstrapConfig { samples, ..BootstrapConfig::default() });
            assert!(matches!(found, EvalError::BootstrapSamples { .. }));
        }
        for confidence in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let found = of(BootstrapConfig { confidence, ..BootstrapConfig::default() });
            assert!(matches!(found, EvalError::Confidence { .. }));
        }
        let none = bootstrap(&[], &BootstrapConfig::default()).unwrap_err();
        assert_eq!(none.to_string(), "there are no values to average; score at least one output first");
    }
}
