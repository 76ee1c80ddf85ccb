//! What LoRA computes: a branch of two factors, and what some of its forms have beside it.

use burn::tensor::{Int, Tensor};
use sideburn_kernels::{dropout, embedding, low_rank, matmul};

use super::lora_init::LoraInit;
use super::replace::NO_HEAD;
use crate::Pass;
use crate::rule::{
    BoundLinear, BoundTable, Branch, Call, Init, LinearRule, LowRankRule, Rule, RuleTensors, TableRule, TensorSpec,
    Weights,
};
use crate::tensors::in_dtype;

/// The factors `lora_A [r, in]` and `lora_B [out, r]` at a linear layer: `y + s (dropout(x) A^T) B^T`.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    /// `[out, in]` of the layer.
    pub(super) shape: [usize; 2],
    pub(super) r: usize,
    pub(super) scaling: f64,
    pub(super) dropout: f64,
    pub(super) init: LoraInit,
}

impl Rule for Factors {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.init.tensors(self.shape, self.r, self.scaling)
    }
}

impl LowRankRule for Factors {
    fn branch(&self, own: &RuleTensors) -> Branch {
        let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|part| own.get(part));
        Branch { a, b, scale: self.scaling, dropout: self.dropout }
    }
}

/// Factors of which the second has a bias `b [out]`: `y + s (dropout(x) A^T) B^T + s b`.
#[derive(Clone, Debug)]
pub(super) struct WithBias(pub(super) Factors);

impl Rule for WithBias {
    fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = self.0.tensors();
        tensors.push(TensorSpec::new("lora_B.bias", [self.0.shape[0]], Init::Zeros));
        tensors
    }
}

impl LinearRule for WithBias {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        Box::new(BoundWithBias { branch: self.0.branch(own), bias: own.get("lora_B.bias").mul_scalar(self.0.scaling) })
    }
}

struct BoundWithBias {
    branch: Branch,
    /// `s b`.
    bias: Tensor<2>,
}

impl BoundLinear for BoundWithBias {
    fn output(&self, y: Tensor<2>, call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        let outer = y.dtype();
        y + in_dtype(self.branch.of(call.x, pass) + self.bias.clone(), outer)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let Weights { weight, bias } = self.branch.merge(base)?;
        let bias = bias.ok_or("the layer has no bias to take up that of `lora_bias`")?;
        Ok(Weights { weight, bias: Some(bias + self.bias.clone()) })
    }
}

/// Factors that begin as a part of the base weight. Frozen copies of their first values `A_0`, `B_0` take it out of the
/// base: `y - s (x A_0^T) B_0^T + s (dropout(x) A^T) B^T`.
#[derive(Clone, Debug)]
pub(super) struct PartOfBase(pub(super) Factors);

impl Rule for PartOfBase {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.0.tensors()
    }
}

impl LinearRule for PartOfBase {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        let [a, b] = ["initial_A", "initial_B"].map(|part| own.get(part));
        // Of what is left of the base nothing is dropped.
        let initial = Branch { a, b, scale: self.0.scaling, dropout: 0.0 };
        Box::new(BoundPartOfBase { branch: self.0.branch(own), initial })
    }
}

struct BoundPartOfBase {
    branch: Branch,
    initial: Branch,
}

impl BoundLinear for BoundPartOfBase {
    fn output(&self, y: Tensor<2>, call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        let (outer, trained) = (y.dtype(), self.branch.of(call.x, pass));
        y + in_dtype(trained - self.initial.of(call.x, &mut Pass::evaluate()), outer)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let initial = Branch { b: self.initial.b.clone().neg(), ..self.initial.clone() };
        initial.merge(self.branch.merge(base)?)
    }
}

/// DoRA: the factors, and a magnitude `m [out]`, by default the norms of the rows of `W`, which make of the weight
/// `W' = m (W + s B A) / |W + s B A|` with the norm of each row, through which no gradient goes (section 4.3 of the paper).
#[derive(Clone, Debug)]
pub(super) struct Dora(pub(super) Factors);

