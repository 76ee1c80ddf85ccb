//! Attention over rows of tokens, each row by itself.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{BoolTensor, Device, FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension, get_or_init_device_settings};
use burn::tensor::{IndexingUpdateOp, IntDType, Shape, Tensor, TensorData};
use sideburn_batch::Dropout;

use super::dropout::{DropoutOps, drop};
use super::fused;
use super::linear::parts;
use super::matmul::{MatmulOps, product, product_with_transposed, transposed};
use super::tape::record;
use crate::RowLayout;

/// Which keys each query sees, and which column of the bias is added to its score with a key.
///
/// The bias goes by distance. Query `i` of a row stands at place `first_query + i`, key `j` at place `j`; their score
/// gets column `bias_origin + j - (first_query + i)` of the bias. With `bias_origin` 3 and `first_query` 0, query 0
/// takes columns 3, 4, 5, .. for keys 0, 1, 2, .., and query 2 takes columns 1, 2, 3, ...
#[derive(Clone, Debug)]
pub struct Visibility {
    /// The number of heads.
    pub heads: usize,
    /// Where the queries of each row lie.
    pub queries: RowLayout,
    /// Where the keys of each row lie; as many rows.
    pub keys: RowLayout,
    /// Whether a query sees no keys behind its own place.
    pub causal: bool,
    /// The column of the bias for a key at the place of its query.
    pub bias_origin: usize,
    /// The place of the first query of each row among the keys.
    pub first_query: usize,
}

/// Attention with a bias by distance, `dropout(softmax(q k^T + bias)) v`, row by row and head by head. Scores are not
/// scaled (as in T5: Raffel et al., 2020, section 2.1): scale `q` for that. The backward pass computes them again; on
/// the CPU they are in memory for a few queries at a time.
///
/// # Shapes
/// `q [queries, heads * width]`, `k` and `v [keys, heads * width]`, as `visibility` lays out the rows,
/// `bias [heads, distances]` or, for none, `[1, 1]` of zero, give `[queries, heads * width]`. The output at
/// a token that belongs to no row is finite and means nothing.
///
/// # Panics
/// If the shapes do not fit, or the bias has no column for some distance.
pub fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    bias: Tensor<2>,
    visibility: &Visibility,
    dropout: Option<Dropout>,
) -> Tensor<2> {
    visibility.assert_fits(q.dims(), k.dims(), v.dims(), bias.dims());
    let [q, k, v, bias] = [q, k, v, bias].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::attention_forward(q, k, v, bias, visibility.clone(), dropout))
}

/// [`attention`] of tokens to each other, with queries, keys and values side by side in `qkv [tokens, 3 * heads *
/// width]`, as [`adapted_linears`](crate::adapted_linears) gives them. They are read in place, and so are their
/// gradients written.
///
/// # Panics
/// As there.
pub fn self_attention(qkv: Tensor<2>, bias: Tensor<2>, visibility: &Visibility, dropout: Option<Dropout>) -> Tensor<2> {
    let [tokens, columns] = qkv.dims();
    assert!(columns.is_multiple_of(3), "{columns} columns do not make queries, keys and values");
    let part = [tokens, columns / 3];
    visibility.assert_fits(part, part, part, bias.dims());
    let [qkv, bias] = [qkv, bias].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::self_attention_forward(qkv, bias, visibility.clone(), dropout))
}

impl Visibility {
    /// Every query sees all keys of its row, and has no distance to them: the attention of a decoder to what was
    /// encoded.
    pub fn full(heads: usize, queries: &RowLayout, keys: &RowLayout) -> Self {
        Self { heads, queries: queries.clone(), keys: keys.clone(), causal: false, bias_origin: 0, first_query: 0 }
    }

    /// Queries and keys are the same tokens, and every query sees all keys of its row. The bias has `2 * columns - 1`
    /// columns, for the distances from `1 - columns` to `columns - 1`.
    pub fn bidirectional(heads: usize, layout: &RowLayout) -> Self {
        Self { bias_origin: layout.columns() - 1, ..Self::full(heads, layout, layout) }
    }

    /// Every query sees the keys of its row up to its own place; the first query stands at place `first_query`. The
    /// bias has `first_query + columns` columns, for the distances from `1 - first_query - columns` to 0, or more.
    pub fn causal(heads: usize, queries: &RowLayout, keys: &RowLayout, first_query: usize) -> Self {
        let bias_origin = first_query + queries.columns() - 1;
        Self { causal: true, bias_origin, first_query, ..Self::full(heads, queries, keys) }
    }

    /// How many of `keys` keys the query with this index sees.
    pub(crate) fn seen(&self, query: usize, keys: usize) -> usize {
        if self.causal { keys.min(self.first_query + query + 1) } else { keys }
    }

