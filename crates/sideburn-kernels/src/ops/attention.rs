//! Attention over rows of tokens, each row by itself.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
#[cfg(feature = "gpu")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{BoolTensor, Device, FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension, get_or_init_device_settings};
use burn::tensor::{IndexingUpdateOp, IntDType, Shape, Slice, Tensor, TensorData};
use sideburn_batch::Dropout;

use super::dropout::drop;
use super::matmul::{MatmulOps, product, product_with_transposed, transposed};
use super::rotary::{RotaryOps, assert_turns};
use super::tape::record;
use super::{fused, without_gradient};
use crate::RowLayout;

/// Which keys each query sees, and which column of the bias is added to its score with a key.
///
/// The bias goes by distance. Query `i` of a row stands at place `first_query + i`, key `j` at place `j`; their score
/// gets column `bias_origin + j - (first_query + i)` of the bias. With `bias_origin` 3 and `first_query` 0, query 0
/// takes columns 3, 4, 5, .. for keys 0, 1, 2, .., and query 2 takes columns 1, 2, 3, ... Or it goes by the place of the key
/// alone (`bias_by_place`): then key `j` takes column `j`, whatever the query.
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
    /// Whether the bias goes by the place of the key, not by its distance from the query.
    pub bias_by_place: bool,
    /// Whether the queries of each row are at the places of its last keys, wherever these are, and `first_query` says nothing.
    pub at_end: bool,
}

/// How queries, keys and values of all heads lie side by side in one matrix, and what scores are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Projections {
    /// Heads of the keys and values, a divisor of those of the queries: query head `h` looks through head
    /// `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// What scores are multiplied by, before a bias is added.
    pub scale: f64,
    /// Whether columns go by heads of keys: the queries that look through the first of them, that head's key and its value,
    /// then the queries of the second. Otherwise all queries come first, then all keys, then all values.
    pub grouped: bool,
}

impl Projections {
    /// As many heads of keys as of queries, all queries first, without a scale.
    pub fn of(heads: usize) -> Self {
        Self { kv_heads: heads, scale: 1.0, grouped: false }
    }

    /// The width of a head, where queries have so many and the matrix has so many columns.
    pub(crate) fn width(&self, heads: usize, columns: usize) -> usize {
        columns / (heads + 2 * self.kv_heads)
    }

    /// Where the columns of queries, keys and values begin.
    pub(crate) fn columns(&self, heads: usize, width: usize) -> [Columns; 3] {
        let together = heads / self.kv_heads;
        match self.grouped {
            true => [0, together, together + 1]
                .map(|first| Columns { first: first * width, stride: (together + 2) * width }),
            false => {
                let of = |first: usize, stride: usize| Columns { first: first * width, stride: stride * width };
                [of(0, together), of(heads, 1), of(heads + self.kv_heads, 1)]
            }
        }
    }
}

/// Where the columns of a head of keys, or of the queries that look through it, begin in a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    /// Of the first head.
    pub(crate) first: usize,
    /// How much further those of the next are.
    pub(crate) stride: usize,
}

/// What an attention is, beside its tensors.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    pub(crate) visibility: Visibility,
    /// Whether there is a bias. Otherwise some other tensor stands in its place.
    pub(crate) biased: bool,
    pub(crate) dropout: Option<Dropout>,
}

/// What an attention of tokens to each other is, beside its tensors.
#[derive(Clone, Debug)]
pub(crate) struct SelfForm {
    pub(crate) form: Form,
    pub(crate) projections: Projections,
    /// Whether there are angles. Otherwise some other tensor stands in their place.
    pub(crate) rotary: bool,
}

impl SelfForm {
    /// The shape of the output, of queries, keys and values in a matrix of this shape.
    #[cfg(feature = "gpu")]
    fn output(&self, qkv: &Shape) -> Shape {
        let heads = self.form.visibility.heads;
        Shape::from([qkv[0], heads * self.projections.width(heads, qkv[1])])
    }
}

