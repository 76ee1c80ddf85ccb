//! The operations in `f64` as plain loops over row-major values: what the tests hold to be right. They share nothing
//! with the crate.
#![allow(dead_code, reason = "each test file uses its part")]

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use sideburn_kernels::Key;

/// Numbers with a magnitude in `[0.2, 1.5)`, so that no derivative is extreme; exact in `f32`.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let (sign, magnitude) = (Key::from_seed(seed).fold_in(0), Key::from_seed(seed).fold_in(1));
    let number = |i| (0.2 + 1.3 * magnitude.uniform(i)) * if sign.uniform(i) < 0.5 { -1.0 } else { 1.0 };
    (0..count as u64).map(|i| f64::from(number(i) as f32)).collect()
}

pub(crate) fn tensor<const D: usize>(values: &[f64], shape: [usize; D], device: &Device, dtype: DType) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, dtype))
}

pub(crate) fn f32s<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    tensor(&numbers(seed, shape.iter().product()), shape, device, DType::F32)
}

pub(crate) fn mask<const D: usize>(masked: &[bool], shape: [usize; D], device: &Device) -> Tensor<D, Bool> {
    Tensor::from_data(TensorData::new(masked.to_vec(), shape), device)
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

pub(crate) fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u8> {
    tensor.into_data().as_bytes().to_vec()
}

/// Panics unless `actual` is within `tolerance` of `expected`, relative to the largest expected value.
pub(crate) fn assert_near(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_near_at_scale(what, actual, expected, tolerance, 0.1);
}

/// The same with the largest expected value taken to be at least `scale`, for sums that cancel.
pub(crate) fn assert_near_at_scale(what: &str, actual: &[f64], expected: &[f64], tolerance: f64, scale: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(scale, |largest, x| largest.max(x.abs()));
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = (actual - expected).abs() / largest;
        assert!(error <= tolerance, "{what}[{index}]: {actual} instead of {expected}, off by {error:e}");
    }
}

/// Compares a fused operation, its value and the gradient of every input, with the loops, in `f32` (the kernels) and in
/// `f64` (the composed form). The gradients expected are five-point differences of the loops, at places spread
/// over each input.
pub(crate) fn check(
    inputs: &[Vec<f64>],
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    op: impl Fn(&[Tensor<1>]) -> Tensor<1>,
) {
    check_at_scale([0.1, 0.1], inputs, reference, op);
}

/// The same where values and gradients below these scales are what is left of larger terms that cancel.
pub(crate) fn check_at_scale(
    [of_values, of_gradients]: [f64; 2],
    inputs: &[Vec<f64>],
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    op: impl Fn(&[Tensor<1>]) -> Tensor<1>,
) {
    const PLACES: usize = 48;
    let device = Device::flex().autodiff();
    let expected = reference(inputs);
    let weights = numbers(99, expected.len());
    let loss = |inputs: &[Vec<f64>]| reference(inputs).iter().zip(&weights).map(|(y, w)| y * w).sum::<f64>();
    let difference = |input: usize, place: usize| {
        const STEP: f64 = 1e-3;
        let mut moved = inputs.to_vec();
        let mut at = |steps: f64| {
            moved[input][place] = inputs[input][place] + steps * STEP;
            loss(&moved)
        };
        (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP)
    };
    let places: Vec<Vec<usize>> = inputs
        .iter()
        .enumerate()
        .map(|(input, values)| {
            let spread = |i| Key::from_seed(input as u64).below(i as u64, values.len() as u64) as usize;
            if values.len() <= PLACES { (0..values.len()).collect() } else { (0..PLACES).map(spread).collect() }
        })
        .collect();
    let slopes: Vec<Vec<f64>> = places
        .iter()
        .enumerate()
        .map(|(input, places)| places.iter().map(|place| difference(input, *place)).collect())
        .collect();

    for (dtype, value_tolerance, gradient_tolerance) in [(DType::F32, 1e-5, 1e-5), (DType::F64, 1e-9, 1e-8)] {
        let leaves: Vec<Tensor<1>> =
            inputs.iter().map(|x| tensor(x, [x.len()], &device, dtype).require_grad()).collect();
        let output = op(&leaves);
        assert_eq!(output.dtype(), dtype);
        let actual = values(output.clone());
        assert_near_at_scale(&format!("{dtype:?} value"), &actual, &expected, value_tolerance, of_values);
        let gradients = (output * tensor(&weights, [weights.len()], &device, dtype)).sum().backward();
        for (input, leaf) in leaves.iter().enumerate() {
            let gradient = values(leaf.grad(&gradients).expect("a gradient for every input"));
            assert_eq!(gradient.len(), inputs[input].len());
            let actual: Vec<f64> = places[input].iter().map(|place| gradient[*place]).collect();
            let what = format!("{dtype:?} gradient of input {input}");
            assert_near_at_scale(&what, &actual, &slopes[input], gradient_tolerance, of_gradients);
        }
    }
}

