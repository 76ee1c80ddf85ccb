//! Scoring of texts, alone and in bulk.

use rayon::prelude::*;

use crate::encode::{Document, Vocabulary};
use crate::error::RougeError;
use crate::lcs::Lcs;
use crate::metric::Metric;
use crate::ngram;
use crate::score::{Score, Scores};

/// Scores predictions against references, as `rouge_score.rouge_scorer.RougeScorer` does.
///
/// ```
/// use sideburn_rouge::{Metric, RougeScorer};
///
/// let scorer = RougeScorer::new(&[Metric::Rouge1, Metric::RougeL]).with_stemmer(true);
/// let scores = scorer.score("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.");
/// assert_eq!(scores[Metric::Rouge1].precision, 0.75);
/// assert_eq!(scores[Metric::RougeL].recall, 5.0 / 9.0);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RougeScorer {
    metrics: Vec<Metric>,
    stemmer: bool,
}

/// Space that one thread uses again for each sample.
#[derive(Default)]
struct Workspace {
    vocabulary: Vocabulary,
    lcs: Lcs,
    /// For each token: how often it may still be matched in the prediction.
    remaining: Vec<usize>,
}

impl RougeScorer {
    /// A scorer without stemming, for these metrics; a repeated one is taken once.
    pub fn new(metrics: &[Metric]) -> Self {
        let mut unique = Vec::with_capacity(metrics.len());
        for &metric in metrics {
            if !unique.contains(&metric) {
                unique.push(metric);
            }
        }
        Self { metrics: unique, stemmer: false }
    }

    /// A scorer without stemming for [`Metric::STANDARD`].
    pub fn all() -> Self {
        Self::new(&Metric::STANDARD)
    }

    /// Whether words are compared by their Porter stems (`use_stemmer` in Python, where it is off unless asked for).
    #[must_use]
    pub fn with_stemmer(mut self, stemmer: bool) -> Self {
        self.stemmer = stemmer;
        self
    }

    /// The metrics, in the order in which results list them.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// Scores a prediction against one reference. Texts without words score 0.
    pub fn score(&self, reference: &str, prediction: &str) -> Scores {
        self.score_one(reference, prediction, &mut Workspace::default())
    }

    /// Scores a prediction against several references: for each metric, the score of the reference with the highest
    /// F-measure, the first of them on a tie.
    ///
    /// # Errors
    /// [`RougeError::NoReferences`] if the list is empty.
    pub fn score_multi<T: AsRef<str>>(&self, references: &[T], prediction: &str) -> Result<Scores, RougeError> {
        let best = self.score_best(references, prediction, &mut Workspace::default());
        best.ok_or(RougeError::NoReferences { sample: 0 })
    }

    /// Scores each prediction against the reference at the same place, on all threads of the current rayon pool.
    /// Results are in the order of the input.
    ///
    /// # Errors
    /// [`RougeError::LengthMismatch`] if the lists differ in length.
    pub fn score_pairs<T, P>(&self, references: &[T], predictions: &[P]) -> Result<Vec<Scores>, RougeError>
    where
        T: AsRef<str> + Sync,
        P: AsRef<str> + Sync,
    {
        check_lengths(references.len(), predictions.len())?;
        let pairs = references.par_iter().zip(predictions);
        Ok(pairs
            .map_init(Workspace::default, |workspace, (reference, prediction)| {
                self.score_one(reference.as_ref(), prediction.as_ref(), workspace)
            })
            .collect())
    }

    /// Scores each prediction against the references at the same place, as [`score_multi`](RougeScorer::score_multi)
    /// does, on all threads of the current rayon pool. Results are in the order of the input.
    ///
    /// # Errors
    /// [`RougeError::LengthMismatch`] if the lists differ in length, [`RougeError::NoReferences`] for the first sample
    /// without references.
    pub fn score_corpus<R, T, P>(&self, references: &[R], predictions: &[P]) -> Result<Vec<Scores>, RougeError>
    where
        R: AsRef<[T]> + Sync,
        T: AsRef<str>,
        P: AsRef<str> + Sync,
    {
        check_lengths(references.len(), predictions.len())?;
        // Checked beforehand, so that the sample named does not depend on which thread is first.
        if let Some(sample) = references.iter().position(|list| list.as_ref().is_empty()) {
            return Err(RougeError::NoReferences { sample });
        }
        let samples = references.par_iter().zip(predictions).enumerate();
        samples
            .map_init(Workspace::default, |workspace, (sample, (references, prediction))| {
                let best = self.score_best(references.as_ref(), prediction.as_ref(), workspace);
                best.ok_or(RougeError::NoReferences { sample })
            })
            .collect()
    }

    fn score_one(&self, reference: &str, prediction: &str, workspace: &mut Workspace) -> Scores {
        workspace.vocabulary.clear();
        let prediction = workspace.vocabulary.encode(prediction, self.stemmer);
        let reference = workspace.vocabulary.encode(reference, self.stemmer);
        self.score_documents(&reference, &prediction, workspace)
    }

