//! Keyed random draws, after JAX's splittable keys.

/// The name of a stream of random numbers.
///
/// A key is never used up: the same key always names the same numbers. New keys are derived with
/// [`fold_in`](Key::fold_in), as in `jax.random`:
///
/// ```
/// use sideburn_batch::Key;
///
/// let run = Key::from_seed(42);
/// let step = run.fold_in(7); // everything drawn in step 7
/// assert_eq!(step, Key::from_seed(42).fold_in(7));
/// assert_ne!(step, run.fold_in(8));
/// assert_eq!(step.permutation(5), step.permutation(5));
/// ```
///
/// The generator is SplitMix64 (Steele, Lea and Flood, 2014) used as a counter-based hash: element `i` of a stream is
/// `mix(key + (i + 1) * GOLDEN)`, so that any element can be computed on its own, by any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

/// What the counter of a stream is multiplied by.
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What the two rounds of the hash multiply by.
pub const MIX: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];

#[inline(always)]
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(MIX[0]);
    z = (z ^ (z >> 27)).wrapping_mul(MIX[1]);
    z ^ (z >> 31)
}

impl Key {
    /// The root key of a run.
    pub const fn from_seed(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(GOLDEN)))
    }

    /// The key of a part of this stream: a step, a micro-batch, a layer.
    pub const fn fold_in(self, part: u64) -> Self {
        Self(mix(self.0 ^ mix(part.wrapping_mul(GOLDEN).wrapping_add(0xD1B5_4A32_D192_ED03))))
    }

    /// The key of a part that has a name, such as an adapter site.
    pub fn fold_in_name(self, name: &str) -> Self {
        // FNV-1a: stable across platforms and compiler versions, which `std::hash` does not promise.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        self.fold_in(hash)
    }

    /// Where the stream starts: with [`GOLDEN`] and [`MIX`], all that a device needs to draw from it by itself.
    pub const fn start(self) -> u64 {
        self.0
    }

    /// Element `index` of the stream: 64 uniform bits.
    #[inline(always)]
    pub const fn bits(self, index: u64) -> u64 {
        mix(self.0.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Element `index` of the stream as a uniform number in `[0, 1)`.
    #[inline]
    pub const fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Element `index` of the stream as a standard normal number (Box and Muller, 1958).
    pub fn normal(self, index: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * index)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(2 * index + 1)).cos()
    }

    /// Element `index` of the stream as a whole number below `bound`.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub const fn below(self, index: u64, bound: u64) -> u64 {
        assert!(bound > 0, "a number below zero was asked for");
        // Lemire's multiply-shift without the rejection step: the bias is below bound / 2^64.
        ((self.bits(index) as u128 * bound as u128) >> 64) as u64
    }

    /// A uniformly shuffled `0..len` (Fisher and Yates).
    pub fn permutation(self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i as u64, i as u64 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_different_parts_are_unrelated() {
        let key = Key::from_seed(0);
        let (a, b) = (key.fold_in(0), key.fold_in(1));
        let equal_bits: u32 = (0..1000).map(|i| (a.bits(i) ^ b.bits(i)).count_zeros()).sum();
        assert!((31_000..33_000).contains(&equal_bits), "{equal_bits} of 64,000 bits agree");
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let key = Key::from_seed(3);
        let n = 100_000;
        let mean = (0..n).map(|i| key.uniform(i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 5e-3, "mean of uniform: {mean}");
        let (sum, squares) = (0..n).map(|i| key.normal(i)).fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
        assert!((sum / n as f64).abs() < 1e-2, "mean of normal");
        assert!((squares / n as f64 - 1.0).abs() < 2e-2, "variance of normal");
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        for len in [0, 1, 2, 17, 1000] {
            let mut order = Key::from_seed(9).fold_in(len as u64).permutation(len);
            order.sort_unstable();
            assert_eq!(order, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn values_are_pinned() {
        // Sample order and dropout of published runs depend on these: a change here changes every result.
        let key = Key::from_seed(42);
        assert_eq!(key.fold_in(1).permutation(8), PINNED_ORDER);
        assert_eq!(key.fold_in_name("encoder").bits(0), PINNED_BITS);
    }

    const PINNED_ORDER: [usize; 8] = [4, 2, 5, 0, 7, 3, 6, 1];
    const PINNED_BITS: u64 = 0x6424_80a3_407f_59a7;
}
