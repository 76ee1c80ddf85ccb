//! How far two agree who have scored the same texts.

use serde::Serialize;

/// How far two sequences of scores from 1 to 5 agree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Agreement {
    /// The number of texts that both have scored.
    pub n: usize,
    /// The share of them with equal scores.
    pub equal: f64,
    /// Cohen's kappa with quadratic weights: 1 for equal scores, 0 for what chance makes of the two distributions of scores.
    /// None if a score is not whole, or both give one and the same score to all texts.
    pub kappa: Option<f64>,
    /// The same with linear weights.
    pub kappa_linear: Option<f64>,
    /// Spearman's rank correlation: 1 if both put the texts in the same order, -1 in the opposite one. None if one of them
    /// gives all texts one score.
    pub spearman: Option<f64>,
}

/// The scores there are.
const SCORES: usize = 5;

/// How far `first` and `second` agree, of which `first[i]` and `second[i]` are for one text.
///
/// `kappa` is `sklearn.metrics.cohen_kappa_score(first, second, labels=[1, 2, 3, 4, 5], weights="quadratic")` (Cohen, 1968),
/// and `spearman` is `scipy.stats.spearmanr(first, second)`, with the mean of their ranks for equal scores.
///
/// ```
/// use sideburn_judge::agreement;
///
/// let found = agreement(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.0, 2.0, 3.0, 5.0, 4.0]);
/// assert_eq!((found.n, found.equal, found.kappa), (5, 0.6, Some(0.9)));
/// assert_eq!(found.spearman, Some(0.9));
/// ```
///
/// # Panics
/// If there are not as many of both.
pub fn agreement(first: &[f64], second: &[f64]) -> Agreement {
    assert_eq!(first.len(), second.len(), "both must have scored the same texts");
    let equal = first.iter().zip(second).filter(|(a, b)| a == b).count();
    Agreement {
        n: first.len(),
        equal: equal as f64 / first.len().max(1) as f64,
        kappa: kappa(first, second, |distance| distance * distance),
        kappa_linear: kappa(first, second, |distance| distance),
        spearman: correlation(&ranks(first), &ranks(second)),
    }
}

/// `1 - sum(w o) / sum(w e)`, where `o` counts the pairs of scores, and `e` is what it would be on average if the scores of
/// either were dealt out by chance.
fn kappa(first: &[f64], second: &[f64], weight: impl Fn(f64) -> f64) -> Option<f64> {
    let place = |score: &f64| (1..=SCORES).find(|whole| *whole as f64 == *score).map(|whole| whole - 1);
    let places = |scores: &[f64]| scores.iter().map(place).collect::<Option<Vec<_>>>();
    let (first, second) = (places(first)?, places(second)?);
    let count = |places: &[usize], score: usize| places.iter().filter(|place| **place == score).count() as f64;
    let weight = |a: usize, b: usize| weight(a.abs_diff(b) as f64);
    let observed: f64 = first.iter().zip(&second).map(|(a, b)| weight(*a, *b)).sum();
    let pairs = (0..SCORES).flat_map(|a| (0..SCORES).map(move |b| (a, b)));
    let expected: f64 = pairs.map(|(a, b)| weight(a, b) * count(&first, a) * count(&second, b)).sum();
    let expected = expected / first.len() as f64;
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

/// The rank of each value from 1 on; equal ones have the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = |value: &f64| {
        let before = sorted.partition_point(|other| other < value);
        let through = sorted.partition_point(|other| other <= value);
        (before + 1 + through) as f64 / 2.0
    };
    values.iter().map(rank).collect()
}

/// Pearson's correlation, if both vary.
fn correlation(first: &[f64], second: &[f64]) -> Option<f64> {
    let deviations = |values: &[f64]| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter().map(|value| value - mean).collect()
    };
    let (first, second) = (deviations(first), deviations(second));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let size = (product(&first, &first) * product(&second, &second)).sqrt();
    (size > 0.0).then(|| (product(&first, &second) / size).clamp(-1.0, 1.0))
}
