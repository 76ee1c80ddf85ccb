//! The linear layer with adapter slots.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use sideburn_kernels::{Key, LinearOp, Matrix, adapted_linears, linear};

use crate::TokenPass;
use crate::base_weight::BaseWeight;
use crate::rule::{AtLinear, AtLinearBound, Call, Replacement};
use crate::slot::{RuledSlot, Slot, is_adapted};
use crate::tensors::{in_dtype, random_weight, random_weight_in};

/// A linear layer that adapters can attach to.
///
/// `y = x W^T + b`, and what the adapters do to it; for LoRA, `+ s (dropout(x) A^T) B^T`. The weight of an adapted layer
/// is never formed. A frozen weight takes no part in the autodiff graph except to carry the gradient on to `x`.
///
/// # Shapes
/// `weight [out, in]` and `bias [out]` as PyTorch stores them; `x [n, in]` gives `[n, out]`.
#[derive(Module, Debug)]
pub struct AdaptedLinear {
    weight: BaseWeight,
    bias: Option<BaseWeight>,
    slots: Vec<RuledSlot<AtLinear>>,
}

impl AdaptedLinear {
    /// A layer whose weight `[out, in]` is drawn from `N(0, deviation^2)` with `key`, when it is first needed.
    pub fn random(out: usize, input: usize, deviation: f64, key: Key, device: &Device) -> Self {
        let weight = BaseWeight::of_matrix(random_weight([out, input], deviation, key, device));
        Self { weight, bias: None, slots: Vec::new() }
    }

    /// The same with its weight in `f32` where the device makes tensors in `f16`, whose largest number, 65,504, is not
    /// enough for what some layers give: `_keep_in_fp32_modules` in `transformers`. It takes its input in `f32` then.
    pub fn random_in_f32(out: usize, input: usize, deviation: f64, key: Key, device: &Device) -> Self {
        if device.settings().float_dtype != FloatDType::F16 {
            return Self::random(out, input, deviation, key, device);
        }
        let weight = random_weight_in([out, input], deviation, key, device, DType::F32);
        Self { weight: BaseWeight::of_matrix_in_f32(weight), bias: None, slots: Vec::new() }
    }

    /// A layer around existing weights, which are trainable until they are frozen.
    ///
    /// # Panics
    /// If the bias is not as long as the weight has rows.
    pub fn from_weights(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        let weight = BaseWeight::of_matrix(Param::from_tensor(weight.detach()));
        let layer = Self { weight, bias: None, slots: Vec::new() };
        match bias {
            Some(bias) => layer.with_bias(bias),
            None => layer,
        }
    }

    /// The same layer with this bias `[out]`, which is trainable until it is frozen.
    ///
    /// # Panics
    /// If it is not as long as the weight has rows.
    pub fn with_bias(self, bias: Tensor<1>) -> Self {
        assert_eq!(bias.dims()[0], self.shape()[0], "a bias needs one entry for each row of the weight");
        Self { bias: Some(BaseWeight::of_vector(bias)), ..self }
    }

    /// Applies the layer to `x [n, in]`, with its active adapters, or with those that the pass names for each row.
    pub fn forward(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        forward_together([self], x, pass)
    }

