//! 8-bit dynamic blockwise quantisation, which double quantisation applies to the absmax of 4-bit blocks.

use crate::code::dynamic_map;

/// Values in blocks, each with its largest absolute value and 8-bit codes between -1 and 1 (Dettmers et al., 2022,
/// "8-bit Optimizers via Block-wise Quantization", section 2.1); `quantize_blockwise` of bitsandbytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Blockwise {
    /// A code for each value.
    pub codes: Vec<u8>,
    /// The largest absolute value of each block.
    pub absmax: Vec<f32>,
    /// What the codes stand for, in ascending order: the [dynamic map](dynamic_map), or what a file has in its place.
    pub code: Box<[f32; 256]>,
    /// Values in a block; the last may be short.
    pub block_size: usize,
}

/// Steps of the table through which bitsandbytes' CPU kernel looks codes up.
const STEPS: f32 = 65_535.0;

impl Blockwise {
    /// Quantises finite values, code for code as bitsandbytes' CPU kernel (`quantize_cpu_impl` of `csrc/cpu_ops.cpp`): a
    /// value is first rounded to one of 65,536 steps between -1 and 1, then to the nearest code.
    ///
    /// # Panics
    /// If the blocks have no values.
    pub fn quantize(values: &[f32], block_size: usize) -> Self {
        let code = dynamic_map();
        let bounds: [f32; 255] = std::array::from_fn(|index| 0.5 * (code[index] + code[index + 1]));
        let (mut codes, mut absmax) = (Vec::with_capacity(values.len()), Vec::new());
        for block in values.chunks(block_size) {
            let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            absmax.push(largest);
            if largest == 0.0 {
                codes.extend(block.iter().map(|_| 0));
                continue;
            }
            let inverse = 1.0 / largest;
            codes.extend(block.iter().map(|x| {
                let step = (((x * inverse).clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5) as u16;
                let rounded = -1.0 + (2.0 * f32::from(step)) / STEPS;
                bounds.partition_point(|bound| *bound < rounded) as u8
            }));
        }
        Self { codes, absmax, code: Box::new(*code), block_size }
    }

    /// The values that the codes stand for.
    pub fn dequantize(&self) -> Vec<f32> {
        let blocks = self.codes.chunks(self.block_size).zip(&self.absmax);
        blocks
            .flat_map(|(codes, absmax)| codes.iter().map(move |code| self.code[usize::from(*code)] * absmax))
            .collect()
    }
}

/// The mean as `torch.mean` has it on one thread, bit for bit: eight running sums, in four levels of blocks
/// (`cascade_sum` of PyTorch's `SumKernel.cpp`).
pub(crate) fn torch_mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const LEVELS: usize = 4;
    type Sums = [f32; LANES];
    let add = |to: &mut Sums, x: &Sums| to.iter_mut().zip(x).for_each(|(to, x)| *to += x);

    let (vectors, rest) = values.as_chunks::<LANES>();
    let (groups, others) = vectors.as_chunks::<ROWS>();
    let power = (groups.len().max(1).next_power_of_two().trailing_zeros() as usize / LEVELS).max(4);
    let (step, mask) = (1usize << power, (1usize << power) - 1);
    let mut sums = [[[0f32; LANES]; ROWS]; LEVELS];
    let mut done = 0;
    while done + step <= groups.len() {
        for group in &groups[done..done + step] {
            sums[0].iter_mut().zip(group).for_each(|(to, x)| add(to, x));
        }
        done += step;
        for level in 1..LEVELS {
            let lower = std::mem::take(&mut sums[level - 1]);
            sums[level].iter_mut().zip(&lower).for_each(|(to, x)| add(to, x));
            if done & (mask << (level * power)) != 0 {
                break;
            }
        }
    }
    let [mut total, upper @ ..] = sums;
    for group in &groups[done..] {
        total.iter_mut().zip(group).for_each(|(to, x)| add(to, x));
    }
    for level in &upper {
        total.iter_mut().zip(level).for_each(|(to, x)| add(to, x));
    }
    let [mut lanes, rows @ ..] = total;
    others.iter().for_each(|vector| add(&mut lanes, vector));
    rows.iter().for_each(|row| add(&mut lanes, row));
    let sum = rest.iter().chain(&lanes).fold(0f32, |sum, x| sum + x);
    sum / values.len() as f32
}
