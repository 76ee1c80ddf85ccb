//! Every operation and all its gradients against plain loops in `f64`, over odd shapes.

use crate::loops::{Sizes, check, check_at_scale, numbers};
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use sideburn_kernels::{
    Dropout, Key, LowRank, Projections, RowLayout, Visibility, adapted_linear, add_dropout, attention, cross_entropy,
    dropout, embedding, gelu_gate, linear, linear_cross_entropy, low_rank, matmul, rms_norm, rotary, self_attention,
};

const KEY: Key = Key::from_seed(5);

fn width() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 3, 8, 64, 128])
}

/// What [`dropout`] multiplies each element by.
fn kept<const D: usize>(shape: [usize; D], probability: f64) -> Vec<f64> {
    let ones = Tensor::<D>::ones(shape, &Device::flex());
    let kept = crate::loops::values(dropout(ones, Dropout::new(probability, KEY)));
    kept.iter().map(|x| if *x == 0.0 { 0.0 } else { 1.0 / (1.0 - probability) }).collect()
}

/// Ids of rows of a table, some of them several times.
fn ids(seed: u64, count: usize, rows: usize) -> Vec<usize> {
    (0..count as u64).map(|i| Key::from_seed(seed).below(i, rows as u64) as usize).collect()
}

/// Holds the rows `ids` of a table `[rows, d]` against the loops.
fn check_embedding(ids: &[usize], [rows, d]: [usize; 2]) {
    // A gradient is a sum over all ids of a row.
    check_at_scale(
        [0.1, 5.0],
        &[numbers(1, rows * d)],
        |x| crate::loops::embedding(&x[0], ids, d),
        |x| {
            let index: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
            let index = Tensor::<1, Int>::from_data(TensorData::new(index, [ids.len()]), &x[0].device());
            embedding(x[0].clone().reshape([rows, d]), index).reshape([ids.len() * d])
        },
    );
}

/// Rows of different lengths, each kind of visibility, with and without a bias.
fn sizes() -> impl Strategy<Value = Sizes> {
    let rows = prop::collection::vec((1..6usize, 1..8usize), 1..4);
    let heads = prop::sample::select(vec![(1, 1), (2, 2), (3, 3), (4, 2), (3, 1), (6, 2)]);
    let size = (rows, heads, prop::sample::select(vec![1, 3, 8, 64, 128]));
    (size, 0..3, any::<bool>(), any::<bool>()).prop_map(|((rows, (heads, kv_heads), width), kind, biased, by_place)| {
        let (queries, mut keys): (Vec<usize>, Vec<usize>) = rows.iter().copied().unzip();
        let longest = *queries.iter().max().unwrap();
        let before = rows[0].1 - 1;
        let (causal_from, origin, distances) = match kind {
            // All keys of another text, which have no places.
            0 => (None, longest, longest + keys.iter().max().unwrap()),
            // All keys of the same rows.
            1 => {
                keys.clone_from(&queries);
                (None, longest - 1, 2 * longest - 1)
            }
            // The keys up to the query's own, with some before the first.
            _ => {
                keys = queries.iter().map(|queries| before + queries).collect();
                (Some(before), before + longest - 1, before + longest)
            }
        };
        let distances = match (biased, by_place) {
            (false, _) => 0,
            (true, true) => *keys.iter().max().unwrap(),
            (true, false) => distances,
        };
        Sizes { queries, keys, heads, kv_heads, width, causal_from, distances, origin, by_place }
    })
}

fn visibility(sizes: &Sizes, device: &Device) -> Visibility {
    let [queries, keys] = [&sizes.queries, &sizes.keys].map(|lengths| RowLayout::packed(lengths, device));
    let visibility = match sizes.causal_from {
        Some(first) => Visibility::causal(sizes.heads, &queries, &keys, first),
        None => Visibility { bias_origin: sizes.origin, ..Visibility::full(sizes.heads, &queries, &keys) },
    };
    if sizes.by_place { visibility.with_bias_by_place() } else { visibility }
}

