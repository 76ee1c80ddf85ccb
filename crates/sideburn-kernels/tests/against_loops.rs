//! Every operation and all its gradients against plain loops in `f64`, over odd shapes.
#![cfg(feature = "flex")]

mod loops;

use burn::tensor::{Device, Int, Tensor, TensorData};
use loops::{Sizes, check, check_at_scale, mask, numbers};
use proptest::prelude::*;
use sideburn_kernels::{Key, attention, cross_entropy, dropout, gelu_gate, low_rank, rms_norm};

const KEY: Key = Key::from_seed(5);

fn width() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 3, 8, 64, 128])
}

/// What [`dropout`] multiplies each element by.
fn kept<const D: usize>(shape: [usize; D], probability: f64) -> Vec<f64> {
    let ones = Tensor::<D>::ones(shape, &Device::flex());
    let kept = loops::values(dropout(ones, probability, KEY));
    kept.iter().map(|x| if *x == 0.0 { 0.0 } else { 1.0 / (1.0 - probability) }).collect()
}

/// The sizes of an attention, with every way to broadcast its bias and mask.
fn sizes() -> impl Strategy<Value = Sizes> {
    let size = (1..3usize, 1..4usize, 1..6usize, 1..8usize, prop::sample::select(vec![1, 3, 8, 64]));
    (size, 0..5, any::<bool>()).prop_map(|((rows, heads, queries, keys, width), bias, each_query)| {
        let bias = match bias {
            0 => [1, 1, 1, 1],
            1 => [1, heads, queries, keys],
            2 => [1, 1, queries, keys],
            3 => [1, heads, 1, keys],
            _ => [1, heads, queries, 1],
        };
        let mask = [rows, 1, if each_query { queries } else { 1 }, keys];
        Sizes { rows, heads, queries, keys, width, bias, mask }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dropout_is_the_loops(n in 1..6usize, d in width(), p in prop::sample::select(vec![0.0, 0.1, 0.5, 0.9])) {
        let kept = kept([n, d], p);
        let reference = |x: &[Vec<f64>]| x[0].iter().zip(&kept).map(|(x, kept)| x * kept).collect();
        check(&[numbers(1, n * d)], reference, |x| {
            dropout(x[0].clone().reshape([n, d]), p, KEY).reshape([n * d])
        });
    }

    #[test]
    fn low_rank_is_the_loops(n in 1..6usize, d in width(), out in width(), r in 1..5usize, drop: bool) {
        let p = if drop { 0.25 } else { 0.0 };
        let (kept, scale) = (kept([n, d], p), 1.7);
        let inputs = [numbers(1, n * d), numbers(2, r * d), numbers(3, out * r)];
        let reference = |x: &[Vec<f64>]| loops::low_rank(&x[0], &x[1], &x[2], &kept, [d, r], scale);
        check(&inputs, reference, |x| {
            let (a, b) = (x[1].clone().reshape([r, d]), x[2].clone().reshape([out, r]));
            low_rank(x[0].clone().reshape([n, d]), a, b, scale, drop.then_some((p, KEY))).reshape([n * out])
        });
    }

    #[test]
    fn rms_norm_is_the_loops(n in 1..40usize, d in width()) {
        // With one element and a small epsilon the gradient is nothing but cancellation, in any precision.
        let epsilon = if d < 8 { 0.5 } else { 1e-6 };
        let reference = |x: &[Vec<f64>]| loops::rms_norm(&x[0], &x[1], epsilon);
        check(&[numbers(1, n * d), numbers(2, d)], reference, |x| {
            rms_norm(x[0].clone().reshape([n, d]), x[1].clone(), epsilon).reshape([n * d])
        });
    }

    #[test]
    fn gelu_gate_is_the_loops(n in 1..6usize, d in width(), stretch in prop::sample::select(vec![0.1, 1.0, 2.5])) {
        let gate: Vec<f64> = numbers(1, n * d).iter().map(|x| f64::from((x * stretch) as f32)).collect();
        let reference = |x: &[Vec<f64>]| loops::gelu_gate(&x[0], &x[1]);
        check(&[gate, numbers(2, n * d)], reference, |x| {
            gelu_gate(x[0].clone().reshape([n, d]), x[1].clone().reshape([n, d])).reshape([n * d])
        });
    }

    #[test]
    fn cross_entropy_is_the_loops(n in 1..6usize, classes in prop::sample::select(vec![1, 2, 7, 13, 101, 997])) {
        let labels: Vec<usize> = (0..n as u64).map(|i| KEY.below(i, classes as u64) as usize).collect();
        check(&[numbers(1, n * classes)], |x| loops::cross_entropy(&x[0], &labels), |x| {
            let labels: Vec<i32> = labels.iter().map(|label| *label as i32).collect();
            let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [n]), &x[0].device());
            cross_entropy(x[0].clone().reshape([n, classes]), labels)
        });
    }

    #[test]
    fn attention_is_the_loops(sizes in sizes(), drop: bool, seed in 0..1000u64) {
        let p = if drop { 0.3 } else { 0.0 };
        let (kept, masked) = (kept(sizes.scores(), p), sizes.masked(seed));
        // Unscaled scores of wide heads would saturate the softmax: the queries are made smaller instead.
        let shrunk = |x: Vec<f64>| x.iter().map(|x| f64::from((x / (sizes.width as f64).sqrt()) as f32)).collect();
        let inputs = [
            shrunk(numbers(seed, sizes.q().iter().product())),
            numbers(seed + 1, sizes.k().iter().product()),
            numbers(seed + 2, sizes.k().iter().product()),
            numbers(seed + 3, sizes.bias.iter().product()),
        ];
        // A bias that is the same for all keys changes nothing: its gradient is a sum of many terms that is zero.
        let scale = if sizes.bias[3] == 1 { 5.0 } else { 0.1 };
        check_at_scale(scale, &inputs, |x| loops::attention(&sizes, x, &masked, &kept), |x| {
            let shaped = |x: &Tensor<1>, shape: [usize; 4]| x.clone().reshape(shape);
            let (q, k, v) = (shaped(&x[0], sizes.q()), shaped(&x[1], sizes.k()), shaped(&x[2], sizes.k()));
            let mask = mask(&masked, sizes.mask, &x[0].device());
            let out = attention(q, k, v, shaped(&x[3], sizes.bias), mask, drop.then_some((p, KEY)));
            out.reshape([sizes.q().iter().product::<usize>()])
        });
    }
}

