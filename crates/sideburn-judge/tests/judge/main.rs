//! Judges, and what they are worth.

mod agreeing;
#[cfg(feature = "net")]
mod asking;
mod judging;
mod verdicts;
