//! Which words and turns of a dialogue say most.

use std::collections::{HashMap, HashSet};

use sideburn::prelude::*;

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric() && c != '#'))
        .filter(|word| !word.is_empty() && !word.ends_with('#'))
}

/// In how many texts each word occurs.
pub(crate) fn frequencies<'a>(texts: impl Iterator<Item = &'a str>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for text in texts {
        let distinct: HashSet<String> = words(text).map(str::to_lowercase).collect();
        for word in distinct {
            *counts.entry(word).or_insert(0) += 1;
        }
    }
    counts
}

/// The words of a text with the highest tf-idf, in the order of their first occurrence.
pub(crate) fn keywords<'a>(
    text: &'a str,
    frequencies: &HashMap<String, usize>,
    texts: usize,
    limit: usize,
) -> Vec<&'a str> {
    let mut found: Vec<(String, &str, usize)> = Vec::new();
    for word in words(text) {
        let lower = word.to_lowercase();
        match found.iter_mut().find(|(known, ..)| *known == lower) {
            Some((.., count)) => *count += 1,
            None => found.push((lower, word, 1)),
        }
    }
    let score =
        |(word, _, count): &(String, &str, usize)| *count as f64 * (texts as f64 / frequencies[word] as f64).ln();
    let mut best: Vec<usize> = (0..found.len()).collect();
    best.sort_by(|a, b| score(&found[*b]).total_cmp(&score(&found[*a])));
    best.truncate(limit);
    best.sort_unstable();
    best.into_iter().map(|index| found[index].1).collect()
}

/// The turn with the highest ROUGE-1 against all other turns together, the first of several.
pub(crate) fn most_salient(turns: &[&str]) -> anyhow::Result<usize> {
    let scorer = RougeScorer::new(&[Metric::Rouge1]);
    let scores: Vec<f64> = (0..turns.len())
        .map(|index| {
            let others = [&turns[..index], &turns[index + 1..]].concat().join("\n");
            Ok(scorer.score(&others, turns[index])?[Metric::Rouge1].fmeasure)
        })
        .collect::<anyhow::Result<_>>()?;
    Ok((0..turns.len()).rev().max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0))
}
