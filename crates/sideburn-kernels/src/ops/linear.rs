//! Linear layers that share an input, and the low-rank branches that LoRA adds to them.

use std::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, Backend, BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind,
    ExtensionType, TensorMetadata, backend_extension,
};
use burn::tensor::{IndexingUpdateOp, Int, Shape, Slice, Tensor};
use sideburn_batch::Dropout;

use crate::ops::dropout::{DropoutOps, drop};

/// The factors of a low-rank branch, `scale * dropout(x) A^T B^T`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `A [r, in]`.
    pub a: Tensor<2>,
    /// `B [out, r]`.
    pub b: Tensor<2>,
    /// What the branch is multiplied by.
    pub scale: f64,
    /// What drops elements of its input.
    pub dropout: Option<Dropout>,
    /// The rows of `x` that the branch is for, each once and in ascending order; by default all of them. The mask is one
    /// for these rows alone.
    pub rows: Option<Tensor<1, Int>>,
}

/// A linear layer without bias, with its low-rank branches.
#[derive(Clone, Debug)]
pub struct Site {
    /// `[out, in]`, as PyTorch stores it.
    pub weight: Tensor<2>,
    /// What is added to `x W^T`.
    pub branches: Vec<LowRank>,
}

/// A linear layer without bias, `x W^T`.
///
/// # Shapes
/// `x [n, in]`, `weight [out, in]` (as PyTorch stores it) give `[n, out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    adapted_linears(x, vec![Site { weight, branches: Vec::new() }])
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
    let ([_, input], [out, _]) = (x.dims(), b.dims());
    let branch = LowRank { a, b, scale, dropout, rows: None }.joined(input, out);
    run(x, vec![Joined { out, weight: None, branches: vec![branch] }])
}

/// A linear layer with a low-rank branch, `x W^T + scale * dropout(x) A^T B^T`, in one operation: the branch is added
/// where the layer's output lies, and its gradients come of one pass over `x` that draws each mask once.
///
/// # Shapes
/// `x [n, in]`, `weight [out, in]`, `a [r, in]`, `b [out, r]` give `[n, out]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn adapted_linear(x: Tensor<2>, weight: Tensor<2>, branch: LowRank) -> Tensor<2> {
    adapted_linears(x, vec![Site { weight, branches: vec![branch] }])
}

/// Several linear layers that see the same `x`, with any number of branches each, in one operation: their outputs side
/// by side. The gradients with respect to `x` are summed where they come about, and branches for rows of their own, as
/// of a batch that mixes adapters, find their rows by themselves.
///
/// # Shapes
/// `x [n, in]`, weights `[out_i, in]` give `[n, out_1 + out_2 + ...]`.
///
/// # Panics
/// If there is no site, the shapes do not fit, or the rows of a branch are not ascending rows of `x`.
pub fn adapted_linears(x: Tensor<2>, sites: Vec<Site>) -> Tensor<2> {
    let input = x.dims()[1];
    let joined = |Site { weight, branches }: Site| {
        let out = weight.dims()[0];
        assert_eq!(weight.dims()[1], input, "x [n, in] and weight [out, in] must fit");
        let branches = branches.into_iter().map(|branch| branch.joined(input, out)).collect();
        Joined { out, weight: Some(weight.into_dispatch()), branches }
    };
    let sites: Vec<_> = sites.into_iter().map(joined).collect();
    assert!(!sites.is_empty(), "there is no site to apply");
    run(x, sites)
}

fn run(x: Tensor<2>, sites: Vec<Joined<DispatchTensor, DispatchTensor>>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::linears(x.into_dispatch(), Sites::new(sites)))
}

impl LowRank {
    fn joined(self, input: usize, out: usize) -> JoinedBranch<DispatchTensor, DispatchTensor> {
        let Self { a, b, scale, dropout, rows } = self;
        let fit = a.dims()[1] == input && b.dims() == [out, a.dims()[0]];
        assert!(fit, "x [n, in], a [r, in] and b [out, r] must fit");
        let [a, b] = [a, b].map(Tensor::into_dispatch);
        let rows = rows.map(Tensor::into_dispatch);
        JoinedBranch { a, b, rows, numbers: Numbers { scale, dropout } }
    }
}