    /// What adapters do here in this pass: all active ones, or those of each route.
    fn bound(&self, pass: &TokenPass<'_>) -> Vec<Vec<AtLinearBound<'_>>> {
        let of = |routed| {
            let chosen = self.slots.iter().filter(|ruled| ruled.is_chosen(routed));
            chosen.map(|ruled| ruled.rule.bind(&ruled.slot.own())).collect()
        };
        match pass.routes() {
            None => vec![of(None)],
            Some(routes) => routes.adapters().iter().map(|adapter| of(Some(adapter.as_deref()))).collect(),
        }
    }

    /// Whether the layer is a base with low-rank branches in a pass in which adapters do this.
    fn is_fused(&self, bound: &[Vec<AtLinearBound<'_>>], dtype: DType) -> bool {
        self.bias.is_none() && bound.iter().flatten().all(|rule| rule.branch(dtype).is_some())
    }

    /// The base with its branches, where [`is_fused`](Self::is_fused) has found that there is nothing else.
    fn operation(&self, bound: &[Vec<AtLinearBound<'_>>], dtype: DType, pass: &mut TokenPass<'_>) -> LinearOp {
        let rows = pass.routes().map_or_else(|| vec![None], |routes| routes.rows().to_vec());
        let branches = bound.iter().zip(rows).flat_map(|(rules, rows)| {
            let branches = rules.iter().filter_map(|rule| rule.branch(dtype));
            branches.map(|branch| branch.drawn(rows.clone(), pass)).collect::<Vec<_>>()
        });
        let branches: Vec<_> = branches.collect();
        LinearOp { weight: Some(self.weight.operand_in(pass)), branches }
    }

    /// The layer step by step, whatever the adapters do.
    fn forward_by_steps(&self, x: Tensor<2>, bound: &[Vec<AtLinearBound<'_>>], pass: &mut TokenPass<'_>) -> Tensor<2> {
        let base = Computed {
            weight: self.weight.operand_in(pass),
            bias: self.bias.as_ref().map(BaseWeight::dense),
            dtype: self.weight.dtype(),
        };
        let Some(routes) = pass.routes() else {
            return forward(x, &base.replaced(&bound[0]).unwrap_or(base), &bound[0], pass);
        };
        if bound.iter().all(Vec::is_empty) {
            return base.product(x);
        }
        // The base layer runs once over all rows; each adapter sees its own rows only.
        let parts = routes.split(x);
        let inputs = parts.iter().zip(bound).map(|(x, rules)| input(x, rules)).collect();
        let products = routes.split_sorted(base.product(Tensor::cat(inputs, 0)));
        let outputs = parts.iter().zip(bound).zip(products).map(|((x, rules), y)| match base.replaced(rules) {
            Some(own) => forward(x.clone(), &own, rules, pass),
            None => output(y, x, &base, rules, pass),
        });
        routes.join(outputs.collect())
    }

    /// The dtype that the layer takes and gives.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// The weight `[out, in]` as it is held, if that is floats and `x W^T` is all that the layer does in this pass.
    pub fn plain_weight(&self, pass: &TokenPass<'_>) -> Option<Tensor<2>> {
        let is_plain = !is_adapted(&self.slots, pass) && self.bias.is_none();
        self.weight.floats().filter(|_| is_plain).map(Param::val)
    }

    /// `[out, in]`, without initialising the weight.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.dims()
    }

    /// Where the weight is, or will be initialised.
    pub fn device(&self) -> Device {
        self.weight.device()
    }

    /// The base weight, `[out, in]`.
    pub fn weight(&self) -> &BaseWeight {
        &self.weight
    }

    /// The bias, `[out]`, if the layer has one.
    pub fn bias(&self) -> Option<&BaseWeight> {
        self.bias.as_ref()
    }

    /// The base weight, to be replaced.
    pub fn weight_mut(&mut self) -> &mut BaseWeight {
        &mut self.weight
    }

    /// The base weight and the bias, to be replaced.
    pub(crate) fn parts_mut(&mut self) -> (&mut BaseWeight, Option<&mut BaseWeight>) {
        (&mut self.weight, self.bias.as_mut())
    }

    /// Whether all adapters here are low-rank branches, whose operation keeps nothing but its input.
    pub fn is_low_rank(&self) -> bool {
        self.slots.iter().all(|ruled| matches!(ruled.rule, AtLinear::Branch(_)))
    }

    /// What adapters have here, in the order in which they were attached.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = &Slot> {
        self.slots.iter().map(|ruled| &ruled.slot)
    }

    pub(crate) fn ruled(&self) -> &[RuledSlot<AtLinear>] {
        &self.slots
    }

    pub(crate) fn ruled_mut(&mut self) -> &mut Vec<RuledSlot<AtLinear>> {
        &mut self.slots
    }
}

/// Applies layers to the `x [n, in]` that they share, each as its [`forward`](AdaptedLinear::forward) does: their outputs
/// side by side, `[n, out_1 + out_2 + ...]`.
///
/// Where all are bases with low-rank branches, as with LoRA, they are one operation, which sums the gradient of `x` as it
/// goes; in a pass that names an adapter for each row, each branch finds its rows in it.
pub fn forward_together<const N: usize>(
    layers: [&AdaptedLinear; N],
    x: Tensor<2>,
    pass: &mut TokenPass<'_>,
) -> Tensor<2> {
    let Some(watch) = pass.watch().cloned() else { return together(layers, x, pass) };
    layers.iter().for_each(|layer| watch.look(layer.weight.place(), true, x.clone()));
    let y = together(layers, x, pass);
    let mut start = 0;
    for layer in layers {
        let [out, _] = layer.shape();
        watch.look(layer.weight.place(), false, y.clone().narrow(1, start, out));
        start += out;
    }
    y
}

fn together<const N: usize>(layers: [&AdaptedLinear; N], x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
    let (dtype, bound) = (x.dtype(), layers.map(|layer| layer.bound(pass)));
    if layers.iter().zip(&bound).all(|(layer, bound)| layer.is_fused(bound, dtype)) {
        let operations = layers.iter().zip(&bound).map(|(layer, bound)| layer.operation(bound, dtype, pass)).collect();
        return adapted_linears(x, operations);
    }
    let steps = layers.iter().zip(&bound).map(|(layer, bound)| layer.forward_by_steps(x.clone(), bound, pass));
    let mut outputs: Vec<Tensor<2>> = steps.collect();
    if N == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 1) }
}

