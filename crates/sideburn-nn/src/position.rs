//! How attention knows where tokens stand.

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;
use sideburn_kernels::{RowLayout, Visibility, rotary};

/// How a decoder knows where its tokens stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// Not by attention: in the embedding, say.
    None,
    /// By rotary positions.
    Rotary(Rotary),
    /// By a bias that grows with the place of a key.
    Alibi(Alibi),
}

impl Positions {
    /// What attention is told of tokens that see what `visibility` says, where row `i` goes on from place `first[i]`.
    pub(crate) fn of(&self, visibility: &Visibility, first: &[usize], dtype: DType) -> Position {
        let Visibility { queries, keys, .. } = visibility;
        match self {
            Self::None => Position::None,
            Self::Rotary(rotary) => Position::Rotary(rotary.rotation(queries, first)),
            Self::Alibi(alibi) => alibi.position(keys.columns(), (keys.device(), dtype)),
        }
    }
}

/// What attention is told of positions.
#[derive(Clone, Debug)]
pub enum Position {
    /// Nothing: order does not matter, or was in the embedding.
    None,
    /// Something is added to the score of a query and a key by how far they are apart, `[heads, distances]`: T5's table.
    Bias(Tensor<2>),
    /// Something is added to the scores of a key by its place in the row, `[heads, places]`: [ALiBi](Alibi).
    OfKeys(Tensor<2>),
    /// Queries and keys are turned by an angle that grows with the place in the row ([`Rotary`]).
    Rotary(Rotation),
}

impl Position {
    /// What is added to scores.
    pub fn bias(&self) -> Option<Tensor<2>> {
        match self {
            Self::Bias(bias) | Self::OfKeys(bias) => Some(bias.clone()),
            Self::None | Self::Rotary(_) => None,
        }
    }

    /// What queries and keys are turned by.
    pub(crate) fn angles(&self) -> Option<Tensor<2>> {
        match self {
            Self::Rotary(rotation) => Some(rotation.cos_sin.clone()),
            Self::None | Self::Bias(_) | Self::OfKeys(_) => None,
        }
    }

    /// Queries or keys `[tokens, heads * head_width]`, turned if they are to be.
    pub(crate) fn turn(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Rotary(rotation) => rotation.apply(x),
            Self::None | Self::Bias(_) | Self::OfKeys(_) => x,
        }
    }
}

/// Rotary positions (Su et al., 2021), as Llama, GPT-NeoX and Falcon have them: of each head, element `i` of the first half
/// and element `i` of the second are turned together, at place `p` by the angle `p * theta^(-2 i / head_width)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// `rope_theta`; 10,000 where a configuration names none.
    pub theta: f64,
    /// The width of a head, an even number.
    pub head_width: usize,
}

/// [`Rotary`] positions of the tokens of a matrix.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// For each token the cosines of all pairs of elements and then the sines, `[tokens, head_width]`.
    cos_sin: Tensor<2>,
}

impl Rotary {
    /// The positions of the tokens of `layout`, where row `i` goes on from place `first[i]`.
    ///
    /// # Panics
    /// If the width of a head is odd, or there is not one first place for each row.
    pub fn rotation(&self, layout: &RowLayout, first: &[usize]) -> Rotation {
        assert!(self.head_width.is_multiple_of(2), "heads {} wide do not have two halves", self.head_width);
        assert_eq!(first.len(), layout.rows(), "every row has a first place");
        let (width, half) = (self.head_width, self.head_width / 2);
        let mut cos_sin = vec![0f32; layout.tokens() * width];
        for (row, first) in first.iter().enumerate() {
            for (place, token) in layout.row(row).enumerate() {
                let (cos, sin) = cos_sin[token * width..][..width].split_at_mut(half);
                for (pair, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
                    let angle = (first + place) as f64 * self.theta.powf(-2.0 * pair as f64 / width as f64);
                    (*cos, *sin) = (angle.cos() as f32, angle.sin() as f32);
                }
            }
        }
        let data = TensorData::new(cos_sin, [layout.tokens(), width]);
        Rotation { cos_sin: Tensor::from_data(data, layout.device()) }
    }
}

impl Rotation {
    /// Turns each head of `x [tokens, heads * head_width]`.
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        rotary(x, self.cos_sin.clone())
    }
}

/// ALiBi (Press et al., 2022) as `transformers` has it: the score of a key grows with its place in the row by the slope of the
/// head, which gives the same weights as falling with the distance from the query.
///
/// The slopes of 8 heads are 1/2, 1/4, ... 1/256; where there is no power of two, those of every second head of twice as many
/// follow. Slopes, places and their products are rounded to `bfloat16`, as there: place 257 counts as 256.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alibi {
    /// Heads of the queries.
    pub heads: usize,
    /// What the bias is multiplied by: 1 as in the paper; Falcon scales it as it scales the scores.
    pub scale: f64,
}

impl Alibi {
    /// The bias of so many keys.
    pub fn position(&self, keys: usize, like: (&Device, DType)) -> Position {
        let rounded = |x: f64| f64::from(bf16::from_f64(x));
        let of_head = |slope: f64| (0..keys).map(move |key| rounded(rounded(slope) * rounded(key as f64)));
        let bias = slopes(self.heads).into_iter().flat_map(of_head).map(|bias| (self.scale * bias) as f32);
        let data = TensorData::new(bias.collect::<Vec<f32>>(), [self.heads, keys]);
        Position::OfKeys(Tensor::from_data(data, like))
    }
}

/// `build_alibi_tensor` of `transformers/models/falcon/modeling_falcon.py`.
fn slopes(heads: usize) -> Vec<f64> {
    let of_power = |heads: usize| {
        let first = 2f64.powf(-8.0 / heads as f64);
        (1..=heads).map(move |head| first.powi(head as i32))
    };
    let power = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    of_power(power).chain(of_power(2 * power).step_by(2).take(heads - power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_fall_by_a_power_of_two() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        let expected = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125];
        assert_eq!(slopes(6), expected);
        assert_eq!(slopes(1), [1.0 / 256.0]);
    }
}