#[test]
fn sizes_of_many_tasks_are_the_loops() {
    // Rows enough that each operation is shared out over threads.
    let (n, d) = (700, 65);
    check(
        &[numbers(1, n * d), numbers(2, d)],
        |x| loops::rms_norm(&x[0], &x[1], 1e-6),
        |x| rms_norm(x[0].clone().reshape([n, d]), x[1].clone(), 1e-6).reshape([n * d]),
    );
    check(
        &[numbers(1, n * d), numbers(2, n * d)],
        |x| loops::gelu_gate(&x[0], &x[1]),
        |x| gelu_gate(x[0].clone().reshape([n, d]), x[1].clone().reshape([n, d])).reshape([n * d]),
    );
    let sizes = Sizes { rows: 3, heads: 4, queries: 61, keys: 67, width: 2, bias: [1, 4, 61, 67], mask: [3, 1, 1, 67] };
    let (masked, kept) = (sizes.masked(3), kept(sizes.scores(), 0.1));
    let count = |shape: [usize; 4]| shape.iter().product();
    let inputs = [count(sizes.q()), count(sizes.k()), count(sizes.k()), count(sizes.bias)].map(|n| numbers(4, n));
    check(
        &inputs,
        |x| loops::attention(&sizes, x, &masked, &kept),
        |x| {
            let mask = mask(&masked, sizes.mask, &x[0].device());
            let (q, k, v) = (x[0].clone().reshape(sizes.q()), x[1].clone(), x[2].clone().reshape(sizes.k()));
            let out = attention(q, k.reshape(sizes.k()), v, x[3].clone().reshape(sizes.bias), mask, Some((0.1, KEY)));
            out.reshape([count(sizes.q())])
        },
    );
}
