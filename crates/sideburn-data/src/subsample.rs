//! A part of a data set, for runs that are to be short.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sideburn_batch::Key;

use crate::error::DataError;

/// Which examples of a data set are taken. Kept as its text, to be recorded with the results.
///
/// ```
/// use sideburn_data::Subsample;
///
/// assert_eq!("every:100".parse::<Subsample>()?.indices(250, 42)?, [0, 100, 200]);
/// assert_eq!("count:3".parse::<Subsample>()?.indices(250, 42)?.len(), 3);
/// assert_eq!(Subsample::Fraction(0.1).indices(250, 42)?.len(), 25);
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Subsample {
    /// Every n-th, from the first on: `every:100`, as `index % 100 == 0` of recipes in Python.
    Every(usize),
    /// So many, by chance: `count:500`.
    Count(usize),
    /// This part of them, by chance, at least one: `fraction:0.1`.
    Fraction(f64),
}

impl Subsample {
    /// The numbers of the examples taken out of `len`, ascending: a pure function of these and the seed. Of one seed, a
    /// smaller part is in a larger one.
    ///
    /// # Errors
    /// If it takes none, or more than there are.
    pub fn indices(self, len: usize, seed: u64) -> Result<Vec<usize>, DataError> {
        let fail = |reason| Err(DataError::Subsample { given: self.to_string(), reason });
        let count = match self {
            Self::Every(0) => return fail("every 0th is none; use 1 or more".to_owned()),
            Self::Every(step) => return Ok((0..len).step_by(step).collect()),
            Self::Count(count) => count,
            Self::Fraction(part) if part > 0.0 && part <= 1.0 => ((len as f64 * part).round() as usize).max(1),
            Self::Fraction(_) => return fail("use a number above 0 and up to 1".to_owned()),
        };
        if count == 0 || count > len {
            return fail(format!("there are {len} examples; use 1 to {len}"));
        }
        let mut chosen = Key::from_seed(seed).fold_in_name("subsample").permutation(len);
        chosen.truncate(count);
        chosen.sort_unstable();
        Ok(chosen)
    }
}

impl fmt::Display for Subsample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(step) => write!(f, "every:{step}"),
            Self::Count(count) => write!(f, "count:{count}"),
            Self::Fraction(part) => write!(f, "fraction:{part}"),
        }
    }
}

impl FromStr for Subsample {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let parsed = text.split_once(':').and_then(|(kind, number)| match kind {
            "every" => number.parse().ok().map(Self::Every),
            "count" => number.parse().ok().map(Self::Count),
            "fraction" => number.parse().ok().map(Self::Fraction),
            _ => None,
        });
        parsed.ok_or_else(|| DataError::Subsample {
            given: text.to_owned(),
            reason: "write every:100, count:500 or fraction:0.1".to_owned(),
        })
    }
}

impl TryFrom<String> for Subsample {
    type Error = DataError;

    fn try_from(text: String) -> Result<Self, DataError> {
        text.parse()
    }
}

impl From<Subsample> for String {
    fn from(subsample: Subsample) -> Self {
        subsample.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_smaller_part_is_in_a_larger_one(len in 1usize..80, counts: [prop::sample::Index; 2], seed: u64) {
            let mut counts = counts.map(|index| index.index(len) + 1);
            counts.sort_unstable();
            let [small, large] = counts.map(|count| Subsample::Count(count).indices(len, seed).unwrap());
            prop_assert_eq!([small.len(), large.len()], counts);
            prop_assert!(small.iter().all(|index| large.contains(index)));
            prop_assert!(large.windows(2).all(|pair| pair[0] < pair[1]) && large[large.len() - 1] < len);
            prop_assert_eq!(Subsample::Fraction(1.0).indices(len, seed).unwrap(), (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seeds_choose_differently_and_texts_come_back() {
        let chosen = |seed| Subsample::Fraction(0.2).indices(100, seed).unwrap();
        assert_ne!(chosen(1), chosen(2));
        assert_eq!(Subsample::Fraction(0.001).indices(100, 1).unwrap().len(), 1);
        for text in ["every:7", "count:12", "fraction:0.25"] {
            let subsample: Subsample = serde_json::from_str(&format!("{text:?}")).unwrap();
            assert_eq!(serde_json::to_string(&subsample).unwrap(), format!("{text:?}"));
        }
    }

    #[test]
    fn what_takes_nothing_is_refused() {
        for (text, said) in [
            ("every:0", "every 0th is none"),
            ("count:0", "there are 9 examples; use 1 to 9"),
            ("count:10", "there are 9 examples; use 1 to 9"),
            ("fraction:0", "use a number above 0 and up to 1"),
            ("fraction:NaN", "use a number above 0 and up to 1"),
            ("fraction:1.1", "use a number above 0 and up to 1"),
        ] {
            let message = text.parse::<Subsample>().unwrap().indices(9, 0).unwrap_err().to_string();
            assert!(message.contains(said) && message.contains(&format!("\"{text}\"")), "{message}");
        }
        for text in ["", "9", "every:-1", "half:2", "count:x"] {
            let message = text.parse::<Subsample>().unwrap_err().to_string();
            assert!(message.contains("write every:100, count:500 or fraction:0.1"), "{message}");
        }
    }
}
