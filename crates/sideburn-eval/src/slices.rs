//! Results over parts of the examples: where a system fails.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sideburn_data::Example;

use crate::{
    bootstrap::bootstrap,
    error::EvalError,
    evaluation::{Evaluation, Mean},
    words::{Words, speakers},
};

/// The examples in parts, by something that can be told of their dialogues.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slicing {
    /// What they are told apart by, such as `words of the dialogue`.
    pub by: String,
    /// The parts, none of them empty.
    pub slices: Vec<Slice>,
}

/// A part of the examples, and what systems do there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// What is in it, such as `1 to 88`.
    pub name: String,
    /// How many examples.
    pub n: usize,
    /// The scores of each system there, in the order of the evaluation.
    pub systems: Vec<SystemScores>,
}

/// The scores of a system on some of the examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemScores {
    /// The system.
    pub system: String,
    /// Its scores there; one that no example there has is left out.
    pub scores: Vec<Mean>,
}

/// By length, in quarters, and by the number of speakers.
pub(crate) fn slicings(evaluation: &Evaluation) -> Result<Vec<Slicing>, EvalError> {
    let of_examples = |measure: &dyn Fn(&str) -> usize| -> Vec<usize> {
        evaluation.examples.iter().map(|example: &Example| measure(&example.source())).collect()
    };
    let by_length = quarters(&of_examples(&|text| Words::new(text).len()));
    let by_speakers = by_number(&of_examples(&speakers));
    [("words of the dialogue", by_length), ("speakers", by_speakers)]
        .into_iter()
        .map(|(by, parts)| {
            let slices = parts.into_iter().map(|(name, examples)| slice(evaluation, name, &examples));
            Ok(Slicing { by: by.to_owned(), slices: slices.collect::<Result<_, _>>()? })
        })
        .collect()
}

/// A part's name, and the numbers of its examples.
type Part = (String, Vec<usize>);

/// Four parts of about the same size. Equal lengths are in one part, so that there may be fewer.
fn quarters(lengths: &[usize]) -> Vec<Part> {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    // The longest of each quarter.
    let mut ends: Vec<usize> = (1..=4).map(|part| sorted[(sorted.len() * part).div_ceil(4) - 1]).collect();
    ends.dedup();
    let mut parts: Vec<Part> = Vec::new();
    let mut above = None;
    for end in ends {
        let is_in = |length: usize| length <= end && above.is_none_or(|above| length > above);
        let examples: Vec<usize> = (0..lengths.len()).filter(|at| is_in(lengths[*at])).collect();
        let least = examples.iter().map(|at| lengths[*at]).min().unwrap_or(end);
        let name = if least == end { end.to_string() } else { format!("{least} to {end}") };
        parts.push((name, examples));
        above = Some(end);
    }
    parts
}

/// One part for each number that occurs; 5 and more are one.
fn by_number(numbers: &[usize]) -> Vec<Part> {
    const MANY: usize = 5;
    let mut parts = BTreeMap::<usize, Vec<usize>>::new();
    for (at, number) in numbers.iter().enumerate() {
        parts.entry(*number.min(&MANY)).or_default().push(at);
    }
    let name = |number| match number {
        0 => "none named".to_owned(),
        MANY => format!("{MANY} or more"),
        number => number.to_string(),
    };
    parts.into_iter().map(|(number, examples)| (name(number), examples)).collect()
}

fn slice(evaluation: &Evaluation, name: String, examples: &[usize]) -> Result<Slice, EvalError> {
    let mut systems = Vec::new();
    for system in &evaluation.systems {
        let mut scores = Vec::new();
        for scored in &system.scores {
            let values: Vec<f64> = examples.iter().filter_map(|at| scored.values[*at]).collect();
            if !values.is_empty() {
                scores.push(Mean { interval: bootstrap(&values, &evaluation.bootstrap)?, ..scored.mean.clone() });
            }
        }
        systems.push(SystemScores { system: system.name.clone(), scores });
    }
    Ok(Slice { name, n: examples.len(), systems })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_in_one_quarter() {
        let names =
            |lengths: &[usize]| quarters(lengths).into_iter().map(|(name, at)| (name, at.len())).collect::<Vec<_>>();
        let expected = [("1 to 2", 2), ("3 to 4", 2), ("5 to 6", 2), ("7 to 8", 2)];
        assert_eq!(names(&[8, 7, 6, 5, 4, 3, 2, 1]), expected.map(|(name, n)| (name.to_owned(), n)));
        assert_eq!(names(&[3]), [("3".to_owned(), 1)]);
        assert_eq!(names(&[3, 3, 3, 9, 3]), [("3".to_owned(), 4), ("9".to_owned(), 1)]);
    }

    #[test]
    fn numbers_are_parts() {
        let parts = by_number(&[2, 0, 2, 9, 5]);
        let expected = [("none named", vec![1]), ("2", vec![0, 2]), ("5 or more", vec![3, 4])];
        assert_eq!(parts, expected.map(|(name, at)| (name.to_owned(), at)));
    }
}
