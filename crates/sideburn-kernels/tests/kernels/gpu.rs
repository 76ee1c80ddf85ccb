//! The GPU kernels, in `f32`, against the composed forms on the CPU in `f64`, which `against_loops` holds against plain
//! loops: values, the gradient of every input, and which elements are dropped.
//!
//! Needs a GPU, or software that stands in for one (Mesa's lavapipe; for `vulkan`, of Mesa 26).

use crate::cases::{Input, KEY, Op, beside, input, label_tensor, layouts, run, scaled, test_cases};
use crate::loops::{assert_near, bits, f32s, numbers, tensor, values};
use burn::tensor::{DType, Device, Tensor};
use sideburn_kernels::{
    AdamWStep, Dropout, Key, LinearOp, LowRank, RowLayout, Visibility, adamw_step, adapted_linears, add_dropout,
    attention, dropout, gelu_gate, keep_kernels, linear_cross_entropy, norm, rms_norm,
};

const TOLERANCE: f64 = 1e-5;

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn gpu() -> Device {
    keep_kernels();
    Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "metal")))]
fn gpu() -> Device {
    keep_kernels();
    Device::cuda(0)
}

/// Holds an operation on the GPU against the same in `f64`.
fn check(what: &str, inputs: &[Input], op: Op<'_>) {
    let expected = run(inputs, &Device::flex(), DType::F64, op);
    let found = run(inputs, &gpu(), DType::F32, op);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let part = if index == 0 { "value".to_owned() } else { format!("gradient of input {}", index - 1) };
        assert_near(&format!("{what}: {part}"), found, expected, TOLERANCE);
    }
    assert_eq!(run(inputs, &gpu(), DType::F32, op), found, "{what}: not the same twice");
}

test_cases!(check);

/// The same in floats of 16 bits, which tensor cores multiply where there are some.
mod in_16_bits {
    use super::gpu;
    use crate::cases::{Input, Op, run, test_cases};
    use crate::loops::assert_near_at_scale;
    use burn::tensor::{DType, Device};

    fn check(what: &str, inputs: &[Input], op: Op<'_>) {
        // Of 11 and of 8 digits in base 2.
        for (dtype, tolerance) in [(DType::F16, 2e-2), (DType::BF16, 1.6e-1)] {
            if !gpu().supports_dtype(dtype) {
                continue;
            }
            let expected = run(inputs, &Device::flex(), DType::F64, op);
            let found = run(inputs, &gpu(), dtype, op);
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let part = if index == 0 { "value".to_owned() } else { format!("gradient of input {}", index - 1) };
                assert_near_at_scale(&format!("{what} in {dtype:?}: {part}"), found, expected, tolerance, 1.0);
            }
            assert_eq!(run(inputs, &gpu(), dtype, op), found, "{what} in {dtype:?}: not the same twice");
        }
    }

    test_cases!(check);
}

#[test]
fn the_same_elements_are_dropped_as_on_the_cpu() {
    for shape in [[1, 1], [1, 3], [1, 4], [60, 7], [33, 64], [1, 100_003]] {
        for (p, key) in [(0.1, KEY), (0.5, Key::from_seed(u64::MAX)), (0.999, KEY.fold_in(3))] {
            let drop = |device: &Device| {
                let (x, residual) = (f32s(1, shape, device), f32s(2, shape, device));
                let gate = gelu_gate(beside(x.clone(), residual.clone()), Dropout::new(p, key));
                let kept = values(gate).iter().map(|x| *x != 0.0).collect::<Vec<_>>();
                (
                    bits(dropout(x.clone(), Dropout::new(p, key))),
                    bits(add_dropout(residual, x, Dropout::new(p, key))),
                    kept,
                )
            };
            assert!(drop(&gpu()) == drop(&Device::flex()), "{shape:?} at {p}: other elements");
        }
    }
    let cube = |device: &Device| bits(dropout(f32s(3, [3, 4, 5, 7], device), Dropout::new(0.3, KEY)));
    assert_eq!(cube(&gpu()), cube(&Device::flex()));
}

#[test]
fn losses_of_more_logits_than_are_in_memory_at_once() {
    let (rows, classes, d) = (150, 32_128, 4);
    let run = |device: &Device| {
        let device = device.clone().autodiff();
        let [hidden, weight] = [f32s(1, [rows, d], &device), f32s(2, [classes, d], &device)].map(Tensor::require_grad);
        let labels = label_tensor(rows, classes, &device);
        let loss = linear_cross_entropy(hidden.clone(), weight.clone(), labels, 0.1);
        let gradients = (loss.clone() * f32s(3, [rows], &device)).sum().backward();
        (values(loss), [hidden, weight].map(|leaf| values(leaf.grad(&gradients).unwrap())))
    };
    let ((loss, gradients), (expected, expected_gradients)) = (run(&gpu()), run(&Device::flex()));
    assert_near("loss", &loss, &expected, TOLERANCE);
    for (found, expected) in gradients.iter().zip(&expected_gradients) {
        assert_near("gradient", found, expected, TOLERANCE);
    }
}