/// A site with its tensors.
pub(crate) struct Joined<F, I> {
    /// The columns that it gives.
    pub(crate) out: usize,
    /// `[out, in]`, unless there is no base layer, or its weight is of no concern.
    pub(crate) weight: Option<F>,
    pub(crate) branches: Vec<JoinedBranch<F, I>>,
}

/// A branch with its tensors.
pub(crate) struct JoinedBranch<F, I> {
    pub(crate) a: F,
    pub(crate) b: F,
    pub(crate) rows: Option<I>,
    pub(crate) numbers: Numbers,
}

/// What a branch has beside its tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) scale: f64,
    pub(crate) dropout: Option<Dropout>,
}

/// Sites on a backend's tensors, in lists.
#[derive(Clone, Debug)]
pub(crate) struct Sites<B: Backend> {
    /// Of each site that has a base layer; none at all where they are of no concern.
    pub(crate) weights: Vec<FloatTensor<B>>,
    /// `A` and `B` of one branch after the other.
    pub(crate) factors: Vec<FloatTensor<B>>,
    /// Of each branch that has rows of its own.
    pub(crate) rows: Vec<IntTensor<B>>,
    pub(crate) wiring: Wiring,
}

impl<B: Backend> Sites<B> {
    fn new(sites: Vec<Joined<FloatTensor<B>, IntTensor<B>>>) -> Self {
        let (mut weights, mut factors, mut row_lists, mut wired) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Joined { out, weight, branches } in sites {
            let mut site = WiredSite { out, has_weight: weight.is_some(), branches: Vec::new() };
            weights.extend(weight);
            for JoinedBranch { a, b, rows, numbers } in branches {
                site.branches.push((numbers, rows.is_some()));
                factors.extend([a, b]);
                row_lists.extend(rows);
            }
            wired.push(site);
        }
        Self { weights, factors, rows: row_lists, wiring: Wiring { sites: wired } }
    }

    /// Each site with its tensors.
    fn join(&self) -> Vec<Joined<&FloatTensor<B>, &IntTensor<B>>> {
        self.wiring.join(&self.weights, &self.factors, &self.rows)
    }
}

impl<B: Backend> ExtensionType<B> for Sites<B> {
    type Target = Sites<Dispatch>;

    fn map_to_dispatch<F>(self, map_kind: F, autodiff: DispatchAutodiffContext) -> Sites<Dispatch>
    where
        F: Fn(BackendTensor<B>) -> DispatchTensorKind,
    {
        let wrap = |tensor| DispatchTensor { kind: map_kind(tensor), autodiff };
        let floats = |list: Vec<_>| list.into_iter().map(|x| wrap(BackendTensor::Float(x))).collect();
        let rows = self.rows.into_iter().map(|x| wrap(BackendTensor::Int(x))).collect();
        Sites { weights: floats(self.weights), factors: floats(self.factors), rows, wiring: self.wiring }
    }

    fn map_from_dispatch<F>(target: Sites<Dispatch>, unwrap_kind: F) -> Self
    where
        F: Fn(DispatchTensor) -> BackendTensor<B>,
    {
        let floats = |list: Vec<_>| list.into_iter().map(|x| unwrap_kind(x).float()).collect();
        let rows = target.rows.into_iter().map(|x| unwrap_kind(x).int()).collect();
        Self { weights: floats(target.weights), factors: floats(target.factors), rows, wiring: target.wiring }
    }

    fn routing_tensor(target: &Sites<Dispatch>) -> Option<&DispatchTensor> {
        Self::routing_float_tensor(target).or(target.rows.first())
    }

    fn routing_float_tensor(target: &Sites<Dispatch>) -> Option<&DispatchTensor> {
        target.weights.first().or(target.factors.first())
    }

    fn autodiff_context(target: &Sites<Dispatch>) -> DispatchAutodiffContext {
        let tensors = target.weights.iter().chain(&target.factors).chain(&target.rows);
        tensors.fold(DispatchAutodiffContext::Disabled, |context, tensor| context.merge(tensor.autodiff))
    }
}

