//! How long texts are in tokens, and what limits follow.

use std::fmt::Write;

use crate::tokenized::{Limits, TokenizedSet};

/// The lengths of the texts of a data set, in tokens.
///
/// ```
/// use sideburn_data::Lengths;
///
/// let lengths = Lengths::new([15, 20, 35, 40, 50]);
/// assert_eq!((lengths.percentile(50.0), lengths.percentile(85.0)), (35.0, 44.0));
/// assert_eq!(lengths.histogram(2, 10), "15-32  ###### 2\n33-50  ########## 3\n");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths {
    sorted: Vec<usize>,
}

impl Lengths {
    /// Of these.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut sorted: Vec<usize> = lengths.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }

    /// The length that `percent` of all texts do not exceed, between two of them on a straight line, as `numpy.percentile`
    /// has it. Of none it is 0. `percent` below 0 and above 100 are taken for these.
    pub fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.sorted.len().checked_sub(1) else { return 0.0 };
        let at = (percent / 100.0).clamp(0.0, 1.0) * last as f64;
        let (below, above) = (at.floor() as usize, at.ceil() as usize);
        let (low, high, part) = (self.sorted[below] as f64, self.sorted[above] as f64, at - at.floor());
        // `_lerp` of numpy, which goes from the nearer end.
        if part < 0.5 { low + (high - low) * part } else { high - (high - low) * (1.0 - part) }
    }

    /// The longest; 0 of none.
    pub fn max(&self) -> usize {
        self.sorted.last().copied().unwrap_or_default()
    }

    /// Lines for a terminal, one for each of `bins` ranges of equal size: the range, a bar of at most `width` signs, and how
    /// many texts are in it.
    pub fn histogram(&self, bins: usize, width: usize) -> String {
        let (Some(&least), bins) = (self.sorted.first(), bins.max(1)) else { return String::new() };
        let size = (self.max() - least + 1).div_ceil(bins);
        let starts: Vec<usize> = (0..bins)
            .map_while(|bin| size.checked_mul(bin)?.checked_add(least))
            .take_while(|start| *start <= self.max())
            .collect();
        let place = |length: usize| self.sorted.partition_point(|&known| known < length);
        let ranges: Vec<(usize, usize)> = starts.iter().map(|&start| (start, start.saturating_add(size - 1))).collect();
        let counts: Vec<usize> = ranges
            .iter()
            .map(|&(start, end)| self.sorted.partition_point(|&known| known <= end) - place(start))
            .collect();
        let most = counts.iter().copied().max().unwrap_or_default().max(1);
        let digits = ranges.last().map_or(1, |(_, end)| end.to_string().len());
        let mut text = String::new();
        for ((start, end), count) in ranges.into_iter().zip(counts) {
            // Whoever is there is seen.
            let bar = "#".repeat((count * width / most).max(usize::from(count > 0 && width > 0)));
            writeln!(text, "{start:>digits$}-{end:<digits$}  {bar}{}{count}", if bar.is_empty() { "" } else { " " })
                .expect("text takes all that is written");
        }
        text
    }
}

impl TokenizedSet {
    /// How long the prompts are.
    pub fn prompt_lengths(&self) -> Lengths {
        Lengths::new(self.examples.iter().map(|example| example.prompt.len()))
    }

    /// How long the targets are.
    pub fn target_lengths(&self) -> Lengths {
        Lengths::new(self.examples.iter().map(|example| example.target.len()))
    }
}

impl Limits {
    /// No limits: to see how long texts are.
    pub const NONE: Self = Self { max_source_length: usize::MAX, max_target_length: usize::MAX };

    /// Limits that cut few: the 85th percentile of the prompts and the 90th of the targets of a set that was tokenised
    /// without limits ([`NONE`](Self::NONE)), rounded down, as the FLAN-T5 recipes for SAMSum choose them.
    ///
    /// A set that was cut has no longer texts than its own limits.
    pub fn suggest(set: &TokenizedSet) -> Self {
        Self {
            max_source_length: (set.prompt_lengths().percentile(85.0) as usize).max(2),
            max_target_length: (set.target_lengths().percentile(90.0) as usize).max(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// `testdata/make_percentiles.py` made them.
    #[test]
    fn percentiles_are_those_of_numpy() {
        let golden: Value = serde_json::from_str(include_str!("../testdata/percentiles.json")).unwrap();
        for row in golden.as_array().unwrap() {
            let lengths: Vec<usize> = serde_json::from_value(row["lengths"].clone()).unwrap();
            let lengths = Lengths::new(lengths);
            for (percent, expected) in row["percentiles"].as_object().unwrap() {
                let found = lengths.percentile(percent.parse().unwrap());
                assert_eq!(found, expected.as_str().unwrap().parse::<f64>().unwrap(), "{percent} of {lengths:?}");
            }
        }
    }

    #[test]
    fn nothing_has_no_length() {
        let none = Lengths::new([]);
        assert_eq!((none.percentile(85.0), none.max(), none.histogram(3, 10)), (0.0, 0, String::new()));
        assert_eq!(Lengths::new([7]).histogram(0, 3), "7-7  ### 1\n");
        assert_eq!(Lengths::new([1, 1, 4, 9]).histogram(3, 4), "1-3  #### 2\n4-6  ## 1\n7-9  ## 1\n");
        assert_eq!(Lengths::new([1, 3]).histogram(3, 0), "1-1  1\n2-2  0\n3-3  1\n");
    }

    proptest! {
        #[test]
        fn each_text_is_in_one_range(lengths in prop::collection::vec(0usize..500, 1..50), bins in 1usize..20) {
            let histogram = Lengths::new(lengths.clone()).histogram(bins, 30);
            let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
            prop_assert_eq!(histogram.lines().map(count).sum::<usize>(), lengths.len());
            prop_assert!(histogram.lines().count() <= bins);
        }
    }
}