/// Attention with a bias by distance, `dropout(softmax(q k^T + bias)) v`, row by row and head by head. Scores are not
/// scaled (as in T5: Raffel et al., 2020, section 2.1): scale `q` for that. The backward pass computes them again; on
/// the CPU they are in memory for a few queries at a time. Keys that several heads of queries look through (Shazeer, 2019;
/// Ainslie et al., 2023) are never repeated in memory.
///
/// # Shapes
/// `q [queries, heads * width]`, `k` and `v [keys, kv_heads * width]`, as `visibility` lays out the rows, where query head
/// `h` looks through head `h / (heads / kv_heads)`, and a bias `[heads, distances]` give `[queries, heads * width]`. The
/// output at a token that belongs to no row is finite and means nothing.
///
/// # Panics
/// If the shapes do not fit, or the bias has no column for some distance.
pub fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    bias: Option<Tensor<2>>,
    visibility: &Visibility,
    dropout: Option<Dropout>,
) -> Tensor<2> {
    visibility.assert_fits(q.dims(), k.dims(), v.dims());
    visibility.assert_has_columns(&bias);
    let form = Form { visibility: visibility.clone(), biased: bias.is_some(), dropout };
    let [k, v, bias] = [k, v, bias.unwrap_or_else(|| without_gradient(&q))].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::attention_forward(q.into_dispatch(), k, v, bias, form))
}

/// [`attention`] of tokens to each other, with queries, keys and values side by side in
/// `qkv [tokens, (heads + 2 * kv_heads) * width]`, as layers give them. They are read in place, and so are their gradients written. With `cos_sin [tokens,
/// width]`, queries and keys are turned before, as by [`rotary`](crate::rotary), and what was turned is not kept.
///
/// # Panics
/// As there, and if `kv_heads` does not divide the heads.
pub fn self_attention(
    qkv: Tensor<2>,
    projections: Projections,
    bias: Option<Tensor<2>>,
    cos_sin: Option<Tensor<2>>,
    visibility: &Visibility,
    dropout: Option<Dropout>,
) -> Tensor<2> {
    let ([tokens, columns], Projections { kv_heads, .. }, heads) = (qkv.dims(), projections, visibility.heads);
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{kv_heads} heads of keys do not divide {heads} heads");
    let all = heads + 2 * kv_heads;
    assert!(columns.is_multiple_of(all), "{columns} columns do not make {all} heads of queries, keys and values");
    let width = columns / all;
    let [own, seen] = [heads, kv_heads].map(|heads| [tokens, heads * width]);
    visibility.assert_fits(own, seen, seen);
    visibility.assert_has_columns(&bias);
    if let Some(cos_sin) = &cos_sin {
        assert_turns(own, cos_sin.dims());
        assert_eq!(cos_sin.dims()[1], width, "the angles of a head {width} wide");
    }
    let form = Form { visibility: visibility.clone(), biased: bias.is_some(), dropout };
    let form = SelfForm { form, projections, rotary: cos_sin.is_some() };
    let cos_sin = without_gradient(cos_sin.as_ref().unwrap_or(&qkv));
    let bias = bias.unwrap_or_else(|| without_gradient(&qkv));
    let [qkv, bias, cos_sin] = [qkv, bias, cos_sin].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::self_attention_forward(qkv, bias, cos_sin, form))
}

