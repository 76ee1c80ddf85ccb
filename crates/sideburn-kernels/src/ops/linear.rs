//! Linear layers that share an input, and the low-rank branches that LoRA adds to them.

use std::ops::Range;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, Backend, BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind,
    ExtensionType, TensorMetadata, backend_extension,
};
use burn::tensor::{DType, IndexingUpdateOp, Int, Shape, Slice, Tensor};
use sideburn_batch::Dropout;

use super::adamw::in_dtype;
use super::fused;
use super::many::Many;
use super::matmul::{self, MatmulOps, Side, transposed};
use super::matrix::{Matrix, product, product_back};
use super::tape::record_output;

/// A low-rank branch, `scale * dropout(x) A^T B^T`. `F` and `I` are the types of its float and integer tensors.
#[derive(Clone, Debug)]
pub struct LowRank<F = Tensor<2>, I = Tensor<1, Int>> {
    /// `A [r, in]`, in the dtype of `x`, or in `f32` where that is in 16 bits.
    pub a: F,
    /// `B [out, r]`, in the same.
    pub b: F,
    /// What the branch is multiplied by.
    pub scale: f64,
    /// What drops elements of its input.
    pub dropout: Option<Dropout>,
    /// The rows of `x` that the branch is for, in ascending order and each once; `None` for all. Dropout counts the
    /// elements of these rows alone.
    pub rows: Option<I>,
}

/// A linear layer without bias: `x W^T`, and its low-rank branches added to that. `F`, `I` and `C` are the types of its
/// float tensors, of the rows of branches, and of the codes of a packed weight.
#[derive(Clone, Debug)]
pub struct LinearOp<F = Tensor<2>, I = Tensor<1, Int>, C = I> {
    /// `W [out, in]`, in the dtype of `x`, or in 16 bits where that is in `f32`. Without it the branches are all there is.
    pub weight: Option<Matrix<F, C>>,
    /// What is added.
    pub branches: Vec<LowRank<F, I>>,
}

/// A linear layer without bias, `x W^T`.
///
/// # Shapes
/// `x [n, in]`, `weight [out, in]` (as PyTorch stores it) give `[n, out]`. The weight is in the dtype of `x`, or in 16 bits where
/// that is in `f32`: then it is widened a tile at a time. On a CPU in `bf16` that has AVX-512 BF16, more than 16 rows are rounded to
/// `bf16` instead; sums are in `f32`.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear(x: Tensor<2>, weight: impl Into<Matrix>) -> Tensor<2> {
    adapted_linears(x, vec![LinearOp { weight: Some(weight.into()), branches: Vec::new() }])
}

/// The low-rank branch of LoRA (Hu et al., 2021, section 4.1), `scale * dropout(x) A^T B^T`, without ever forming the
/// product of the factors, nor a gradient of its shape:
///
/// `dX = scale * dropout'(dY B A)`, `dA = scale * (dY B)^T dropout(x)`, `dB = scale * dY^T (dropout(x) A^T)`.
///
/// # Shapes
/// `x [n, in]`, `a [r, in]`, `b [out, r]` (as `peft` stores them) give `[n, out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn low_rank(x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f64, dropout: Option<Dropout>) -> Tensor<2> {
    let branch = LowRank { a, b, scale, dropout, rows: None };
    adapted_linears(x, vec![LinearOp { weight: None, branches: vec![branch] }])
}

/// A linear layer with a low-rank branch, `x W^T + scale * dropout(x) A^T B^T`, in one operation. The branch is added
/// to the layer's output in place, and the backward pass goes through `x` once and draws each mask once.
///
/// # Shapes
/// `x [n, in]`, `weight [out, in]`, `a [r, in]`, `b [out, r]` give `[n, out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn adapted_linear(x: Tensor<2>, weight: impl Into<Matrix>, branch: LowRank) -> Tensor<2> {
    adapted_linears(x, vec![LinearOp { weight: Some(weight.into()), branches: vec![branch] }])
}

