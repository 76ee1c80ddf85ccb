//! Attention over rows of tokens, each row by itself.

use std::ops::Range;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{BoolTensor, Device, FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension, get_or_init_device_settings};
use burn::tensor::{IndexingUpdateOp, IntDType, Shape, Slice, Tensor, TensorData};
use sideburn_batch::Key;

use crate::RowLayout;
use crate::dropout::{DropoutOps, drop, probability_and_key};

/// Which keys a query looks at, and what is added to its scores.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The number of heads.
    pub heads: usize,
    /// Where the queries of each row lie.
    pub queries: RowLayout,
    /// Where the keys of each row lie; as many rows.
    pub keys: RowLayout,
    /// Whether a query sees only keys up to its own place.
    pub causal: bool,
    /// Which column of the bias is for a key at the place of its query. For a key `d` places behind, it is column
    /// `origin + d`, where the first query has place [`first`](Self::first).
    pub origin: usize,
    /// The place of the first query of each row among the keys.
    pub first: usize,
}

/// Attention with a bias that goes by relative position, `dropout(softmax(q k^T + bias)) v`, unscaled as in T5 (Raffel
/// et al., 2020, section 2.1), row by row and head by head. Scores are worked out again in the backward pass; on the
/// CPU they are never in memory for more than a few queries at a time.
///
/// # Shapes
/// `q [queries, heads * width]`, `kv [keys, 2 * heads * width]` with the values beside the keys, as `sight` lays out the
/// rows, `bias [heads, distances]` or, for none, `[1, 1]` of zero, give `[queries, heads * width]`. What comes out at a
/// token that belongs to no row is finite and means nothing.
///
/// # Panics
/// If `dropout` holds a probability outside `[0, 1)`, the shapes do not fit, or the bias has no column for some distance.
pub fn attention(
    q: Tensor<2>,
    kv: Tensor<2>,
    bias: Tensor<2>,
    sight: &Sight,
    dropout: Option<(f64, Key)>,
) -> Tensor<2> {
    let (probability, key) = probability_and_key(dropout);
    sight.assert_fits(q.dims(), kv.dims(), bias.dims());
    let [q, kv, bias] = [q, kv, bias].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::attention_forward(q, kv, bias, sight.clone(), probability, key))
}

/// [`attention`] of tokens that look at each other: queries, keys and values side by side, `qkv [tokens, 3 * heads * width]`,
/// as [`adapted_linears`](crate::adapted_linears) gives them. Nothing is copied to tell them apart, in neither direction.
///
/// # Panics
/// As there.
pub fn self_attention(qkv: Tensor<2>, bias: Tensor<2>, sight: &Sight, dropout: Option<(f64, Key)>) -> Tensor<2> {
    let (probability, key) = probability_and_key(dropout);
    let [tokens, columns] = qkv.dims();
    assert!(columns.is_multiple_of(3), "{columns} columns do not make queries, keys and values");
    sight.assert_fits([tokens, columns / 3], [tokens, columns / 3 * 2], bias.dims());
    let [qkv, bias] = [qkv, bias].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::self_attention_forward(qkv, bias, sight.clone(), probability, key))
}

impl Sight {
    /// Every query sees all keys of its row; there are no positions.
    pub fn everything(heads: usize, queries: &RowLayout, keys: &RowLayout) -> Self {
        Self { heads, queries: queries.clone(), keys: keys.clone(), causal: false, origin: 0, first: 0 }
    }

    /// Every query sees all keys of its row, which are the queries' own tokens. The bias has a column for each distance
    /// from `1 - columns` to `columns - 1`.
    pub fn own_rows(heads: usize, layout: &RowLayout) -> Self {
        Self { origin: layout.columns() - 1, ..Self::everything(heads, layout, layout) }
    }

    /// Every query sees the keys of its row up to its own place, which for the first query is `first`. The bias has a
    /// column for each distance from `-(first + columns - 1)` to 0 at least.
    pub fn up_to_own_place(heads: usize, queries: &RowLayout, keys: &RowLayout, first: usize) -> Self {
        let origin = first + queries.columns() - 1;
        Self { causal: true, origin, first, ..Self::everything(heads, queries, keys) }
    }

    /// How many of `keys` keys the query with this index sees.
    pub(crate) fn seen(&self, query: usize, keys: usize) -> usize {
        if self.causal { keys.min(self.first + query + 1) } else { keys }
    }

    /// The column of the bias for the first key, as the query with this index sees it.
    pub(crate) fn first_column(&self, query: usize) -> usize {
        self.origin - self.first - query
    }