/// Without a gradient, for which rows would have to be summed.
#[test]
fn attention_of_rows_that_share_their_keys() {
    let attend = |device: &Device, packed: bool| {
        let queries = layouts(&[1, 1, 2, 1], packed, device);
        let keys = layouts(&[4, 2, 3], packed, device).rows_of(&[2, 0, 0, 2]);
        let on = |values: Tensor<2>| Tensor::<2>::from_data(values.into_data(), device);
        let tokens = RowLayout::packed(&[4, 2, 3], &Device::flex());
        let real = [2, 3].map(|seed| f32s(seed, [tokens.tokens(), 8], &Device::flex()));
        // The real tokens where the layout has them.
        let [k, v] = real.map(|x| {
            let of_row = |row: usize| {
                let own = x.clone().slice([tokens.row(row)]);
                let padding = if packed { 0 } else { 4 - tokens.lengths()[row] };
                let padding = (0..padding).map(|_| Tensor::full([1, 8], 1e3, &Device::flex()));
                Tensor::cat([own].into_iter().chain(padding).collect(), 0)
            };
            on(Tensor::cat((0..3).map(of_row).collect(), 0))
        });
        let q = on(f32s(1, [queries.tokens(), 8], &Device::flex()));
        let visibility = Visibility::full(2, &queries, &keys);
        let y = attention(q, k, v, None, &visibility, None);
        values(queries.real_tokens(y))
    };
    for packed in [true, false] {
        assert_near("shared keys", &attend(&gpu(), packed), &attend(&Device::flex(), packed), TOLERANCE);
    }
}

/// An operation whose kernel asks for more memory than any GPU shares within a cube: 64 MiB.
mod too_large {
    use burn::backend::ops::FloatTensorOps;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Backend, TensorMetadata, backend_extension};
    use burn_cubecl::cubecl::prelude::*;
    use burn_cubecl::{CubeBackend, cubecl};
    use sideburn_kernels::{checked, fused};

    #[backend_extension(Cube, Fusion)]
    pub(super) trait TwiceOps: Backend {
        #[fusion(dtype = x, shape = x)]
        fn twice(x: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    impl TwiceOps for CubeBackend {
        fn twice(x: FloatTensor<Self>) -> FloatTensor<Self> {
            fused("twice", x, |x| checked("twice", x.dtype(), x, launch), |x| Self::float_mul_scalar(x, 2.0.into()))
        }
    }

    fn launch(x: FloatTensor<CubeBackend>) -> FloatTensor<CubeBackend> {
        let (client, out) = (x.client.clone(), x.copy());
        // SAFETY: there is an element for each unit.
        unsafe {
            let (x, out) = (x.into_buffer_arg(), out.clone().into_buffer_arg());
            twice_kernel::launch_unchecked(&client, CubeCount::new_single(), CubeDim::new_1d(4), x, out);
        }
        out
    }

    #[cube(launch_unchecked)]
    fn twice_kernel(x: &[f32], out: &mut [f32]) {
        let mut shared = Shared::<[f32]>::new_slice(comptime!(1usize << 24));
        shared[UNIT_POS as usize] = 3.0 * x[ABSOLUTE_POS];
        sync_cube();
        out[ABSOLUTE_POS] = shared[UNIT_POS as usize];
    }
}

#[test]
fn a_kernel_that_cannot_be_compiled_is_named_and_composed() {
    use burn::backend::Dispatch;
    use too_large::TwiceOps;
    for _ in 0..2 {
        let x = Tensor::<1>::from_data([2.5f32, 0.0, -1.0, 4.0], &gpu());
        let y = Tensor::<1>::from_dispatch(Dispatch::twice(x.into_dispatch()));
        assert_eq!(values(y), [5.0, 0.0, -2.0, 8.0]);
    }
    let refused = sideburn_kernels::refused_kernels();
    println!("{refused:?}");
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["twice"], "and no other");
}

