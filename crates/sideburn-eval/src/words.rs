//! Words of texts in any language, where they are, and who speaks.

use std::{collections::HashSet, ops::Range};

/// A text and its words: runs of letters and digits, without regard to upper and lower case.
///
/// ROUGE has words of its own, which know ASCII alone.
pub(crate) struct Words {
    places: Vec<Range<usize>>,
    words: Vec<String>,
}

impl Words {
    pub(crate) fn new(text: &str) -> Self {
        let (mut places, mut begin) = (Vec::new(), None);
        for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
            match (c.is_alphanumeric(), begin) {
                (true, None) => begin = Some(at),
                (false, Some(start)) => {
                    places.push(start..at);
                    begin = None;
                }
                _ => {}
            }
        }
        let words = places.iter().map(|place| text[place.clone()].to_lowercase()).collect();
        Self { places, words }
    }

    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// All runs of `n` words.
    pub(crate) fn ngrams(&self, n: usize) -> impl Iterator<Item = &[String]> {
        self.words.windows(n)
    }

    /// The share of its runs of `n` words that are not in `source`; `None` if it has none.
    pub(crate) fn novel(&self, n: usize, source: &Words) -> Option<f64> {
        let known: HashSet<&[String]> = source.ngrams(n).collect();
        let (all, novel) = self
            .ngrams(n)
            .fold((0u32, 0u32), |(all, novel), ngram| (all + 1, novel + u32::from(!known.contains(ngram))));
        (all > 0).then(|| f64::from(novel) / f64::from(all))
    }

    /// The longest stretches of the text whose runs of two words are all in one of `others`.
    pub(crate) fn shared(&self, others: &[Words]) -> Vec<Range<usize>> {
        let known: HashSet<&[String]> = others.iter().flat_map(|other| other.ngrams(2)).collect();
        let mut stretches: Vec<Range<usize>> = Vec::new();
        for (at, _) in self.ngrams(2).enumerate().filter(|(_, ngram)| known.contains(ngram)) {
            let (start, end) = (self.places[at].start, self.places[at + 1].end);
            match stretches.last_mut() {
                Some(last) if last.end >= start => last.end = end,
                _ => stretches.push(start..end),
            }
        }
        stretches
    }
}

/// How many there are whose names stand before a colon at the beginning of a line: `Ann: Tea?`, `#Person1#: Tea?`.
pub(crate) fn speakers(dialogue: &str) -> usize {
    /// A longer one is a sentence.
    const LONGEST_NAME: usize = 40;
    let name = |line: &'_ str| -> Option<String> {
        let name = line.split_once(':')?.0.trim();
        (!name.is_empty() && name.chars().count() <= LONGEST_NAME).then(|| name.to_lowercase())
    };
    dialogue.lines().filter_map(name).collect::<HashSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        let words = Words::new("#Person1# hasn't ÄTE 3 東京…");
        assert_eq!(words.words, ["person1", "hasn", "t", "äte", "3", "東京"]);
        assert_eq!(Words::new(" … ").len(), 0);
    }

    #[test]
    fn what_is_new_is_counted() {
        let (source, summary) = (Words::new("the cat sat on the mat"), Words::new("The cat lay on the mat"));
        assert_eq!(summary.novel(1, &source), Some(1.0 / 6.0));
        assert_eq!(summary.novel(2, &source), Some(2.0 / 5.0));
        assert_eq!(summary.novel(7, &source), None);
    }

    #[test]
    fn stretches_that_are_shared_are_found() {
        let text = "Ann, the cat, sat on a mat. Bob left";
        let shared = Words::new(text).shared(&[Words::new("the cat sat"), Words::new("cat sat on; a bob left")]);
        assert_eq!(shared.iter().map(|at| &text[at.clone()]).collect::<Vec<_>>(), ["the cat, sat on a", "Bob left"]);
    }

    #[test]
    fn speakers_are_counted_once() {
        assert_eq!(speakers("Ann: Tea?\nBob: At 5:00.\nann: Yes\nno one speaks here\n: x"), 2);
        assert_eq!(speakers(&format!("{}: said he", "word ".repeat(20))), 0);
    }
}
