//! Longest common subsequences, 64 cells of the table at a time.
//!
//! The table `t[i][j]` holds the length for the first `i` tokens of the reference and the first `j` of the prediction.
//! Going down a column, it grows by 0 or 1 per row, so that a column fits into one bit per row: here a 0 bit is a
//! growth of 1. One addition with carry turns a column into the next (Crochemore et al., 2001; Hyyrö, 2004,
//! "Bit-parallel LCS-length computation revisited"):
//!
//! `column' = (column + (column & matches)) | (column & !matches)`
//!
//! `matches` is sparse for most tokens: words without a match and without a carry stay as they are, and are not visited.
//! A token that has more places in the reference than a column has words ("the the the ...") has its `matches` made once,
//! as bits. So a column takes a step for each word at most, and a table of `m` rows and `n` columns `m n / 64` of them,
//! whatever the texts: 40 million, a few hundredths of a second, for two texts of 50,000 tokens.

/// Space reused between calls, and the tokens of the indexed reference.
#[derive(Debug, Default)]
pub(crate) struct Lcs {
    /// For each token: its first place in the indexed sequence.
    first: Vec<usize>,
    /// For each place in the indexed sequence: the next place of the same token.
    next: Vec<usize>,
    /// For each token: where its bits begin in `bits`, if it has more places than a column has words.
    bits_of: Vec<usize>,
    /// The places of such tokens, one column of bits after the other. There are 64 of these tokens at most.
    bits: Vec<u64>,
    column: Vec<u64>,
    block: Vec<u64>,
    checkpoints: Vec<u64>,
    marked: Vec<bool>,
}

const NOWHERE: usize = usize::MAX;

/// Columns kept at once take this many words (4 MiB), unless the square root rule of [`Lcs::mark`] needs more.
const BLOCK_WORDS: usize = 1 << 19;

impl Lcs {
    /// The length of the longest common subsequence. Tokens are below `vocabulary`.
    pub(crate) fn length(&mut self, a: &[u32], b: &[u32], vocabulary: usize) -> usize {
        self.index(a, vocabulary);
        self.reset_column(a.len());
        for &token in b {
            self.advance(token);
        }
        self.unindex(a);
        self.column.iter().map(|word| word.count_zeros() as usize).sum()
    }

    /// The places of `reference` that belong to its longest common subsequence with any of the `candidates`: the
    /// "union LCS" of ROUGE-Lsum. Among subsequences of one length, the one that `rouge_score` picks is used.
    pub(crate) fn union<'a>(
        &mut self,
        reference: &[u32],
        candidates: impl Iterator<Item = &'a [u32]>,
        vocabulary: usize,
    ) -> &[bool] {
        self.marked.clear();
        self.marked.resize(reference.len(), false);
        self.index(reference, vocabulary);
        for candidate in candidates {
            let words = reference.len().div_ceil(64);
            // Memory is (columns per block + number of blocks) columns: least at the square root.
            let columns = (BLOCK_WORDS / words.max(1)).max(candidate.len().isqrt());
            self.mark(reference, candidate, columns.max(1));
        }
        self.unindex(reference);
        &self.marked
    }

    /// Marks one longest common subsequence of the indexed `reference` with `candidate`.
    ///
    /// The walk back through the table needs all columns. They are made in blocks of `block_columns`, last block first
    /// when walking back; each block starts again from a column kept on the way forward.
    fn mark(&mut self, reference: &[u32], candidate: &[u32], block_columns: usize) {
        if reference.is_empty() || candidate.is_empty() {
            return;
        }
        let words = reference.len().div_ceil(64);
        let last_start = (candidate.len() - 1) / block_columns * block_columns;

        self.reset_column(reference.len());
        self.checkpoints.clear();
        for (j, &token) in candidate[..last_start].iter().enumerate() {
            if j % block_columns == 0 {
                self.checkpoints.extend_from_slice(&self.column);
            }
            self.advance(token);
        }
        let mut start = last_start;
        self.fill_block(&candidate[start..]);

        let (mut i, mut j) = (reference.len(), candidate.len());
        while i > 0 && j > 0 {
            if j - 1 < start {
                start -= block_columns;
                let checkpoint = start / block_columns * words;
                self.column.copy_from_slice(&self.checkpoints[checkpoint..checkpoint + words]);
                self.fill_block(&candidate[start..j]);
            }
            let (row, column) = (i - 1, j - 1);
            if reference[row] == candidate[column] {
                self.marked[row] = true;
                (i, j) = (i - 1, j - 1);
                continue;
            }
            // rouge_score goes left if t[i][j - 1] > t[i - 1][j]. The tokens differ, so that t[i][j] is the larger of
            // the two: the condition says that column j grows at row i.
            let grows = self.block[(column - start) * words + row / 64] >> (row % 64) & 1 == 0;
            if grows { j -= 1 } else { i -= 1 }
        }
    }

    /// Keeps the column after each of `tokens`, starting from the present one.
    fn fill_block(&mut self, tokens: &[u32]) {
        self.block.clear();
        for &token in tokens {
            self.advance(token);
            self.block.extend_from_slice(&self.column);
        }
    }

    fn reset_column(&mut self, rows: usize) {
        self.column.clear();
        self.column.resize(rows.div_ceil(64), u64::MAX);
    }

    fn index(&mut self, sequence: &[u32], vocabulary: usize) {
        if self.first.len() < vocabulary {
            self.first.resize(vocabulary, NOWHERE);
            self.bits_of.resize(vocabulary, NOWHERE);
        }
        self.next.clear();
        self.next.resize(sequence.len(), NOWHERE);
        for (place, &token) in sequence.iter().enumerate().rev() {
            self.next[place] = std::mem::replace(&mut self.first[token as usize], place);
        }
        self.bits.clear();
        let words = sequence.len().div_ceil(64);
        for (place, &token) in sequence.iter().enumerate() {
            let is_first = self.first[token as usize] == place;
            if is_first && places(place, &self.next).nth(words).is_some() {
                let start = self.bits.len();
                self.bits.resize(start + words, 0);
                places(place, &self.next).for_each(|place| self.bits[start + place / 64] |= 1 << (place % 64));
                self.bits_of[token as usize] = start;
            }
        }
    }

    /// Turns the column of the table into the next, whose token is `token`.
    fn advance(&mut self, token: u32) {
        match self.bits_of[token as usize] {
            NOWHERE => advance_sparse(&mut self.column, self.first[token as usize], &self.next),
            start => advance_dense(&mut self.column, &self.bits[start..]),
        }
    }

    /// Undoes [`index`](Lcs::index) in time of the sequence, not of the vocabulary: ROUGE-Lsum indexes every sentence.
    fn unindex(&mut self, sequence: &[u32]) {
        for &token in sequence {
            self.first[token as usize] = NOWHERE;
            self.bits_of[token as usize] = NOWHERE;
        }
    }
}