    /// The column of the bias for the first key, as the query with this index sees it.
    pub(crate) fn first_column(&self, query: usize) -> usize {
        self.bias_origin - self.first_query - query
    }

    fn assert_fits(&self, q: [usize; 2], k: [usize; 2], v: [usize; 2], bias: [usize; 2]) {
        let Self { heads, queries, keys, .. } = self;
        assert!(*heads > 0 && q[1].is_multiple_of(*heads), "{} columns do not make {heads} heads", q[1]);
        assert_eq!(k, v, "k and v must have one shape");
        assert_eq!(q[1], k[1], "q [queries, heads * width] and k must fit");
        assert_eq!(queries.rows(), keys.rows(), "every row of queries needs one row of keys");
        assert!(!queries.is_shared(), "every row needs queries of its own");
        assert_eq!((q[0], k[0]), (queries.tokens(), keys.tokens()), "q and k must be as their rows are laid out");
        let far = self.first_query + queries.columns() - 1;
        assert!(
            bias == [1, 1] || bias[0] == *heads && far <= self.bias_origin && self.seen_columns() <= bias[1],
            "bias {bias:?} has no column for some of the distances, or not {heads} heads"
        );
    }

    /// How many columns of the bias are in use.
    fn seen_columns(&self) -> usize {
        let last = |query: usize| {
            let seen = self.seen(query, self.keys.columns());
            (self.bias_origin + seen).saturating_sub(self.first_query + query)
        };
        last(0).max(last(self.queries.columns() - 1))
    }
}

/// Attention on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait AttentionOps: DropoutOps + MatmulOps {
    /// See [`attention`].
    #[fusion(dtype = q, shape = q)]
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        visibility: Visibility,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self> {
        composed::<Self>([q, k, v, bias], &visibility, dropout)
    }

    /// Its gradients with respect to `q`, `k`, `v` and, if it is asked for, `bias` (otherwise anything).
    #[fusion(meta = |q, k, v, bias, _gradient, _visibility, _of_bias, _dropout| {
        (q.clone(), k.clone(), v.clone(), bias.clone())
    })]
    #[allow(clippy::too_many_arguments, reason = "backend extensions take tensors one by one")]
    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        visibility: Visibility,
        of_bias: bool,
        dropout: Option<Dropout>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed_backward::<Self>([q, k, v, bias, gradient], &visibility, of_bias, dropout).into()
    }

    /// See [`self_attention`].
    #[fusion(default)]
    fn self_attention_forward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        visibility: Visibility,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self> {
        in_parts::<Self>([qkv, bias], visibility, dropout)
    }

    /// Its gradients with respect to `qkv` and, if it is asked for, `bias` (otherwise anything).
    #[fusion(default)]
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        visibility: Visibility,
        of_bias: bool,
        dropout: Option<Dropout>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        in_parts_backward::<Self>([qkv, bias, gradient], visibility, of_bias, dropout)
    }
}

/// [`AttentionOps`] by kernels.
pub(crate) trait AttentionKernels: DropoutOps + MatmulOps {
    /// Of queries, keys, values and bias.
    fn try_attention(
        inputs: [FloatTensor<Self>; 4],
        _visibility: &Visibility,
        _dropout: Option<Dropout>,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 4]> {
        Err(inputs)
    }

    /// The gradients of these, from them and the gradient of the output.
    fn try_attention_backward(
        inputs: [FloatTensor<Self>; 5],
        _visibility: &Visibility,
        _of_bias: bool,
        _dropout: Option<Dropout>,
    ) -> Result<[FloatTensor<Self>; 4], [FloatTensor<Self>; 5]> {
        Err(inputs)
    }

    /// Of queries, keys and values in one matrix, and the bias.
    fn try_self_attention(
        inputs: [FloatTensor<Self>; 2],
        _visibility: &Visibility,
        _dropout: Option<Dropout>,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 2]> {
        Err(inputs)
    }

    /// The gradients of these, from them and the gradient of the output.
    fn try_self_attention_backward(
        inputs: [FloatTensor<Self>; 3],
        _visibility: &Visibility,
        _of_bias: bool,
        _dropout: Option<Dropout>,
    ) -> Result<[FloatTensor<Self>; 2], [FloatTensor<Self>; 3]> {
        Err(inputs)
    }
}

impl<B: AttentionKernels> AttentionOps for B {
    fn attention_forward(
        q: FloatTensor<B>,
        k: FloatTensor<B>,
        v: FloatTensor<B>,
        bias: FloatTensor<B>,
        visibility: Visibility,
        dropout: Option<Dropout>,
    ) -> FloatTensor<B> {
        fused(
            "attention_forward",
            [q, k, v, bias],
            |inputs| B::try_attention(inputs, &visibility, dropout),
            |inputs| composed::<B>(inputs, &visibility, dropout),
        )
    }

