//! The results: one score, and one value per metric.

use std::ops::Index;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::metric::Metric;

/// Precision, recall and F-measure, each between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Share of the prediction that is in the reference.
    pub precision: f64,
    /// Share of the reference that is in the prediction.
    pub recall: f64,
    /// Harmonic mean of precision and recall; 0 where both are 0.
    pub fmeasure: f64,
}

impl Score {
    /// The score of `hits` units shared by a prediction and a reference of so many units.
    pub(crate) fn from_counts(hits: usize, prediction: usize, reference: usize) -> Self {
        let precision = hits as f64 / prediction.max(1) as f64;
        let recall = hits as f64 / reference.max(1) as f64;
        let sum = precision + recall;
        // The order of these operations is that of rouge_score, so that the last digit agrees too.
        let fmeasure = if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 };
        Self { precision, recall, fmeasure }
    }

    pub(crate) fn to_array(self) -> [f64; 3] {
        [self.precision, self.recall, self.fmeasure]
    }

    pub(crate) fn from_array([precision, recall, fmeasure]: [f64; 3]) -> Self {
        Self { precision, recall, fmeasure }
    }
}

/// A bootstrap confidence interval of a mean score. Each of the three numbers of a [`Score`] has its own interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: Score,
    /// Median of the resampled means: close to the mean, not equal to it.
    pub mid: Score,
    /// Upper end.
    pub high: Score,
}

/// One value per metric, in the order in which the scorer was given its metrics.
///
/// Index it by [`Metric`], or ask with [`get`](ByMetric::get) where the metric may be missing. It serializes as a map
/// from the metric's name.
#[derive(Clone, Debug, PartialEq)]
pub struct ByMetric<T> {
    entries: Vec<(Metric, T)>,
}

/// The scores of one prediction, or their mean over many.
pub type Scores = ByMetric<Score>;

/// The confidence intervals over many predictions.
pub type AggregateScores = ByMetric<Interval>;

impl<T> ByMetric<T> {
    /// The value of a metric, if it was computed.
    pub fn get(&self, metric: Metric) -> Option<&T> {
        self.entries.iter().find(|(key, _)| *key == metric).map(|(_, value)| value)
    }

    /// The metrics, in order.
    pub fn metrics(&self) -> impl ExactSizeIterator<Item = Metric> + '_ {
        self.entries.iter().map(|(metric, _)| *metric)
    }

    /// The metrics and their values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Metric, &T)> {
        self.entries.iter().map(|(metric, value)| (*metric, value))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|(_, value)| value)
    }
}

impl<T> FromIterator<(Metric, T)> for ByMetric<T> {
    /// Of two values for one metric, the later one is kept.
    fn from_iter<I: IntoIterator<Item = (Metric, T)>>(items: I) -> Self {
        let mut entries: Vec<(Metric, T)> = Vec::new();
        for (metric, value) in items {
            match entries.iter_mut().find(|(key, _)| *key == metric) {
                Some(entry) => entry.1 = value,
                None => entries.push((metric, value)),
            }
        }
        Self { entries }
    }
}

impl<'a, T> IntoIterator for &'a ByMetric<T> {
    type Item = (Metric, &'a T);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, (Metric, T)>, fn(&'a (Metric, T)) -> (Metric, &'a T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter().map(|(metric, value)| (*metric, value))
    }
}

impl<T> Index<Metric> for ByMetric<T> {
    type Output = T;

    /// # Panics
    /// If the metric is not among those computed, as indexing a map does.
    fn index(&self, metric: Metric) -> &T {
        self.get(metric).unwrap_or_else(|| panic!("{metric} was not among the metrics of the scorer"))
    }
}

impl<T: Serialize> Serialize for ByMetric<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (metric, value) in self {
            map.serialize_entry(metric.name(), value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serializes_as_a_map_of_names() {
        let scores: Scores = [(Metric::Rouge2, Score::from_counts(1, 2, 1)), (Metric::RougeLsum, Score::default())]
            .into_iter()
            .collect();
        assert_eq!(
            serde_json::to_string(&scores).unwrap(),
            r#"{"rouge2":{"precision":0.5,"recall":1.0,"fmeasure":0.6666666666666666},"rougeLsum":{"precision":0.0,"recall":0.0,"fmeasure":0.0}}"#
        );
    }

    #[test]
    fn a_missing_metric_is_none() {
        let scores: Scores = [(Metric::Rouge1, Score::default())].into_iter().collect();
        assert!(scores.get(Metric::RougeL).is_none());
    }
}