/// Several linear layers on the same `x`, with any number of branches each, in one operation: their outputs side by
/// side. The gradient of `x` is one sum over all of them. A branch may be for some rows only, as in a batch that mixes
/// adapters: with `rows` 2, 5 and 6 it reads and changes these rows.
///
/// # Shapes
/// `x [n, in]`, weights `[out_i, in]` give `[n, out_1 + out_2 + ...]`.
///
/// # Panics
/// If there is no layer, or one without a weight and branches; if the shapes do not fit; if the rows of a branch are
/// not ascending rows of `x`.
pub fn adapted_linears(x: Tensor<2>, layers: Vec<LinearOp>) -> Tensor<2> {
    assert!(!layers.is_empty(), "there is no layer to apply");
    let input = x.dims()[1];
    layers.iter().for_each(|layer| layer.assert_fits(input));
    let layer = |layer: LinearOp| layer.map(Tensor::into_dispatch, Tensor::into_dispatch, Tensor::into_dispatch);
    let layers = layers.into_iter().map(layer).collect();
    Tensor::from_dispatch(Dispatch::linears(x.into_dispatch(), Linears(layers)))
}

impl LinearOp {
    fn assert_fits(&self, input: usize) {
        let out = match (&self.weight, self.branches.first()) {
            (Some(weight), _) => {
                let [out, width] = weight.shape();
                assert_eq!(width, input, "x [n, in] and weight [out, in] must fit");
                out
            }
            (None, Some(branch)) => branch.b.dims()[0],
            (None, None) => panic!("a linear layer needs a weight or a branch"),
        };
        for LowRank { a, b, .. } in &self.branches {
            let fit = a.dims()[1] == input && b.dims() == [out, a.dims()[0]];
            assert!(fit, "x [n, in], a [r, in] and b [out, r] must fit");
        }
    }
}

impl<F, I, C> LinearOp<F, I, C> {
    /// The same of other tensors, which the functions make of these: of the weight, then of `A` and `B` of one branch
    /// after the other.
    pub(crate) fn map<G, J, D>(
        self,
        mut floats: impl FnMut(F) -> G,
        mut rows: impl FnMut(I) -> J,
        mut codes: impl FnMut(C) -> D,
    ) -> LinearOp<G, J, D> {
        let weight = self.weight.map(|weight| weight.map(&mut floats, &mut codes));
        let branch = |LowRank { a, b, scale, dropout, rows: own }| {
            let (a, b) = (floats(a), floats(b));
            LowRank { a, b, scale, dropout, rows: own.map(&mut rows) }
        };
        LinearOp { weight, branches: self.branches.into_iter().map(branch).collect() }
    }

    /// The float tensors that can have gradients, in the order of [`map`](Self::map): not those of a packed weight.
    pub(crate) fn floats(&self) -> impl Iterator<Item = &F> {
        let weight = self.weight.iter().filter_map(Matrix::floats);
        weight.chain(self.branches.iter().flat_map(|branch| [&branch.a, &branch.b]))
    }
}

impl<F, I> LinearOp<F, I> {
    fn ints(&self) -> impl Iterator<Item = &I> {
        let codes = self.weight.iter().filter_map(|weight| Some(&weight.packed()?.codes));
        codes.chain(self.branches.iter().filter_map(|branch| branch.rows.as_ref()))
    }
}

impl<F: TensorMetadata, I, C> LinearOp<F, I, C> {
    /// How many columns it gives, and how many it takes.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match (&self.weight, self.branches.first()) {
            (Some(weight), _) => weight.dims(),
            (None, Some(branch)) => [branch.b.shape()[0], branch.a.shape()[1]],
            (None, None) => panic!("a linear layer needs a weight or a branch"),
        }
    }
}

/// The columns of each layer among those of all.
pub(crate) fn columns<F: TensorMetadata, I, C>(layers: &[LinearOp<F, I, C>]) -> impl Iterator<Item = Range<usize>> {
    layers.iter().scan(0, |end, layer| {
        let start = *end;
        *end += layer.dims()[0];
        Some(start..*end)
    })
}

/// A linear layer on a backend's tensors.
type Layer<B> = LinearOp<FloatTensor<B>, IntTensor<B>>;

/// Linear layers on a backend's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Linears<B: Backend>(pub(crate) Vec<Layer<B>>);

impl<B: Backend> Linears<B> {
    fn map<G: Backend>(
        self,
        mut floats: impl FnMut(FloatTensor<B>) -> FloatTensor<G>,
        ints: impl Fn(IntTensor<B>) -> IntTensor<G>,
    ) -> Linears<G> {
        Linears(self.0.into_iter().map(|layer| layer.map(&mut floats, &ints, &ints)).collect())
    }

