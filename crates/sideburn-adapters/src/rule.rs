//! What an adapter does at one place of a model.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use sideburn_kernels::{Key, LowRank};

use crate::Pass;

/// What an adapter does at one place: a linear layer, a table, a vector, or the model's input.
///
/// A rule says which tensors the adapter has there, and computes with them; it holds no tensors itself. Its methods get
/// them as `own`, in the order of [`tensors`](Self::tensors). Every method has a default that changes nothing, so that a
/// rule consists of what its kind of adapter does.
pub trait Rule: Debug + Send + Sync {
    /// The tensors of the adapter at this place.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// At a linear layer: what the base layer sees instead of `x [n, in]`.
    fn input(&self, x: Tensor<2>, _own: &[Tensor<2>]) -> Tensor<2> {
        x
    }

    /// At a linear layer: the output `[n, out]`, given that of the base layer and the adapters before this one.
    fn output(&self, y: Tensor<2>, _call: &Call<'_>, _own: &[Tensor<2>], _pass: &mut Pass) -> Tensor<2> {
        y
    }

    /// At a linear layer: the branch, if adding a low-rank branch to the base layer is all that the rule does there; then
    /// one operation computes both, and [`output`](Self::output) is not called.
    fn low_rank(&self, _own: &[Tensor<2>], _pass: &mut Pass) -> Option<LowRank> {
        None
    }

    /// At an embedding: the rows `[n, width]` of the tokens `ids [n]`.
    fn rows(&self, rows: Tensor<2>, _ids: &Tensor<1, Int>, _own: &[Tensor<2>]) -> Tensor<2> {
        rows
    }

    /// At an embedding that is the output head as well: the logits `[n, rows]` of `x [n, width]`.
    fn scores(&self, scores: Tensor<2>, _x: &Tensor<2>, _own: &[Tensor<2>]) -> Tensor<2> {
        scores
    }

    /// At any place: weights that stand in for those of the base, if [`replaces`](Self::replaces) says so.
    fn replacement(&self, base: Weights, _own: &[Tensor<2>]) -> Weights {
        base
    }

    /// Whether [`replacement`](Self::replacement) does anything.
    fn replaces(&self) -> bool {
        false
    }

    /// At the input of a model: embeddings `[tokens, width]` of virtual tokens before those of every row (of an
    /// encoder-decoder: of every source row).
    fn virtual_tokens(&self, _own: &[Tensor<2>], _pass: &mut Pass) -> Option<Tensor<2>> {
        None
    }

    /// At the input of a model: keys and values of virtual tokens for each layer of the decoder.
    fn prefix(&self, _own: &[Tensor<2>], _pass: &mut Pass) -> Option<Vec<Prefix>> {
        None
    }

    /// What a file holds of the adapter at this place: its tensors, unless it says otherwise.
    fn saved(&self, own: &[Tensor<2>]) -> Vec<(TensorSpec, Tensor<2>)> {
        self.tensors().into_iter().zip(own.iter().cloned()).collect()
    }

    /// The weights of the place with the adapter worked into them, or why that cannot be.
    ///
    /// # Errors
    /// A reason, as the end of a sentence.
    fn merge(&self, base: Weights, own: &[Tensor<2>]) -> Result<Weights, &'static str>;
}

/// The weights of a place: `[out, in]` of a linear layer with its bias `[1, out]`, `[rows, width]` of a table, `[1, n]`
/// of a vector.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The weight.
    pub weight: Tensor<2>,
    /// The bias of a linear layer that has one.
    pub bias: Option<Tensor<2>>,
}

/// Keys and values `[heads, tokens, d_kv]` of virtual tokens, which self-attention in one layer of a decoder looks at.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// The keys.
    pub keys: Tensor<3>,
    /// The values.
    pub values: Tensor<3>,
}

/// The call of a linear layer that a rule is applied in.
#[derive(Debug)]
pub struct Call<'a> {
    /// The layer's input `[n, in]`, before any adapter.
    pub x: &'a Tensor<2>,
    /// The weights that the layer has computed with: those of the base, or what stands in for them.
    pub weights: &'a Weights,
}