/// How lists of tensors make up sites.
#[derive(Clone, Debug)]
pub(crate) struct Wiring {
    sites: Vec<WiredSite>,
}

#[derive(Clone, Debug)]
struct WiredSite {
    out: usize,
    has_weight: bool,
    /// The numbers of each branch, and whether it has rows of its own.
    branches: Vec<(Numbers, bool)>,
}

impl Wiring {
    /// Each site with its tensors, of which the weights may be left out as a whole.
    pub(crate) fn join<F, I>(
        &self,
        weights: impl IntoIterator<Item = F>,
        factors: impl IntoIterator<Item = F>,
        rows: impl IntoIterator<Item = I>,
    ) -> Vec<Joined<F, I>> {
        let (mut weights, mut factors, mut rows) = (weights.into_iter(), factors.into_iter(), rows.into_iter());
        let mut branch = |(numbers, has_rows): &(Numbers, bool)| {
            let mut factor = || factors.next().expect("two factors for each branch");
            let (a, b) = (factor(), factor());
            let rows = has_rows.then(|| rows.next().expect("rows for each branch that has some"));
            JoinedBranch { a, b, rows, numbers: *numbers }
        };
        let site = |site: &WiredSite| Joined {
            out: site.out,
            weight: if site.has_weight { weights.next() } else { None },
            branches: site.branches.iter().map(&mut branch).collect(),
        };
        self.sites.iter().map(site).collect()
    }

    /// The columns of each site among those of all.
    pub(crate) fn columns(&self) -> Vec<Range<usize>> {
        let columns = self.sites.iter().scan(0, |end, site| {
            *end += site.out;
            Some(*end - site.out..*end)
        });
        columns.collect()
    }

    /// How many columns there are.
    pub(crate) fn width(&self) -> usize {
        self.sites.iter().map(|site| site.out).sum()
    }

    /// What is said of each weight, for each site.
    pub(crate) fn of_sites(&self, of_weights: &[bool]) -> Vec<Option<bool>> {
        let mut of_weights = of_weights.iter().copied();
        let of_site = |site: &WiredSite| if site.has_weight { of_weights.next() } else { None };
        self.sites.iter().map(of_site).collect()
    }
}

/// Linear layers on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait LinearOps: DropoutOps {
    /// See [`adapted_linears`].
    #[fusion(default)]
    fn linears(x: FloatTensor<Self>, #[extension_type] sites: Sites<Self>) -> FloatTensor<Self> {
        composed::<Self>(&x, &sites)
    }
}

/// The backward pass of [`LinearOps`], which gives as many tensors as it was given.
pub(crate) trait LinearBackward: DropoutOps {
    /// The gradients that are wanted.
    fn linears_backward(inputs: &Inputs<Self>, gradient: FloatTensor<Self>) -> LinearGradients<Self> {
        composed_backward::<Self>(inputs, gradient)
    }
}

#[cfg(feature = "gpu")]
impl<B: burn::backend::fusion::FusionBackend> LinearBackward for burn::backend::fusion::Fusion<B> where Self: DropoutOps {}

/// What a backward pass works with.
#[derive(Clone, Debug)]
pub(crate) struct Inputs<B: Backend> {
    /// If any weight or factor has a gradient.
    pub(crate) x: Option<FloatTensor<B>>,
    /// With weights if `x` has a gradient.
    pub(crate) sites: Sites<B>,
    pub(crate) wanted: Wanted,
}

/// Of which inputs the gradient is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) x: bool,
    /// For each weight.
    pub(crate) weights: Vec<bool>,
    /// For each factor.
    factors: Vec<bool>,
}

impl Wanted {
    /// For each branch whether one of its factors is wanted.
    pub(crate) fn branches(&self) -> impl Iterator<Item = bool> {
        self.factors.chunks(2).map(|pair| pair.contains(&true))
    }
}

/// What comes of a backward pass.
pub(crate) struct LinearGradients<B: Backend> {
    pub(crate) x: Option<FloatTensor<B>>,
    /// For each weight.
    pub(crate) weights: Vec<Option<FloatTensor<B>>>,
    /// For each branch, of `A` and `B`.
    pub(crate) factors: Vec<Option<[FloatTensor<B>; 2]>>,
}