    fn attention_backward(
        q: FloatTensor<B>,
        k: FloatTensor<B>,
        v: FloatTensor<B>,
        bias: FloatTensor<B>,
        gradient: FloatTensor<B>,
        visibility: Visibility,
        of_bias: bool,
        dropout: Option<Dropout>,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        fused(
            "attention_backward",
            [q, k, v, bias, gradient],
            |inputs| B::try_attention_backward(inputs, &visibility, of_bias, dropout),
            |inputs| composed_backward::<B>(inputs, &visibility, of_bias, dropout),
        )
        .into()
    }

    fn self_attention_forward(
        qkv: FloatTensor<B>,
        bias: FloatTensor<B>,
        visibility: Visibility,
        dropout: Option<Dropout>,
    ) -> FloatTensor<B> {
        fused(
            "self_attention_forward",
            [qkv, bias],
            |inputs| B::try_self_attention(inputs, &visibility, dropout),
            |inputs| in_parts::<B>(inputs, visibility.clone(), dropout),
        )
    }

    fn self_attention_backward(
        qkv: FloatTensor<B>,
        bias: FloatTensor<B>,
        gradient: FloatTensor<B>,
        visibility: Visibility,
        of_bias: bool,
        dropout: Option<Dropout>,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        fused(
            "self_attention_backward",
            [qkv, bias, gradient],
            |inputs| B::try_self_attention_backward(inputs, &visibility, of_bias, dropout).map(Into::into),
            |inputs| in_parts_backward::<B>(inputs, visibility.clone(), of_bias, dropout),
        )
    }
}

/// [`self_attention`] with its parts taken out of their matrix.
fn in_parts<B: AttentionOps>(
    [qkv, bias]: [FloatTensor<B>; 2],
    visibility: Visibility,
    dropout: Option<Dropout>,
) -> FloatTensor<B> {
    let [q, k, v] = parts::<B, 3>(&qkv);
    B::attention_forward(q, k, v, bias, visibility, dropout)
}

/// Its gradients, put together again.
fn in_parts_backward<B: AttentionOps>(
    [qkv, bias, gradient]: [FloatTensor<B>; 3],
    visibility: Visibility,
    of_bias: bool,
    dropout: Option<Dropout>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [q, k, v] = parts::<B, 3>(&qkv);
    let (q, k, v, bias) = B::attention_backward(q, k, v, bias, gradient, visibility, of_bias, dropout);
    (B::float_cat(vec![q, k, v], 1), bias)
}

/// The score of a key that is not seen. Its softmax is zero, and since it is finite no NaN can arise.
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
fn bias_columns<B: Backend>(bias: &FloatTensor<B>, visibility: &Visibility) -> IntTensor<B> {
    let (device, columns) = (bias.device(), bias.shape()[1] as i64);
    let (queries, keys) = (visibility.queries.columns(), visibility.keys.columns());
    let range = |count: usize, shape: [usize; 2]| {
        B::int_reshape(B::int_arange(0..count as i64, &device, IntDType::I32), Shape::from(shape))
    };
    let expand = |x| B::int_expand(x, Shape::from([queries, keys]));
    let distance = B::int_sub(expand(range(keys, [1, keys])), expand(range(queries, [queries, 1])));
    let column = B::int_add_scalar(distance, ((visibility.bias_origin - visibility.first_query) as i64).into());
    B::int_reshape(B::int_clamp(column, 0.into(), (columns - 1).into()), Shape::from([queries * keys]))
}

/// True where a query may not look at a key: `[rows, 1, queries or 1, keys]`.
fn mask<B: Backend>(visibility: &Visibility, device: &Device<B>) -> BoolTensor<B> {
    let (rows, keys) = (visibility.keys.rows(), visibility.keys.columns());
    let queries = if visibility.causal { visibility.queries.columns() } else { 1 };
    let of_row = |length: usize| {
        let of_query = move |query| (0..keys).map(move |key| key >= visibility.seen(query, keys).min(length));
        (0..queries).flat_map(of_query)
    };
    let mask: Vec<bool> = visibility.keys.lengths().iter().flat_map(|length| of_row(*length)).collect();
    bools::<B>(TensorData::new(mask, [rows, 1, queries, keys]), device)
}