    /// Those of all layers that can have gradients, in the order of [`LinearOp::map`].
    pub(crate) fn floats(&self) -> impl Iterator<Item = &FloatTensor<B>> {
        self.0.iter().flat_map(LinearOp::floats)
    }
}

/// What `#[derive(ExtensionType)]` does for a field that is a tensor, for each tensor of each layer.
impl<B: Backend> ExtensionType<B> for Linears<B> {
    type Target = Linears<Dispatch>;

    fn map_to_dispatch<F>(self, map_kind: F, autodiff: DispatchAutodiffContext) -> Linears<Dispatch>
    where
        F: Fn(BackendTensor<B>) -> DispatchTensorKind,
    {
        let wrap = |tensor| DispatchTensor { kind: map_kind(tensor), autodiff };
        self.map(|x| wrap(BackendTensor::Float(x)), |x| wrap(BackendTensor::Int(x)))
    }

    fn map_from_dispatch<F>(target: Linears<Dispatch>, unwrap_kind: F) -> Self
    where
        F: Fn(DispatchTensor) -> BackendTensor<B>,
    {
        target.map(|x| unwrap_kind(x).float(), |x| unwrap_kind(x).int())
    }

    fn routing_tensor(target: &Linears<Dispatch>) -> Option<&DispatchTensor> {
        target.floats().next().or_else(|| target.0.iter().flat_map(LinearOp::ints).next())
    }

    fn routing_float_tensor(target: &Linears<Dispatch>) -> Option<&DispatchTensor> {
        target.floats().next()
    }

    fn autodiff_context(target: &Linears<Dispatch>) -> DispatchAutodiffContext {
        let tensors = target.floats().chain(target.0.iter().flat_map(LinearOp::ints));
        tensors.fold(DispatchAutodiffContext::Disabled, |context, tensor| context.merge(tensor.autodiff))
    }
}

/// Linear layers as an operation of a backend.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait LinearOps: MatmulOps {
    /// See [`adapted_linears`].
    #[fusion(default)]
    fn linears(x: FloatTensor<Self>, #[extension_type] layers: Linears<Self>) -> FloatTensor<Self> {
        composed::<Self>(&x, &layers)
    }
}

/// The backward pass of [`LinearOps`], which gives as many tensors as it was given.
pub(crate) trait LinearBackward: MatmulOps {
    /// The gradients that are wanted.
    fn linears_backward(inputs: Inputs<Self>, gradient: FloatTensor<Self>) -> LinearGradients<Self> {
        composed_backward::<Self>(&inputs, gradient)
    }
}

#[cfg(feature = "gpu")]
impl<B: burn::backend::fusion::FusionBackend> LinearBackward for burn::backend::fusion::Fusion<B> where Self: MatmulOps {}

/// The input and the layers.
pub(crate) type Layers<B> = (FloatTensor<B>, Linears<B>);

/// What a backward pass is given, and the gradient.
pub(crate) type Kept<B> = (Inputs<B>, FloatTensor<B>);

/// [`LinearOps`] and [`LinearBackward`] by kernels.
pub(crate) trait LinearKernels: MatmulOps {
    fn try_linears(inputs: Layers<Self>) -> Result<FloatTensor<Self>, Layers<Self>> {
        Err(inputs)
    }

    fn try_linears_backward(inputs: Kept<Self>) -> Result<LinearGradients<Self>, Kept<Self>> {
        Err(inputs)
    }
}

impl<B: LinearKernels> LinearOps for B {
    fn linears(x: FloatTensor<B>, layers: Linears<B>) -> FloatTensor<B> {
        fused("linears", (x, layers), B::try_linears, |(x, layers)| composed::<B>(&x, &layers))
    }
}

impl<B: LinearKernels> LinearBackward for B {
    fn linears_backward(inputs: Inputs<B>, gradient: FloatTensor<B>) -> LinearGradients<B> {
        fused("linears_backward", (inputs, gradient), B::try_linears_backward, |(inputs, gradient)| {
            composed_backward::<B>(&inputs, gradient)
        })
    }
}