    fn assert_fits(&self, q: [usize; 2], kv: [usize; 2], bias: [usize; 2]) {
        let Self { heads, queries, keys, .. } = self;
        assert!(*heads > 0 && q[1].is_multiple_of(*heads), "{} columns do not make {heads} heads", q[1]);
        assert_eq!(2 * q[1], kv[1], "q [queries, heads * width] and kv [keys, 2 * heads * width] must fit");
        assert_eq!(queries.rows(), keys.rows(), "every row of queries needs one row of keys");
        assert_eq!((q[0], kv[0]), (queries.tokens(), keys.tokens()), "q and kv must be as their rows are laid out");
        let far = self.first + queries.columns() - 1;
        assert!(
            bias == [1, 1] || bias[0] == *heads && far <= self.origin && self.seen_columns() <= bias[1],
            "bias {bias:?} has no column for some of the distances, or not {heads} heads"
        );
    }

    /// How many columns of the bias are in use.
    fn seen_columns(&self) -> usize {
        let last = |query: usize| {
            let seen = self.seen(query, self.keys.columns());
            (self.origin + seen).saturating_sub(self.first + query)
        };
        last(0).max(last(self.queries.columns() - 1))
    }
}

/// Attention on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait AttentionOps: DropoutOps {
    /// See [`attention`].
    #[fusion(default)]
    fn attention_forward(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        sight: Sight,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        composed::<Self>(q, kv, bias, &sight, probability, key)
    }

    /// Its gradients with respect to `q`, `kv` and, if it is asked for, `bias` (otherwise anything).
    #[fusion(default)]
    #[allow(clippy::too_many_arguments, reason = "backend extensions take tensors one by one")]
    fn attention_backward(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        sight: Sight,
        of_bias: bool,
        probability: f64,
        key: Key,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed_backward::<Self>([q, kv, bias], gradient, &sight, of_bias, probability, key)
    }

    /// See [`self_attention`].
    #[fusion(default)]
    fn self_attention_forward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        sight: Sight,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        let (q, kv) = queries_and_keys::<Self>(qkv);
        Self::attention_forward(q, kv, bias, sight, probability, key)
    }

    /// Its gradients with respect to `qkv` and, if it is asked for, `bias` (otherwise anything).
    #[fusion(default)]
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        sight: Sight,
        of_bias: bool,
        probability: f64,
        key: Key,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, kv) = queries_and_keys::<Self>(qkv);
        let (q, kv, bias) = Self::attention_backward(q, kv, bias, gradient, sight, of_bias, probability, key);
        (Self::float_cat(vec![q, kv], 1), bias)
    }
}

/// Some columns of a matrix.
fn columns<B: Backend>(x: &FloatTensor<B>, columns: Range<usize>) -> FloatTensor<B> {
    B::float_slice(x.clone(), &[Slice::full(), columns.into()])
}

/// The first third of the columns, and the others.
pub(crate) fn queries_and_keys<B: Backend>(qkv: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let (width, all) = (qkv.shape()[1] / 3, qkv.shape()[1]);
    (columns::<B>(&qkv, 0..width), columns::<B>(&qkv, width..all))
}

/// What a masked score is set to: small enough that its softmax is zero, and finite, so that no NaN can come of it.
const MASKED: f64 = -1e30;

/// Indices as a tensor.
fn indices<B: Backend>(values: Vec<i32>, device: &Device<B>) -> IntTensor<B> {
    let length = values.len();
    B::int_from_data(TensorData::new(values, [length]), device)
}

/// Truth values in the form in which the device has them.
fn bools<B: Backend>(data: TensorData, device: &Device<B>) -> BoolTensor<B> {
    let dtype = get_or_init_device_settings::<B>(device).bool_dtype;
    B::bool_from_data(data.convert_dtype(dtype.into()), device)
}

/// Tokens `[tokens, heads * width]` as rows `[rows, heads, columns, width]`.
fn to_rows<B: Backend>(x: FloatTensor<B>, layout: &RowLayout, heads: usize) -> FloatTensor<B> {
    let width = x.shape()[1] / heads;
    let x = match layout.token_of_each_place() {
        Some(tokens) => {
            let tokens = indices::<B>(tokens, &x.device());
            B::float_select(x, 0, tokens)
        }
        None => x,
    };
    let x = B::float_reshape(x, Shape::from([layout.rows(), layout.columns(), heads, width]));
    B::float_swap_dims(x, 1, 2)
}

/// The inverse.
fn to_tokens<B: Backend>(x: FloatTensor<B>, layout: &RowLayout) -> FloatTensor<B> {
    let (heads, width) = (x.shape()[1], x.shape()[3]);
    let places = layout.rows() * layout.columns();
    let x = B::float_reshape(B::float_swap_dims(x, 1, 2), Shape::from([places, heads * width]));
    match layout.place_of_each_token() {
        Some(places) => {
            let places = indices::<B>(places, &x.device());
            B::float_select(x, 0, places)
        }
        None => x,
    }
}

