//! PyTorch's random numbers on the CPU, for what `peft` draws again from a seed instead of storing it.

/// `torch.Generator` on the CPU: the Mersenne Twister MT19937 of Matsumoto and Nishimura, *Mersenne Twister: a
/// 623-dimensionally equidistributed uniform pseudo-random number generator*, 1998, as `at::mt19937` in
/// `aten/src/ATen/core/MT19937RNGEngine.h` of PyTorch has it.
pub(super) struct TorchGenerator {
    state: [u32; N],
    next: usize,
}

/// Words of state.
const N: usize = 624;
/// How far the word is that is mixed in.
const M: usize = 397;

impl TorchGenerator {
    /// `torch.Generator().manual_seed(seed)`, which takes the lower 32 bits.
    pub(super) fn from_seed(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for index in 1..N {
            let last = state[index - 1];
            state[index] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(index as u32);
        }
        Self { state, next: N }
    }

    fn bits(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next 624 words.
    fn twist(&mut self) {
        for index in 0..N {
            let y = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % N] & 0x7fff_ffff);
            let mixed = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[index] = self.state[(index + M) % N] ^ (y >> 1) ^ mixed;
        }
        self.next = 0;
    }

    /// `torch.empty(n).uniform_(-bound, bound, generator=self)`: `at::transformation::uniform_real` in
    /// `aten/src/ATen/core/TransformationHelper.h`, on the 24 lower bits of each word.
    ///
    /// The last step is rounded once, as PyTorch's kernels for AVX2 and later do, which every wheel has.
    pub(super) fn uniform(&mut self, n: usize, bound: f64) -> Vec<f32> {
        let (low, width) = (-bound as f32, bound as f32 - -bound as f32);
        let number = |bits: u32| ((bits & 0xff_ffff) as f32 * (1.0 / 16_777_216.0)).mul_add(width, low);
        (0..n).map(|_| number(self.bits())).collect()
    }

    /// `peft`'s `_kaiming_init` of a matrix `[rows, columns]`: uniform in plus or minus `sqrt(6 / columns)`.
    pub(super) fn kaiming_uniform(&mut self, [rows, columns]: [usize; 2]) -> Vec<f32> {
        self.uniform(rows * columns, 3f64.sqrt() * (2f64.sqrt() / (columns as f64).sqrt()))
    }
}
