//! The optimiser's arithmetic against plain loops in `f64`.

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use sideburn_kernels::{AdamWStep, AdamWUpdate, AnyRank, Key, adamw_step, adamw_steps, adamw_undo, norm};

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
    let g = gradient * SCALE;
    let m = step.beta1 * m + (1.0 - step.beta1) * g;
    let v = step.beta2 * v + (1.0 - step.beta2) * g * g;
    let (unbiased, time) = (m / (1.0 - step.beta1.powi(step.time as i32)), step.time as i32);
    let root = (v / (1.0 - step.beta2.powi(time))).sqrt() + step.epsilon;
    [(1.0 - step.learning_rate * step.weight_decay) * p - step.learning_rate * unbiased / root, m, v]
}

/// What gradients are multiplied by.
const SCALE: f64 = 0.3;

fn scale(dtype: DType) -> Tensor<1> {
    Tensor::from_data(TensorData::new(vec![SCALE], [1]), (&Device::flex(), dtype))
}

fn step(time: u32) -> AdamWStep {
    AdamWStep { learning_rate: 0.1, weight_decay: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, time }
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
            found = adamw_step(p, gradient.clone().cast(dtype), [m, v], scale(dtype), &step(time));
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
    fn norms_in_any_layout(shapes in prop::collection::vec(shapes(), 1..4), by_columns in any::<bool>(), seed in 0..99u64) {
        let key = |index| Key::from_seed(seed).fold_in(index);
        let made = shapes.iter().zip(0..).map(|(shape, index)| matrix(*shape, by_columns, key(index)));
        let (numbers, tensors): (Vec<_>, Vec<_>) = made.unzip();
        let expected = numbers.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
        let found = values(norm(tensors.iter().cloned().map(AnyRank::from)))[0];
        prop_assert!((found - expected).abs() <= 1e-7 * expected, "{found} is not {expected}");
        let part = tensors[0].clone().narrow(0, 0, shapes[0][0].div_ceil(2)).narrow(1, shapes[0][1] / 2, 1);
        let expected = values(part.clone()).iter().map(|x| x * x).sum::<f64>().sqrt();
        let found = values(norm([part.clone().into()]))[0];
        prop_assert!((found - expected).abs() <= 1e-7 * expected, "{found} is not {expected}");
        let found = values(norm([part.cast(DType::F64).into()]))[0];
        prop_assert!((found - expected).abs() <= 1e-12 * expected, "{found} is not {expected}");
    }
}

#[test]
fn many_updates_are_those_of_each_alone() {
    // Ranks, dtypes, times and sizes of all sorts together; the largest is shared out.
    let shapes = [[1, 1], [130, 300], [1, 16], [3, 5], [700, 90]];
    let tensors = |index: usize| {
        let key = Key::from_seed(index as u64);
        let dtype = if index == 3 { DType::F64 } else { DType::F32 };
        [0, 1, 2, 3].map(|part| {
            let tensor = matrix(shapes[index], index % 2 == 1, key.fold_in(part)).1.cast(dtype);
            if part == 3 { tensor.abs() } else { tensor }
        })
    };
    let updates = (0..shapes.len()).map(|index| {
        let [parameter, gradient, first, second] = tensors(index);
        // One is a vector.
        let any = |x: Tensor<2>| if index == 2 { x.reshape([16]).into() } else { AnyRank::from(x) };
        let [parameter, gradient, first, second] = [parameter, gradient, first, second].map(any);
        AdamWUpdate { parameter, gradient, moments: [first, second], step: step(index as u32 + 1) }
    });
    let together = adamw_steps(updates.collect(), scale(DType::F32));
    assert_eq!(together.len(), shapes.len());
    for (index, found) in together.into_iter().enumerate() {
        let [parameter, gradient, first, second] = tensors(index);
        let alone = adamw_step(parameter, gradient, [first, second], scale(DType::F32), &step(index as u32 + 1));
        for (found, alone) in found.into_iter().zip(alone) {
            let found = if index == 2 { values(found.into_tensor::<1>()) } else { values(found.into_tensor::<2>()) };
            assert_eq!(found, values(alone), "tensor {index}");
        }
    }
    assert!(adamw_steps(Vec::new(), scale(DType::F32)).is_empty());
}

#[test]
#[should_panic(expected = "a parameter, its gradient and its moments must have one shape")]
fn an_update_with_another_shape_is_refused() {
    let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, &Device::flex());
    adamw_step(ones([2, 3]), ones([3, 2]), [ones([2, 3]), ones([2, 3])], scale(DType::F32), &step(1));
}

#[test]
fn a_scale_that_is_not_above_zero_changes_nothing() {
    for (scale, dtype) in [(0.0, DType::F32), (f32::NAN, DType::F32), (-1.0, DType::F32), (0.0, DType::F64)] {
        let tensors = [1, 2, 3, 4].map(|seed| matrix([40, 30], false, Key::from_seed(seed)).1.cast(dtype));
        let [p, m, v, gradient] = tensors.clone();
        // What is not finite does not get in.
        let gradient = gradient.slice_fill([0..1, 0..2], f32::INFINITY).slice_fill([3..4, 3..4], f32::NAN);
        let scale = Tensor::from_data(TensorData::new(vec![scale], [1]), &Device::flex());
        let found = adamw_step(p, gradient, [m, v], scale, &step(2));
        for (found, before) in found.into_iter().zip(tensors) {
            assert_eq!(values(found), values(before));
        }
    }
}

#[test]
#[should_panic(expected = "a tensor must be taken out with its own number of dimensions")]
fn another_rank_is_refused() {
    AnyRank::from(Tensor::<2>::ones([2, 3], &Device::flex())).into_tensor::<1>();
}

#[test]
fn a_norm_that_is_the_same_on_any_number_of_threads() {
    let tensors = [[700, 900], [3, 5], [300, 200]].map(|shape| matrix(shape, false, Key::from_seed(1)));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| values(norm(tensors.iter().map(|(_, tensor)| tensor.clone().into())))[0])
    };
    assert_eq!([1, 2, 3, 8].map(on), [on(1); 4]);
    let expected = tensors.iter().flat_map(|(numbers, _)| numbers).map(|x| x * x).sum::<f64>().sqrt();
    assert!((on(1) - expected).abs() <= 6e-8 * expected);
}
