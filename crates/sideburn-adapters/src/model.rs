//! What a model must offer to be adapted, loaded and counted.

use burn::module::Module;
use burn::tensor::Device;

use crate::rule::Weights;
use crate::slot::Slot;
use crate::{AdaptedLinear, AdaptedTable, AdaptedVector, AdapterSet};

/// A place in a model that holds weights, borrowed.
#[derive(Debug)]
pub enum Weight<'a> {
    /// A linear layer: a site.
    Linear(&'a AdaptedLinear),
    /// A vector, such as the scale of a norm.
    Vector(&'a AdaptedVector),
    /// A table, such as an embedding `[rows, width]`.
    Table(&'a AdaptedTable),
}

/// A place in a model that holds weights, to be changed.
#[derive(Debug)]
pub enum WeightMut<'a> {
    /// A linear layer: a site.
    Linear(&'a mut AdaptedLinear),
    /// A vector, such as the scale of a norm.
    Vector(&'a mut AdaptedVector),
    /// A table, such as an embedding `[rows, width]`.
    Table(&'a mut AdaptedTable),
}

impl<'a> Weight<'a> {
    /// The weights of the base.
    pub(crate) fn base(&self) -> Weights {
        match self {
            Self::Linear(linear) => linear.base(),
            Self::Vector(vector) => Weights { weight: vector.weight().val().unsqueeze(), bias: None },
            Self::Table(table) => Weights { weight: table.weight().val(), bias: None },
        }
    }

    /// What adapters have here.
    pub fn slots(&self) -> &'a [Slot] {
        match self {
            Self::Linear(linear) => linear.slots(),
            Self::Vector(vector) => vector.slots(),
            Self::Table(table) => table.slots(),
        }
    }
}

impl<'a> WeightMut<'a> {
    pub(crate) fn into_slots_mut(self) -> &'a mut Vec<Slot> {
        match self {
            Self::Linear(linear) => linear.slots_mut(),
            Self::Vector(vector) => vector.slots_mut(),
            Self::Table(table) => table.slots_mut(),
        }
    }
}

/// What kind of model it is, as far as adapters need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// `model_type` of the configuration, such as `t5`; default targets go by it.
    pub model_type: &'static str,
    /// The place that embeds tokens.
    pub embedding: &'static str,
    /// Other names that `transformers` has for what the embedding is tied to.
    pub embedding_copies: &'static [&'static str],
    /// The name of the output head, a linear layer of its own or the embedding.
    pub head: &'static str,
    /// Whether the embedding is the output head.
    pub tied_head: bool,
    /// Whether there is an encoder before the decoder.
    pub encoder_decoder: bool,
    /// The width of the embedding.
    pub d_model: usize,
    /// Layers of the decoder.
    pub num_layers: usize,
    /// Heads of the decoder's self-attention that have keys and values of their own.
    pub num_heads: usize,
    /// The width of each head.
    pub d_kv: usize,
}

impl ModelShape {
    /// Of a model that is no language model: nothing is usual for it, and it has no embedding.
    pub const fn of_layers() -> Self {
        Self {
            model_type: "",
            embedding: "",
            embedding_copies: &[],
            head: "",
            tied_head: false,
            encoder_decoder: false,
            d_model: 0,
            num_layers: 0,
            num_heads: 0,
            d_kv: 0,
        }
    }
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

    /// What kind of model it is.
    fn shape(&self) -> ModelShape;

    /// Where it is.
    fn device(&self) -> Device;

    /// The adapters that the model has.
    fn adapters(&self) -> &AdapterSet;

    /// The adapters that the model has, to be changed.
    fn adapters_mut(&mut self) -> &mut AdapterSet;

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
