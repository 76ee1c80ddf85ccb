//! What a model must offer to be adapted, loaded and counted.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::AdaptedLinear;

/// A place in a model that holds weights, borrowed.
#[derive(Debug)]
pub enum Weight<'a> {
    /// A linear layer: a site.
    Linear(&'a AdaptedLinear),
    /// A vector, such as the scale of a norm.
    Vector(&'a Param<Tensor<1>>),
    /// A table, such as an embedding `[rows, width]`.
    Table(&'a Param<Tensor<2>>),
}

/// A place in a model that holds weights, to be changed.
#[derive(Debug)]
pub enum WeightMut<'a> {
    /// A linear layer: a site.
    Linear(&'a mut AdaptedLinear),
    /// A vector, such as the scale of a norm.
    Vector(&'a mut Param<Tensor<1>>),
    /// A table, such as an embedding `[rows, width]`.
    Table(&'a mut Param<Tensor<2>>),
}

/// A model built from [`AdaptedLinear`] layers, whose weights have the names that Hugging Face gives them.
///
/// A model lists its weights in [`weights`](Self::weights) and [`weights_mut`](Self::weights_mut), in the same order;
/// sites, loading, saving, freezing and counting follow from the lists.
pub trait AdaptedModel: Module {
    /// Every weight with its name: `encoder.block.0.layer.0.SelfAttention.q` for a linear layer (without `.weight`),
    /// `shared.weight` for any other.
    fn weights(&self) -> Vec<(String, Weight<'_>)>;

    /// The same, to be changed.
    fn weights_mut(&mut self) -> Vec<(String, WeightMut<'_>)>;

    /// The name of the linear layer that makes the logits, which `all-linear` leaves out.
    fn output_head(&self) -> Option<&str>;

    /// The linear layers with their names.
    fn sites(&self) -> Vec<(String, &AdaptedLinear)> {
        let linear = |(name, weight)| if let Weight::Linear(linear) = weight { Some((name, linear)) } else { None };
        self.weights().into_iter().filter_map(linear).collect()
    }

    /// The linear layers with their names, to be changed.
    fn sites_mut(&mut self) -> Vec<(String, &mut AdaptedLinear)> {
        let linear = |(name, weight)| if let WeightMut::Linear(linear) = weight { Some((name, linear)) } else { None };
        self.weights_mut().into_iter().filter_map(linear).collect()
    }
}