impl Rule for Dora {
    fn tensors(&self) -> Vec<TensorSpec> {
        let norms = |base: Weights| base.weight.square().sum_dim(1).sqrt().transpose();
        let mut tensors = self.0.tensors();
        tensors.push(TensorSpec::new("lora_magnitude_vector", [self.0.shape[0]], Init::from_base(norms)));
        tensors
    }
}

impl LinearRule for Dora {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        Box::new(BoundDora { branch: self.0.branch(own), magnitude: own.get("lora_magnitude_vector") })
    }
}

struct BoundDora {
    branch: Branch,
    magnitude: Tensor<2>,
}

impl BoundDora {
    /// The norms of the rows of `W + s B A`, `[1, out]`, without forming it or letting a gradient through:
    /// `|w + s b A|^2 = |w|^2 + 2 s b (W A^T) + s^2 b (A A^T) b^T` for a row `w` of `W` and the row `b` of `B`.
    fn norms(&self, weight: &Tensor<2>) -> Tensor<2> {
        let Branch { a, b, scale, .. } = &self.branch;
        let (weight, a, b) = (weight.clone().detach(), a.clone().detach(), b.clone().detach());
        let own = weight.clone().square().sum_dim(1);
        let mixed = matmul(weight, a.clone().transpose()).mul(b.clone()).sum_dim(1).mul_scalar(2.0 * scale);
        let delta = matmul(b.clone(), matmul(a.clone(), a.transpose())).mul(b).sum_dim(1);
        // Rounding can leave a little less than nothing of a row that the factors cancel.
        (own + mixed + delta.mul_scalar(scale * scale)).clamp_min(0.0).sqrt().transpose()
    }

    /// What each row is multiplied by, `[1, out]`: `m / |W + s B A|`, and 1 for a row of zeros, which has no direction. A
    /// row that is zero in the base alone gets one as soon as `B` moves.
    fn gain(&self, weight: &Tensor<2>) -> Tensor<2> {
        let norms = self.norms(weight);
        let is_zero = norms.clone().equal_elem(0.0);
        (self.magnitude.clone() / norms.mask_fill(is_zero.clone(), 1.0)).mask_fill(is_zero, 1.0)
    }
}

impl BoundLinear for BoundDora {
    fn output(&self, y: Tensor<2>, call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        let Branch { a, b, scale, dropout: probability } = self.branch.clone();
        let outer = y.dtype();
        let x = in_dtype(call.x.clone(), a.dtype());
        let weight = in_dtype(call.weight.dense(), a.dtype());
        let gain = self.gain(&weight);
        let dropped = pass.next_dropout(probability);
        if dropped.is_none() {
            let y = in_dtype(y, a.dtype());
            let bias = call.bias.map(|bias| in_dtype(bias.clone(), y.dtype()));
            let bare = bias.iter().fold(y, |y, bias| y - bias.clone());
            let scaled = (bare + low_rank(x, a, b, scale, None)) * gain;
            return in_dtype(bias.into_iter().fold(scaled, |y, bias| y + bias), outer);
        }
        let x = dropout(x, dropped);
        let bare = matmul(x.clone(), weight.transpose());
        let delta = bare * gain.clone().sub_scalar(1.0) + low_rank(x, a, b, scale, None) * gain;
        y + in_dtype(delta, outer)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let gain = self.gain(&base.weight);
        let Weights { weight, bias } = self.branch.merge(base)?;
        Ok(Weights { weight: weight * gain.transpose(), bias })
    }
}

/// The factors `lora_embedding_A [r, rows]` and `lora_embedding_B [width, r]` at an embedding: the table
/// `W + s (B A)^T`, which is never formed.
#[derive(Clone, Debug)]
pub(super) struct TableFactors {
    /// `[rows, width]` of the table.
    pub(super) shape: [usize; 2],
    pub(super) r: usize,
    pub(super) scaling: f64,
}

impl Rule for TableFactors {
    fn tensors(&self) -> Vec<TensorSpec> {
        let ([rows, width], r) = (self.shape, self.r);
        vec![
            TensorSpec::new("lora_embedding_A", [r, rows], Init::Zeros),
            TensorSpec::new("lora_embedding_B", [width, r], Init::Normal(1.0)),
        ]
    }
}

