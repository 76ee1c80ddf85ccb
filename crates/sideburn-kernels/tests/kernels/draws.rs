//! A draw is a function of its key and nothing else.

use crate::loops::{assert_near, bits, f32s, numbers, values};
use burn::tensor::{DType, Device, Tensor};
use sideburn_kernels::{Dropout, Key, dropout, low_rank};

const KEY: Key = Key::from_seed(11);

#[test]
fn the_same_elements_are_dropped_in_both_directions() {
    let device = Device::flex().autodiff();
    let x = f32s(1, [37, 111], &device).require_grad();
    let y = dropout(x.clone(), Dropout::new(0.4, KEY));
    let gradient = values(x.grad(&y.clone().sum().backward()).unwrap());
    for (y, gradient) in values(y).iter().zip(gradient) {
        assert_eq!(gradient, if *y == 0.0 { 0.0 } else { f64::from((1.0 / 0.6) as f32) });
    }
}

#[test]
fn the_key_alone_decides() {
    let x = f32s(1, [100, 100], &Device::flex());
    let dropped = bits(dropout(x.clone(), Dropout::new(0.5, KEY)));
    // Neither what was drawn before nor the backend's generator matters.
    Device::flex().seed(3);
    dropout(x.clone(), Dropout::new(0.5, KEY.fold_in(1)));
    assert_eq!(dropped, bits(dropout(x.clone(), Dropout::new(0.5, KEY))));
    assert_ne!(dropped, bits(dropout(x, Dropout::new(0.5, KEY.fold_in(1)))));
}

#[test]
fn shape_and_dtype_do_not_matter() {
    let device = Device::flex();
    let zeros = |x: Vec<f64>| x.iter().map(|x| *x == 0.0).collect::<Vec<_>>();
    let expected = zeros(values(dropout(f32s(1, [60, 7], &device), Dropout::new(0.3, KEY))));
    assert_eq!(expected, zeros(values(dropout(f32s(2, [3, 4, 5, 7], &device), Dropout::new(0.3, KEY)))));
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        let x = crate::loops::tensor(&numbers(3, 420), [420], &device, dtype);
        let y = dropout(x, Dropout::new(0.3, KEY));
        assert_eq!(y.dtype(), dtype);
        assert_eq!(expected, zeros(values(y)), "{dtype:?}");
    }
}

#[test]
fn the_dropped_share_is_the_probability() {
    let ones = Tensor::<1>::ones([1_000_000], &Device::flex());
    for p in [0.05, 0.1, 0.5, 0.9] {
        let y = values(dropout(ones.clone(), Dropout::new(p, KEY)));
        let kept = f64::from((1.0 / (1.0 - p)) as f32);
        assert!(y.iter().all(|y| *y == 0.0 || *y == kept), "every element is dropped or scaled by {kept}");
        let (dropped, n) = (y.iter().filter(|y| **y == 0.0).count() as f64, y.len() as f64);
        let sigmas = (dropped - n * p).abs() / (n * p * (1.0 - p)).sqrt();
        assert!(sigmas < 5.0, "{dropped} of {n} dropped at {p}: off by {sigmas} sigma");
        // Neighbours, which share a draw, are dropped together as often as chance has it.
        let both = y.chunks(2).filter(|pair| pair == &[0.0, 0.0]).count() as f64;
        let sigmas = (both - n / 2.0 * p * p).abs() / (n / 2.0 * p * p * (1.0 - p * p)).sqrt();
        assert!(sigmas < 5.0, "{both} pairs dropped at {p}: off by {sigmas} sigma");
    }
}

#[test]
fn dropout_keeps_the_mean() {
    let x = f32s(1, [8], &Device::flex());
    let draws = 20_000;
    let mut sum = vec![0.0; 8];
    for draw in 0..draws {
        for (sum, y) in sum.iter_mut().zip(values(dropout(x.clone(), Dropout::new(0.2, KEY.fold_in(draw))))) {
            *sum += y / draws as f64;
        }
    }
    // Five sigma of the mean of 20,000 draws, sqrt(p / (1 - p) / n), with |x| < 1.5.
    assert_near("mean", &sum, &values(x), 5.0 * (0.25f64 / draws as f64).sqrt());
}

#[test]
fn threads_do_not_matter() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let device = Device::flex().autodiff();
            let x = f32s(1, [301, 257], &device).require_grad();
            let (a, b) = (f32s(2, [4, 257], &device).require_grad(), f32s(3, [129, 4], &device).require_grad());
            let y = low_rank(
                dropout(x.clone(), Dropout::new(0.1, KEY.fold_in(1))),
                a.clone(),
                b.clone(),
                0.5,
                Dropout::new(0.2, KEY),
            );
            let gradients = y.clone().sum().backward();
            [&x, &a, &b].map(|leaf| bits(leaf.grad(&gradients).unwrap())).into_iter().chain([bits(y)]).collect()
        })
    };
    let one: Vec<Vec<u8>> = run(1);
    assert!(one == run(3), "bytes differ between one thread and three");
}

#[test]
fn low_rank_with_dropout_is_its_composition() {
    let device = Device::flex().autodiff();
    let leaves = || {
        let (x, a) = (f32s(1, [29, 64], &device), f32s(2, [8, 64], &device));
        [x, a, f32s(3, [33, 8], &device)].map(Tensor::require_grad)
    };
    let run = |compose: &dyn Fn(&[Tensor<2>; 3]) -> Tensor<2>| {
        let leaves = leaves();
        let y = compose(&leaves);
        let gradients = (y.clone() * f32s(4, [29, 33], &device)).sum().backward();
        let gradients = leaves.map(|leaf| values(leaf.grad(&gradients).unwrap()));
        (values(y), gradients)
    };
    let (y, gradients) = run(&|[x, a, b]| low_rank(x.clone(), a.clone(), b.clone(), 2.0, Dropout::new(0.3, KEY)));
    let (expected, expected_gradients) = run(&|[x, a, b]| {
        dropout(x.clone(), Dropout::new(0.3, KEY)).matmul(a.clone().transpose()).matmul(b.clone().transpose()) * 2.0
    });
    assert_near("value", &y, &expected, 1e-6);
    for (index, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert_near(&format!("gradient {index}"), gradient, expected, 1e-6);
    }
}
