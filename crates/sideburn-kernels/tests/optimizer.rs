//! The optimiser's arithmetic against plain loops in `f64`.
#![cfg(feature = "flex")]

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use sideburn_kernels::{AdamWStep, Key, adamw_step, adamw_undo, square_sum};

/// Normal numbers of `rows x columns`, stored by rows or by columns.
fn matrix([rows, columns]: [usize; 2], by_columns: bool, key: Key) -> (Vec<f64>, Tensor<2>) {
    let element = |index: usize| key.normal(index as u64) as f32;
    let values: Vec<f32> = (0..rows * columns).map(element).collect();
    let tensor = if by_columns {
        let stored = (0..rows * columns).map(|index| values[index % rows * columns + index / rows]).collect();
        from(stored, [columns, rows]).transpose()
    } else {
        from(values.clone(), [rows, columns])
    };
    (values.into_iter().map(f64::from).collect(), tensor)
}

fn from(values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.cast(DType::F64).into_data().try_into_vec().unwrap()
}

/// One update of `[p, m, v]` by the gradient.
fn by_hand([p, m, v]: [f64; 3], gradient: f64, step: &AdamWStep) -> [f64; 3] {
    let g = gradient * step.gradient_scale;
    let m = step.beta1 * m + (1.0 - step.beta1) * g;
    let v = step.beta2 * v + (1.0 - step.beta2) * g * g;
    let (unbiased, time) = (m / (1.0 - step.beta1.powi(step.time as i32)), step.time as i32);
    let root = (v / (1.0 - step.beta2.powi(time))).sqrt() + step.epsilon;
    [(1.0 - step.learning_rate * step.weight_decay) * p - step.learning_rate * unbiased / root, m, v]
}

fn step(time: u32) -> AdamWStep {
    AdamWStep {
        learning_rate: 0.1,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        time,
        gradient_scale: 0.3,
    }
}

fn shapes() -> impl Strategy<Value = [usize; 2]> {
    let odd = || prop::sample::select(vec![1, 2, 15, 16, 17, 33, 130]);
    [odd(), odd()].prop_map(|[rows, columns]| [rows, columns])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn three_updates_and_back(shape in shapes(), layouts in any::<[bool; 2]>(), f64s in any::<bool>(), seed in 0..99u64) {
        let key = Key::from_seed(seed);
        let (initial, parameter) = matrix(shape, layouts[0], key);
        let dtype = if f64s { DType::F64 } else { DType::F32 };
        let tolerance = if f64s { 1e-12 } else { 1e-6 };
        let mut expected: Vec<[f64; 3]> = initial.iter().map(|p| [*p, 0.0, 0.0]).collect();
        let mut found = [parameter.clone(), parameter.zeros_like(), parameter.zeros_like()].map(|x| x.cast(dtype));
        for time in 1..=3 {
            let (slopes, gradient) = matrix(shape, layouts[1], key.fold_in(u64::from(time)));
            let before = found[0].clone();
            let [p, m, v] = found;
            found = adamw_step(p, gradient.clone().cast(dtype), [m, v], &step(time));
            for (numbers, slope) in expected.iter_mut().zip(&slopes) {
                *numbers = by_hand(*numbers, *slope, &step(time));
            }
            for (index, tensor) in found.iter().enumerate() {
                for (found, expected) in values(tensor.clone()).into_iter().zip(&expected) {
                    prop_assert!((found - expected[index]).abs() <= tolerance * expected[index].abs().max(1.0));
                }
            }
            // The gradient is as it was, and the update can be taken back: four operations round to 6e-8 each.
            prop_assert_eq!(values(gradient), slopes);
            let [p, m, v] = found.clone();
            let back = values(adamw_undo(p, [m, v], &step(time)));
            for (back, before) in back.into_iter().zip(values(before)) {
                prop_assert!((back - before).abs() <= 4.0 * 6e-8 * (before.abs() + 0.2), "{back} is not {before}");
            }
        }
    }

    #[test]
    fn squares_in_any_layout(shape in shapes(), by_columns in any::<bool>(), seed in 0..99u64) {
        let (numbers, tensor) = matrix(shape, by_columns, Key::from_seed(seed));
        let expected: f64 = numbers.iter().map(|x| x * x).sum();
        let found = values(square_sum(tensor.clone()))[0];
        prop_assert!((found - expected).abs() <= 1e-7 * expected, "{found} is not {expected}");
        let part = tensor.narrow(0, 0, shape[0].div_ceil(2)).narrow(1, shape[1] / 2, 1);
        let expected: f64 = values(part.clone()).iter().map(|x| x * x).sum();
        let found = values(square_sum(part))[0];
        prop_assert!((found - expected).abs() <= 1e-7 * expected, "{found} is not {expected}");
    }
}

#[test]
fn a_sum_that_is_the_same_on_any_number_of_threads() {
    let (numbers, tensor) = matrix([700, 900], false, Key::from_seed(1));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| values(square_sum(tensor.clone()))[0])
    };
    assert_eq!([1, 2, 3, 8].map(on), [on(1); 4]);
    let expected: f64 = numbers.iter().map(|x| x * x).sum();
    assert!((on(1) - expected).abs() <= 6e-8 * expected);
}
