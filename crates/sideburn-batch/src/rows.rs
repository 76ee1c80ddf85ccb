//! Rows of token ids with their lengths.

use std::fmt;

/// Several token sequences of different lengths, laid end to end without padding.
///
/// ```
/// use sideburn_batch::TokenRows;
///
/// let rows = TokenRows::from_rows([[5, 6, 1].as_slice(), &[7, 1]])?;
/// assert_eq!(rows.lengths(), [3, 2]);
/// assert_eq!(rows.ids(), [5, 6, 1, 7, 1]);
/// assert_eq!(rows.padded(0), [5, 6, 1, 7, 1, 0]); // row-major [2, 3]
/// assert_eq!(rows.mask(), [true, true, true, true, true, false]);
/// # Ok::<(), sideburn_batch::BatchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRows {
    ids: Vec<u32>,
    lengths: Vec<usize>,
}

impl TokenRows {
    /// Lays `rows` end to end.
    ///
    /// # Errors
    /// If there is no row, or an empty one.
    pub fn from_rows<R: AsRef<[u32]>>(rows: impl IntoIterator<Item = R>) -> Result<Self, BatchError> {
        let (mut ids, mut lengths) = (Vec::new(), Vec::new());
        for row in rows {
            let row = row.as_ref();
            if row.is_empty() {
                return Err(BatchError::EmptyRow { row: lengths.len() });
            }
            ids.extend_from_slice(row);
            lengths.push(row.len());
        }
        if lengths.is_empty() {
            return Err(BatchError::NoRows);
        }
        Ok(Self { ids, lengths })
    }

    /// Cuts a row-major rectangle of `width` columns back into rows.
    ///
    /// # Errors
    /// If a length is zero or above `width`, or `ids` does not hold `lengths.len() * width` tokens.
    pub fn from_padded(ids: &[u32], width: usize, lengths: &[usize]) -> Result<Self, BatchError> {
        if width.checked_mul(lengths.len()) != Some(ids.len()) {
            return Err(BatchError::Rectangle { tokens: ids.len(), rows: lengths.len(), width });
        }
        if let Some((row, &length)) = lengths.iter().enumerate().find(|(_, length)| **length > width) {
            return Err(BatchError::RowTooLong { row, length, width });
        }
        Self::from_rows(lengths.iter().enumerate().map(|(row, length)| &ids[row * width..row * width + length]))
    }

    /// All tokens, row after row.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The number of tokens of each row; every one is at least 1.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Always false: rows cannot be made of nothing. Present because [`len`](Self::len) is.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The number of real tokens in all rows.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The length of the longest row.
    pub fn max_length(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// The rows, one slice each.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> + '_ {
        let mut start = 0;
        self.lengths.iter().map(move |length| {
            let row = &self.ids[start..start + length];
            start += length;
            row
        })
    }

    /// A row-major rectangle `[rows, max_length]` with `pad` behind each shorter row.
    pub fn padded(&self, pad: u32) -> Vec<u32> {
        let width = self.max_length();
        let mut out = vec![pad; width * self.len()];
        for (row, target) in self.iter().zip(out.chunks_mut(width)) {
            target[..row.len()].copy_from_slice(row);
        }
        out
    }

    /// True where [`padded`](Self::padded) holds a real token.
    pub fn mask(&self) -> Vec<bool> {
        let width = self.max_length();
        self.lengths.iter().flat_map(|length| (0..width).map(move |column| column < *length)).collect()
    }
}

/// What a training step asks of a batch, whatever is in it.
pub trait Batch {
    /// The tokens that have a loss. The loss of a step is the sum over them divided by their number.
    fn loss_tokens(&self) -> usize;

    /// All tokens, without padding: what throughput is counted in.
    fn tokens(&self) -> usize;
}

/// Prompts, and what is to be written behind each: the batch of a language model.
///
/// An encoder-decoder reads the prompt with its encoder and writes the target with its decoder. A decoder alone reads
/// both as one row. Either way every token of a target has a loss, and no token of a prompt has one.
///
/// ```
/// use sideburn_batch::{Batch, PromptBatch, TokenRows};
///
/// let prompts = TokenRows::from_rows([[5, 6, 1].as_slice(), &[7, 1]])?;
/// let targets = TokenRows::from_rows([[8, 1].as_slice(), &[9, 10, 1]])?;
/// let batch = PromptBatch::new(prompts, targets)?;
/// assert_eq!((batch.loss_tokens(), batch.tokens()), (5, 10));
/// # Ok::<(), sideburn_batch::BatchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptBatch {
    prompts: TokenRows,
    targets: TokenRows,
}

