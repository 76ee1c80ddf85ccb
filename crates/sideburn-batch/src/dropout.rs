//! Which elements dropout drops.

use crate::Key;

/// Dropout (Srivastava et al., 2014): each element is zeroed with a probability, and the others are divided by one
/// minus it. Which elements is a function of a [`Key`], so that no mask need be kept: every device draws the same one
/// again.
///
/// The mask is defined over the elements of a tensor in row-major order. One draw of the key, of 64 bits, decides
/// [four](Dropout::ELEMENTS_PER_DRAW) elements by 16 bits each, beginning with the lowest: element 6 is decided by bits
/// 32 to 47 of draw 1. An element is dropped if its bits are below the [`threshold`](Dropout::threshold), which is
/// `round(probability * 65536)`: at a probability of 0.1, if they are below 6554.
///
/// ```
/// use sideburn_batch::{Dropout, Key};
///
/// let dropout = Dropout::new(0.5, Key::from_seed(1)).unwrap();
/// let mut factors = [0.0; 6];
/// dropout.factors(0, &mut factors);
/// assert!(factors.iter().all(|factor| *factor == 0.0 || *factor == 2.0));
/// assert_eq!(Dropout::new(0.0, Key::from_seed(1)), None, "nothing is dropped");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    key: Key,
    probability: f64,
    threshold: u16,
    factor: f32,
}

impl Dropout {
    /// How many elements one draw decides.
    pub const ELEMENTS_PER_DRAW: usize = 4;

    /// Dropout with this probability, or none if it is zero.
    ///
    /// # Panics
    /// If `probability` is not in `[0, 1)`.
    pub fn new(probability: f64, key: Key) -> Option<Self> {
        assert!((0.0..1.0).contains(&probability), "a dropout probability lies in [0, 1), not at {probability}");
        let threshold = (probability * 2f64.powi(16)).round() as u16;
        let factor = (1.0 / (1.0 - probability)) as f32;
        (probability > 0.0).then_some(Self { key, probability, threshold, factor })
    }

    /// The key whose draws decide.
    pub const fn key(&self) -> Key {
        self.key
    }

    /// The probability that an element is dropped.
    pub const fn probability(&self) -> f64 {
        self.probability
    }

    /// What an element that is not dropped is multiplied by: `1 / (1 - probability)`.
    pub const fn scale(&self) -> f64 {
        1.0 / (1.0 - self.probability)
    }

    /// An element is dropped if its 16 bits are below this.
    pub const fn threshold(&self) -> u16 {
        self.threshold
    }

    /// What the elements from index `first` on are multiplied by: zero, or [`scale`](Self::scale).
    #[inline(always)]
    pub fn factors(&self, first: usize, out: &mut [f32]) {
        const TOGETHER: usize = Dropout::ELEMENTS_PER_DRAW;
        let factors = |draw: u64| {
            let factor = |bits: u16| if bits >= self.threshold { self.factor } else { 0.0 };
            [factor(draw as u16), factor((draw >> 16) as u16), factor((draw >> 32) as u16), factor((draw >> 48) as u16)]
        };
        let (draw, skipped) = ((first / TOGETHER) as u64, first % TOGETHER);
        let (head, out) = out.split_at_mut(((TOGETHER - skipped) % TOGETHER).min(out.len()));
        head.iter_mut().zip(&factors(self.key.bits(draw))[skipped..]).for_each(|(out, factor)| *out = *factor);
        let mut draw = draw + u64::from(skipped > 0);
        let (whole, rest) = out.as_chunks_mut::<TOGETHER>();
        for out in &mut *whole {
            *out = factors(self.key.bits(draw));
            draw += 1;
        }
        rest.iter_mut().zip(factors(self.key.bits(draw))).for_each(|(out, factor)| *out = factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_pinned() {
        // Published runs depend on these: a change here changes every result of training with dropout. They are bits of
        // SplitMix64, worked out in Python.
        let dropout = Dropout::new(0.25, Key::from_seed(42)).unwrap();
        assert_eq!(dropout.threshold(), 16_384);
        let mut factors = [f32::NAN; PINNED.len()];
        dropout.factors(0, &mut factors);
        assert_eq!(factors.map(|factor| factor != 0.0), PINNED);
        assert!(factors.iter().all(|factor| *factor == 0.0 || *factor == 4.0 / 3.0));
    }

    #[test]
    fn factors_do_not_depend_on_where_a_part_begins() {
        let dropout = Dropout::new(0.4, Key::from_seed(7)).unwrap();
        let mut all = [0.0; 41];
        dropout.factors(0, &mut all);
        for first in 0..all.len() {
            for end in first..=all.len() {
                let mut part = vec![f32::NAN; end - first];
                dropout.factors(first, &mut part);
                assert_eq!(part, all[first..end], "{first}..{end}");
            }
        }
    }

    const PINNED: [bool; 24] = [
        true, true, true, true, true, true, true, true, false, true, true, true, true, true, true, false, false, true,
        true, true, false, true, true, false,
    ];
}
