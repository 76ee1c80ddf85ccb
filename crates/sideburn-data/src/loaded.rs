//! What came of reading a file.

use std::fmt;

use sideburn_files::printable;

use crate::{error::Place, example::Example};

/// What was read: examples, and the records that are none. Its [`Display`](fmt::Display) says how many, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// The examples, in the order in which their first records came; there is at least one.
    pub examples: Vec<Example>,
    /// How many records there were. Those that repeat an example with another reference, and those that were skipped,
    /// count as well: the 1,500 rows of DialogSum's test split in CSV are 500 examples.
    pub rows: usize,
    /// The records that were skipped.
    pub skipped: Vec<Skipped>,
}

/// A record that was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The record.
    pub at: Place,
    /// Why, as an error says it.
    pub reason: String,
}

/// How many skipped records a report shows.
const SHOWN: usize = 10;

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (examples, skipped) = (self.examples.len(), self.skipped.len());
        write!(f, "{} records, {} examples, {} skipped", Grouped(self.rows), Grouped(examples), Grouped(skipped))?;
        for record in self.skipped.iter().take(SHOWN) {
            write!(f, "\n{record}")?;
        }
        match skipped.saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {} more", Grouped(more)),
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, printable(&self.reason))
    }
}

/// A number with commas between the thousands.
pub(crate) struct Grouped(pub(crate) usize);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let text = [0, 7, 999, 1000, 12460, 1_234_567].map(|number| Grouped(number).to_string());
        assert_eq!(text, ["0", "7", "999", "1,000", "12,460", "1,234,567"]);
    }
}