#[test]
fn updates() {
    let step =
        |time| AdamWStep { learning_rate: 0.1, weight_decay: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, time };
    for shape in [[1, 1], [3, 5], [16, 64]] {
        let run = |device: &Device, dtype: DType| {
            let scale = |scale: f64| tensor(&[scale], [1], device, dtype);
            let parameter = tensor(&numbers(1, shape[0] * shape[1]), shape, device, dtype);
            let held = parameter.clone();
            let mut all = [parameter.clone(), parameter.zeros_like(), parameter.zeros_like()];
            for time in 1..=3 {
                let gradient = tensor(&numbers(1 + u64::from(time), shape[0] * shape[1]), shape, device, dtype);
                let [p, m, v] = all;
                all = adamw_step(p, gradient, [m, v], scale(0.3), &step(time));
            }
            // What is not finite does not get in, in place or not.
            let [p, m, v] = all;
            let gradient = parameter.full_like(f32::NAN);
            let [_, m, v] = adamw_step(p.clone(), gradient.clone(), [m, v], scale(0.0), &step(4));
            all = adamw_step(p, gradient, [m, v], scale(0.0), &step(4));
            assert_eq!(values(held), numbers(1, shape[0] * shape[1]), "somebody else has the parameter");
            all.map(values)
        };
        for (found, expected) in run(&gpu(), DType::F32).iter().zip(run(&Device::flex(), DType::F64)) {
            assert_near("an update", found, &expected, 1e-6);
        }
    }
}

#[test]
fn the_norm_of_many_tensors() {
    let of_all = |device: &Device| {
        let tensors = [[1, 1], [33, 7], [700, 900]].map(|shape| f32s(1, shape, device).into());
        values(norm(tensors))[0]
    };
    let (found, expected) = (of_all(&gpu()), of_all(&Device::flex()));
    assert!((found - expected).abs() <= 1e-6 * expected, "{found} is not {expected}");
    assert_eq!(found, of_all(&gpu()));
}

/// Factors in `f32` on layers in 16 bits, as adapters have them.
#[test]
fn branches_that_are_wider_than_their_base() {
    for (device, dtype) in [(gpu(), DType::F16), (Device::flex(), DType::BF16)] {
        if !device.supports_dtype(dtype) {
            continue;
        }
        let (n, d, r) = (7, 40, 3);
        let shapes = [[n, d], [9, d], [5, d], [r, d], [9, r], [r, d], [5, r]];
        let run = |device: &Device, base: DType, factors: DType| {
            let device = device.clone().autodiff();
            let leaf = |index: usize| {
                let (values, shape) = scaled(index as u64, shapes[index], 0.3);
                tensor(&values, shape, &device, if index < 3 { base } else { factors }).require_grad()
            };
            let x: Vec<Tensor<2>> = (0..shapes.len()).map(leaf).collect();
            let branch = |first: usize, dropout| LowRank {
                a: x[first].clone(),
                b: x[first + 1].clone(),
                scale: 0.7,
                dropout,
                rows: None,
            };
            let layers = vec![
                LinearOp { weight: Some(x[1].clone().into()), branches: vec![branch(3, Dropout::new(0.25, KEY))] },
                LinearOp { weight: Some(x[2].clone().into()), branches: vec![branch(5, None)] },
            ];
            let y = adapted_linears(x[0].clone(), layers);
            assert_eq!(y.dtype(), base);
            let gradients = (y.clone() * tensor(&numbers(99, n * 14), [n, 14], &device, base)).sum().backward();
            let gradients = x.iter().map(|leaf| {
                let gradient = leaf.grad(&gradients).unwrap();
                assert_eq!(gradient.dtype(), leaf.dtype());
                values(gradient)
            });
            [values(y)].into_iter().chain(gradients).collect::<Vec<_>>()
        };
        let (found, expected) = (run(&device, dtype, DType::F32), run(&Device::flex(), DType::F64, DType::F64));
        let tolerance = if dtype == DType::F16 { 5e-3 } else { 4e-2 };
        for (found, expected) in found.iter().zip(&expected) {
            assert_near("a wider branch", found, expected, tolerance);
        }
    }
}

#[test]
fn half_precision() {
    for dtype in [DType::F16, DType::BF16] {
        if !gpu().supports_dtype(dtype) {
            continue;
        }
        let inputs = [scaled(1, [6, 16], 0.3), input(2, [6, 16]), input(3, [6, 16]), input(4, [2, 7])];
        let op = |x: &[Tensor<2>]| {
            let layout = RowLayout::padded(&[3, 2], 3, &x[0].device().inner());
            let visibility = Visibility::causal(2, &layout, &layout, 0);
            let ([q, k, v], bias) = ([0, 1, 2].map(|index| x[index].clone()), Some(x[3].clone()));
            let y = attention(q, k, v, bias, &visibility, Dropout::new(0.2, KEY));
            let weight = x[2].clone().narrow(0, 0, 1).reshape([16]);
            let y = rms_norm(visibility.queries.real_tokens(y), weight, 1e-6);
            gelu_gate(beside(y.clone(), y), Dropout::new(0.2, KEY))
        };
        let (found, expected) = (run(&inputs, &gpu(), dtype, &op), run(&inputs, &Device::flex(), DType::F64, &op));
        let tolerance = if dtype == DType::F16 { 2e-2 } else { 1e-1 };
        for (found, expected) in found.iter().zip(&expected) {
            assert_near("half precision", found, expected, tolerance);
        }
    }
}