/// `x [n, m] * y^T` with `y [p, m]`.
fn product_transposed(x: &[f64], y: &[f64], m: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    x.chunks(m).flat_map(|x| y.chunks(m).map(move |y| dot(x, y))).collect()
}

pub(crate) fn low_rank(
    x: &[f64],
    a: &[f64],
    b: &[f64],
    kept: &[f64],
    [width, rank]: [usize; 2],
    scale: f64,
) -> Vec<f64> {
    let dropped: Vec<f64> = x.iter().zip(kept).map(|(x, kept)| x * kept).collect();
    let product = product_transposed(&product_transposed(&dropped, a, width), b, rank);
    product.iter().map(|x| scale * x).collect()
}

/// Of batches of matrices.
pub(crate) fn matmul(lhs: &[f64], rhs: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let of_batch = |(lhs, rhs): (&[f64], &[f64])| -> Vec<f64> {
        let number = |at: usize| (0..k).map(|term| lhs[at / n * k + term] * rhs[term * n + at % n]).sum();
        (0..m * n).map(number).collect()
    };
    lhs.chunks(m * k).zip(rhs.chunks(k * n)).flat_map(of_batch).collect()
}

pub(crate) fn embedding(table: &[f64], ids: &[usize], width: usize) -> Vec<f64> {
    ids.iter().flat_map(|id| (0..width).map(move |column| table[id * width + column])).collect()
}

pub(crate) fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(weight.len()) {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        out.extend(row.iter().zip(weight).map(|(x, w)| x / (mean_square + epsilon).sqrt() * w));
    }
    out
}

pub(crate) fn gelu_gate(gate: &[f64], up: &[f64]) -> Vec<f64> {
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    gate.iter().zip(up).map(|(gate, up)| gelu(*gate) * up).collect()
}

pub(crate) fn cross_entropy(logits: &[f64], labels: &[usize]) -> Vec<f64> {
    let rows = logits.chunks(logits.len() / labels.len()).zip(labels);
    rows.map(|(row, label)| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - row[*label]
    })
    .collect()
}

/// The losses of [`cross_entropy`], smoothed, of the logits `hidden W^T`.
pub(crate) fn linear_cross_entropy(
    hidden: &[f64],
    weight: &[f64],
    labels: &[usize],
    d: usize,
    smoothing: f64,
) -> Vec<f64> {
    let logits = product_transposed(hidden, weight, d);
    let classes = weight.len() / d;
    let one = cross_entropy(&logits, labels);
    // The mean over all classes of the loss that each would have as the label.
    let mean = logits.chunks(classes).zip(labels).zip(&one).map(|((row, label), loss)| {
        let normaliser = loss + row[*label];
        normaliser - row.iter().sum::<f64>() / classes as f64
    });
    one.iter().zip(mean).map(|(one, mean)| (1.0 - smoothing) * one + smoothing * mean).collect()
}

pub(crate) fn linear(x: &[f64], weight: &[f64], input: usize) -> Vec<f64> {
    product_transposed(x, weight, input)
}

/// One attention: how many queries and keys each row has, and who sees whom.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) queries: Vec<usize>,
    pub(crate) keys: Vec<usize>,
    pub(crate) heads: usize,
    /// Heads of the keys.
    pub(crate) kv_heads: usize,
    pub(crate) width: usize,
    /// The place of the first query among the keys, if no query sees keys behind its own place.
    pub(crate) causal_from: Option<usize>,
    /// Columns of the bias; 0 for none.
    pub(crate) distances: usize,
    /// The column for a key at its query's place.
    pub(crate) origin: usize,
    /// Whether each key has a column of its own instead.
    pub(crate) by_place: bool,
}

