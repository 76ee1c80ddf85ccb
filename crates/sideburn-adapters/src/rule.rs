//! What an adapter does at one site of a model.
//!
//! What a rule can do depends on where it is, and each kind of site has a trait of its own: linear layers
//! [`LinearRule`] and, for what is a low-rank branch and nothing else, [`LowRankRule`]; tables [`TableRule`], vectors
//! [`VectorRule`], and the input of the model [`InputRule`]. A [`Plan`](crate::author::Plan) takes each at a site of its kind
//! alone.
//!
//! A rule holds no tensors. It says which the adapter has ([`Rule::tensors`]), and for each pass they are handed to it,
//! [`RuleTensors`], to be bound to what computes with them.

use std::borrow::Cow;
use std::fmt::{self, Debug};
use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor};
use sideburn_kernels::{Key, LowRank, Matrix, low_rank, matmul};

use crate::Pass;
use crate::tensors::in_dtype;

/// What rules of all kinds say.
pub trait Rule: Debug + Send + Sync {
    /// The tensors of the adapter at this site.
    fn tensors(&self) -> Vec<TensorSpec>;
}

/// What an adapter does at a linear layer.
#[derive(Clone, Debug)]
pub enum AtLinear {
    /// It adds a low-rank branch: one operation computes the base and all such branches.
    Branch(Arc<dyn LowRankRule>),
    /// Anything else.
    General(Arc<dyn LinearRule>),
}

/// A rule at a linear layer that adds a low-rank branch to its output, and nothing else.
pub trait LowRankRule: Rule {
    /// The branch.
    fn branch(&self, own: &RuleTensors) -> Branch;
}

/// A low-rank branch of a linear layer, `scale * dropout(x) A^T B^T`.
#[derive(Clone, Debug)]
pub struct Branch {
    /// `A [r, in]`.
    pub a: Tensor<2>,
    /// `B [out, r]`.
    pub b: Tensor<2>,
    /// What the branch is multiplied by.
    pub scale: f64,
    /// The probability with which an element of `x` is dropped in training.
    pub dropout: f64,
}

/// A rule at a linear layer.
pub trait LinearRule: Rule {
    /// The rule with its tensors.
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_>;
}

/// A rule at a linear layer, with its tensors. What is left out changes nothing.
pub trait BoundLinear {
    /// What stands in for weights of the base.
    fn replacement(&self) -> Replacement {
        Replacement::default()
    }

    /// What the layer sees instead of `x [n, in]`.
    fn input(&self, x: Tensor<2>) -> Tensor<2> {
        x
    }

    /// The output `[n, out]`, given that of the layer and the adapters before this one.
    fn output(&self, y: Tensor<2>, _call: &Call<'_>, _pass: &mut Pass) -> Tensor<2> {
        y
    }

    /// The weights of the layer with the adapter worked into them, or why that cannot be.
    ///
    /// # Errors
    /// A reason, as the end of a sentence.
    fn merge(&self, base: Weights) -> Result<Weights, &'static str>;
}

/// A rule at a table.
pub trait TableRule: Rule {
    /// The rule with its tensors.
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundTable + '_>;
}

/// A rule at a table, with its tensors. What is left out changes nothing.
pub trait BoundTable {
    /// A table `[rows, width]` that stands in for that of the base, if there is one.
    fn replacement(&self) -> Option<Tensor<2>> {
        None
    }

    /// An output head `[rows, width]` that stands in for the table, where that is the output head as well.
    fn head(&self) -> Option<Tensor<2>> {
        None
    }

    /// The rows `[n, width]` of the tokens `ids [n]`.
    fn rows(&self, rows: Tensor<2>, _ids: &Tensor<1, Int>) -> Tensor<2> {
        rows
    }

    /// Where the table is the output head as well, the logits `[n, rows]` of `x [n, width]`.
    fn scores(&self, scores: Tensor<2>, _x: &Tensor<2>, _pass: &mut Pass) -> Tensor<2> {
        scores
    }

    /// The table with the adapter worked into it, or why that cannot be.
    ///
    /// # Errors
    /// A reason, as the end of a sentence.
    fn merge(&self, table: Tensor<2>) -> Result<Tensor<2>, &'static str>;
}

/// A rule at a vector, such as the scale of a norm.
pub trait VectorRule: Rule {
    /// The vector `[n]` in the place of that of the base.
    fn value(&self, base: Tensor<1>, own: &RuleTensors) -> Tensor<1>;
}