/// A tensor of an adapter: its name in `adapter_model.safetensors`, its shape there, and how it begins.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: TensorName,
    /// Its shape in the file: `[n]`, which is `[1, n]` in memory, or `[rows, columns]`.
    pub shape: Vec<usize>,
    /// What a new adapter has in it.
    pub init: Init,
    /// Whether it is trained.
    pub trainable: bool,
    /// Names under which the file holds it once more.
    pub copies: Vec<String>,
}

impl TensorSpec {
    /// A trained tensor, called `base_model.model.{place}.{suffix}` in the file.
    pub fn new(suffix: &'static str, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        Self { name: TensorName::AtPlace(suffix), shape: shape.into(), init, trainable: true, copies: Vec::new() }
    }

    /// The same, which is not trained.
    pub fn frozen(self) -> Self {
        Self { trainable: false, ..self }
    }

    /// Its two dimensions in memory.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self.shape[..] {
            [n] => [1, n],
            [rows, columns] => [rows, columns],
            _ => panic!("tensors of adapters have one or two dimensions, not {:?}", self.shape),
        }
    }
}

/// What a tensor is called in `adapter_model.safetensors`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorName {
    /// `base_model.model.{place}.{suffix}`, with the name of the place.
    AtPlace(&'static str),
    /// This very name: one tensor of the whole adapter, which all places share that name it.
    Whole(String),
    /// None: it follows from the configuration, and all places share it that give it one name.
    Unsaved(String),
    /// None: it follows from the configuration and from the base weight of its place.
    UnsavedAtPlace(&'static str),
}

impl TensorName {
    /// The name of the tensor at `place`.
    pub(crate) fn at(&self, place: &str) -> String {
        match self {
            Self::AtPlace(suffix) | Self::UnsavedAtPlace(suffix) => format!("base_model.model.{place}.{suffix}"),
            Self::Whole(name) | Self::Unsaved(name) => name.clone(),
        }
    }

    /// The same without the name of the place.
    pub(crate) fn part(&self) -> &str {
        match self {
            Self::AtPlace(suffix) | Self::UnsavedAtPlace(suffix) => suffix,
            Self::Whole(name) | Self::Unsaved(name) => name,
        }
    }

    /// The same, if the file holds it.
    pub(crate) fn in_file(&self, place: &str) -> Option<String> {
        (!matches!(self, Self::Unsaved(_) | Self::UnsavedAtPlace(_))).then(|| self.at(place))
    }
}

/// How a tensor of a new adapter begins.
#[derive(Clone)]
pub enum Init {
    /// Zero.
    Zeros,
    /// One.
    Ones,
    /// This number.
    Constant(f64),
    /// Uniform in plus or minus the bound.
    Uniform(f64),
    /// Normal, with mean zero and this deviation.
    Normal(f64),
    /// The elements that the function gives in row-major order, when the tensor is first needed.
    Values(Arc<dyn Fn() -> Vec<f32> + Send + Sync>),
    /// What the function makes of the base weights of the place (at a model's input: of its embedding), when the tensor
    /// is first needed, and of a key that all tensors of the adapter at the place have in common.
    FromBase(Arc<dyn Fn(Weights, Key) -> Tensor<2> + Send + Sync>),
}

impl Init {
    /// As PyTorch's `kaiming_uniform_(a=sqrt(5))`: uniform in plus or minus `1 / sqrt(fan_in)`.
    pub fn kaiming(fan_in: usize) -> Self {
        Self::Uniform(1.0 / (fan_in as f64).sqrt())
    }

    /// What `compute` makes of the base weights.
    pub fn from_base(compute: impl Fn(Weights) -> Tensor<2> + Send + Sync + 'static) -> Self {
        Self::from_base_and_key(move |base, _| compute(base))
    }

    /// What `compute` makes of the base weights and draws with the key of the place.
    pub fn from_base_and_key(compute: impl Fn(Weights, Key) -> Tensor<2> + Send + Sync + 'static) -> Self {
        Self::FromBase(Arc::new(compute))
    }
}

impl Debug for Init {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zeros => f.write_str("Zeros"),
            Self::Ones => f.write_str("Ones"),
            Self::Constant(value) => f.debug_tuple("Constant").field(value).finish(),
            Self::Uniform(bound) => f.debug_tuple("Uniform").field(bound).finish(),
            Self::Normal(deviation) => f.debug_tuple("Normal").field(deviation).finish(),
            Self::Values(_) => f.write_str("Values"),
            Self::FromBase(_) => f.write_str("FromBase"),
        }
    }
}
