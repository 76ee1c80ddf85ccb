//! Counting shared n-grams.

/// How many n-grams two texts share, each counted as often as in the text that has fewer.
pub(crate) fn shared(n: usize, a: &[u32], b: &[u32]) -> usize {
    let (a, b) = (sorted_windows(n, a), sorted_windows(n, b));
    let (mut i, mut j, mut hits) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, hits) = (i + 1, j + 1, hits + 1),
        }
    }
    hits
}

/// How many n-grams a text of `tokens` words has.
pub(crate) fn count(n: usize, tokens: usize) -> usize {
    (tokens + 1).saturating_sub(n)
}

fn sorted_windows(n: usize, tokens: &[u32]) -> Vec<&[u32]> {
    let mut windows: Vec<&[u32]> = tokens.windows(n).collect();
    windows.sort_unstable();
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_counts_are_clipped() {
        assert_eq!(shared(1, &[7, 7, 7, 1], &[7, 2, 7]), 2);
        assert_eq!(shared(2, &[1, 2, 1, 2], &[1, 2, 2, 1]), 2);
        assert_eq!(shared(3, &[1, 2], &[1, 2]), 0);
    }

    #[test]
    fn short_texts_have_no_ngrams() {
        assert_eq!((count(1, 0), count(2, 1), count(2, 5), count(9, 3)), (0, 0, 4, 0));
    }
}