/// What a backward pass works with.
#[derive(Clone, Debug)]
pub(crate) struct Inputs<B: Backend> {
    /// If any weight or factor has a gradient.
    pub(crate) x: Option<FloatTensor<B>>,
    pub(crate) layers: Linears<B>,
    pub(crate) wanted: Wanted,
}

/// Of which inputs the gradient is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) x: bool,
    pub(crate) layers: Vec<LinearOp<bool, ()>>,
}

impl LinearOp<bool, ()> {
    pub(crate) fn weight(&self) -> bool {
        self.weight.as_ref().and_then(Matrix::floats).is_some_and(|wanted| *wanted)
    }
}

impl LowRank<bool, ()> {
    /// Whether one of the factors is wanted.
    pub(crate) fn factors(&self) -> bool {
        self.a || self.b
    }
}

/// What comes of a backward pass.
pub(crate) struct LinearGradients<B: Backend> {
    pub(crate) x: Option<FloatTensor<B>>,
    pub(crate) layers: Vec<LayerGradients<FloatTensor<B>>>,
}

/// The gradients of a layer's tensors that are wanted; both factors of a branch if one is.
pub(crate) struct LayerGradients<F> {
    pub(crate) weight: Option<F>,
    /// For each branch, of `A` and `B`.
    pub(crate) branches: Vec<Option<[F; 2]>>,
}

impl<B: Backend> LinearGradients<B> {
    /// Those that are wanted, in the order of [`LinearOp::map`] behind that of the input.
    fn in_order(self, wanted: &Wanted) -> Vec<FloatTensor<B>> {
        let mut gradients: Vec<_> = self.x.into_iter().collect();
        for (layer, wanted) in self.layers.into_iter().zip(&wanted.layers) {
            gradients.extend(layer.weight);
            for (factors, wanted) in layer.branches.into_iter().zip(&wanted.branches) {
                let [a, b] = factors.map_or([None, None], |factors| factors.map(Some));
                gradients.extend(a.filter(|_| wanted.a).into_iter().chain(b.filter(|_| wanted.b)));
            }
        }
        gradients
    }
}

fn composed<B: MatmulOps>(x: &FloatTensor<B>, layers: &Linears<B>) -> FloatTensor<B> {
    let n = x.shape()[0];
    if let Some(weights) = together::<B>(&layers.0, x.dtype()) {
        let mut y = B::products(x.clone(), weights);
        for (layer, columns) in layers.0.iter().zip(columns(&layers.0)) {
            for branch in &layer.branches {
                let narrow = narrow::<B>(x, branch);
                y = B::product_onto(y, narrow, transposed::<B>(branch.b.clone()), columns.start, None);
            }
        }
        return y;
    }
    let dtype = x.dtype();
    let layer = |layer: &Layer<B>| {
        let base = layer.weight.as_ref().map(|weight| product::<B>(x.clone(), weight));
        let y = layer.branches.iter().fold(base, |y, branch| {
            let rows = branch.rows.as_ref();
            let narrow = narrow::<B>(&of_rows::<B>(x, rows), branch);
            Some(add_product::<B>(y, narrow, transposed::<B>(branch.b.clone()), rows, n))
        });
        in_dtype::<B>(y.expect("a weight or a branch"), dtype)
    };
    side_by_side::<B>(layers.0.iter().map(layer).collect())
}

/// The weights of several layers that can be multiplied in one product: floats in this dtype, with branches for all rows.
fn together<B: Backend>(layers: &[Layer<B>], dtype: DType) -> Option<Many<B>> {
    let weight = |layer: &Layer<B>| {
        let weight = layer.weight.as_ref()?.floats().filter(|weight| weight.dtype() == dtype)?;
        layer.branches.iter().all(|branch| branch.rows.is_none()).then(|| weight.clone())
    };
    if layers.len() > 1 { layers.iter().map(weight).collect::<Option<_>>().map(Many) } else { None }
}

/// `scale * dropout(x) A^T`.
fn narrow<B: MatmulOps>(x: &FloatTensor<B>, branch: &LowRank<FloatTensor<B>, IntTensor<B>>) -> FloatTensor<B> {
    let (x, a) = (x.clone(), transposed::<B>(branch.a.clone()));
    match branch.dropout {
        Some(dropout) => B::dropped_product(x, a, branch.scale, (dropout, Side::Lhs)),
        None => B::product(x, a, branch.scale),
    }
}