/// The weights before dropout, `[rows, heads, queries, keys]`, of rows.
fn weights<B: MatmulOps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    bias: FloatTensor<B>,
    visibility: &Visibility,
) -> FloatTensor<B> {
    let device = q.device();
    let scores = product_with_transposed::<B>(q, k);
    let scores = if bias.shape().num_elements() == 1 {
        B::float_add(scores, B::float_reshape(bias, Shape::from([1; 4])))
    } else {
        let columns = bias_columns::<B>(&bias, visibility);
        let shape = [1, visibility.heads, visibility.queries.columns(), visibility.keys.columns()];
        B::float_add(scores, B::float_reshape(B::float_select(bias, 1, columns), Shape::from(shape)))
    };
    let mask = B::bool_expand(mask::<B>(visibility, &device), scores.shape());
    B::softmax(B::float_mask_fill(scores, mask, MASKED.into()), 3)
}

fn composed<B: DropoutOps + MatmulOps>(
    [q, k, v, bias]: [FloatTensor<B>; 4],
    visibility: &Visibility,
    dropout: Option<Dropout>,
) -> FloatTensor<B> {
    let q = to_rows::<B>(q, &visibility.queries, visibility.heads);
    let [k, v] = [k, v].map(|x| to_rows::<B>(x, &visibility.keys, visibility.heads));
    let weights = drop::<B>(weights::<B>(q, k, bias, visibility), dropout);
    to_tokens::<B>(product::<B>(weights, v), &visibility.queries)
}

fn composed_backward<B: DropoutOps + MatmulOps>(
    [q, k, v, bias, gradient]: [FloatTensor<B>; 5],
    visibility: &Visibility,
    of_bias: bool,
    dropout: Option<Dropout>,
) -> [FloatTensor<B>; 4] {
    let [q, gradient] = [q, gradient].map(|x| to_rows::<B>(x, &visibility.queries, visibility.heads));
    let gradient = without_padding::<B>(gradient, &visibility.queries);
    let [k, v] = [k, v].map(|x| to_rows::<B>(x, &visibility.keys, visibility.heads));
    let weights = weights::<B>(q.clone(), k.clone(), bias.clone(), visibility);
    let dropped = drop::<B>(weights.clone(), dropout);
    let of_v = product::<B>(transposed::<B>(dropped), gradient.clone());
    let of_weights = drop::<B>(product_with_transposed::<B>(gradient, v), dropout);
    // The gradient of a softmax: `weights * (of_weights - sum(weights * of_weights))`.
    let sum = B::float_sum_dim(B::float_mul(weights.clone(), of_weights.clone()), 3);
    let scores = B::float_mul(weights, B::float_sub(of_weights, sum));
    let of_bias = match of_bias {
        false => bias,
        true if bias.shape().num_elements() == 1 => {
            B::float_reshape(B::float_sum_dims(scores.clone(), &[0, 1, 2, 3]), Shape::from([1, 1]))
        }
        true => {
            let (columns, shape) = (bias_columns::<B>(&bias, visibility), scores.shape());
            let sums = B::float_reshape(
                B::float_sum_dim(scores.clone(), 0),
                Shape::from([visibility.heads, shape[2] * shape[3]]),
            );
            let zeros = B::float_zeros(bias.shape(), &bias.device(), bias.dtype().into());
            B::float_select_assign(zeros, 1, columns, sums, IndexingUpdateOp::Add)
        }
    };
    let of_k = product::<B>(transposed::<B>(scores.clone()), q);
    let of_q = product::<B>(scores, k);
    let [of_k, of_v] = [of_k, of_v].map(|x| to_tokens::<B>(x, &visibility.keys));
    [to_tokens::<B>(of_q, &visibility.queries), of_k, of_v, of_bias]
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        visibility: Visibility,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self> {
        record::<B, C, _, 4>(
            [q, k, v, bias],
            |inputs| {
                let [q, k, v, bias] = inputs.clone();
                (B::attention_forward(q, k, v, bias, visibility.clone(), dropout), (inputs, visibility, dropout))
            },
            |([q, k, v, bias], visibility, dropout), gradient, [.., of_bias]| {
                assert!(!visibility.keys.is_shared(), "rows that share their keys have no gradient");
                let gradients = B::attention_backward(q, k, v, bias, gradient, visibility, of_bias, dropout);
                <[_; 4]>::from(gradients).map(Some)
            },
        )
    }

    fn self_attention_forward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        visibility: Visibility,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self> {
        record::<B, C, _, 2>(
            [qkv, bias],
            |[qkv, bias]| {
                let output = B::self_attention_forward(qkv.clone(), bias.clone(), visibility.clone(), dropout);
                (output, (qkv, bias, visibility, dropout))
            },
            |(qkv, bias, visibility, dropout), gradient, [_, of_bias]| {
                let gradients = B::self_attention_backward(qkv, bias, gradient, visibility, of_bias, dropout);
                <[_; 2]>::from(gradients).map(Some)
            },
        )
    }
}
