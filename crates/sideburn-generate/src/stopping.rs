//! What ends a row.

use std::fmt;

use crate::Sequence;

/// Says whether a row is at its end: `StoppingCriteria` of `transformers`.
pub trait StoppingCriterion {
    /// Whether `row` ends with the token that was written last.
    fn ends(&self, row: &Sequence) -> bool;
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
