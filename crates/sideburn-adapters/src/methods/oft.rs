//! OFT: rotating the input of layers, block by block (Qiu et al., 2023, and 2025 in the form that `peft` has).

use burn::tensor::{Int, Tensor, TensorData};
use serde_json::{Map, Value};
use sideburn_kernels::matmul;

use crate::AdapterError;
use crate::fields::{Fields, fields};
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site};
use crate::rule::{BoundLinear, Init, LinearRule, Rule, RuleTensors, TensorSpec, Weights};
use crate::targets::Targets;
use crate::tensors::in_dtype;

/// What to adapt and how; the fields are named as in `peft.OFTConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OftConfig {
    /// How many blocks the input of a layer is cut into; 0 if `oft_block_size` says how wide they are.
    pub r: usize,
    /// How wide the blocks are; 0 if `r` says how many there are. Of a layer that the one or the other does not divide,
    /// the nearest divisor counts.
    pub oft_block_size: usize,
    /// Whether all blocks of a layer are rotated alike.
    pub block_share: bool,
    /// Whether the rotation is only near to one, by a series in place of an inverse; it then turns the other way round.
    pub use_cayley_neumann: bool,
    /// Terms of the series.
    pub num_cayley_neumann_terms: usize,
    /// Which layers are adapted.
    pub targets: Targets,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl OftConfig {
    /// `peft`'s defaults.
    pub fn new(targets: impl Into<Targets>) -> Self {
        Self {
            r: 0,
            oft_block_size: 32,
            block_share: false,
            use_cayley_neumann: true,
            num_cayley_neumann_terms: 5,
            targets: targets.into(),
            meta: AdapterMeta::default(),
        }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        fields.only("bias", "none")?;
        fields.only("coft", false)?;
        fields.ignore("eps"); // Belongs to `coft`.
        fields.ignore("module_dropout"); // `peft` never applies it.
        fields.ignore("fan_in_fan_out"); // Says how other kinds of layers store their weights.
        fields.ignore("init_weights"); // How the rotations begin is past.
        Ok(Self {
            r: fields.optional("r", "a number of blocks, or 0")?.unwrap_or(0),
            oft_block_size: fields.required(
                "oft_block_size",
                "a width, or 0; a file without it is of a `peft` before 0.14, whose OFT was another method: train it anew",
            )?,
            block_share: fields.flag("block_share")?,
            use_cayley_neumann: fields.optional("use_cayley_neumann", "true or false")?.unwrap_or(true),
            num_cayley_neumann_terms: fields.optional("num_cayley_neumann_terms", "a number")?.unwrap_or(5),
            targets: Targets::read(fields)?,
            meta: AdapterMeta::read(fields)?,
        })
    }

    fn rule(&self, site: &Site) -> OftRule {
        let [_, input] = site.linear();
        let block = match self.r {
            0 => nearest_divisor(input, self.oft_block_size),
            r => input / nearest_divisor(input, r),
        };
        let terms = self.use_cayley_neumann.then_some(self.num_cayley_neumann_terms);
        OftRule { input, block, share: self.block_share, terms }
    }
}

/// The divisor of `width` that is nearest to `wanted`; of two, the smaller.
fn nearest_divisor(width: usize, wanted: usize) -> usize {
    let divides = |divisor: &usize| width.is_multiple_of(*divisor);
    let wanted = wanted.min(width);
    let below = (1..=wanted).rev().find(divides).unwrap_or(1);
    let above = (wanted..=width).find(divides).unwrap_or(width);
    if wanted - below <= above - wanted { below } else { above }
}

impl Method for OftConfig {
    fn about(&self) -> About<'_> {
        // Rotations do not commute: `peft` merges two of them in another order than it applies them.
        About { peft_type: "OFT", meta: &self.meta, targets: Some(&self.targets), combines_with: CanCombineWith::Alone }
    }

    fn validate(&self) -> Result<(), AdapterError> {
        let invalid = |field, found, expected| Err(AdapterError::InvalidField { field, found, expected });
        match (self.r, self.oft_block_size, self.num_cayley_neumann_terms) {
            (_, _, terms @ 101..) => invalid("num_cayley_neumann_terms", terms.to_string(), "at most 100 terms"),
            (0, 1.., _) | (1.., 0, _) => Ok(()),
            (r, size, _) => {
                invalid("oft_block_size", format!("{size} beside `r` {r}"), "exactly one of the two to be 0")
            }
        }
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = fields! {
            "r": self.r,
            "oft_block_size": self.oft_block_size,
            "block_share": self.block_share,
            "use_cayley_neumann": self.use_cayley_neumann,
            "num_cayley_neumann_terms": self.num_cayley_neumann_terms,
            "coft": false,
            "module_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_weights": true,
        };
        self.targets.write(&mut fields);
        fields
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let sites = self.targets.select(model, Site::is_linear, model.shape.usual.lora)?;
        Plan::of_linears(sites, |site| Ok(self.rule(site)))
    }
}

