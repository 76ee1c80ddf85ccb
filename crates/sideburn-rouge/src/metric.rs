//! The names of the metrics.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::RougeError;

/// One metric of the ROUGE family (Lin, 2004, <https://aclanthology.org/W04-1013>).
///
/// Names are those of `rouge_score`: `rouge1` to `rouge9`, `rougeL`, `rougeLsum`. They are used by
/// [`Display`](fmt::Display), [`FromStr`] and serde alike.
///
/// ```
/// use sideburn_rouge::Metric;
///
/// assert_eq!(Metric::RougeLsum.to_string(), "rougeLsum");
/// assert_eq!("rouge2".parse(), Ok(Metric::Rouge2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Shared words, each counted at most as often as in both texts.
    Rouge1,
    /// Shared pairs of neighbouring words.
    Rouge2,
    /// Shared runs of 3 words.
    Rouge3,
    /// Shared runs of 4 words.
    Rouge4,
    /// Shared runs of 5 words.
    Rouge5,
    /// Shared runs of 6 words.
    Rouge6,
    /// Shared runs of 7 words.
    Rouge7,
    /// Shared runs of 8 words.
    Rouge8,
    /// Shared runs of 9 words.
    Rouge9,
    /// Longest common subsequence of the two texts; line breaks are ignored.
    RougeL,
    /// Longest common subsequence at the level of summaries: a sentence is a line, and each sentence of the reference
    /// counts the words it shares, in order, with any sentence of the prediction.
    RougeLsum,
}

impl Metric {
    /// The four that papers report: ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum.
    pub const STANDARD: [Metric; 4] = [Metric::Rouge1, Metric::Rouge2, Metric::RougeL, Metric::RougeLsum];

    const ALL: [Metric; 11] = [
        Metric::Rouge1,
        Metric::Rouge2,
        Metric::Rouge3,
        Metric::Rouge4,
        Metric::Rouge5,
        Metric::Rouge6,
        Metric::Rouge7,
        Metric::Rouge8,
        Metric::Rouge9,
        Metric::RougeL,
        Metric::RougeLsum,
    ];

    /// The name that `rouge_score` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::Rouge1 => "rouge1",
            Metric::Rouge2 => "rouge2",
            Metric::Rouge3 => "rouge3",
            Metric::Rouge4 => "rouge4",
            Metric::Rouge5 => "rouge5",
            Metric::Rouge6 => "rouge6",
            Metric::Rouge7 => "rouge7",
            Metric::Rouge8 => "rouge8",
            Metric::Rouge9 => "rouge9",
            Metric::RougeL => "rougeL",
            Metric::RougeLsum => "rougeLsum",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = RougeError;

    fn from_str(name: &str) -> Result<Self, RougeError> {
        let known = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        known.ok_or_else(|| RougeError::UnknownMetric { name: name.to_owned() })
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for metric in Metric::ALL {
            assert_eq!(metric.name().parse(), Ok(metric));
        }
        for name in ["rouge0", "rouge10", "rougel", "ROUGE1", ""] {
            assert_eq!(name.parse::<Metric>(), Err(RougeError::UnknownMetric { name: name.to_owned() }));
        }
    }
}