impl TableRule for TableFactors {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundTable + '_> {
        let [a, b] = ["lora_embedding_A", "lora_embedding_B"].map(|part| own.get(part));
        Box::new(BoundTableFactors { a, b, scaling: self.scaling })
    }
}

struct BoundTableFactors {
    a: Tensor<2>,
    b: Tensor<2>,
    scaling: f64,
}

impl BoundTable for BoundTableFactors {
    fn rows(&self, rows: Tensor<2>, ids: &Tensor<1, Int>) -> Tensor<2> {
        let picked = embedding(self.a.clone().transpose(), ids.clone());
        let delta = matmul(picked, self.b.clone().transpose()).mul_scalar(self.scaling);
        let outer = rows.dtype();
        rows + in_dtype(delta, outer)
    }

    fn scores(&self, scores: Tensor<2>, x: &Tensor<2>, _pass: &mut Pass) -> Tensor<2> {
        let outer = scores.dtype();
        let x = in_dtype(x.clone(), self.a.dtype());
        let delta = low_rank(x, self.b.clone().transpose(), self.a.clone().transpose(), self.scaling, None);
        scores + in_dtype(delta, outer)
    }

    fn merge(&self, table: Tensor<2>) -> Result<Tensor<2>, &'static str> {
        Ok(table + matmul(self.b.clone(), self.a.clone()).mul_scalar(self.scaling).transpose())
    }
}

/// Factors at an output head that is the embedding, of which the table knows nothing.
#[derive(Clone, Debug)]
pub(super) struct HeadFactors(pub(super) Factors);

impl Rule for HeadFactors {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.0.tensors()
    }
}

impl TableRule for HeadFactors {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundTable + '_> {
        Box::new(BoundHeadFactors(self.0.branch(own)))
    }
}

struct BoundHeadFactors(Branch);

impl BoundTable for BoundHeadFactors {
    fn scores(&self, scores: Tensor<2>, x: &Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let outer = scores.dtype();
        scores + in_dtype(self.0.of(x, pass), outer)
    }

    fn merge(&self, _table: Tensor<2>) -> Result<Tensor<2>, &'static str> {
        Err(NO_HEAD)
    }
}

#[cfg(test)]
mod tests {
    use sideburn_kernels::Key;

    use super::super::testing::{assert_branch_merged_as_computed, assert_merged_as_computed, random};
    use super::*;

    fn factors(init: LoraInit) -> Factors {
        Factors { shape: [5, 7], r: 2, scaling: 4.0, dropout: 0.5, init }
    }

    #[test]
    fn merged_as_computed() {
        assert_branch_merged_as_computed(factors(LoraInit::Default), [5, 7]);
        assert_merged_as_computed(Dora(factors(LoraInit::Default)), [5, 7]);
    }

    #[test]
    fn what_is_left_of_the_base_sees_no_dropout() {
        let rule = PartOfBase(factors(LoraInit::Olora));
        assert_merged_as_computed(rule.clone(), [5, 7]);

        let tensors = [[2, 7], [5, 2], [2, 7], [5, 2]].map(|dims| random(dims, 1.0, dims[0] as u64));
        let own = RuleTensors::new(rule.tensors().into(), tensors.to_vec());
        let (x, y, weights) = (random([4, 7], 1.0, 3), random([4, 5], 1.0, 4), random([5, 7], 1.0, 5));
        let call = Call { x: &x, weight: &weights.into(), bias: None };
        let pass = || Pass::train(Key::from_seed(6));
        let found = rule.bind(&own).output(y.clone(), &call, &mut pass());
        let [a, b, first_a, first_b] = tensors;
        let trained = low_rank(x.clone(), a, b, 4.0, pass().next_dropout(0.5));
        let expected = y + (trained - low_rank(x.clone(), first_a, first_b, 4.0, None));
        assert_eq!((found - expected).abs().max().into_scalar::<f32>(), 0.0);
    }
}
