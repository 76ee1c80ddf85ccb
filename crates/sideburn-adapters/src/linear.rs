//! The linear layer with adapter slots.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use sideburn_kernels::{Key, LinearOp, LowRank, adapted_linears, linear};

use crate::TokenPass;
use crate::rule::{Call, Rule, Weights};
use crate::slot::{Slot, is_adapted, replaced, values};
use crate::tensors::random_weight;

/// A linear layer that adapters can attach to: a *site*.
///
/// `y = x W^T + b`, and what the adapters do to it; for LoRA, `+ s (dropout(x) A^T) B^T`. The weight of an adapted layer
/// is never formed. A frozen weight takes no part in the autodiff graph except to carry the gradient on to `x`.
///
/// # Shapes
/// `weight [out, in]` and `bias [out]` as PyTorch stores them; `x [n, in]` gives `[n, out]`.
#[derive(Module, Debug)]
pub struct AdaptedLinear {
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
    slots: Vec<Slot>,
}

impl AdaptedLinear {
    /// A layer whose weight `[out, in]` is drawn from `N(0, deviation^2)` with `key`, when it is first needed.
    pub fn random(out: usize, input: usize, deviation: f64, key: Key, device: &Device) -> Self {
        Self { weight: random_weight([out, input], deviation, key, device), bias: None, slots: Vec::new() }
    }

    /// A layer around existing weights, which are trainable until they are frozen.
    ///
    /// # Panics
    /// If the bias is not as long as the weight has rows.
    pub fn from_weights(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        if let Some(bias) = &bias {
            assert_eq!(bias.dims()[0], weight.dims()[0], "a bias needs one entry for each row of the weight");
        }
        let leaf = |bias: Tensor<1>| Param::from_tensor(bias.detach());
        Self { weight: Param::from_tensor(weight.detach()), bias: bias.map(leaf), slots: Vec::new() }
    }

    /// Applies the layer to `x [n, in]`, with its active adapters, or with those that the pass names for each row.
    pub fn forward(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        forward_together([self], x, pass)
    }

    /// The layer as a base with low-rank branches, if that is all that its adapters make of it in this pass.
    fn site(&self, dtype: DType, pass: &mut TokenPass<'_>) -> Option<LinearOp> {
        let mut branches = Vec::new();
        match pass.routes() {
            None => {
                for slot in self.slots.iter().filter(|slot| slot.is_active()) {
                    branches.push(slot.low_rank(dtype, pass)?);
                }
            }
            Some(routes) => {
                for (adapter, rows) in routes.adapters().iter().zip(routes.rows()) {
                    for slot in self.slots_of(adapter.as_deref()) {
                        branches.push(LowRank { rows: rows.clone(), ..slot.low_rank(dtype, pass)? });
                    }
                }
            }
        }
        self.bias.is_none().then(|| LinearOp { weight: Some(self.weight.val().into()), branches })
    }

    /// The same step by step, whatever the adapters do.
    fn forward_by_steps(&self, x: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        let Some(routes) = pass.routes() else {
            let slots = values(self.slots.iter().filter(|slot| slot.is_active()));
            return forward(x, replaced(self.base(), &slots), &slots, pass);
        };
        let base = self.base();
        let slots: Vec<_> = routes.adapters().iter().map(|name| values(self.slots_of(name.as_deref()))).collect();
        if slots.iter().all(Vec::is_empty) {
            return product(x, &base);
        }
        // The base layer runs once over all rows; each adapter sees its own rows only.
        let parts = routes.split(x);
        let inputs = parts.iter().zip(&slots).map(|(x, slots)| input(x, slots)).collect();
        let products = routes.split_sorted(product(Tensor::cat(inputs, 0), &base));
        let outputs = parts.iter().zip(&slots).zip(products).map(|((x, slots), y)| {
            if slots.iter().any(|(rule, _)| rule.replaces()) {
                forward(x.clone(), replaced(base.clone(), slots), slots, pass)
            } else {
                output(y, x, &base, slots, pass)
            }
        });
        routes.join(outputs.collect())
    }

    /// The weight `[out, in]`, if `x W^T` is all that the layer does in this pass.
    pub fn plain_weight(&self, pass: &TokenPass<'_>) -> Option<Tensor<2>> {
        (!is_adapted(&self.slots, pass) && self.bias.is_none()).then(|| self.weight.val())
    }

    /// The weights of the base layer.
    pub fn base(&self) -> Weights {
        Weights { weight: self.weight.val(), bias: self.bias.as_ref().map(|bias| bias.val().unsqueeze()) }
    }

    /// `[out, in]`, without initialising the weight.
    pub fn shape(&self) -> [usize; 2] {
        let shape = self.weight.lazy_shape();
        [shape[0], shape[1]]
    }

    /// Where the weight is, or will be initialised.
    pub fn device(&self) -> Device {
        self.weight.lazy_device()
    }

    /// The base weight, `[out, in]`.
    pub fn weight(&self) -> &Param<Tensor<2>> {
        &self.weight
    }

    /// The bias, `[out]`, if the layer has one.
    pub fn bias(&self) -> Option<&Param<Tensor<1>>> {
        self.bias.as_ref()
    }

    /// The bias, to be replaced.
    pub(crate) fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        self.bias.as_mut()
    }

    /// The base weight, to be replaced.
    pub fn weight_mut(&mut self) -> &mut Param<Tensor<2>> {
        &mut self.weight
    }

    /// What adapters have here, in the order in which they were attached.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// What the adapter of that name has here; nothing for the bare base.
    pub fn slots_of<'a>(&'a self, adapter: Option<&'a str>) -> impl Iterator<Item = &'a Slot> {
        self.slots.iter().filter(move |slot| Some(slot.name()) == adapter)
    }

    pub(crate) fn slots_mut(&mut self) -> &mut Vec<Slot> {
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
    let sites = pass.attempt(|pass| layers.iter().map(|layer| layer.site(x.dtype(), pass)).collect());
    match sites {
        Some(sites) => adapted_linears(x, sites),
        None if N == 1 => layers[0].forward_by_steps(x, pass),
        None => Tensor::cat(layers.iter().map(|layer| layer.forward_by_steps(x.clone(), pass)).collect(), 1),
    }
}

/// Rules with the values of their tensors.
type Slots<'a> = [(&'a dyn Rule, Vec<Tensor<2>>)];

/// The layer with these weights and what the slots do to it.
fn forward(x: Tensor<2>, weights: Weights, slots: &Slots<'_>, pass: &mut TokenPass<'_>) -> Tensor<2> {
    output(product(input(&x, slots), &weights), &x, &weights, slots, pass)
}

fn product(x: Tensor<2>, Weights { weight, bias }: &Weights) -> Tensor<2> {
    let y = linear(x, weight.clone());
    match bias {
        Some(bias) => y + bias.clone(),
        None => y,
    }
}

fn input(x: &Tensor<2>, slots: &Slots<'_>) -> Tensor<2> {
    slots.iter().fold(x.clone(), |x, (rule, own)| rule.input(x, own))
}

fn output(y: Tensor<2>, x: &Tensor<2>, weights: &Weights, slots: &Slots<'_>, pass: &mut TokenPass<'_>) -> Tensor<2> {
    let call = Call { x, weights };
    slots.iter().fold(y, |y, (rule, own)| rule.output(y, &call, own, pass))
}