/// Rows `[rows, heads, columns, width]` with zeros where there is padding.
fn without_padding<B: Backend>(x: FloatTensor<B>, layout: &RowLayout) -> FloatTensor<B> {
    let (rows, columns) = (layout.rows(), layout.columns());
    if layout.lengths().iter().all(|length| *length == columns) {
        return x;
    }
    let padding = |length: usize| (0..columns).map(move |column| column >= length);
    let padding: Vec<bool> = layout.lengths().iter().flat_map(|length| padding(*length)).collect();
    let mask = bools::<B>(TensorData::new(padding, [rows, 1, columns, 1]), &x.device());
    let mask = B::bool_expand(mask, x.shape());
    B::float_mask_fill(x, mask, 0.0.into())
}

/// For each query and key the column of the bias, clamped to those there are: `[queries * keys]`.
fn bias_columns<B: Backend>(bias: &FloatTensor<B>, sight: &Sight) -> IntTensor<B> {
    let (device, columns) = (bias.device(), bias.shape()[1] as i64);
    let (queries, keys) = (sight.queries.columns(), sight.keys.columns());
    let range = |count: usize, shape: [usize; 2]| {
        B::int_reshape(B::int_arange(0..count as i64, &device, IntDType::I32), Shape::from(shape))
    };
    let expand = |x| B::int_expand(x, Shape::from([queries, keys]));
    let distance = B::int_sub(expand(range(keys, [1, keys])), expand(range(queries, [queries, 1])));
    let column = B::int_add_scalar(distance, ((sight.origin - sight.first) as i64).into());
    B::int_reshape(B::int_clamp(column, 0.into(), (columns - 1).into()), Shape::from([queries * keys]))
}

/// True where a query may not look at a key: `[rows, 1, queries or 1, keys]`.
fn mask<B: Backend>(sight: &Sight, device: &Device<B>) -> BoolTensor<B> {
    let (rows, keys) = (sight.keys.rows(), sight.keys.columns());
    let queries = if sight.causal { sight.queries.columns() } else { 1 };
    let of_row = |length: usize| {
        let of_query = move |query| (0..keys).map(move |key| key >= sight.seen(query, keys).min(length));
        (0..queries).flat_map(of_query)
    };
    let mask: Vec<bool> = sight.keys.lengths().iter().flat_map(|length| of_row(*length)).collect();
    bools::<B>(TensorData::new(mask, [rows, 1, queries, keys]), device)
}

/// The weights before dropout, `[rows, heads, queries, keys]`, of rows.
fn weights<B: Backend>(q: FloatTensor<B>, k: FloatTensor<B>, bias: FloatTensor<B>, sight: &Sight) -> FloatTensor<B> {
    let device = q.device();
    let scores = B::float_matmul(q, B::float_swap_dims(k, 2, 3));
    let scores = if bias.shape().num_elements() == 1 {
        B::float_add(scores, B::float_reshape(bias, Shape::from([1; 4])))
    } else {
        let columns = bias_columns::<B>(&bias, sight);
        let shape = [1, sight.heads, sight.queries.columns(), sight.keys.columns()];
        B::float_add(scores, B::float_reshape(B::float_select(bias, 1, columns), Shape::from(shape)))
    };
    let mask = B::bool_expand(mask::<B>(sight, &device), scores.shape());
    B::softmax(B::float_mask_fill(scores, mask, MASKED.into()), 3)
}

/// Keys and values of tokens as rows.
fn keys_and_values<B: Backend>(kv: FloatTensor<B>, sight: &Sight) -> [FloatTensor<B>; 2] {
    let width = kv.shape()[1] / 2;
    [0, width].map(|first| to_rows::<B>(columns::<B>(&kv, first..first + width), &sight.keys, sight.heads))
}

pub(crate) fn composed<B: DropoutOps>(
    q: FloatTensor<B>,
    kv: FloatTensor<B>,
    bias: FloatTensor<B>,
    sight: &Sight,
    probability: f64,
    key: Key,
) -> FloatTensor<B> {
    let q = to_rows::<B>(q, &sight.queries, sight.heads);
    let [k, v] = keys_and_values::<B>(kv, sight);
    let weights = drop::<B>(weights::<B>(q, k, bias, sight), probability, key);
    to_tokens::<B>(B::float_matmul(weights, v), &sight.queries)
}