impl<B: Backend> LinearGradients<B> {
    /// Those that are wanted, in the order of the inputs.
    fn in_order(self, wanted: &Wanted) -> impl Iterator<Item = FloatTensor<B>> {
        let pair = |pair: Option<[_; 2]>| pair.map_or([None, None], |pair| pair.map(Some));
        let factors = self.factors.into_iter().flat_map(pair);
        let factors = factors.zip(&wanted.factors).map(|(gradient, wanted)| gradient.filter(|_| *wanted));
        std::iter::once(self.x).chain(self.weights).chain(factors).flatten()
    }
}

pub(crate) fn composed<B: DropoutOps>(x: &FloatTensor<B>, sites: &Sites<B>) -> FloatTensor<B> {
    let n = x.shape()[0];
    let site = |site: Joined<&FloatTensor<B>, &IntTensor<B>>| {
        let base = site.weight.map(|weight| product_with_transposed::<B>(x.clone(), weight.clone()));
        let y = site.branches.into_iter().fold(base, |y, JoinedBranch { a, b, rows, numbers }| {
            let dropped = dropped_rows::<B>(x, rows, &numbers);
            let narrow = product_with_transposed::<B>(dropped, a.clone());
            let narrow = B::float_mul_scalar(narrow, numbers.scale.into());
            Some(add_to_rows::<B>(y, product_with_transposed::<B>(narrow, b.clone()), rows, n))
        });
        y.expect("a site has a base layer or a branch")
    };
    side_by_side::<B>(sites.join().into_iter().map(site).collect())
}

pub(crate) fn composed_backward<B: DropoutOps>(inputs: &Inputs<B>, gradient: FloatTensor<B>) -> LinearGradients<B> {
    let Inputs { x, sites, wanted } = inputs;
    let (n, wiring) = (gradient.shape()[0], &sites.wiring);
    let (mut of_x, mut of_weights, mut of_factors) = (None, Vec::new(), Vec::new());
    let mut wanted_branches = wanted.branches();
    let sites = sites.join().into_iter().zip(wiring.columns()).zip(wiring.of_sites(&wanted.weights));
    for ((site, columns), wanted_weight) in sites {
        let gradient = match wiring.sites.len() {
            1 => gradient.clone(),
            _ => B::float_slice(gradient.clone(), &[Slice::full(), columns.into()]),
        };
        if let Some(wanted) = wanted_weight {
            let product = || B::float_matmul(B::float_transpose(gradient.clone()), kept(x).clone());
            of_weights.push(wanted.then(product));
        }
        if let Some(weight) = site.weight.filter(|_| wanted.x) {
            let product = B::float_matmul(gradient.clone(), weight.clone());
            of_x = Some(add_to_rows::<B>(of_x, product, None, n));
        }
        for JoinedBranch { a, b, rows, numbers } in site.branches {
            let gradient = of_rows::<B>(&gradient, rows);
            let scaled = |x| B::float_mul_scalar(x, numbers.scale.into());
            let outer = scaled(B::float_matmul(gradient.clone(), b.clone()));
            if wanted.x {
                let product = B::float_matmul(outer.clone(), a.clone());
                let product = drop::<B>(product, numbers.dropout);
                of_x = Some(add_to_rows::<B>(of_x, product, rows, n));
            }
            let wanted = wanted_branches.next().expect("one for each branch");
            of_factors.push(wanted.then(|| {
                let x = dropped_rows::<B>(kept(x), rows, &numbers);
                let inner = scaled(product_with_transposed::<B>(x.clone(), a.clone()));
                let of_a = B::float_matmul(B::float_transpose(outer), x);
                [of_a, B::float_matmul(B::float_transpose(gradient), inner)]
            }));
        }
    }
    LinearGradients { x: of_x, weights: of_weights, factors: of_factors }
}

fn kept<T>(x: &Option<T>) -> &T {
    x.as_ref().expect("it is kept where it is needed")
}

pub(crate) fn product_with_transposed<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(x, B::float_transpose(weight))
}

