//! Scoring of texts, alone and in bulk.

use std::borrow::Cow;
use std::sync::Arc;

#[cfg(feature = "threads")]
use rayon::prelude::*;

use crate::encode::{Document, Vocabulary};
use crate::error::RougeError;
use crate::lcs::Lcs;
use crate::metric::Metric;
use crate::ngram;
use crate::punkt::Punkt;
use crate::score::{Score, Scores};

/// Scores predictions against references, as `rouge_score.rouge_scorer.RougeScorer` does.
///
/// ```
/// use sideburn_rouge::{Metric, RougeScorer};
///
/// let scorer = RougeScorer::new(&[Metric::Rouge1, Metric::RougeL]).with_stemmer(true);
/// let scores = scorer.score("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")?;
/// assert_eq!(scores[Metric::Rouge1].precision, 0.75);
/// assert_eq!(scores[Metric::RougeL].recall, 5.0 / 9.0);
/// # Ok::<(), sideburn_rouge::RougeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RougeScorer {
    metrics: Vec<Metric>,
    stemmer: bool,
    sentences: Option<Arc<Punkt>>,
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
    /// The most words that a text may have.
    pub const MAX_WORDS: usize = 1 << 16;

    /// The most lines with words that a text may have where [`Metric::RougeLsum`] is computed, which compares each line
    /// of the reference with each of the prediction.
    pub const MAX_LINES: usize = 1 << 13;

    /// A scorer without stemming, for these metrics; a repeated one is taken once.
    pub fn new(metrics: &[Metric]) -> Self {
        let mut unique = Vec::with_capacity(metrics.len());
        for &metric in metrics {
            if !unique.contains(&metric) {
                unique.push(metric);
            }
        }
        Self { metrics: unique, stemmer: false, sentences: None }
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

    /// Sentences, for ROUGE-Lsum, as `punkt` finds them (`split_summaries` in Python), and not the lines of a text.
    #[must_use]
    pub fn with_sentences(mut self, punkt: impl Into<Arc<Punkt>>) -> Self {
        self.sentences = Some(punkt.into());
        self
    }

    /// The metrics, in the order in which results list them.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// Scores a prediction against one reference. Texts without words score 0.
    ///
    /// # Errors
    /// [`RougeError::TooLong`] if a text has more than [`MAX_WORDS`](RougeScorer::MAX_WORDS) words, or for ROUGE-Lsum
    /// more than [`MAX_LINES`](RougeScorer::MAX_LINES) lines.
    pub fn score(&self, reference: &str, prediction: &str) -> Result<Scores, RougeError> {
        self.score_best(0, &[reference], prediction, &mut Workspace::default())
    }

    /// Scores a prediction against several references: for each metric, the score of the reference with the highest
    /// F-measure, the first of them on a tie.
    ///
    /// # Errors
    /// [`RougeError::NoReferences`] if the list is empty, [`RougeError::TooLong`] as for [`score`](RougeScorer::score).
    pub fn score_multi<T: AsRef<str>>(&self, references: &[T], prediction: &str) -> Result<Scores, RougeError> {
        self.score_best(0, references, prediction, &mut Workspace::default())
    }

    /// Scores each prediction against the reference at the same place, on all threads of the current rayon pool.
    /// Results are in the order of the input.
    ///
    /// # Errors
    /// [`RougeError::LengthMismatch`] if the lists differ in length, [`RougeError::TooLong`] for the first sample with
    /// a text that is too long.
    pub fn score_pairs<T, P>(&self, references: &[T], predictions: &[P]) -> Result<Vec<Scores>, RougeError>
    where
        T: AsRef<str> + Sync,
        P: AsRef<str> + Sync,
    {
        self.score_all(references, predictions, std::slice::from_ref)
    }

    /// Scores each prediction against the references at the same place, as [`score_multi`](RougeScorer::score_multi)
    /// does, on all threads of the current rayon pool. Results are in the order of the input.
    ///
    /// # Errors
    /// [`RougeError::LengthMismatch`] if the lists differ in length, [`RougeError::NoReferences`] or
    /// [`RougeError::TooLong`] for the first sample without references or with a text that is too long.
    pub fn score_corpus<R, T, P>(&self, references: &[R], predictions: &[P]) -> Result<Vec<Scores>, RougeError>
    where
        R: AsRef<[T]> + Sync,
        T: AsRef<str>,
        P: AsRef<str> + Sync,
    {
        self.score_all(references, predictions, |references| references.as_ref())
    }

    /// `texts` gives the references of a sample.
    fn score_all<R: Sync, T: AsRef<str>, P: AsRef<str> + Sync>(
        &self,
        references: &[R],
        predictions: &[P],
        texts: impl Fn(&R) -> &[T] + Sync,
    ) -> Result<Vec<Scores>, RougeError> {
        if references.len() != predictions.len() {
            let (references, predictions) = (references.len(), predictions.len());
            return Err(RougeError::LengthMismatch { references, predictions });
        }
        let score = |workspace: &mut Workspace, sample: usize| {
            self.score_best(sample, texts(&references[sample]), predictions[sample].as_ref(), workspace)
        };
        #[cfg(feature = "threads")]
        let all: Vec<_> = (0..predictions.len()).into_par_iter().map_init(Workspace::default, score).collect();
        #[cfg(not(feature = "threads"))]
        let all: Vec<_> = {
            let mut workspace = Workspace::default();
            (0..predictions.len()).map(|sample| score(&mut workspace, sample)).collect()
        };
        // One after the other, so that the sample named does not depend on which thread is first.
        all.into_iter().collect()
    }

    /// The best score of each metric over all references.
    fn score_best<T: AsRef<str>>(
        &self,
        sample: usize,
        references: &[T],
        prediction: &str,
        workspace: &mut Workspace,
    ) -> Result<Scores, RougeError> {
        workspace.vocabulary.clear();
        let max_lines = if self.metrics.contains(&Metric::RougeLsum) { Self::MAX_LINES } else { usize::MAX };
        let encode = |vocabulary: &mut Vocabulary, text: &'static str, words: &str| {
            let words = self.sentences.as_ref().map_or(Cow::Borrowed(words), |punkt| punkt.lines(words).into());
            let document = vocabulary.encode(&words, self.stemmer, Self::MAX_WORDS);
            let too_long = |limit, unit| Err(RougeError::TooLong { sample, text, limit, unit });
            match (document.tokens.len(), document.sentences().count()) {
                (words, _) if words > Self::MAX_WORDS => too_long(Self::MAX_WORDS, "words"),
                (_, lines) if lines > max_lines => too_long(max_lines, "lines"),
                _ => Ok(document),
            }
        };
        let prediction = encode(&mut workspace.vocabulary, "prediction", prediction)?;
        let mut best: Option<Scores> = None;
        for reference in references {
            let reference = encode(&mut workspace.vocabulary, "reference", reference.as_ref())?;
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
        best.ok_or(RougeError::NoReferences { sample })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_level_clips_repeated_words() {
        // Both lines of the reference match "a b", but the prediction has it once.
        let scores = RougeScorer::all().score("a b\na b", "a b").unwrap();
        assert_eq!(scores[Metric::RougeLsum], Score::from_counts(2, 2, 4));
    }

    #[test]
    fn texts_without_words_score_nothing() {
        for (reference, prediction) in [("", ""), ("a", ""), ("", "a"), ("\n\n", "..."), ("\u{e9}", "\u{e9}")] {
            for (_, score) in &RougeScorer::all().score(reference, prediction).unwrap() {
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
        let scores = RougeScorer::all().score(&text, &text).unwrap();
        assert!(scores.iter().all(|(_, score)| score.fmeasure == 1.0));
    }

    #[test]
    fn a_text_has_a_cap() {
        let (most, more) = ("a ".repeat(RougeScorer::MAX_WORDS), "a\n".repeat(RougeScorer::MAX_WORDS + 1));
        let scorer = RougeScorer::new(&[Metric::RougeL, Metric::Rouge1]);
        assert_eq!(scorer.score(&most, &most).unwrap()[Metric::RougeL].fmeasure, 1.0);
        let message = scorer.score_pairs(&["a", &most, &more], &["a", "a", "a"]).unwrap_err().to_string();
        assert!(
            message.starts_with("the reference of sample 2 (counted from 0) has more than 65536 words;"),
            "{message}"
        );
        let error = scorer.score_multi(&["a"], &more).unwrap_err();
        assert_eq!(error, RougeError::TooLong { sample: 0, text: "prediction", limit: 65536, unit: "words" });
        let lines = "a\n".repeat(RougeScorer::MAX_LINES + 1);
        assert_eq!(scorer.score(&lines, "a").unwrap()[Metric::Rouge1].precision, 1.0);
        let message = RougeScorer::all().score(&lines, "a").unwrap_err().to_string();
        assert!(message.contains("has more than 8192 lines; ROUGE is for summaries"), "{message}");
    }
}
