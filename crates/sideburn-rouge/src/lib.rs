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
//! * [`Scores`] maps each metric to a [`Score`]: precision, recall and F-measure, all between 0 and 1. Means over a
//!   test set, and their confidence intervals, are in `sideburn-eval`.
//! * [`tokenize`] shows the tokens that are counted.
//!
//! The Python class is `RougeScorer(rouge_types, use_stemmer, split_summaries=False)`: sentences, for ROUGE-Lsum, are
//! the lines of a text. With [`RougeScorer::with_sentences`] they are those that [`Punkt`] finds
//! (`split_summaries=True`). Custom tokenizers are left out.
//!
//! # Example: a test set with several references
//!
//! ```
//! use sideburn_rouge::{Metric, RougeScorer};
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
//!     for (metric, score) in &scores[0] {
//!         println!("{metric}: precision {:.4}, recall {:.4}, F {:.4}", score.precision, score.recall, score.fmeasure);
//!     }
//!     let mean = scores.iter().map(|scores| scores[Metric::RougeL].fmeasure).sum::<f64>() / scores.len() as f64;
//!     println!("mean F of rougeL: {mean:.4}");
//!     # assert!(scores[0][Metric::Rouge1].recall == 1.0 && (0.71..0.72).contains(&mean), "{mean}");
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
//!
//! A text has at most [`RougeScorer::MAX_WORDS`] words, 65,536, and for ROUGE-Lsum [`RougeScorer::MAX_LINES`] lines,
//! 8,192: more than `rouge_score` can compare, whose table would have 4 billion cells. Longer ones are an error. So the
//! longest ROUGE-L takes 67 million steps, a tenth of a second, and the longest ROUGE-Lsum about a second.

#![forbid(unsafe_code)]

mod encode;
mod error;
mod lcs;
mod metric;
mod ngram;
mod porter;
mod punkt;
mod score;
mod scorer;

pub use encode::tokenize;
pub use error::RougeError;
pub use metric::Metric;
pub use punkt::Punkt;
pub use score::{Score, Scores};
pub use scorer::RougeScorer;