impl Sizes {
    pub(crate) fn q(&self) -> [usize; 2] {
        [self.queries.iter().sum(), self.heads * self.width]
    }

    pub(crate) fn k(&self) -> [usize; 2] {
        [self.keys.iter().sum(), self.kv_heads * self.width]
    }

    pub(crate) fn bias(&self) -> [usize; 2] {
        [self.heads, self.distances]
    }

    /// The shape that masks are drawn for.
    pub(crate) fn scores(&self) -> [usize; 4] {
        let most = |lengths: &[usize]| lengths.iter().copied().max().unwrap();
        [self.queries.len(), self.heads, most(&self.queries), most(&self.keys)]
    }
}

/// The cosines of each token's angles and then their sines.
pub(crate) fn cos_sin(angles: &[Vec<f64>], device: &Device, dtype: DType) -> Tensor<2> {
    let functions: [fn(f64) -> f64; 2] = [f64::cos, f64::sin];
    let of_token = |angles: &Vec<f64>| functions.map(|f| angles.iter().copied().map(f).collect::<Vec<_>>()).concat();
    let values: Vec<f64> = angles.iter().flat_map(of_token).collect();
    tensor(&values, [angles.len(), values.len() / angles.len()], device, dtype)
}

/// Each head `width` wide of `x`, of which each token has `columns`, turned by the angles of its token.
pub(crate) fn rotary(x: &[f64], angles: &[Vec<f64>], columns: usize, width: usize) -> Vec<f64> {
    let mut out = x.to_vec();
    for (token, angles) in angles.iter().enumerate() {
        for head in (token * columns..(token + 1) * columns).step_by(width) {
            for (pair, angle) in angles.iter().enumerate() {
                let (a, b) = (x[head + pair], x[head + width / 2 + pair]);
                out[head + pair] = a * angle.cos() - b * angle.sin();
                out[head + width / 2 + pair] = b * angle.cos() + a * angle.sin();
            }
        }
    }
    out
}

pub(crate) fn attention(sizes: &Sizes, inputs: &[Vec<f64>], kept: &[f64]) -> Vec<f64> {
    let [q, k, v, bias @ ..] = inputs else { panic!("three inputs at least") };
    let [_, _, most_queries, most_keys] = sizes.scores();
    let together = sizes.heads / sizes.kv_heads;
    let mut out = vec![0.0; q.len()];
    let (mut first_query, mut first_key) = (0, 0);
    for (row, (queries, keys)) in sizes.queries.iter().zip(&sizes.keys).enumerate() {
        for head in 0..sizes.heads {
            for query in 0..*queries {
                let seen = sizes.causal_from.map_or(*keys, |first| (first + query + 1).min(*keys));
                let at = |token: usize, x: usize| (token * sizes.heads + head) * sizes.width + x;
                let seen_at = |token: usize, x: usize| (token * sizes.kv_heads + head / together) * sizes.width + x;
                let weight = |key: usize| {
                    let product = |x| q[at(first_query + query, x)] * k[seen_at(first_key + key, x)];
                    let score: f64 = (0..sizes.width).map(product).sum();
                    let bias = if sizes.distances == 0 {
                        0.0
                    } else if sizes.by_place {
                        bias[0][head * sizes.distances + key]
                    } else {
                        let place = sizes.causal_from.unwrap_or(0) + query;
                        bias[0][head * sizes.distances + sizes.origin + key - place]
                    };
                    (score + bias).exp()
                };
                let weights: Vec<f64> = (0..seen).map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for (key, weight) in weights.iter().enumerate() {
                    let place = ((row * sizes.heads + head) * most_queries + query) * most_keys + key;
                    for x in 0..sizes.width {
                        out[at(first_query + query, x)] += weight / sum * kept[place] * v[seen_at(first_key + key, x)];
                    }
                }
            }
        }
        (first_query, first_key) = (first_query + queries, first_key + keys);
    }
    out
}