/// The places of a token, from its first on.
fn places(first: usize, next: &[usize]) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), |place| Some(next[*place]).filter(|next| *next != NOWHERE))
}

/// Turns a column of the table into the next, for a token whose places in the rows are the bits of `matches`.
fn advance_dense(column: &mut [u64], matches: &[u64]) {
    let mut carry = false;
    for (old, matches) in column.iter_mut().zip(matches) {
        carry = advance_word(old, *matches, carry);
    }
}

/// One word of a column, and what is carried into it. Returns what is carried on.
fn advance_word(old: &mut u64, matches: u64, carry: bool) -> bool {
    let (sum, over) = old.overflowing_add(*old & matches);
    let (sum, over_carry) = sum.overflowing_add(u64::from(carry));
    *old = sum | (*old & !matches);
    over || over_carry
}

/// Turns a column of the table into the next, for a token whose places in the rows start at `place`.
fn advance_sparse(column: &mut [u64], mut place: usize, next: &[usize]) {
    let (mut word, mut carry) = (0, false);
    loop {
        if !carry {
            if place == NOWHERE {
                return;
            }
            word = place / 64;
        }
        let Some(old) = column.get_mut(word) else { return };
        let mut matches = 0;
        while place / 64 == word {
            matches |= 1 << (place % 64);
            place = next[place];
        }
        carry = advance_word(old, matches, carry);
        word += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The full table and the walk back, as the definition has them.
    fn plain(reference: &[u32], candidate: &[u32]) -> (usize, Vec<bool>) {
        let (rows, columns) = (reference.len(), candidate.len());
        let mut t = vec![vec![0usize; columns + 1]; rows + 1];
        for i in 1..=rows {
            for j in 1..=columns {
                t[i][j] = if reference[i - 1] == candidate[j - 1] {
                    t[i - 1][j - 1] + 1
                } else {
                    t[i - 1][j].max(t[i][j - 1])
                };
            }
        }
        let mut marked = vec![false; rows];
        let (mut i, mut j) = (rows, columns);
        while i > 0 && j > 0 {
            if reference[i - 1] == candidate[j - 1] {
                marked[i - 1] = true;
                (i, j) = (i - 1, j - 1);
            } else if t[i][j - 1] > t[i - 1][j] {
                j -= 1;
            } else {
                i -= 1;
            }
        }
        (t[rows][columns], marked)
    }

    fn sequence() -> impl Strategy<Value = Vec<u32>> {
        // With few tokens each has more places than a column has words.
        (1u32..40).prop_flat_map(|tokens| prop::collection::vec(0..tokens, 0..300))
    }

    proptest! {
        #[test]
        fn agrees_with_the_full_table(a in sequence(), b in sequence(), block_columns in 1usize..50) {
            let mut lcs = Lcs::default();
            let (length, marked) = plain(&a, &b);
            prop_assert_eq!(lcs.length(&a, &b, 40), length);
            prop_assert_eq!(lcs.union(&a, std::iter::once(b.as_slice()), 40), &marked);

            // The same in small blocks, with space left over from other calls.
            lcs.marked.fill(false);
            lcs.index(&a, 40);
            lcs.mark(&a, &b, block_columns);
            prop_assert_eq!(&lcs.marked, &marked);
        }
    }

    #[test]
    fn ties_are_broken_as_in_rouge_score() {
        // Both places of token 0 would do. A token that matches nothing, at the end, changes the choice.
        let mut lcs = Lcs::default();
        assert_eq!(lcs.union(&[0, 0], std::iter::once(&[0][..]), 2), [false, true]);
        assert_eq!(lcs.union(&[0, 0], std::iter::once(&[0, 1][..]), 2), [true, false]);
    }
}
