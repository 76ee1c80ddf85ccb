//! From files to batches of token ids: everything that happens to a data set before a model sees it. No model and no
//! tensor library is known here.
//!
//! # Overview
//!
//! * [`Dataset`] describes a data set: its files, and which [`Columns`] they have. [`Dataset::dialogsum`] and
//!   [`Dataset::samsum`] are two; [`Dataset::read`] reads a [`Split`] of one from a directory.
//! * [`Example`] is what is read: texts by name, and one or more targets. Records that repeat an example with another
//!   reference become one.
//! * [`Template`] is the text around the fields of an example; the same value serves training and inference.
//! * [`Tokenizer`] is what the files of a model say: `tokenizer.json`, or the bytes of ByT5, and special tokens.
//!   [`Tokenizer::encode_prompt`] and [`Tokenizer::encode_target`] are the two ends of an example.
//! * [`tokenize`] does all examples in parallel and says how many were [cut](TokenizedSet#structfield.cut_prompts);
//!   [`tokenize_watched`] also says how far it has come.
//!   `tokenize_cached` keeps the ids on disk for the next start. [`Lengths`] are those of a set, and [`Limits::suggest`]
//!   follows from them.
//! * [`Subsample`] is a part of the examples, for short runs. [`split_examples`] makes parts that share no dialogue,
//!   and `write_examples` writes them in any form that is read.
//! * A [`Sampler`] gives the example numbers of any training step, as a pure function of the seed and the step:
//!   [`ShuffledSampler`] so many examples a batch, [`GroupedSampler`] so many tokens, packs that are as full as can be, or examples of one
//!   length;
//!   [`ShardedSampler`] is the part of each batch that one of several processes has.
//!   [`TokenizedSet::batch`] lays those examples into a [`PromptBatch`](sideburn_batch::PromptBatch).
//! * A [`Shard`] is a part of many texts that one of several processes has, which know nothing of each other; [`join_shards`]
//!   makes one of their results, and finds what is missing or there twice.
//!
//! # Reading
//!
//! [`read_examples`] reads one file, whatever it is about; [`parse_csv`] and [`parse_jsonl`] read what is in memory, or
//! comes from elsewhere. Reading is strict. Anything that does not fit is a [`DataError`] that names the file, the line,
//! the field, what was found and what to do; nothing is dropped or guessed. A [lenient](Columns#structfield.lenient)
//! reading skips such a record. What comes out is [`Loaded`], which says how many records there were, and which were
//! skipped and why.
//!
//! # A complete program
//!
//! ```
//! use std::{error::Error, path::Path};
//! use sideburn_data::{Dataset, Limits, Sampler, ShuffledSampler, Split, Tokenizer, tokenize};
//!
//! fn first_batches(data: &Path, model: &Path) -> Result<(), Box<dyn Error>> {
//!     let dialogsum = Dataset::dialogsum();
//!     let examples = dialogsum.read(data, Split::Train)?.examples;
//!     let tokenizer = Tokenizer::from_dir(model)?;
//!
//!     let train = tokenize(&examples, &tokenizer, &dialogsum.template, Limits::default())?;
//!     println!("{train}"); // 0 of 1,200 prompts were longer than 512 tokens and were cut; ...
//!
//!     let sampler = ShuffledSampler::new(train.len(), 8, 42)?;
//!     for step in 0..3 {
//!         let batch = train.batch(&sampler.batch(step))?;
//!         println!("step {step}: {} source tokens in {} rows", batch.prompts().tokens(), batch.prompts().len());
//!     }
//!     Ok(())
//! }
//! # let root = Path::new(env!("CARGO_MANIFEST_DIR"));
//! # first_batches(&root.join("../../assets/dialogsum-sample"), &root.join("testdata")).unwrap();
//! ```
//!
//! # Features
//!
//! * `fs` (default): paths. Without it, all that is read are bytes that the caller has.
//! * `threads` (default): all cores.
//! * `parquet`: Parquet files that are not compressed, or with Snappy, as the hub has them.
//! * `7z`: the archive in which SAMSum was published.

#![forbid(unsafe_code)]

#[cfg(feature = "7z")]
mod archive;
mod byte_level;
#[cfg(feature = "fs")]
mod cache;
mod columns;
mod csv;
mod dataset;
mod dialogues;
mod error;
mod example;
#[cfg(feature = "fs")]
mod files;
mod jsonl;
mod lengths;
mod lines;
mod loaded;
#[cfg(feature = "parquet")]
mod parquet;
mod parts;
mod sampler;
mod shard;
mod split;
mod subsample;
mod template;
mod text_stream;
mod tokenized;
mod tokenizer;
#[cfg(feature = "fs")]
mod write;

#[cfg(feature = "fs")]
pub use cache::tokenize_cached;
pub use columns::Columns;
pub use csv::parse_csv;
pub use dataset::Dataset;
pub use error::{DataError, Place};
pub use example::{Example, Fields};
#[cfg(feature = "fs")]
pub use files::read_examples;
pub use jsonl::{is_python, parse_jsonl};
pub use lengths::Lengths;
pub use loaded::{Loaded, Skipped};
pub use parts::split_examples;
pub use sampler::{GroupedSampler, Sampler, ShardedSampler, ShuffledSampler};
pub use shard::{Shard, ShardError, ShardHeader, join_shards};
pub use split::Split;
pub use subsample::Subsample;
pub use template::Template;
pub use text_stream::TextStream;
pub use tokenized::{Limits, TokenizedExample, TokenizedSet, tokenize, tokenize_watched};
pub use tokenizer::{Encoding, Tokenizer, TokenizerFiles};
#[cfg(feature = "fs")]
pub use write::write_examples;
