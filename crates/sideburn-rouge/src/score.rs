//! The results: one score, and one per metric.

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
}

/// The scores of one prediction: one per metric, in the order in which the scorer was given its metrics.
///
/// Index them by [`Metric`], or ask with [`get`](Scores::get) where the metric may be missing. They serialize as a map
/// from the metric's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    entries: Vec<(Metric, Score)>,
}

impl Scores {
    /// The score of a metric, if it was computed.
    pub fn get(&self, metric: Metric) -> Option<&Score> {
        self.entries.iter().find(|(key, _)| *key == metric).map(|(_, score)| score)
    }

    /// The metrics and their scores, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Metric, &Score)> {
        self.entries.iter().map(|(metric, score)| (*metric, score))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Score> {
        self.entries.iter_mut().map(|(_, score)| score)
    }
}

impl FromIterator<(Metric, Score)> for Scores {
    /// Of two scores for one metric, the later one is kept.
    fn from_iter<I: IntoIterator<Item = (Metric, Score)>>(items: I) -> Self {
        let mut entries: Vec<(Metric, Score)> = Vec::new();
        for (metric, score) in items {
            match entries.iter_mut().find(|(key, _)| *key == metric) {
                Some(entry) => entry.1 = score,
                None => entries.push((metric, score)),
            }
        }
        Self { entries }
    }
}

impl<'a> IntoIterator for &'a Scores {
    type Item = (Metric, &'a Score);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, (Metric, Score)>, fn(&'a (Metric, Score)) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter().map(|(metric, score)| (*metric, score))
    }
}

impl Index<Metric> for Scores {
    type Output = Score;

    /// # Panics
    /// If the metric is not among those computed, as indexing a map does.
    fn index(&self, metric: Metric) -> &Score {
        self.get(metric).unwrap_or_else(|| panic!("{metric} was not among the metrics of the scorer"))
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (metric, score) in self {
            map.serialize_entry(metric.name(), score)?;
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