/// What a layer computes with: the base, or what stands in for it.
struct Computed {
    weight: Matrix,
    /// `[1, out]`.
    bias: Option<Tensor<2>>,
    /// That of the base, whatever stands in for its weight.
    dtype: DType,
}

impl Computed {
    /// With what these rules have in its place, if they have anything.
    fn replaced(&self, rules: &[AtLinearBound<'_>]) -> Option<Self> {
        let all = rules.iter().map(|rule| rule.steps().replacement());
        let Replacement { weight, bias } = all.fold(Replacement::default(), |before, after| Replacement {
            weight: after.weight.or(before.weight),
            bias: after.bias.or(before.bias),
        });
        (weight.is_some() || bias.is_some()).then(|| {
            let dtype = self.dtype;
            Self {
                dtype,
                weight: weight.map_or_else(|| self.weight.clone(), |weight| in_dtype(weight, dtype).into()),
                bias: bias.map(|bias| in_dtype(bias, dtype)).or_else(|| self.bias.clone()),
            }
        })
    }

    fn product(&self, x: Tensor<2>) -> Tensor<2> {
        let y = linear(x, self.weight.clone());
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }
}

/// A layer that computes with these weights, and what the rules do to it.
fn forward(x: Tensor<2>, weights: &Computed, rules: &[AtLinearBound<'_>], pass: &mut TokenPass<'_>) -> Tensor<2> {
    output(weights.product(input(&x, rules)), &x, weights, rules, pass)
}

fn input(x: &Tensor<2>, rules: &[AtLinearBound<'_>]) -> Tensor<2> {
    rules.iter().fold(x.clone(), |x, rule| rule.steps().input(x))
}

fn output(
    y: Tensor<2>,
    x: &Tensor<2>,
    weights: &Computed,
    rules: &[AtLinearBound<'_>],
    pass: &mut TokenPass<'_>,
) -> Tensor<2> {
    let call = Call { x, weight: &weights.weight, bias: weights.bias.as_ref() };
    rules.iter().fold(y, |y, rule| rule.steps().output(y, &call, pass))
}