/// A rule at the input of a model. What is left out changes nothing.
pub trait InputRule: Rule {
    /// Embeddings `[tokens, width]` of virtual tokens before those of every row (of an encoder-decoder: of every source
    /// row).
    fn virtual_tokens(&self, _own: &RuleTensors) -> Option<Tensor<2>> {
        None
    }

    /// Keys and values of virtual tokens for each layer of the decoder.
    fn prefix(&self, _own: &RuleTensors) -> Option<Vec<Prefix>> {
        None
    }

    /// What a file holds in place of the rule's tensors, if it is something else: what these make of the virtual tokens.
    fn saved(&self, _own: &RuleTensors) -> Option<(TensorSpec, Tensor<2>)> {
        None
    }
}

impl AtLinear {
    /// What rules of all kinds say.
    pub(crate) fn rule(&self) -> &dyn Rule {
        match self {
            Self::Branch(rule) => rule.as_ref(),
            Self::General(rule) => rule.as_ref(),
        }
    }

    /// The rule with its tensors.
    pub(crate) fn bind(&self, own: &RuleTensors) -> AtLinearBound<'_> {
        match self {
            Self::Branch(rule) => AtLinearBound::Branch(Box::new(rule.branch(own))),
            Self::General(rule) => AtLinearBound::General(rule.bind(own)),
        }
    }
}

/// What an adapter does at a linear layer, with its tensors.
pub(crate) enum AtLinearBound<'a> {
    Branch(Box<Branch>),
    General(Box<dyn BoundLinear + 'a>),
}

impl AtLinearBound<'_> {
    /// The branch, if it is one whose factors can be multiplied with tensors in this dtype.
    pub(crate) fn branch(&self, dtype: DType) -> Option<&Branch> {
        let fits = |factor: &Tensor<2>| {
            let is_wider = factor.dtype() == DType::F32 && matches!(dtype, DType::F16 | DType::BF16);
            factor.dtype() == dtype || is_wider
        };
        match self {
            Self::Branch(branch) if fits(&branch.a) && fits(&branch.b) => Some(branch),
            _ => None,
        }
    }

    /// The rule step by step.
    pub(crate) fn steps(&self) -> &dyn BoundLinear {
        match self {
            Self::Branch(branch) => branch.as_ref(),
            Self::General(rule) => rule.as_ref(),
        }
    }
}

impl Branch {
    /// The branch as the operation takes it, for these rows or for all.
    pub(crate) fn drawn(&self, rows: Option<Tensor<1, Int>>, pass: &mut Pass) -> LowRank {
        let Self { a, b, scale, dropout } = self.clone();
        LowRank { a, b, scale, dropout: pass.next_dropout(dropout), rows }
    }
}

impl Branch {
    /// What the branch adds for `x`, in the dtype of its factors.
    pub fn of(&self, x: &Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let Self { a, b, scale, dropout } = self.clone();
        low_rank(in_dtype(x.clone(), a.dtype()), a, b, scale, pass.next_dropout(dropout))
    }
}

impl BoundLinear for Branch {
    fn output(&self, y: Tensor<2>, call: &Call<'_>, pass: &mut Pass) -> Tensor<2> {
        let outer = y.dtype();
        y + in_dtype(self.of(call.x, pass), outer)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let delta = matmul(self.b.clone(), self.a.clone()).mul_scalar(self.scale);
        Ok(Weights { weight: in_dtype(base.weight, delta.dtype()) + delta, ..base })
    }
}

/// The tensors of one adapter at one site, by their [parts](TensorSpec::part).
#[derive(Clone, Debug)]
pub struct RuleTensors {
    specs: Arc<[TensorSpec]>,
    tensors: Vec<Tensor<2>>,
}

impl RuleTensors {
    /// Tensors in the order of their specs.
    pub(crate) fn new(specs: Arc<[TensorSpec]>, tensors: Vec<Tensor<2>>) -> Self {
        Self { specs, tensors }
    }

    /// A tensor.
    ///
    /// # Panics
    /// If the rule has declared none of this name.
    pub fn get(&self, part: &str) -> Tensor<2> {
        let index = self.specs.iter().position(|spec| spec.part == part);
        self.tensors[index.unwrap_or_else(|| panic!("{part} is not among the tensors of the rule"))].clone()
    }

