//! From the scores of a test set to its mean and a confidence interval.

use rayon::prelude::*;

use crate::error::RougeError;
use crate::metric::Metric;
use crate::score::{AggregateScores, Interval, Score, Scores};

/// How [`aggregate`] resamples.
#[derive(Clone, Copy, Debug, PartialEq)]
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

    /// Sets the number of resampled test sets.
    #[must_use]
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Sets the share of the resampled means inside the interval.
    #[must_use]
    pub fn with_confidence(mut self, confidence: f64) -> Self {
        self.confidence = confidence;
        self
    }

    /// Sets the seed of the draws.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check(&self) -> Result<(), RougeError> {
        if !(1..=Self::MAX_SAMPLES).contains(&self.samples) {
            return Err(RougeError::BootstrapSamples { found: self.samples, max: Self::MAX_SAMPLES });
        }
        if !(0.0..=1.0).contains(&self.confidence) {
            return Err(RougeError::Confidence { found: self.confidence });
        }
        Ok(())
    }
}

/// The mean of each number of each metric.
///
/// # Errors
/// [`RougeError::NoScores`] for an empty list, [`RougeError::MixedMetrics`] if the scores are of different scorers.
pub fn mean(scores: &[Scores]) -> Result<Scores, RougeError> {
    let (metrics, table) = tabulate(scores)?;
    let mut sums = vec![0.0; metrics.len() * 3];
    add_rows(&mut sums, &table, 0..scores.len());
    let means: Vec<f64> = sums.iter().map(|sum| sum / scores.len() as f64).collect();
    Ok(metrics.into_iter().zip(means.as_chunks().0).map(|(metric, row)| (metric, Score::from_array(*row))).collect())
}

/// Bootstrap confidence intervals of the mean (Efron, 1979), as `rouge_score.scoring.BootstrapAggregator` computes
/// them: `samples` test sets of the same size are drawn with replacement, and the interval lies between the
/// percentiles of their means, interpolated as `numpy.percentile` does.
///
/// The draws are a function of the seed, the number of the resample and the place in it: the result does not depend
/// on threads, and the interval of a metric does not depend on which others were computed. They are not those of
/// `numpy`, so that the last digits differ from one run of the Python class, as two of its own runs do.
///
/// # Errors
/// Those of [`mean`], and [`RougeError::BootstrapSamples`] or [`RougeError::Confidence`] for a config out of range.
pub fn aggregate(scores: &[Scores], config: &BootstrapConfig) -> Result<AggregateScores, RougeError> {
    config.check()?;
    let (metrics, table) = tabulate(scores)?;
    let (width, len) = (metrics.len() * 3, scores.len());

    let mut sums = vec![0.0; config.samples * width];
    // Without metrics there are no columns, and chunks of no length are not allowed.
    sums.par_chunks_mut(width.max(1)).enumerate().for_each(|(resample, sums)| {
        let draws = Draws::new(config.seed, resample as u64);
        add_rows(sums, &table, (0..len as u64).map(|place| draws.below(place, len as u64) as usize));
    });

    let tail = (1.0 - config.confidence) / 2.0;
    let intervals = metrics.into_iter().enumerate().map(|(m, metric)| {
        let mut bounds = [[0.0; 3]; 3];
        for number in 0..3 {
            let column = sums.iter().skip(3 * m + number).step_by(width);
            let mut means: Vec<f64> = column.map(|sum| sum / len as f64).collect();
            means.sort_unstable_by(f64::total_cmp);
            for (bound, quantile) in bounds.iter_mut().zip([tail, 0.5, 1.0 - tail]) {
                bound[number] = percentile(&means, 100.0 * quantile);
            }
        }
        let [low, mid, high] = bounds.map(Score::from_array);
        (metric, Interval { low, mid, high })
    });
    Ok(intervals.collect())
}

/// The metrics of all scores, and one row of numbers per sample.
fn tabulate(scores: &[Scores]) -> Result<(Vec<Metric>, Vec<f64>), RougeError> {
    let metrics: Vec<Metric> = scores.first().ok_or(RougeError::NoScores)?.metrics().collect();
    let mut table = Vec::with_capacity(scores.len() * metrics.len() * 3);
    for (sample, scores) in scores.iter().enumerate() {
        if !scores.metrics().eq(metrics.iter().copied()) {
            let found = scores.metrics().collect();
            return Err(RougeError::MixedMetrics { sample, expected: metrics, found });
        }
        table.extend(scores.iter().flat_map(|(_, score)| score.to_array()));
    }
    Ok((metrics, table))
}

fn add_rows(sums: &mut [f64], table: &[f64], rows: impl Iterator<Item = usize>) {
    let width = sums.len();
    for row in rows {
        for (sum, value) in sums.iter_mut().zip(&table[row * width..]) {
            *sum += value;
        }
    }
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

/// The random numbers of one resample: SplitMix64 (Steele, Lea and Flood, 2014), used as a hash of a counter.
struct Draws(u64);

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Draws {
    const fn new(seed: u64, resample: u64) -> Self {
        Self(mix(mix(seed.wrapping_add(GOLDEN)) ^ mix(resample.wrapping_add(1).wrapping_mul(GOLDEN))))
    }

    /// Draw `place`: a whole number below `bound` (multiply and shift; the bias is below `bound / 2^64`).
    const fn below(&self, place: u64, bound: u64) -> u64 {
        let bits = mix(self.0.wrapping_add(place.wrapping_add(1).wrapping_mul(GOLDEN)));
        ((bits as u128 * bound as u128) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scorer::RougeScorer;

    #[test]
    fn percentiles_are_interpolated() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!([0.0, 50.0, 100.0].map(|percent| percentile(&sorted, percent)), [1.0, 3.0, 8.0]);
        assert_eq!(percentile(&sorted, 90.0), 6.800000000000001);
        assert_eq!(percentile(&[0.25], 97.5), 0.25);
    }

    #[test]
    fn configs_out_of_range_are_errors() {
        let scores = [RougeScorer::all().score("a b", "a")];
        let config = BootstrapConfig::default();
        for samples in [0, BootstrapConfig::MAX_SAMPLES + 1, usize::MAX] {
            let found = aggregate(&scores, &config.with_samples(samples)).unwrap_err();
            assert!(matches!(found, RougeError::BootstrapSamples { .. }));
        }
        for confidence in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let found = aggregate(&scores, &config.with_confidence(confidence)).unwrap_err();
            assert!(matches!(found, RougeError::Confidence { .. }));
        }
    }

    #[test]
    fn scores_must_be_there_and_alike() {
        assert_eq!(mean(&[]), Err(RougeError::NoScores));
        let scores = [RougeScorer::all().score("a", "a"), RougeScorer::new(&[Metric::Rouge1]).score("a", "a")];
        assert!(matches!(mean(&scores), Err(RougeError::MixedMetrics { sample: 1, .. })));
        let none = [RougeScorer::new(&[]).score("a", "a")];
        assert_eq!(aggregate(&none, &BootstrapConfig::default()).unwrap().iter().len(), 0);
    }
}
