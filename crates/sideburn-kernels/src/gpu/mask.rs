//! The mask of a [`Dropout`] on a GPU: its arithmetic again in words of 32 bits, with its numbers.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use sideburn_batch::{Dropout, GOLDEN, MIX};

/// A key with what it decides: for each element of a tensor, zero or the scale of what is kept.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Mask {
    low: u32,
    high: u32,
    threshold: u32,
    scale: f32,
}

/// The mask, as an argument of a kernel; one that keeps everything, if nothing is dropped.
pub(super) fn argument(dropout: Option<Dropout>) -> MaskLaunch {
    let Some(dropout) = dropout else { return MaskLaunch::new(0, 0, 0, 1.0) };
    let start = dropout.key().start();
    let threshold = u32::from(dropout.threshold());
    MaskLaunch::new(start as u32, (start >> 32) as u32, threshold, dropout.scale() as f32)
}

/// An integer of 64 bits, which not every GPU has.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Wide {
    low: u32,
    high: u32,
}

#[cube]
fn times(x: Wide, #[comptime] low: u32, #[comptime] high: u32) -> Wide {
    Wide { low: x.low * low, high: x.low.mul_hi(low) + x.low * high + x.high * low }
}

/// `x ^ (x >> by)`, by less than 32.
#[cube]
fn folded(x: Wide, #[comptime] by: u32) -> Wide {
    Wide { low: x.low ^ ((x.low >> by) | (x.high << comptime!(32 - by))), high: x.high ^ (x.high >> by) }
}

#[cube]
impl Mask {
    /// The bits that decide elements `4 * index` to `4 * index + 3`: [`Key::bits`].
    pub(super) fn draw(&self, index: u32) -> Wide {
        let (low, high) = comptime!(halves(GOLDEN));
        let count = Wide { low: index + 1, high: 0u32.runtime() };
        let step = times(count, low, high);
        let sum = self.low + step.low;
        let carry = select(sum < step.low, 1u32, 0u32);
        let z = Wide { low: sum, high: self.high + step.high + carry };
        let (low, high) = comptime!(halves(MIX[0]));
        let z = times(folded(z, 30u32), low, high);
        let (low, high) = comptime!(halves(MIX[1]));
        folded(times(folded(z, 27u32), low, high), 31u32)
    }

    /// What the element at `place`, below 4, of a draw is multiplied by.
    pub(super) fn factor(&self, draw: &Wide, place: u32) -> f32 {
        let word = select(place < 2, draw.low, draw.high);
        let bits = (word >> ((place & 1) * 16)) & 0xffff;
        select(bits >= self.threshold, self.scale, 0.0f32)
    }

    /// What an element is multiplied by.
    pub(super) fn at(&self, element: u32) -> f32 {
        self.factor(&self.draw(element / 4), element % 4)
    }

    /// What the elements of a vector are multiplied by: of one element, or of four that begin at a multiple of four.
    pub(super) fn of_vector<N: Size>(&self, position: usize) -> Vector<f32, N> {
        let first = (position * N::value()) as u32;
        let draw = self.draw(first / 4);
        let place = first % 4;
        let mut factors = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            factors.insert(lane, self.factor(&draw, place + lane as u32));
        }
        factors
    }
}

fn halves(x: u64) -> (u32, u32) {
    (x as u32, (x >> 32) as u32)
}