    /// A tensor that the rule declares only sometimes.
    pub fn find(&self, part: &str) -> Option<Tensor<2>> {
        Some(self.tensors[self.specs.iter().position(|spec| spec.part == part)?].clone())
    }
}

/// The weights of a site: `[out, in]` of a linear layer with its bias `[1, out]`, `[rows, width]` of a table, `[1, n]`
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

/// What stands in for the weights of a linear layer; nothing for those that are `None`.
#[derive(Clone, Debug, Default)]
pub struct Replacement {
    /// For the weight, `[out, in]`.
    pub weight: Option<Tensor<2>>,
    /// For the bias, `[1, out]`.
    pub bias: Option<Tensor<2>>,
}

/// The call of a linear layer that a rule is applied in.
#[derive(Debug)]
pub struct Call<'a> {
    /// The layer's input `[n, in]`, before any adapter.
    pub x: &'a Tensor<2>,
    /// The weight `[out, in]` that the layer has computed with: that of the base, or what stands in for it. To have it as
    /// floats may cost a matrix ([`Matrix::dense`]).
    pub weight: &'a Matrix,
    /// The bias `[1, out]`, if there is one.
    pub bias: Option<&'a Tensor<2>>,
}

/// A tensor of an adapter: what it is called, its shape, and how it begins.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// What it is at its site, such as `lora_A.weight`; no two tensors of a rule are called alike.
    pub part: Cow<'static, str>,
    /// Its shape in a file: `[n]`, which is `[1, n]` in memory, or `[rows, columns]`.
    pub shape: Vec<usize>,
    /// What a new adapter has in it.
    pub init: Init,
    /// Whether it is trained.
    pub trainable: bool,
    /// Whether LoRA+ trains it at another rate: `lora_B`, and whatever has one dimension, as in
    /// `peft.optimizers.create_loraplus_optimizer`.
    pub second_factor: bool,
    /// Whether a file holds it; if not, it follows from the configuration and the base.
    pub stored: bool,
    /// The site that it belongs to, if that is another than its rule's; empty if it belongs to the adapter as a whole. What
    /// two rules of an adapter have of one site and part is one tensor.
    pub site: Option<String>,
    /// Other sites under whose names a file holds it once more.
    pub copies: Vec<String>,
}

impl TensorSpec {
    /// A trained tensor of the rule's site, which a file holds.
    pub fn new(part: impl Into<Cow<'static, str>>, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        let (part, shape) = (part.into(), shape.into());
        let (trainable, second_factor, stored) = (true, shape.len() == 1, true);
        Self { part, shape, init, trainable, second_factor, stored, site: None, copies: Vec::new() }
    }

    /// The same, which is not trained.
    pub fn frozen(self) -> Self {
        Self { trainable: false, ..self }
    }

    /// The same, which is a second factor.
    pub fn second_factor(self) -> Self {
        Self { second_factor: true, ..self }
    }

    /// The same, which no file holds.
    pub fn not_stored(self) -> Self {
        Self { stored: false, ..self }
    }

    /// The same of another site, or of the adapter as a whole if its name is empty.
    pub fn of_site(self, site: impl Into<String>) -> Self {
        Self { site: Some(site.into()), ..self }
    }

    /// What the tensor is called, of a rule at `site`.
    pub(crate) fn key(&self, site: &str) -> TensorKey {
        let site = self.site.as_deref().unwrap_or(site);
        TensorKey { site: site.to_owned(), part: self.part.clone().into_owned() }
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

/// What a tensor of an adapter is called: its site and what it is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorKey {
    /// The name of the site; empty if the tensor belongs to the adapter as a whole.
    pub site: String,
    /// What the tensor is there, such as `lora_A.weight`.
    pub part: String,
}

impl fmt::Display for TensorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.site.is_empty() { f.write_str(&self.part) } else { write!(f, "{}.{}", self.site, self.part) }
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
    /// What the function makes of the base weights of the site (at a model's input: of its embedding), when the tensor
    /// is first needed, and of a key that all tensors of the adapter at the site have in common.
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

    /// What `compute` makes of the base weights and draws with the key of the site.
    pub fn from_base_and_key(compute: impl Fn(Weights, Key) -> Tensor<2> + Send + Sync + 'static) -> Self {
        Self::FromBase(Arc::new(compute))
    }
}

impl Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