    fn score_best<T: AsRef<str>>(
        &self,
        references: &[T],
        prediction: &str,
        workspace: &mut Workspace,
    ) -> Option<Scores> {
        workspace.vocabulary.clear();
        let prediction = workspace.vocabulary.encode(prediction, self.stemmer);
        let mut best: Option<Scores> = None;
        for reference in references {
            let reference = workspace.vocabulary.encode(reference.as_ref(), self.stemmer);
            let scores = self.score_documents(&reference, &prediction, workspace);
            match &mut best {
                None => best = Some(scores),
                Some(best) => {
                    for (best, (_, score)) in best.values_mut().zip(&scores) {
                        if score.fmeasure > best.fmeasure {
                            *best = *score;
                        }
                    }
                }
            }
        }
        best
    }

    fn score_documents(&self, reference: &Document, prediction: &Document, workspace: &mut Workspace) -> Scores {
        let (r, p) = (&reference.tokens, &prediction.tokens);
        let scores = self.metrics.iter().map(|&metric| {
            let score = match ngram_size(metric) {
                Some(n) => {
                    Score::from_counts(ngram::shared(n, r, p), ngram::count(n, p.len()), ngram::count(n, r.len()))
                }
                None => {
                    let hits = if metric == Metric::RougeL {
                        workspace.lcs.length(r, p, workspace.vocabulary.len())
                    } else {
                        workspace.summary_level_hits(reference, prediction)
                    };
                    Score::from_counts(hits, p.len(), r.len())
                }
            };
            (metric, score)
        });
        scores.collect()
    }
}

impl Workspace {
    /// The words shared by the two summaries according to ROUGE-Lsum: section 3.2 of Lin (2004), with the clipping of
    /// ROUGE 1.5.5, by which a word is never counted more often than the prediction has it. (Nor more often than the
    /// reference has it, which holds by itself: each of its places is marked once.)
    fn summary_level_hits(&mut self, reference: &Document, prediction: &Document) -> usize {
        let vocabulary = self.vocabulary.len();
        self.remaining.clear();
        self.remaining.resize(vocabulary, 0);
        for &token in &prediction.tokens {
            self.remaining[token as usize] += 1;
        }
        let mut hits = 0;
        for sentence in reference.sentences() {
            let union = self.lcs.union(sentence, prediction.sentences(), vocabulary);
            for (&token, _) in sentence.iter().zip(union).filter(|(_, marked)| **marked) {
                let remaining = &mut self.remaining[token as usize];
                if *remaining > 0 {
                    *remaining -= 1;
                    hits += 1;
                }
            }
        }
        hits
    }
}

/// The `n` of a metric of n-grams.
fn ngram_size(metric: Metric) -> Option<usize> {
    match metric {
        Metric::Rouge1 => Some(1),
        Metric::Rouge2 => Some(2),
        Metric::Rouge3 => Some(3),
        Metric::Rouge4 => Some(4),
        Metric::Rouge5 => Some(5),
        Metric::Rouge6 => Some(6),
        Metric::Rouge7 => Some(7),
        Metric::Rouge8 => Some(8),
        Metric::Rouge9 => Some(9),
        Metric::RougeL | Metric::RougeLsum => None,
    }
}

fn check_lengths(references: usize, predictions: usize) -> Result<(), RougeError> {
    if references == predictions { Ok(()) } else { Err(RougeError::LengthMismatch { references, predictions }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_level_clips_repeated_words() {
        // Both lines of the reference match "a b", but the prediction has it once.
        let scores = RougeScorer::all().score("a b\na b", "a b");
        assert_eq!(scores[Metric::RougeLsum], Score::from_counts(2, 2, 4));
    }

    #[test]
    fn texts_without_words_score_nothing() {
        for (reference, prediction) in [("", ""), ("a", ""), ("", "a"), ("\n\n", "..."), ("\u{e9}", "\u{e9}")] {
            for (_, score) in &RougeScorer::all().score(reference, prediction) {
                assert_eq!(*score, Score::default());
            }
        }
    }

    #[test]
    fn wrong_lists_are_errors() {
        let scorer = RougeScorer::all();
        assert_eq!(scorer.score_multi::<&str>(&[], "a"), Err(RougeError::NoReferences { sample: 0 }));
        assert_eq!(scorer.score_corpus(&[vec!["a"], vec![]], &["a", "b"]), Err(RougeError::NoReferences { sample: 1 }));
        let mismatch = RougeError::LengthMismatch { references: 2, predictions: 1 };
        assert_eq!(scorer.score_pairs(&["a", "b"], &["a"]), Err(mismatch));
    }

    #[test]
    fn long_texts_take_little_memory() {
        // A full table of counts would take 40,000 x 40,000 cells.
        let text: String = (0..40_000).map(|i| format!("w{} ", i * i % 9973)).collect();
        let scores = RougeScorer::all().score(&text, &text);
        assert!(scores.iter().all(|(_, score)| score.fmeasure == 1.0));
    }
}
