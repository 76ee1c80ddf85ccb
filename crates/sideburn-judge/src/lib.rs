//! A language model as a judge of summaries: no reference is needed, only the dialogue.
//!
//! # Overview
//!
//! * A [`Criterion`] is what is asked about, with the guideline that says what each score from 1 to 5 means:
//!   [`Criterion::standard`] are relevance, coherence, consistency and fluency.
//! * A [`Question`] keeps instruction and material apart: whatever a dialogue says, it is a JSON string in a message of its
//!   own.
//! * A [`Chat`] answers questions. `Endpoint`, with the feature `net`, is any server with OpenAI's interface for chats.
//! * A [`Judge`] asks many questions at once, checks each answer ([`Verdict::parse`]), asks again, and keeps verdicts on disk.
//!   It is a `Score` of `sideburn-eval`, so that means have intervals and systems can be compared.
//! * A [`Rating`] is a line of results, by a judge or by people; [`compare_ratings`] says how far two of them agree, and
//!   [`agreement`] the same of plain numbers.
//!
//! # What a judge is worth
//!
//! Models prefer long texts, and texts of their own kind. Before its scores are believed, a judge should be held against
//! people on some of the same texts: that is what [`compare_ratings`] is for.
//!
//! # A complete program
//!
//! ```
//! use std::error::Error;
//! use sideburn_eval::Evaluation;
//! use sideburn_judge::{Chat, Judge, JudgeConfig};
//!
//! /// How good summaries are in the eyes of `chat`, such as `Endpoint::new(EndpointConfig::from_env()?)?`.
//! fn judged(chat: impl Chat, mut evaluation: Evaluation, summaries: Vec<String>) -> Result<Evaluation, Box<dyn Error>> {
//!     let cache = Some("judge-cache".into());
//!     let judge = Judge::new(chat, JudgeConfig { cache, ..JudgeConfig::default() })?;
//!     evaluation.add("a model", summaries, &[&judge])?;
//!     println!("{evaluation}"); // a model  4.12 [4.03, 4.20]  4.40 [4.31, 4.48] ...
//!     Ok(evaluation)
//! }
//! ```
//!
//! # Features
//!
//! * `net`: servers. Off by default: no crate opens a socket that is not asked to.

#![forbid(unsafe_code)]

mod agreement;
mod cache;
mod chat;
mod criterion;
#[cfg(feature = "net")]
mod endpoint;
mod error;
mod judge;
mod question;
mod rating;
mod verdict;

pub use agreement::{Agreement, agreement};
pub use chat::{Answer, Chat};
pub use criterion::Criterion;
#[cfg(feature = "net")]
pub use endpoint::{ApiKey, Endpoint, EndpointConfig};
pub use error::JudgeError;
pub use judge::{Item, Judge, JudgeConfig, Judged, Progress, Usage};
pub use question::Question;
pub use rating::{Rating, compare_ratings};
pub use verdict::Verdict;