impl PromptBatch {
    /// Pairs prompts with targets.
    ///
    /// # Errors
    /// If the two have different numbers of rows.
    pub fn new(prompts: TokenRows, targets: TokenRows) -> Result<Self, BatchError> {
        if prompts.len() != targets.len() {
            return Err(BatchError::Unpaired { prompts: prompts.len(), targets: targets.len() });
        }
        Ok(Self { prompts, targets })
    }

    /// What the model reads.
    pub fn prompts(&self) -> &TokenRows {
        &self.prompts
    }

    /// What it is to write; every token of it is a label.
    pub fn targets(&self) -> &TokenRows {
        &self.targets
    }
}

impl Batch for PromptBatch {
    fn loss_tokens(&self) -> usize {
        self.targets.tokens()
    }

    fn tokens(&self) -> usize {
        self.prompts.tokens() + self.targets.tokens()
    }
}

/// Why tokens do not make a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchError {
    /// No row was given.
    NoRows,
    /// A row holds no token.
    EmptyRow {
        /// Which row, from 0.
        row: usize,
    },
    /// A row claims more tokens than the rectangle is wide.
    RowTooLong {
        /// Which row, from 0.
        row: usize,
        /// What it claims.
        length: usize,
        /// The rectangle's width.
        width: usize,
    },
    /// The tokens do not fill the rectangle.
    Rectangle {
        /// Tokens given.
        tokens: usize,
        /// Rows given.
        rows: usize,
        /// The rectangle's width.
        width: usize,
    },
    /// Prompts and targets differ in number.
    Unpaired {
        /// Prompt rows.
        prompts: usize,
        /// Target rows.
        targets: usize,
    },
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRows => write!(f, "a batch needs at least one row, and none was given"),
            Self::EmptyRow { row } => {
                write!(f, "row {row} of the batch holds no token; drop the sample or give it an end-of-sequence token")
            }
            Self::RowTooLong { row, length, width } => {
                write!(f, "row {row} claims {length} tokens, but the rectangle is {width} wide")
            }
            Self::Rectangle { tokens, rows, width } => {
                write!(f, "{tokens} tokens do not fill {rows} rows of {width}")
            }
            Self::Unpaired { prompts, targets } => {
                write!(f, "{prompts} prompts cannot be paired with {targets} targets")
            }
        }
    }
}

impl std::error::Error for BatchError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_cutting_are_inverse() {
        let rows = TokenRows::from_rows([[1, 2, 3].as_slice(), &[0], &[4, 0]]).unwrap();
        let back = TokenRows::from_padded(&rows.padded(0), rows.max_length(), rows.lengths()).unwrap();
        assert_eq!(back, rows, "a real token that equals the padding must survive");
    }

    #[test]
    fn broken_batches_are_refused_with_the_place() {
        let none: [&[u32]; 0] = [];
        assert_eq!(TokenRows::from_rows(none), Err(BatchError::NoRows));
        let error = TokenRows::from_rows([[1].as_slice(), &[]]).unwrap_err();
        assert!(error.to_string().starts_with("row 1 of the batch holds no token"), "{error}");
        let error = TokenRows::from_padded(&[1, 2], 1, &[1, 2]).unwrap_err();
        assert_eq!(error.to_string(), "row 1 claims 2 tokens, but the rectangle is 1 wide");
        let error = TokenRows::from_padded(&[1, 2, 3], 2, &[1, 1]).unwrap_err();
        assert_eq!(error.to_string(), "3 tokens do not fill 2 rows of 2");
        // 2^63 * 2 is 0 in 64 bits.
        let error = TokenRows::from_padded(&[], 1 << (usize::BITS - 1), &[1, 1]).unwrap_err();
        assert!(error.to_string().starts_with("0 tokens do not fill 2 rows of "), "{error}");
        let one = TokenRows::from_rows([[1]]).unwrap();
        let two = TokenRows::from_rows([[1], [2]]).unwrap();
        let error = PromptBatch::new(one, two).unwrap_err();
        assert_eq!(error.to_string(), "1 prompts cannot be paired with 2 targets");
    }
}