pub(crate) fn composed_backward<B: DropoutOps>(
    [q, kv, bias]: [FloatTensor<B>; 3],
    gradient: FloatTensor<B>,
    sight: &Sight,
    of_bias: bool,
    probability: f64,
    key: Key,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let [q, gradient] = [q, gradient].map(|x| to_rows::<B>(x, &sight.queries, sight.heads));
    let gradient = without_padding::<B>(gradient, &sight.queries);
    let [k, v] = keys_and_values::<B>(kv, sight);
    let weights = weights::<B>(q.clone(), k.clone(), bias.clone(), sight);
    let dropped = drop::<B>(weights.clone(), probability, key);
    let of_v = B::float_matmul(B::float_swap_dims(dropped, 2, 3), gradient.clone());
    let of_weights = drop::<B>(B::float_matmul(gradient, B::float_swap_dims(v, 2, 3)), probability, key);
    // The gradient of a softmax: `weights * (of_weights - sum(weights * of_weights))`.
    let sum = B::float_sum_dim(B::float_mul(weights.clone(), of_weights.clone()), 3);
    let scores = B::float_mul(weights, B::float_sub(of_weights, sum));
    let of_bias = match of_bias {
        false => bias,
        true if bias.shape().num_elements() == 1 => {
            B::float_reshape(B::float_sum_dims(scores.clone(), &[0, 1, 2, 3]), Shape::from([1, 1]))
        }
        true => {
            let (columns, shape) = (bias_columns::<B>(&bias, sight), scores.shape());
            let sums =
                B::float_reshape(B::float_sum_dim(scores.clone(), 0), Shape::from([sight.heads, shape[2] * shape[3]]));
            let zeros = B::float_zeros(bias.shape(), &bias.device(), bias.dtype().into());
            B::float_select_assign(zeros, 1, columns, sums, IndexingUpdateOp::Add)
        }
    };
    let of_k = B::float_matmul(B::float_swap_dims(scores.clone(), 2, 3), q);
    let of_q = B::float_matmul(scores, k);
    let [of_k, of_v] = [of_k, of_v].map(|x| to_tokens::<B>(x, &sight.keys));
    (to_tokens::<B>(of_q, &sight.queries), B::float_cat(vec![of_k, of_v], 1), of_bias)
}

/// What an attention keeps for its backward pass, beside its tensors.
#[derive(Clone, Debug)]
struct How {
    sight: Sight,
    probability: f64,
    key: Key,
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_forward(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        sight: Sight,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Attention;
        impl<B: AttentionOps> Backward<B, 3> for Attention {
            type State = ([FloatTensor<B>; 3], How);
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let ([q, kv, bias], How { sight, probability, key }) = ops.state;
                let of_bias = ops.parents[2].is_some();
                let (q, kv, bias) = B::attention_backward(q, kv, bias, gradient, sight, of_bias, probability, key);
                let parents = ops.parents.map(|node| node.map(|node| node.id));
                register::<B, 3>(grads, parents, [q, kv, bias]);
            }
        }

        let ((q, node_q), (kv, node_kv), (bias, node_bias)) = (q.into_parts(), kv.into_parts(), bias.into_parts());
        match Backward::<B, 3>::prepare::<C>(Attention, [node_q, node_kv, node_bias]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (kept, how) = ([q.clone(), kv.clone(), bias.clone()], How { sight, probability, key });
                let output = B::attention_forward(q, kv, bias, how.sight.clone(), probability, key);
                prep.finish((kept, how), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::attention_forward(q, kv, bias, sight, probability, key)),
        }
    }

    fn self_attention_forward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        sight: Sight,
        probability: f64,
        key: Key,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct SelfAttention;
        impl<B: AttentionOps> Backward<B, 2> for SelfAttention {
            type State = ([FloatTensor<B>; 2], How);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let ([qkv, bias], How { sight, probability, key }) = ops.state;
                let of_bias = ops.parents[1].is_some();
                let (qkv, bias) = B::self_attention_backward(qkv, bias, gradient, sight, of_bias, probability, key);
                let parents = ops.parents.map(|node| node.map(|node| node.id));
                register::<B, 2>(grads, parents, [qkv, bias]);
            }
        }

        let ((qkv, node_qkv), (bias, node_bias)) = (qkv.into_parts(), bias.into_parts());
        match Backward::<B, 2>::prepare::<C>(SelfAttention, [node_qkv, node_bias]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (kept, how) = ([qkv.clone(), bias.clone()], How { sight, probability, key });
                let output = B::self_attention_forward(qkv, bias, how.sight.clone(), probability, key);
                prep.finish((kept, how), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::self_attention_forward(qkv, bias, sight, probability, key)),
        }
    }
}

fn register<B: Backend, const N: usize>(
    grads: &mut Gradients,
    parents: [Option<NodeId>; N],
    gradients: [FloatTensor<B>; N],
) {
    for (node, gradient) in parents.into_iter().zip(gradients) {
        if let Some(node) = node {
            grads.register::<B>(node, gradient);
        }
    }
}
