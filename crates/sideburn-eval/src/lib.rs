//! What models wrote, scored, with intervals, in one value from which text, JSON and reports are made.
//!
//! No model is known here, and no tensor library: outputs are texts, wherever they come from.
//!
//! # Overview
//!
//! * A [`Score`] gives numbers to outputs. ROUGE (`sideburn_rouge::RougeScorer`) is one; others are added from outside.
//! * [`bootstrap`] is the mean of any numbers with a confidence interval; [`compare`] says whether one system is better
//!   than another on the same examples.
//! * An [`Evaluation`] holds what was asked, what each [`System`] answered and what that is worth. It is a table as
//!   text, and serializes.
//! * A [`Report`] is that and what follows from it: tests between systems, statistics of their texts, scores over parts
//!   of the examples. It is a page, too: [`Report::to_html`].
//! * [`curves_to_html`] is a page of numbers over the steps of a run.
//!
//! # A complete program
//!
//! ```
//! use std::{error::Error, path::Path};
//! use sideburn_data::{Dataset, Split};
//! use sideburn_eval::{BootstrapConfig, Evaluation};
//! use sideburn_rouge::RougeScorer;
//!
//! /// How far one gets by copying the first line of a dialogue.
//! fn first_lines(data: &Path) -> Result<Evaluation, Box<dyn Error>> {
//!     let test = Dataset::dialogsum().read(data, Split::Test)?.examples;
//!     let first_line = |dialogue: &str| dialogue.lines().next().unwrap_or_default().to_owned();
//!     let outputs = test.iter().map(|example| first_line(&example.fields["dialogue"])).collect();
//!     let mut evaluation = Evaluation::new(test, BootstrapConfig::default());
//!     evaluation.add("first line", outputs, &[&RougeScorer::all().with_stemmer(true)])?;
//!     Ok(evaluation)
//! }
//! # let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/dialogsum-sample");
//! # let evaluation = first_lines(&data).unwrap();
//! # assert!(evaluation.to_string().contains("first line          28.14 [25.85, 30.39]"), "{evaluation}");
//! ```

#![forbid(unsafe_code)]

mod bootstrap;
mod comparison;
mod error;
mod evaluation;
mod html;
mod report;
mod score;
mod slices;
mod statistics;
mod words;

pub use bootstrap::{BootstrapConfig, Interval, bootstrap};
pub use comparison::{Comparison, compare};
pub use error::{EvalError, ScoreError};
pub use evaluation::{Difference, Evaluation, Mean, Scored, System};
pub use html::{Curve, curves_to_html};
pub use report::Report;
pub use score::{Score, Values};
pub use slices::{Slice, Slicing, SystemScores};
pub use statistics::Statistics;
