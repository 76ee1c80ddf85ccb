//! What ends a row.

use std::fmt;
use std::time::{Duration, Instant};

use crate::Sequence;

/// Says whether a row is at its end: `StoppingCriteria` of `transformers`. A closure is one, too:
///
/// ```
/// use sideburn_generate::{Sequence, StoppingCriterion};
///
/// let full = |row: &Sequence| row.written().len() >= 20;
/// assert!(!full.ends(&Sequence::new(0, 0, &[7])));
/// ```
pub trait StoppingCriterion {
    /// Whether `row` ends with the token that was written last.
    fn ends(&self, row: &Sequence) -> bool;
}

impl<F: Fn(&Sequence) -> bool> StoppingCriterion for F {
    fn ends(&self, row: &Sequence) -> bool {
        self(row)
    }
}

/// Ends a row that has written any of some tokens.
#[derive(Clone, Debug)]
pub struct EosToken {
    tokens: Vec<u32>,
}

impl EosToken {
    /// These tokens.
    pub fn new(tokens: impl IntoIterator<Item = u32>) -> Self {
        Self { tokens: tokens.into_iter().collect() }
    }
}

impl StoppingCriterion for EosToken {
    fn ends(&self, row: &Sequence) -> bool {
        row.written().last().is_some_and(|last| self.tokens.contains(last))
    }
}

/// Ends a row that has written so many tokens.
#[derive(Clone, Copy, Debug)]
pub struct MaxNewTokens {
    count: usize,
}

impl MaxNewTokens {
    /// So many tokens.
    pub const fn new(count: usize) -> Self {
        Self { count }
    }
}

impl StoppingCriterion for MaxNewTokens {
    fn ends(&self, row: &Sequence) -> bool {
        row.written().len() >= self.count
    }
}

/// Ends a row that holds so many tokens, its history counted in.
#[derive(Clone, Copy, Debug)]
pub struct MaxLength {
    length: usize,
}

impl MaxLength {
    /// So many tokens.
    pub const fn new(length: usize) -> Self {
        Self { length }
    }
}

impl StoppingCriterion for MaxLength {
    fn ends(&self, row: &Sequence) -> bool {
        row.tokens().len() >= self.length
    }
}

/// Ends all rows when some time has gone by.
#[derive(Clone, Copy, Debug)]
pub struct MaxTime {
    begun: Instant,
    limit: Duration,
}

impl MaxTime {
    /// So long after now.
    pub fn from_now(limit: Duration) -> Self {
        Self { begun: Instant::now(), limit }
    }
}

impl StoppingCriterion for MaxTime {
    fn ends(&self, _: &Sequence) -> bool {
        self.begun.elapsed() > self.limit
    }
}

/// Ends a row whose text holds any of some strings, which the last token may go beyond: `ab` ends `xabc`.
pub struct StopStrings<F> {
    strings: Vec<String>,
    text: F,
    /// How many of the last tokens are looked at: each but the special ones has a byte at least.
    tokens: usize,
}

impl<F: Fn(&[u32]) -> String> StopStrings<F> {
    /// These strings, in what `text` makes of tokens.
    pub fn new(strings: impl IntoIterator<Item = String>, text: F) -> Self {
        let strings: Vec<String> = strings.into_iter().collect();
        let longest = strings.iter().map(String::len).max().unwrap_or_default();
        // Twice as many, since a special token has no text.
        Self { strings, text, tokens: 2 * longest + 2 }
    }
}

impl<F: Fn(&[u32]) -> String> StoppingCriterion for StopStrings<F> {
    fn ends(&self, row: &Sequence) -> bool {
        let written = row.written();
        let text = (self.text)(&written[written.len().saturating_sub(self.tokens)..]);
        self.strings.iter().any(|stop| text.contains(stop))
    }
}

/// All that can end a row: each of these criteria does.
#[derive(Default)]
pub struct Stopping<'a> {
    criteria: Vec<Box<dyn StoppingCriterion + 'a>>,
}

impl<'a> Stopping<'a> {
    /// The same and one more.
    pub fn with(mut self, criterion: impl StoppingCriterion + 'a) -> Self {
        self.criteria.push(Box::new(criterion));
        self
    }
}

impl StoppingCriterion for Stopping<'_> {
    fn ends(&self, row: &Sequence) -> bool {
        self.criteria.iter().any(|criterion| criterion.ends(row))
    }
}

impl fmt::Debug for Stopping<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stopping({} criteria)", self.criteria.len())
    }
}
