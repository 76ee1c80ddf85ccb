//! A data set in parts that share no dialogue.

use std::collections::HashMap;

use sideburn_batch::Key;

use crate::{error::DataError, example::Example};

/// Splits examples into parts of these fractions of them, at most 1 in all: a pure function of the examples and the
/// seed.
///
/// Examples with one [source](Example::source) stay together, whatever their ids are, so that no part knows a dialogue
/// of another; spaces, upper and lower case make no difference. So the sizes of parts can differ from their fractions
/// where dialogues are repeated. In a part the examples are in their order.
///
/// ```
/// use sideburn_data::{Example, Fields, split_examples};
///
/// let example = |at: usize| Example {
///     id: at.to_string(),
///     fields: Fields::from([("dialogue".to_owned(), format!("A: {}", at / 2))]),
///     targets: vec!["x".to_owned()],
/// };
/// let parts = split_examples((0..20).map(example).collect(), &[0.8, 0.1, 0.1], 42)?;
/// assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [16, 2, 2]);
/// assert_eq!(parts[1][0].source(), parts[1][1].source());
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
///
/// # Errors
/// [`DataError::Fractions`] if fractions are not above 0 or are more than 1 together, or if a part would be empty.
pub fn split_examples(examples: Vec<Example>, fractions: &[f64], seed: u64) -> Result<Vec<Vec<Example>>, DataError> {
    let fail = |reason: String| Err(DataError::Fractions { fractions: fractions.to_vec(), reason });
    if fractions.is_empty() || !fractions.iter().all(|part| *part > 0.0) || fractions.iter().sum::<f64>() > 1.0 + 1e-9 {
        return fail("give numbers above 0 that are at most 1 together".to_owned());
    }
    let mut groups: Vec<usize> = Vec::new();
    let mut sizes: Vec<usize> = Vec::new();
    let mut known = HashMap::<String, usize>::new();
    for example in &examples {
        let source = example.source().split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let group = *known.entry(source).or_insert(sizes.len());
        if group == sizes.len() {
            sizes.push(0);
        }
        sizes[group] += 1;
        groups.push(group);
    }
    // How many examples each part still wants; the last number is of those that are left out.
    let mut end = 0.0;
    let mut ends = vec![0];
    for fraction in fractions {
        end += fraction;
        ends.push(((examples.len() as f64 * end).round() as usize).min(examples.len()));
    }
    ends.push(examples.len());
    let mut wanted: Vec<i64> = ends.windows(2).map(|pair| (pair[1] - pair[0]) as i64).collect();
    let mut part_of = vec![0; sizes.len()];
    for group in Key::from_seed(seed).fold_in_name("parts").permutation(sizes.len()) {
        // Of equals the first.
        let most = (0..wanted.len()).rev().max_by_key(|part| wanted[*part]).unwrap_or_default();
        part_of[group] = most;
        wanted[most] -= sizes[group] as i64;
    }
    let mut parts: Vec<Vec<Example>> = fractions.iter().map(|_| Vec::new()).collect();
    let count = examples.len();
    for (example, group) in examples.into_iter().zip(groups) {
        if let Some(part) = parts.get_mut(part_of[group]) {
            part.push(example);
        }
    }
    match parts.iter().position(Vec::is_empty) {
        Some(empty) => {
            fail(format!("{count} examples with {} dialogues leave none for part {}", sizes.len(), empty + 1))
        }
        None => Ok(parts),
    }
}