/// The first two of these as matrices of this shape, one beside the other.
fn beside(x: &[Tensor<1>], shape: [usize; 2]) -> Tensor<2> {
    Tensor::cat(vec![x[0].clone().reshape(shape), x[1].clone().reshape(shape)], 1)
}

/// Holds an attention of these sizes against the loops.
fn check_attention(sizes: &Sizes, seed: u64, p: f64) {
    let kept = kept(sizes.scores(), p);
    // Unscaled scores of wide heads would saturate the softmax: the queries are made smaller instead.
    let shrunk = |x: Vec<f64>| x.iter().map(|x| f64::from((x / (sizes.width as f64).sqrt()) as f32)).collect();
    let count = |shape: [usize; 2]| shape.iter().product::<usize>();
    let inputs = [
        shrunk(numbers(seed, count(sizes.q()))),
        numbers(seed + 1, count(sizes.k())),
        numbers(seed + 2, count(sizes.k())),
        numbers(seed + 3, count(sizes.bias())),
    ];
    let dropout = Dropout::new(p, KEY);
    let inputs = if sizes.distances == 0 { &inputs[..3] } else { &inputs };
    let matrices =
        |x: &[Tensor<1>]| [(0, sizes.q()), (1, sizes.k()), (2, sizes.k())].map(|(i, dims)| x[i].clone().reshape(dims));
    let bias = |x: &[Tensor<1>]| x.get(3).map(|bias| bias.clone().reshape(sizes.bias()));
    let out = count(sizes.q());
    // The gradient of a bias is a sum over all rows.
    let scale = [0.1, 0.5];
    check_at_scale(
        scale,
        inputs,
        |x| crate::loops::attention(sizes, x, &kept),
        |x| {
            let ([q, k, v], device) = (matrices(x), x[0].device());
            attention(q, k, v, bias(x), &visibility(sizes, &device), dropout).reshape([out])
        },
    );
    if sizes.queries != sizes.keys {
        return;
    }
    let tokens = sizes.q()[0];
    // Angles of any size, other ones for each token and pair.
    let angle = |token: usize, pair: usize| (token * 7 + pair * 3) as f64 * 0.37;
    let angles: Vec<Vec<f64>> =
        (0..tokens).map(|token| (0..sizes.width / 2).map(|pair| angle(token, pair)).collect()).collect();
    for (grouped, turned) in [(false, false), (true, false), (false, true), (true, true)] {
        if turned && !sizes.width.is_multiple_of(2) {
            continue;
        }
        let reference = |x: &[Vec<f64>]| {
            let mut x = x.to_vec();
            for (part, columns) in [(0, sizes.q()[1]), (1, sizes.k()[1])] {
                if turned {
                    x[part] = crate::loops::rotary(&x[part], &angles, columns, sizes.width);
                }
            }
            // What the operation multiplies scores by.
            x[0].iter_mut().for_each(|x| *x *= 0.5);
            crate::loops::attention(sizes, &x, &kept)
        };
        check_at_scale(scale, inputs, reference, |x| {
            let (device, parts) = (x[0].device(), matrices(x));
            let qkv = match grouped {
                false => Tensor::cat(parts.to_vec(), 1),
                true => {
                    let by_heads = |x: Tensor<2>| {
                        let together = x.dims()[1] / (sizes.kv_heads * sizes.width);
                        x.reshape([tokens, sizes.kv_heads, together * sizes.width])
                    };
                    let all = (sizes.heads + 2 * sizes.kv_heads) * sizes.width;
                    Tensor::<3>::cat(parts.map(by_heads).to_vec(), 2).reshape([tokens, all])
                }
            };
            let projections = Projections { kv_heads: sizes.kv_heads, scale: 0.5, grouped };
            let cos_sin = turned.then(|| crate::loops::cos_sin(&angles, &device.clone().inner(), x[0].dtype()));
            let cos_sin = cos_sin.map(Tensor::from_inner);
            self_attention(qkv, projections, bias(x), cos_sin, &visibility(sizes, &device), dropout).reshape([out])
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dropout_is_the_loops(n in 1..6usize, d in width(), p in prop::sample::select(vec![0.0, 0.1, 0.5, 0.9])) {
        let kept = kept([n, d], p);
        let reference = |x: &[Vec<f64>]| x[0].iter().zip(&kept).map(|(x, kept)| x * kept).collect();
        check(&[numbers(1, n * d)], reference, |x| {
            dropout(x[0].clone().reshape([n, d]), Dropout::new(p, KEY)).reshape([n * d])
        });
    }

    #[test]
    fn embedding_is_the_loops(rows in 1..9usize, tokens in 1..40usize, d in width(), seed in 0..99u64) {
        check_embedding(&ids(seed, tokens, rows), [rows, d]);
    }

    #[test]
    fn low_rank_is_the_loops(n in 1..6usize, d in width(), out in width(), r in 1..5usize, drop: bool) {
        let p = if drop { 0.25 } else { 0.0 };
        let (kept, scale) = (kept([n, d], p), 1.7);
        let inputs = [numbers(1, n * d), numbers(2, r * d), numbers(3, out * r)];
        let reference = |x: &[Vec<f64>]| crate::loops::low_rank(&x[0], &x[1], &x[2], &kept, [d, r], scale);
        // Values are sums over up to 128 inputs, gradients over as many outputs, twice over.
        check_at_scale([1.0, 5.0], &inputs, reference, |x| {
            let (a, b) = (x[1].clone().reshape([r, d]), x[2].clone().reshape([out, r]));
            low_rank(x[0].clone().reshape([n, d]), a, b, scale, Dropout::new(p, KEY)).reshape([n * out])
        });
    }

    #[test]
    fn matmul_is_the_loops(batch in 1..4usize, m in 1..6usize, k in width(), n in 1..6usize) {
        let inputs = [numbers(1, batch * m * k), numbers(2, batch * k * n)];
        check(&inputs, |x| crate::loops::matmul(&x[0], &x[1], [m, k, n]), |x| {
            let (lhs, rhs) = (x[0].clone().reshape([batch, m, k]), x[1].clone().reshape([batch, k, n]));
            matmul(lhs, rhs).reshape([batch * m * n])
        });
    }

    #[test]
    fn rms_norm_is_the_loops(n in 1..40usize, d in width()) {
        // With one element and a small epsilon the gradient is nothing but cancellation, in any precision.
        let epsilon = if d < 8 { 0.5 } else { 1e-6 };
        let reference = |x: &[Vec<f64>]| crate::loops::rms_norm(&x[0], &x[1], epsilon);
        check(&[numbers(1, n * d), numbers(2, d)], reference, |x| {
            rms_norm(x[0].clone().reshape([n, d]), x[1].clone(), epsilon).reshape([n * d])
        });
    }

    #[test]
    fn gelu_gate_is_the_loops(n in 1..6usize, d in width(), stretch in prop::sample::select(vec![0.1, 1.0, 2.5])) {
        let gate: Vec<f64> = numbers(1, n * d).iter().map(|x| f64::from((x * stretch) as f32)).collect();
        let reference = |x: &[Vec<f64>]| crate::loops::gelu_gate(&x[0], &x[1]);
        check(&[gate, numbers(2, n * d)], reference, |x| {
            gelu_gate(beside(x, [n, d]), None).reshape([n * d])
        });
    }

    #[test]
    fn what_is_dropped_behind_a_gate_or_before_a_sum(n in 1..6usize, d in width(), p in prop::sample::select(vec![0.1, 0.5])) {
        let kept = kept([n, d], p);
        let inputs = [numbers(1, n * d), numbers(2, n * d)];
        let drop = |x: Vec<f64>| x.iter().zip(&kept).map(|(x, kept)| x * kept).collect::<Vec<f64>>();
        check(&inputs, |x| drop(crate::loops::gelu_gate(&x[0], &x[1])), |x| {
            gelu_gate(beside(x, [n, d]), Dropout::new(p, KEY)).reshape([n * d])
        });
        let sum = |x: &[Vec<f64>]| x[0].iter().zip(drop(x[1].clone())).map(|(x, y)| x + y).collect();
        check(&inputs, sum, |x| add_dropout(x[0].clone(), x[1].clone(), Dropout::new(p, KEY)));
    }

    #[test]
    fn rotary_is_the_loops(tokens in 1..40usize, heads in 1..4usize, width in prop::sample::select(vec![2, 6, 64])) {
        let angles: Vec<Vec<f64>> = (0..tokens)
            .map(|token| (0..width / 2).map(|pair| (token * 5 + pair) as f64 * 0.61).collect())
            .collect();
        let columns = heads * width;
        check(&[numbers(1, tokens * columns)], |x| crate::loops::rotary(&x[0], &angles, columns, width), |x| {
            let cos_sin = crate::loops::cos_sin(&angles, &x[0].device(), x[0].dtype());
            rotary(x[0].clone().reshape([tokens, columns]), cos_sin).reshape([tokens * columns])
        });
    }

    #[test]
    fn linear_is_the_loops(n in 1..12usize, d in width(), out in width()) {
        check(&[numbers(1, n * d), numbers(2, out * d)], |x| crate::loops::linear(&x[0], &x[1], d), |x| {
            linear(x[0].clone().reshape([n, d]), x[1].clone().reshape([out, d])).reshape([n * out])
        });
    }

    #[test]
    fn adapted_linear_is_the_loops(n in 1..12usize, d in width(), out in width(), r in 1..5usize, drop: bool) {
        let p = if drop { 0.25 } else { 0.0 };
        let (kept, scale) = (kept([n, d], p), 1.7);
        let inputs = [numbers(1, n * d), numbers(2, out * d), numbers(3, r * d), numbers(4, out * r)];
        let reference = |x: &[Vec<f64>]| {
            let branch = crate::loops::low_rank(&x[0], &x[2], &x[3], &kept, [d, r], scale);
            crate::loops::linear(&x[0], &x[1], d).iter().zip(branch).map(|(y, branch)| y + branch).collect()
        };
        // Gradients are sums over up to 128 outputs, twice over.
        check_at_scale([0.1, 5.0], &inputs, reference, |x| {
            let matrix = |index: usize, dims: [usize; 2]| x[index].clone().reshape(dims);
            let branch = LowRank { a: matrix(2, [r, d]), b: matrix(3, [out, r]), scale, dropout: Dropout::new(p, KEY), rows: None };
            adapted_linear(matrix(0, [n, d]), matrix(1, [out, d]), branch).reshape([n * out])
        });
    }

    #[test]
    fn linear_cross_entropy_is_the_loops(
        n in 1..6usize,
        d in prop::sample::select(vec![1, 3, 8]),
        classes in prop::sample::select(vec![1, 2, 13, 101, 1300]),
        smoothing in prop::sample::select(vec![0.0, 0.1, 1.0]),
    ) {
        let labels: Vec<usize> = (0..n as u64).map(|i| KEY.below(i, classes as u64) as usize).collect();
        let inputs = [numbers(1, n * d), numbers(2, classes * d)];
        // With all of the weight on the mean, gradients of one class are what is left of sums.
        let reference = |x: &[Vec<f64>]| crate::loops::linear_cross_entropy(&x[0], &x[1], &labels, d, smoothing);
        check_at_scale([0.1, 0.5], &inputs, reference, |x| {
            let labels: Vec<i32> = labels.iter().map(|label| *label as i32).collect();
            let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [n]), &x[0].device());
            let (hidden, weight) = (x[0].clone().reshape([n, d]), x[1].clone().reshape([classes, d]));
            linear_cross_entropy(hidden, weight, labels, smoothing)
        });
    }

    #[test]
    fn cross_entropy_is_the_loops(n in 1..6usize, classes in prop::sample::select(vec![1, 2, 7, 13, 101, 997])) {
        let labels: Vec<usize> = (0..n as u64).map(|i| KEY.below(i, classes as u64) as usize).collect();
        check(&[numbers(1, n * classes)], |x| crate::loops::cross_entropy(&x[0], &labels), |x| {
            let labels: Vec<i32> = labels.iter().map(|label| *label as i32).collect();
            let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [n]), &x[0].device());
            cross_entropy(x[0].clone().reshape([n, classes]), labels)
        });
    }

    #[test]
    fn attention_is_the_loops(sizes in sizes(), drop: bool, seed in 0..1000u64) {
        check_attention(&sizes, seed, if drop { 0.3 } else { 0.0 });
    }
}