impl Visibility {
    /// Every query sees all keys of its row, and has no distance to them: the attention of a decoder to what was
    /// encoded.
    pub fn full(heads: usize, queries: &RowLayout, keys: &RowLayout) -> Self {
        let (queries, keys) = (queries.clone(), keys.clone());
        Self {
            heads,
            queries,
            keys,
            causal: false,
            bias_origin: 0,
            first_query: 0,
            bias_by_place: false,
            at_end: false,
        }
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

    /// Every query sees the keys of its row up to its own place; the queries of a row, as many of each, are its last keys. For
    /// rows of different lengths that are gone on with. A bias goes by place.
    pub fn at_end(heads: usize, queries: &RowLayout, keys: &RowLayout) -> Self {
        let visibility = Self::full(heads, queries, keys).with_bias_by_place();
        Self { causal: true, at_end: true, ..visibility }
    }

    /// The same with a bias by the place of the key, which has a column for each.
    pub fn with_bias_by_place(self) -> Self {
        Self { bias_by_place: true, ..self }
    }

    /// How many of `keys` keys the query with this index sees.
    pub(crate) fn seen(&self, query: usize, keys: usize) -> usize {
        match (self.causal, self.at_end) {
            (false, _) => keys,
            (true, false) => keys.min(self.first_query + query + 1),
            (true, true) => (keys + query + 1).saturating_sub(self.queries.columns()).min(keys),
        }
    }

    /// The column of the bias for the first key, as the query with this index sees it.
    pub(crate) fn first_column(&self, query: usize) -> usize {
        if self.bias_by_place { 0 } else { self.bias_origin - self.first_query - query }
    }

    fn assert_fits(&self, q: [usize; 2], k: [usize; 2], v: [usize; 2]) {
        let Self { heads, queries, keys, .. } = self;
        assert!(*heads > 0 && q[1].is_multiple_of(*heads), "{} columns do not make {heads} heads", q[1]);
        assert_eq!(k, v, "k and v must have one shape");
        let (own, kv_heads) = (q[1] / heads, k[1] * heads / q[1].max(1));
        assert!(
            k[1] == kv_heads * own && kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "q [queries, heads * width] and k [keys, kv_heads * width] must fit"
        );
        assert_eq!(queries.rows(), keys.rows(), "every row of queries needs one row of keys");
        assert!(!queries.is_shared(), "every row needs queries of its own");
        assert_eq!((q[0], k[0]), (queries.tokens(), keys.tokens()), "q and k must be as their rows are laid out");
    }

    fn assert_has_columns(&self, bias: &Option<Tensor<2>>) {
        let Some([rows, columns]) = bias.as_ref().map(Tensor::dims) else { return };
        let far = self.first_query + self.queries.columns() - 1;
        let reaches = self.bias_by_place || far <= self.bias_origin;
        assert!(
            rows == self.heads && reaches && self.seen_columns() <= columns,
            "bias [{rows}, {columns}] has no column for some of the distances, or not {} heads",
            self.heads
        );
    }

    /// How many columns of the bias are in use.
    fn seen_columns(&self) -> usize {
        if self.bias_by_place {
            return self.seen(self.queries.columns() - 1, self.keys.columns());
        }
        let last = |query: usize| {
            let seen = self.seen(query, self.keys.columns());
            (self.bias_origin + seen).saturating_sub(self.first_query + query)
        };
        last(0).max(last(self.queries.columns() - 1))
    }
}

/// Attention on a backend's tensors.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait AttentionOps: MatmulOps + RotaryOps {
    /// See [`attention`].
    #[fusion(dtype = q, shape = q)]
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        composed::<Self>([q, k, v, bias], &form)
    }

    /// Its gradients with respect to `q`, `k`, `v` and, if it is asked for, `bias` (otherwise anything).
    #[fusion(meta = |q, k, v, bias, _gradient, _form, _of_bias| {
        (q.clone(), k.clone(), v.clone(), bias.clone())
    })]
    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        form: Form,
        of_bias: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed_backward::<Self>([q, k, v, bias, gradient], &form, of_bias).into()
    }

    /// See [`self_attention`].
    #[fusion(meta = |qkv, _bias, _cos_sin, form| TensorSpec::new(form.output(&qkv.shape), qkv.dtype))]
    fn self_attention_forward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        form: SelfForm,
    ) -> FloatTensor<Self> {
        in_parts::<Self>([qkv, bias, cos_sin], form)
    }

    /// Its gradients with respect to `qkv` and, if it is asked for, `bias` (otherwise anything).
    #[fusion(meta = |qkv, bias, _cos_sin, _gradient, _form, _of_bias| (qkv.clone(), bias.clone()))]
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        form: SelfForm,
        of_bias: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        in_parts_backward::<Self>([qkv, bias, cos_sin, gradient], form, of_bias)
    }
}

/// [`AttentionOps`] by kernels.
pub(crate) trait AttentionKernels: MatmulOps + RotaryOps {
    /// Of queries, keys, values and bias.
    fn try_attention(
        inputs: [FloatTensor<Self>; 4],
        _form: &Form,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 4]> {
        Err(inputs)
    }

    /// The gradients of these, from them and the gradient of the output.
    fn try_attention_backward(
        inputs: [FloatTensor<Self>; 5],
        _form: &Form,
        _of_bias: bool,
    ) -> Result<[FloatTensor<Self>; 4], [FloatTensor<Self>; 5]> {
        Err(inputs)
    }

    /// Of queries, keys and values in one matrix, the bias, and the angles.
    fn try_self_attention(
        inputs: [FloatTensor<Self>; 3],
        _form: &SelfForm,
    ) -> Result<FloatTensor<Self>, [FloatTensor<Self>; 3]> {
        Err(inputs)
    }