fn composed_backward<B: MatmulOps>(inputs: &Inputs<B>, gradient: FloatTensor<B>) -> LinearGradients<B> {
    let Inputs { x, layers: Linears(layers), wanted } = inputs;
    let (n, x) = (gradient.shape()[0], || x.as_ref().expect("it is kept where it is needed"));
    // Of the weights alone, where they are multiplied in one product.
    let weights = together::<B>(layers, gradient.dtype()).filter(|_| wanted.x);
    let are_together = weights.is_some();
    let mut of_x = weights.map(|weights| B::products_back(gradient.clone(), weights));
    let mut of_layers = Vec::new();
    for ((layer, wanted_layer), columns) in layers.iter().zip(&wanted.layers).zip(columns(layers)) {
        let gradient = match layers.len() {
            1 => gradient.clone(),
            _ => B::float_slice(gradient.clone(), &[Slice::full(), columns.into()]),
        };
        let of_weight =
            layer.weight.as_ref().and_then(Matrix::floats).filter(|_| wanted_layer.weight()).map(|weight| {
                let product = matmul::product::<B>(transposed::<B>(gradient.clone()), x().clone());
                in_dtype::<B>(product, weight.dtype())
            });
        if let Some(weight) = layer.weight.as_ref().filter(|_| wanted.x && !are_together) {
            of_x = Some(match (of_x, weight.floats()) {
                (Some(of_x), Some(floats)) => B::product_onto(of_x, gradient.clone(), floats.clone(), 0, None),
                (of_x, _) => add_to_rows::<B>(of_x, product_back::<B>(gradient.clone(), weight), None, n),
            });
        }
        let mut branches = Vec::new();
        for (branch, wanted_branch) in layer.branches.iter().zip(&wanted_layer.branches) {
            let LowRank { a, b, scale, dropout, rows } = branch;
            let rows = rows.as_ref();
            let gradient = of_rows::<B>(&gradient, rows);
            let outer = B::product(gradient.clone(), b.clone(), *scale);
            if wanted.x {
                of_x = Some(match (of_x, dropout, rows) {
                    (Some(of_x), Some(_), None) => B::product_onto(of_x, outer.clone(), a.clone(), 0, *dropout),
                    (of_x, None, _) => add_product::<B>(of_x, outer.clone(), a.clone(), rows, n),
                    (of_x, Some(dropout), _) => {
                        let product = B::keyed_dropout(matmul::product::<B>(outer.clone(), a.clone()), *dropout);
                        add_to_rows::<B>(of_x, product, rows, n)
                    }
                });
            }
            branches.push(wanted_branch.factors().then(|| {
                let x = of_rows::<B>(x(), rows);
                let inner = narrow::<B>(&x, branch);
                let of_a = match dropout {
                    Some(dropout) => B::dropped_product(transposed::<B>(outer), x, 1.0, (*dropout, Side::Rhs)),
                    None => matmul::product::<B>(transposed::<B>(outer), x),
                };
                [of_a, matmul::product::<B>(transposed::<B>(gradient), inner)]
            }));
        }
        of_layers.push(LayerGradients { weight: of_weight, branches });
    }
    let dtype = gradient.dtype();
    LinearGradients { x: of_x.map(|of_x| in_dtype::<B>(of_x, dtype)), layers: of_layers }
}

/// These rows of `x`, or all.
fn of_rows<B: Backend>(x: &FloatTensor<B>, rows: Option<&IntTensor<B>>) -> FloatTensor<B> {
    match rows {
        Some(rows) => B::float_select(x.clone(), 0, rows.clone()),
        None => x.clone(),
    }
}

/// Adds `x` to these rows of `y [n, _]`, or to all; to zeros if there is no `y`.
fn add_to_rows<B: Backend>(
    y: Option<FloatTensor<B>>,
    x: FloatTensor<B>,
    rows: Option<&IntTensor<B>>,
    n: usize,
) -> FloatTensor<B> {
    match (y, rows) {
        (None, None) => x,
        (Some(y), None) => {
            let dtype = y.dtype();
            B::float_add(y, in_dtype::<B>(x, dtype))
        }
        (y, Some(rows)) => {
            let zeros = || B::float_zeros(Shape::from([n, x.shape()[1]]), &x.device(), x.dtype().into());
            let y = y.unwrap_or_else(zeros);
            let x = in_dtype::<B>(x.clone(), y.dtype());
            B::float_select_assign(y, 0, rows.clone(), x, IndexingUpdateOp::Add)
        }
    }
}