/// For each block of the input, or once for all, the upper triangle of a skew-symmetric matrix `Q [block, block]`, row by
/// row. The block `x_k` of `x` becomes `x_k R`, which costs `block` multiplications for each element of `x`.
///
/// Exactly, `R = (1 - Q) (1 + Q)^-1`. The series of N terms is that of `(1 + Q) (1 - Q)^-1`, cut off as `peft` does: `1`,
/// `1 + 2 Q`, and from there `1 + 2 (Q + ... + Q^(N-2)) + Q^(N-1)`, of at least four terms.
#[derive(Clone, Debug)]
struct OftRule {
    input: usize,
    block: usize,
    share: bool,
    /// Of the series, if it is one.
    terms: Option<usize>,
}

impl OftRule {
    fn blocks(&self) -> usize {
        self.input / self.block
    }

    /// `Q`, `[blocks, block, block]`, or one for all.
    fn skew(&self, own: &Tensor<2>) -> Tensor<3> {
        let (size, device) = (self.block, own.device());
        let place = |row: usize, column: usize| row * (2 * size - row - 1) / 2 + column - row - 1;
        let entry = |index: usize| match (index / size, index % size) {
            (row, column) if row < column => (place(row, column) as i32, 1f32),
            (row, column) if row > column => (place(column, row) as i32, -1.0),
            _ => (0, 0.0),
        };
        let (places, signs): (Vec<i32>, Vec<f32>) = (0..size * size).map(entry).unzip();
        let places = Tensor::<1, Int>::from_data(TensorData::new(places, [size * size]), &device);
        let signs = Tensor::<2>::from_data(TensorData::new(signs, [1, size * size]), &device);
        let skew = own.clone().select(1, places) * in_dtype(signs, own.dtype());
        skew.reshape([own.dims()[0], size, size])
    }

    /// `R`, `[blocks, block, block]`, or one for all.
    fn rotations(&self, own: &Tensor<2>) -> Tensor<3> {
        let q = self.skew(own);
        let one = || in_dtype(Tensor::<2>::eye(self.block, &q.device()), q.dtype()).unsqueeze::<3>();
        let two = || one().mul_scalar(2.0);
        match self.terms {
            Some(0 | 1) => one(),
            Some(2) => q.clone().mul_scalar(2.0) + one(),
            Some(terms) => {
                let inner = (4..=terms.max(4)).fold(q.clone() + two(), |inner, _| matmul(q.clone(), inner) + two());
                matmul(q.clone(), inner) + one()
            }
            None => {
                // The inverse is a constant but for one step of Newton's iteration, which has its derivative.
                let (sum, inverse) = (q.clone() + one(), inverse(q.clone().detach() + one()));
                let inverse = matmul(inverse.clone(), two() - matmul(sum, inverse));
                inverse.mul_scalar(2.0) - one() // (1 - Q) (1 + Q)^-1, as 1 - Q = 2 - (1 + Q)
            }
        }
    }

    fn rotate(&self, x: Tensor<2>, rotations: Tensor<3>) -> Tensor<2> {
        let [rows, width] = x.dims();
        let rotations = rotations.expand([self.blocks(), self.block, self.block]);
        let blocks = x.reshape([rows, self.blocks(), self.block]).swap_dims(0, 1);
        matmul(blocks, rotations).swap_dims(0, 1).reshape([rows, width])
    }
}

/// The inverses of matrices whose symmetric part is positive definite, as is that of `1 + Q`, by halves: no block and no
/// Schur complement of such a matrix is singular.
fn inverse(matrices: Tensor<3>) -> Tensor<3> {
    let [_, size, _] = matrices.dims();
    if size == 1 {
        return matrices.recip();
    }
    let half = size / 2;
    let part = |rows: [usize; 2], columns: [usize; 2]| {
        matrices.clone().narrow(1, rows[0], rows[1]).narrow(2, columns[0], columns[1])
    };
    let (first, last) = ([0, half], [half, size - half]);
    let a = inverse(part(first, first));
    let ab = matmul(a.clone(), part(first, last));
    let ca = matmul(part(last, first), a.clone());
    let d = inverse(part(last, last) - matmul(part(last, first), ab.clone()));
    let (b, c) = (matmul(ab, d.clone()).neg(), matmul(d.clone(), ca.clone()).neg());
    let a = a - matmul(b.clone(), ca);
    Tensor::cat(vec![Tensor::cat(vec![a, b], 2), Tensor::cat(vec![c, d], 2)], 1)
}

