//! ROUGE, the usual score of a generated summary against human ones, equal to the Python package
//! [`rouge_score`](https://pypi.org/project/rouge-score/) 0.1.2 to the last digit, and much faster.
//!
//! Published numbers are nearly always those of `rouge_score` (Hugging Face's `evaluate` wraps it), whose tokenizer,
//! stemmer and handling of ROUGE-Lsum all have quirks that move the result. This crate reproduces them, so that its
//! numbers stand beside published ones.
//!
//! # Overview
//!
//! * [`RougeScorer`] scores one pair ([`score`](RougeScorer::score)), one prediction against several references
//!   ([`score_multi`](RougeScorer::score_multi)), or a whole test set on all cores
//!   ([`score_pairs`](RougeScorer::score_pairs), [`score_corpus`](RougeScorer::score_corpus)).
//! * [`Metric`] names what is computed: [`Rouge1`](Metric::Rouge1) to [`Rouge9`](Metric::Rouge9),
//!   [`RougeL`](Metric::RougeL) and [`RougeLsum`](Metric::RougeLsum).
//! * [`Scores`] maps each metric to a [`Score`]: precision, recall and F-measure, all between 0 and 1.
//! * [`mean`] averages a test set; [`aggregate`] adds a bootstrap confidence interval that is the same on every run
//!   and any number of threads.
//! * [`tokenize`] shows the tokens that are counted.
//!
//! The Python class is `RougeScorer(rouge_types, use_stemmer, split_summaries=False)`: sentences, for ROUGE-Lsum, are
//! the lines of a text. Custom tokenizers and `split_summaries=True` (NLTK's sentence splitter) are left out.
//!
//! # Example: a test set with several references
//!
//! ```
//! use sideburn_rouge::{BootstrapConfig, Metric, RougeScorer, aggregate, mean};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let references = [
//!         vec!["#Person1# takes a taxi to the airport.", "#Person1# goes to the airport by taxi."],
//!         vec!["Ann orders two coffees."],
//!     ];
//!     let predictions = ["#Person1# is taking a taxi to the airport.", "Ann would like coffee."];
//!
//!     let scorer = RougeScorer::all().with_stemmer(true);
//!     let scores = scorer.score_corpus(&references, &predictions)?;
//!     println!("first pair: {:.4}", scores[0][Metric::RougeL].fmeasure);
//!
//!     let average = mean(&scores)?;
//!     let intervals = aggregate(&scores, &BootstrapConfig::default().with_seed(1))?;
//!     for (metric, interval) in &intervals {
//!         let (low, high) = (interval.low.fmeasure, interval.high.fmeasure);
//!         println!("{metric}: {:.4} (95 % interval {low:.4} to {high:.4})", average[metric].fmeasure);
//!     }
//!     # assert!(intervals[Metric::Rouge1].low.fmeasure <= average[Metric::Rouge1].fmeasure);
//!     Ok(())
//! }
//! ```
//!
//! # How equality is checked
//!
//! `testdata/make_goldens.py` runs the Python package over 10,000 random pairs of texts (accents, CJK, emoji,
//! combining marks, empty texts), over dialogue summaries and over a list of words for the stemmer; `tests/parity`
//! compares.
//!
//! # Cost
//!
//! With `m` and `n` tokens, ROUGE-N takes `O((m + n) log(m + n))` time; ROUGE-L and ROUGE-Lsum take `O(mn / 64)` (for
//! ROUGE-Lsum, plus the number of pairs of sentences). Memory grows with `m + n`, except for a pair of very long
//! sentences under ROUGE-Lsum, where it takes `m * sqrt(n) / 4` bytes.

#![forbid(unsafe_code)]

mod aggregate;
mod encode;
mod error;
mod lcs;
mod metric;
mod ngram;
mod porter;
mod score;
mod scorer;

pub use aggregate::{BootstrapConfig, aggregate, mean};
pub use encode::tokenize;
pub use error::RougeError;
pub use metric::Metric;
pub use score::{AggregateScores, ByMetric, Interval, Score, Scores};
pub use scorer::RougeScorer;