    /// The gradients of the matrix and the bias, from these and the gradient of the output.
    fn try_self_attention_backward(
        inputs: [FloatTensor<Self>; 4],
        _form: &SelfForm,
        _of_bias: bool,
    ) -> Result<[FloatTensor<Self>; 2], [FloatTensor<Self>; 4]> {
        Err(inputs)
    }
}

impl<B: AttentionKernels> AttentionOps for B {
    fn attention_forward(
        q: FloatTensor<B>,
        k: FloatTensor<B>,
        v: FloatTensor<B>,
        bias: FloatTensor<B>,
        form: Form,
    ) -> FloatTensor<B> {
        fused(
            "attention_forward",
            [q, k, v, bias],
            |inputs| B::try_attention(inputs, &form),
            |inputs| composed::<B>(inputs, &form),
        )
    }

    fn attention_backward(
        q: FloatTensor<B>,
        k: FloatTensor<B>,
        v: FloatTensor<B>,
        bias: FloatTensor<B>,
        gradient: FloatTensor<B>,
        form: Form,
        of_bias: bool,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        fused(
            "attention_backward",
            [q, k, v, bias, gradient],
            |inputs| B::try_attention_backward(inputs, &form, of_bias),
            |inputs| composed_backward::<B>(inputs, &form, of_bias),
        )
        .into()
    }

    fn self_attention_forward(
        qkv: FloatTensor<B>,
        bias: FloatTensor<B>,
        cos_sin: FloatTensor<B>,
        form: SelfForm,
    ) -> FloatTensor<B> {
        fused(
            "self_attention_forward",
            [qkv, bias, cos_sin],
            |inputs| B::try_self_attention(inputs, &form),
            |inputs| in_parts::<B>(inputs, form.clone()),
        )
    }

    fn self_attention_backward(
        qkv: FloatTensor<B>,
        bias: FloatTensor<B>,
        cos_sin: FloatTensor<B>,
        gradient: FloatTensor<B>,
        form: SelfForm,
        of_bias: bool,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        fused(
            "self_attention_backward",
            [qkv, bias, cos_sin, gradient],
            |inputs| B::try_self_attention_backward(inputs, &form, of_bias).map(Into::into),
            |inputs| in_parts_backward::<B>(inputs, form.clone(), of_bias),
        )
    }
}

/// [`self_attention`] with its parts taken out of their matrix.
fn in_parts<B: AttentionOps>([qkv, bias, cos_sin]: [FloatTensor<B>; 3], form: SelfForm) -> FloatTensor<B> {
    let [q, k, v] = taken_out::<B>(qkv, cos_sin, &form);
    let bias = if form.form.biased { bias } else { q.clone() };
    B::attention_forward(q, k, v, bias, form.form)
}

/// Its gradients, put together again.
fn in_parts_backward<B: AttentionOps>(
    [qkv, bias, cos_sin, gradient]: [FloatTensor<B>; 4],
    form: SelfForm,
    of_bias: bool,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let SelfForm { projections, rotary, .. } = form;
    let [q, k, v] = taken_out::<B>(qkv, cos_sin.clone(), &form);
    let bias = if form.form.biased { bias } else { q.clone() };
    let heads = form.form.visibility.heads;
    let (q, k, v, bias) = B::attention_backward(q, k, v, bias, gradient, form.form, of_bias);
    let [q, k] = [q, k].map(|x| if rotary { B::rotary(x, cos_sin.clone(), true) } else { x });
    let q = scaled::<B>(q, projections.scale);
    if !projections.grouped {
        return (B::float_cat(vec![q, k, v], 1), bias);
    }
    let (tokens, kv_heads) = (q.shape()[0], projections.kv_heads);
    let width = q.shape()[1] / heads;
    let by_heads = |x: FloatTensor<B>| {
        let together = x.shape()[1] / (kv_heads * width);
        B::float_reshape(x, Shape::from([tokens, kv_heads, together, width]))
    };
    let all = B::float_cat([q, k, v].map(by_heads).into(), 2);
    (B::float_reshape(all, Shape::from([tokens, (heads + 2 * kv_heads) * width])), bias)
}

fn scaled<B: Backend>(x: FloatTensor<B>, scale: f64) -> FloatTensor<B> {
    if scale == 1.0 { x } else { B::float_mul_scalar(x, scale.into()) }
}