#[test]
fn sizes_of_many_tasks_are_the_loops() {
    // Rows enough that each operation is shared out over threads.
    let (n, d) = (700, 65);
    check(
        &[numbers(1, n * d), numbers(2, d)],
        |x| crate::loops::rms_norm(&x[0], &x[1], 1e-6),
        |x| rms_norm(x[0].clone().reshape([n, d]), x[1].clone(), 1e-6).reshape([n * d]),
    );
    check(
        &[numbers(1, n * d), numbers(2, n * d)],
        |x| crate::loops::gelu_gate(&x[0], &x[1]),
        |x| gelu_gate(beside(x, [n, d]), None).reshape([n * d]),
    );
    check_embedding(&ids(7, 600, 400), [400, 65]);
    // More queries than a block, in rows of different lengths.
    let (queries, heads, width) = (vec![61, 130, 64], 2, 3);
    let own = Sizes {
        queries: queries.clone(),
        keys: queries.clone(),
        heads,
        kv_heads: heads,
        width,
        causal_from: None,
        distances: 259,
        origin: 129,
        by_place: false,
    };
    check_attention(&own, 3, 0.1);
    check_attention(&Sizes { causal_from: Some(0), distances: 130, ..own.clone() }, 4, 0.1);
    check_attention(&Sizes { causal_from: Some(0), distances: 130, by_place: true, ..own.clone() }, 5, 0.1);
    // Heads enough that those which look through one head of keys are parted.
    let short = Sizes { queries: vec![5, 3], keys: vec![5, 3], distances: 0, causal_from: Some(0), ..own };
    check_attention(&Sizes { heads: 70, kv_heads: 1, width: 4, ..short }, 6, 0.1);
    // More rows than a block, more classes than a chunk.
    let (n, d, classes) = (300, 5, 1100);
    let labels: Vec<usize> = (0..n as u64).map(|i| KEY.below(i, classes as u64) as usize).collect();
    check(
        &[numbers(1, n * d), numbers(2, classes * d)],
        |x| crate::loops::linear_cross_entropy(&x[0], &x[1], &labels, d, 0.1),
        |x| {
            let labels: Vec<i32> = labels.iter().map(|label| *label as i32).collect();
            let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [n]), &x[0].device());
            let (hidden, weight) = (x[0].clone().reshape([n, d]), x[1].clone().reshape([classes, d]));
            linear_cross_entropy(hidden, weight, labels, 0.1)
        },
    );
    let (d, out, r) = (16, 24, 2);
    let kept = kept([n, d], 0.25);
    check(
        &[numbers(1, n * d), numbers(2, out * d), numbers(3, r * d), numbers(4, out * r)],
        |x| {
            let branch = crate::loops::low_rank(&x[0], &x[2], &x[3], &kept, [d, r], 0.5);
            crate::loops::linear(&x[0], &x[1], d).iter().zip(branch).map(|(y, branch)| y + branch).collect()
        },
        |x| {
            let matrix = |index: usize, dims: [usize; 2]| x[index].clone().reshape(dims);
            let (a, b) = (matrix(2, [r, d]), matrix(3, [out, r]));
            let branch = LowRank { a, b, scale: 0.5, dropout: Dropout::new(0.25, KEY), rows: None };
            adapted_linear(matrix(0, [n, d]), matrix(1, [out, d]), branch).reshape([n * out])
        },
    );
}
