//! 8-bit dynamic blockwise quantisation, which double quantisation applies to the absmax of 4-bit blocks.

use crate::code::DynamicMap;

/// Values in blocks, each with its largest absolute value and 8-bit codes between -1 and 1 (Dettmers et al., 2022,
/// "8-bit Optimizers via Block-wise Quantization", section 2.1); `quantize_blockwise` of bitsandbytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Blockwise {
    /// A code for each value.
    pub codes: Vec<u8>,
    /// The largest absolute value of each block.
    pub absmax: Vec<f32>,
    /// What the codes stand for, in ascending order: the signed [`DynamicMap`], or what a file has in its place.
    pub code: Box<[f32; 256]>,
    /// Values in a block; the last may be short.
    pub block_size: usize,
}

impl Blockwise {
    /// Quantises finite values by the signed [`DynamicMap`], code for code as bitsandbytes does on the CPU.
    ///
    /// # Panics
    /// If the blocks have no values.
    pub fn quantize(values: &[f32], block_size: usize) -> Self {
        let (map, mut codes) = (DynamicMap::signed(), vec![0; values.len()]);
        let blocks = values.chunks(block_size).zip(codes.chunks_mut(block_size));
        let absmax = blocks.map(|(block, codes)| map.quantize(block, codes)).collect();
        Self { codes, absmax, code: Box::new(*map.values()), block_size }
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