/// These rows of `x`, or all.
fn of_rows<B: Backend>(x: &FloatTensor<B>, rows: Option<&IntTensor<B>>) -> FloatTensor<B> {
    match rows {
        Some(rows) => B::float_select(x.clone(), 0, rows.clone()),
        None => x.clone(),
    }
}

fn dropped_rows<B: DropoutOps>(x: &FloatTensor<B>, rows: Option<&IntTensor<B>>, numbers: &Numbers) -> FloatTensor<B> {
    drop::<B>(of_rows::<B>(x, rows), numbers.dropout)
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
        (Some(y), None) => B::float_add(y, x),
        (y, Some(rows)) => {
            let zeros = || B::float_zeros(Shape::from([n, x.shape()[1]]), &x.device(), x.dtype().into());
            B::float_select_assign(y.unwrap_or_else(zeros), 0, rows.clone(), x, IndexingUpdateOp::Add)
        }
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
    fn linears(x: FloatTensor<Self>, sites: Sites<Self>) -> FloatTensor<Self> {
        let tracked = |list: &[FloatTensor<Self>]| list.iter().map(|x| x.is_tracked()).collect::<Vec<_>>();
        let wanted = Wanted { x: x.is_tracked(), weights: tracked(&sites.weights), factors: tracked(&sites.factors) };
        let of_sites = wanted.weights.iter().chain(&wanted.factors).filter(|wanted| **wanted).count();
        if usize::from(wanted.x) + of_sites > MOST_PARENTS {
            return in_parts::<Self>(x, sites);
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
        let weights = sites.weights.into_iter().map(&mut inner).collect();
        let factors = sites.factors.into_iter().map(&mut inner).collect();
        let sites = Sites { weights, factors, rows: sites.rows, wiring: sites.wiring };
        let y = B::linears(x.clone(), sites.clone());
        let weights = if wanted.x { sites.weights } else { Vec::new() };
        let inputs = Inputs { x: (of_sites > 0).then_some(x), sites: Sites { weights, ..sites }, wanted };
        record::<B, C>(parents, inputs, y)
    }
}

/// The operation on the tape, with as many parents as there are.
fn record<B: LinearBackward, C: CheckpointStrategy>(
    parents: Vec<NodeGuard>,
    inputs: Inputs<B>,
    y: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    fn with<B: LinearBackward, C: CheckpointStrategy, const N: usize>(
        parents: Vec<NodeGuard>,
        inputs: Inputs<B>,
        y: FloatTensor<B>,
    ) -> FloatTensor<Autodiff<B, C>> {
        let parents: [NodeGuard; N] = parents.try_into().expect("as many as were counted");
        match Backward::<B, N>::prepare::<C>(Linears, parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(inputs, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
    macro_rules! by_count {
        ($($n:literal)*) => {
            match parents.len() {
                $($n => with::<B, C, $n>(parents, inputs, y),)*
                count => unreachable!("{count} parents are computed in parts"),
            }
        };
    }
    by_count!(0 1 2 3 4 5 6 7 8 9 10)
}

#[derive(Debug)]
struct Linears;

impl<B: LinearBackward, const N: usize> Backward<B, N> for Linears {
    type State = Inputs<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let gradients = B::linears_backward(&ops.state, gradient);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients.in_order(&ops.state.wanted)) {
            let parent = parent.expect("only tracked inputs are parents");
            grads.register::<B>(parent.id, gradient);
        }
    }
}

/// The same site by site, a few branches at a time.
fn in_parts<B: LinearOps>(x: FloatTensor<B>, sites: Sites<B>) -> FloatTensor<B> {
    let site = |Joined { out, mut weight, mut branches }| {
        let mut y = None;
        while weight.is_some() || !branches.is_empty() {
            let few = branches.drain(..branches.len().min(MOST_PARENTS / 2 - 1)).collect();
            let part = Sites::new(vec![Joined { out, weight: weight.take(), branches: few }]);
            y = Some(add_to_rows::<B>(y, B::linears(x.clone(), part), None, 0));
        }
        y.expect("a site has a base layer or a branch")
    };
    let Sites { weights, factors, rows, wiring } = sites;
    side_by_side::<B>(wiring.join(weights, factors, rows).into_iter().map(site).collect())
}