/// Adds `lhs rhs` to these rows of `y [n, _]`, or to all; to zeros if there is no `y`.
fn add_product<B: MatmulOps>(
    y: Option<FloatTensor<B>>,
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    rows: Option<&IntTensor<B>>,
    n: usize,
) -> FloatTensor<B> {
    match (y, rows) {
        (Some(y), None) => B::product_onto(y, lhs, rhs, 0, None),
        (y, rows) => add_to_rows::<B>(y, matmul::product::<B>(lhs, rhs), rows, n),
    }
}

fn side_by_side<B: Backend>(mut outputs: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    match outputs.len() {
        1 => outputs.remove(0),
        _ => B::float_cat(outputs, 1),
    }
}

/// The inverse: the `N` matrices of equal width that lie side by side in one.
pub(crate) fn parts<B: Backend, const N: usize>(x: &FloatTensor<B>) -> [FloatTensor<B>; N] {
    let width = x.shape()[1] / N;
    std::array::from_fn(|part| {
        let columns = part * width..(part + 1) * width;
        B::float_slice(x.clone(), &[Slice::full(), columns.into()])
    })
}

/// The most inputs of one operation that autodiff is told of. What has more is computed in parts.
const MOST_PARENTS: usize = 10;

impl<B: LinearOps + LinearBackward, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linears(x: FloatTensor<Self>, layers: Linears<Self>) -> FloatTensor<Self> {
        let tracked = |layer: LinearOp<FloatTensor<Self>, _>| layer.map(|x| x.is_tracked(), |_| (), |_| ());
        let wanted = Wanted { x: x.is_tracked(), layers: layers.clone().0.into_iter().map(tracked).collect() };
        let of_layers = wanted.layers.iter().flat_map(LinearOp::floats).filter(|wanted| **wanted).count();
        if usize::from(wanted.x) + of_layers > MOST_PARENTS {
            return in_parts::<Self>(x, layers);
        }

        let mut parents = Vec::new();
        let mut inner = |x: FloatTensor<Self>| {
            let is_tracked = x.is_tracked();
            let (x, guard) = x.into_parts();
            if is_tracked {
                parents.push(guard);
            }
            x
        };
        let x = inner(x);
        let layers = layers.map::<B>(inner, |rows| rows);
        let y = B::linears(x.clone(), layers.clone());
        let inputs = Inputs { x: (of_layers > 0).then_some(x), layers, wanted };
        macro_rules! record_by_count {
            ($($n:literal)*) => {
                match parents.len() {
                    $($n => record_output::<B, C, Inputs<B>, $n>(parents, y, inputs, backward),)*
                    count => unreachable!("{count} parents are computed in parts"),
                }
            };
        }
        record_by_count!(0 1 2 3 4 5 6 7 8 9 10)
    }
}

/// All parents are tracked.
fn backward<B: LinearBackward, const N: usize>(
    inputs: Inputs<B>,
    gradient: FloatTensor<B>,
    _: [bool; N],
) -> [Option<FloatTensor<B>>; N] {
    let wanted = inputs.wanted.clone();
    let mut gradients = B::linears_backward(inputs, gradient).in_order(&wanted).into_iter();
    std::array::from_fn(|_| gradients.next())
}

/// The same layer by layer, a few branches at a time.
fn in_parts<B: LinearOps>(x: FloatTensor<B>, layers: Linears<B>) -> FloatTensor<B> {
    let layer = |LinearOp { mut weight, mut branches }| {
        let mut y = None;
        while weight.is_some() || !branches.is_empty() {
            let few = branches.drain(..branches.len().min(MOST_PARENTS / 2 - 1)).collect();
            let part = Linears(vec![LinearOp { weight: weight.take(), branches: few }]);
            y = Some(add_to_rows::<B>(y, B::linears(x.clone(), part), None, 0));
        }
        y.expect("a weight or a branch")
    };
    side_by_side::<B>(layers.0.into_iter().map(layer).collect())
}