/// Queries, scaled, keys and values, turned if there are angles.
fn taken_out<B: AttentionOps>(qkv: FloatTensor<B>, cos_sin: FloatTensor<B>, form: &SelfForm) -> [FloatTensor<B>; 3] {
    let SelfForm { form, projections, rotary } = form;
    let Projections { kv_heads, scale, grouped } = *projections;
    let (heads, tokens, columns) = (form.visibility.heads, qkv.shape()[0], qkv.shape()[1]);
    let width = projections.width(heads, columns);
    let [q, k, v] = match grouped {
        false => [0..heads, heads..heads + kv_heads, heads + kv_heads..heads + 2 * kv_heads].map(|heads| {
            B::float_slice(qkv.clone(), &[Slice::full(), (heads.start * width..heads.end * width).into()])
        }),
        true => {
            let together = heads / kv_heads;
            let qkv = B::float_reshape(qkv, Shape::from([tokens, kv_heads, together + 2, width]));
            [0..together, together..together + 1, together + 1..together + 2].map(|range| {
                let shape = Shape::from([tokens, kv_heads * range.len() * width]);
                B::float_reshape(B::float_slice(qkv.clone(), &[Slice::full(), Slice::full(), range.into()]), shape)
            })
        }
    };
    let [q, k] = [q, k].map(|x| if *rotary { B::rotary(x, cos_sin.clone(), false) } else { x });
    [scaled::<B>(q, scale), k, v]
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
    let places = expand(range(keys, [1, keys]));
    let column = match visibility.bias_by_place {
        true => places,
        false => {
            let distance = B::int_sub(places, expand(range(queries, [queries, 1])));
            B::int_add_scalar(distance, ((visibility.bias_origin - visibility.first_query) as i64).into())
        }
    };
    B::int_reshape(B::int_clamp(column, 0.into(), (columns - 1).into()), Shape::from([queries * keys]))
}

/// True where a query may not look at a key: `[rows, 1, queries or 1, keys]`.
fn mask<B: Backend>(visibility: &Visibility, device: &Device<B>) -> BoolTensor<B> {
    let (rows, keys) = (visibility.keys.rows(), visibility.keys.columns());
    let queries = if visibility.causal { visibility.queries.columns() } else { 1 };
    let of_row = |length: usize| {
        let of_query = move |query| (0..keys).map(move |key| key >= visibility.seen(query, length));
        (0..queries).flat_map(of_query)
    };
    let mask: Vec<bool> = visibility.keys.lengths().iter().flat_map(|length| of_row(*length)).collect();
    bools::<B>(TensorData::new(mask, [rows, 1, queries, keys]), device)
}

/// Rows `[rows, heads, a, b]` with all heads that look through one head of keys as one: `[rows, kv_heads, together * a, b]`.
fn together<B: Backend>(x: FloatTensor<B>, kv_heads: usize) -> FloatTensor<B> {
    let shape = x.shape();
    if shape[1] == kv_heads {
        return x;
    }
    B::float_reshape(x, Shape::from([shape[0], kv_heads, shape[1] / kv_heads * shape[2], shape[3]]))
}

/// The inverse.
fn apart<B: Backend>(x: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
    let shape = x.shape();
    if shape[1] == heads {
        return x;
    }
    B::float_reshape(x, Shape::from([shape[0], heads, shape[2] * shape[1] / heads, shape[3]]))
}

/// The weights before dropout, `[rows, heads, queries, keys]`, of rows.
fn weights<B: MatmulOps>(q: FloatTensor<B>, k: FloatTensor<B>, bias: FloatTensor<B>, form: &Form) -> FloatTensor<B> {
    let (device, visibility, kv_heads) = (q.device(), &form.visibility, k.shape()[1]);
    let scores = product_with_transposed::<B>(together::<B>(q, kv_heads), k);
    let mut scores = apart::<B>(scores, visibility.heads);
    if form.biased {
        let columns = bias_columns::<B>(&bias, visibility);
        let shape = [1, visibility.heads, visibility.queries.columns(), visibility.keys.columns()];
        scores = B::float_add(scores, B::float_reshape(B::float_select(bias, 1, columns), Shape::from(shape)));
    }
    let mask = B::bool_expand(mask::<B>(visibility, &device), scores.shape());
    B::softmax(B::float_mask_fill(scores, mask, MASKED.into()), 3)
}

/// How many heads keys of these columns have, where queries of those have `heads`.
fn kv_heads<B: Backend>(q: &FloatTensor<B>, k: &FloatTensor<B>, heads: usize) -> usize {
    k.shape()[1] * heads / q.shape()[1]
}

