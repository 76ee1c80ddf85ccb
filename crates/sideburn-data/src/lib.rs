//! From files on a disk to batches of token ids: everything that happens to dialogue-summarisation data before a
//! model sees it. No model and no tensor library is known here.
//!
//! # Overview
//!
//! * [`DialogSum::open`] reads a directory of the DialogSum data set, in the hub's CSV layout or the original JSON
//!   Lines, into [`Splits`] of [`Sample`]s. [`read_csv`] and [`read_jsonl`] read one file. The three test rows that
//!   repeat a dialogue become one sample with three [references](Sample::references).
//! * [`PromptTemplate`] is the text around a dialogue; the same value serves training and inference.
//! * [`Tokenizer`] wraps a `tokenizer.json`: ids end with the end-of-sequence token, exactly once.
//! * [`tokenize`] does all samples in parallel and says how many were [cut](TokenizedSet#structfield.cut_sources).
//! * [`BatchSampler`] gives the sample numbers of any training step, as a pure function of the seed and the step.
//!   [`TokenizedSet::batch`] lays those samples into a [`Seq2SeqBatch`](sideburn_batch::Seq2SeqBatch).
//!
//! Reading is strict. Anything that does not fit is a [`DataError`] that names the file, the line, the field, what was
//! found and what to do; nothing is dropped or guessed.
//!
//! # A complete program
//!
//! ```
//! use std::{error::Error, path::Path};
//! use sideburn_data::{BatchSampler, DialogSum, Limits, PromptTemplate, Tokenizer, tokenize};
//!
//! fn first_batches(data: &Path, model: &Path) -> Result<(), Box<dyn Error>> {
//!     let splits = DialogSum::open(data)?;
//!     let tokenizer = Tokenizer::from_dir(model)?;
//!     let template = PromptTemplate::default();
//!
//!     let train = tokenize(&splits.train, &tokenizer, &template, Limits::default())?;
//!     println!("{train}"); // 0 of 1,200 dialogues were longer than 512 tokens and were cut; ...
//!
//!     let sampler = BatchSampler::new(train.len(), 8, 42)?;
//!     for step in 0..3 {
//!         let batch = train.batch(&sampler.batch(step))?;
//!         println!("step {step}: {} source tokens in {} rows", batch.source().tokens(), batch.source().len());
//!     }
//!     Ok(())
//! }
//! # let root = Path::new(env!("CARGO_MANIFEST_DIR"));
//! # first_batches(&root.join("../../assets/dialogsum-sample"), &root.join("testdata")).unwrap();
//! ```

#![forbid(unsafe_code)]

mod csv_records;
mod dialogsum;
mod error;
mod gather;
mod jsonl;
mod lines;
mod sample;
mod sampler;
mod template;
mod tokenized;
mod tokenizer;

pub use dialogsum::{DialogSum, Splits, read_csv, read_jsonl};
pub use error::{DataError, Place};
pub use sample::Sample;
pub use sampler::BatchSampler;
pub use template::PromptTemplate;
pub use tokenized::{Limits, TokenizedSample, TokenizedSet, tokenize};
pub use tokenizer::{Encoding, Tokenizer};