impl Rule for OftRule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let rows = if self.share { 1 } else { self.blocks() };
        vec![TensorSpec::new("oft_R.weight", [rows, self.block * (self.block - 1) / 2], Init::Zeros)]
    }
}

impl LinearRule for OftRule {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        // Of a block of one element there is nothing to rotate.
        let rotations = (self.block > 1).then(|| self.rotations(&own.get("oft_R.weight")));
        Box::new(BoundOft { rule: self, rotations })
    }
}

struct BoundOft<'a> {
    rule: &'a OftRule,
    /// `R`, `[blocks, block, block]`, or one for all.
    rotations: Option<Tensor<3>>,
}

impl BoundLinear for BoundOft<'_> {
    fn input(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(rotations) = self.rotations.clone() else { return x };
        let outer = x.dtype();
        in_dtype(self.rule.rotate(in_dtype(x, rotations.dtype()), rotations), outer)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let Some(rotations) = self.rotations.clone() else { return Ok(base) };
        let weight = in_dtype(base.weight, rotations.dtype());
        Ok(Weights { weight: self.rule.rotate(weight, rotations.swap_dims(1, 2)), ..base })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::super::testing::{assert_merged_as_computed, random};
    use super::*;

    #[test]
    fn the_nearest_divisor() {
        for (width, wanted, expected) in
            [(64, 8, 8), (64, 100, 64), (64, 24, 16), (12, 5, 4), (10, 4, 5), (7, 3, 1), (7, 5, 7), (9, 6, 3)]
        {
            assert_eq!(nearest_divisor(width, wanted), expected, "{wanted} of {width}");
        }
    }

    #[test]
    fn blocks_of_all_sizes() {
        for (block, share, terms) in
            [(1, false, None), (2, false, None), (5, false, Some(5)), (5, true, None), (10, true, Some(7))]
        {
            assert_merged_as_computed(OftRule { input: 10, block, share, terms }, [3, 10]);
        }
    }

    /// That the series of `n` terms is `sum(coefficients[k] Q^k)`, for a `Q` of one number `q`: its square is `-q^2`.
    #[test]
    fn series_as_peft_cuts_them_off() {
        let (q, device) = (0.5f32, Device::flex());
        for (terms, coefficients) in [
            (1, vec![1.0]),
            (2, vec![1.0, 2.0]),
            (3, vec![1.0, 2.0, 2.0, 1.0]),
            (4, vec![1.0, 2.0, 2.0, 1.0]),
            (5, vec![1.0, 2.0, 2.0, 2.0, 1.0]),
            (6, vec![1.0, 2.0, 2.0, 2.0, 2.0, 1.0]),
        ] {
            let rule = OftRule { input: 2, block: 2, share: false, terms: Some(terms) };
            let found = rule.rotations(&Tensor::from_floats([[q]], &device)).reshape([4]);
            // As complex numbers: Q is q i.
            let (mut real, mut imaginary, mut power) = (0.0, 0.0, (1.0f32, 0.0f32));
            for coefficient in coefficients {
                (real, imaginary) = (real + coefficient * power.0, imaginary + coefficient * power.1);
                power = (-q * power.1, q * power.0);
            }
            let found: Vec<f32> = found.into_data().try_into_vec().unwrap();
            assert_eq!(found, [real, imaginary, -imaginary, real], "{terms} terms");
        }
    }

    /// However large the numbers are, what comes out is a rotation.
    #[test]
    fn the_exact_form_is_orthogonal() {
        let rule = OftRule { input: 21, block: 7, share: false, terms: None };
        for size in [0.1, 1.0, 30.0] {
            let r = rule.rotations(&random([3, 21], size, 1));
            let product = r.clone().matmul(r.swap_dims(1, 2));
            let one = Tensor::<2>::eye(7, &Device::flex()).unsqueeze::<3>();
            let error = (product - one).abs().max().into_scalar::<f32>();
            assert!(error <= 2e-5, "{error:e} from a rotation at {size}");
        }
    }
}