fn composed<B: MatmulOps>([q, k, v, bias]: [FloatTensor<B>; 4], form: &Form) -> FloatTensor<B> {
    let Form { visibility, dropout, .. } = form;
    let kv_heads = kv_heads::<B>(&q, &k, visibility.heads);
    let q = to_rows::<B>(q, &visibility.queries, visibility.heads);
    let [k, v] = [k, v].map(|x| to_rows::<B>(x, &visibility.keys, kv_heads));
    let weights = drop::<B>(weights::<B>(q, k, bias, form), *dropout);
    let mixed = product::<B>(together::<B>(weights, kv_heads), v);
    to_tokens::<B>(apart::<B>(mixed, visibility.heads), &visibility.queries)
}

fn composed_backward<B: MatmulOps>(
    [q, k, v, bias, gradient]: [FloatTensor<B>; 5],
    form: &Form,
    of_bias: bool,
) -> [FloatTensor<B>; 4] {
    let Form { visibility, dropout, .. } = form;
    let heads = visibility.heads;
    let kv_heads = kv_heads::<B>(&q, &k, heads);
    let [q, gradient] = [q, gradient].map(|x| to_rows::<B>(x, &visibility.queries, heads));
    let gradient = without_padding::<B>(gradient, &visibility.queries);
    let [k, v] = [k, v].map(|x| to_rows::<B>(x, &visibility.keys, kv_heads));
    let weights = weights::<B>(q.clone(), k.clone(), bias.clone(), form);
    let dropped = together::<B>(drop::<B>(weights.clone(), *dropout), kv_heads);
    let gradient = together::<B>(gradient, kv_heads);
    let of_v = product::<B>(transposed::<B>(dropped), gradient.clone());
    let of_weights = apart::<B>(product_with_transposed::<B>(gradient, v), heads);
    let of_weights = drop::<B>(of_weights, *dropout);
    // The gradient of a softmax: `weights * (of_weights - sum(weights * of_weights))`.
    let sum = B::float_sum_dim(B::float_mul(weights.clone(), of_weights.clone()), 3);
    let scores = B::float_mul(weights, B::float_sub(of_weights, sum));
    let of_bias = match of_bias {
        false => bias,
        true => {
            let (columns, shape) = (bias_columns::<B>(&bias, visibility), scores.shape());
            let sums = B::float_reshape(B::float_sum_dim(scores.clone(), 0), Shape::from([heads, shape[2] * shape[3]]));
            let zeros = B::float_zeros(bias.shape(), &bias.device(), bias.dtype().into());
            B::float_select_assign(zeros, 1, columns, sums, IndexingUpdateOp::Add)
        }
    };
    let scores = together::<B>(scores, kv_heads);
    let of_k = product::<B>(transposed::<B>(scores.clone()), together::<B>(q, kv_heads));
    let of_q = apart::<B>(product::<B>(scores, k), heads);
    let [of_k, of_v] = [of_k, of_v].map(|x| to_tokens::<B>(x, &visibility.keys));
    [to_tokens::<B>(of_q, &visibility.queries), of_k, of_v, of_bias]
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        record::<B, C, _, 4>(
            [q, k, v, bias],
            |inputs| {
                let [q, k, v, bias] = inputs.clone();
                (B::attention_forward(q, k, v, bias, form.clone()), (inputs, form))
            },
            |([q, k, v, bias], form), gradient, [.., of_bias]| {
                assert!(!form.visibility.keys.is_shared(), "rows that share their keys have no gradient");
                <[_; 4]>::from(B::attention_backward(q, k, v, bias, gradient, form, of_bias)).map(Some)
            },
        )
    }

    fn self_attention_forward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        form: SelfForm,
    ) -> FloatTensor<Self> {
        record::<B, C, _, 3>(
            [qkv, bias, cos_sin],
            |inputs| {
                let [qkv, bias, cos_sin] = inputs.clone();
                (B::self_attention_forward(qkv, bias, cos_sin, form.clone()), (inputs, form))
            },
            |([qkv, bias, cos_sin], form), gradient, [_, of_bias, _]| {
                let (of_qkv, of_bias) = B::self_attention_backward(qkv, bias, cos_sin, gradient, form, of_bias);
                [Some(of_qkv), Some(of_bias), None]
            },
        )
    }
}
