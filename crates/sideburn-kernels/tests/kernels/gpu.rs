//! The GPU kernels, in `f32`, against the composed forms on the CPU in `f64`, which `against_loops` holds against plain
//! loops: values, the gradient of every input, and which elements are dropped.
//!
//! Needs a GPU, or software that stands in for one (Mesa's lavapipe, which takes `wgpu` but not `vulkan`).

use crate::loops::{assert_near, bits, f32s, numbers, tensor, values};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_kernels::{
    AdamWStep, Dropout, Key, LinearOp, LowRank, RowLayout, Visibility, adamw_step, adapted_linear, adapted_linears,
    add_dropout, attention, cross_entropy, dropout, embedding, gelu_gate, linear_cross_entropy, low_rank, norm,
    rms_norm, self_attention,
};

const KEY: Key = Key::from_seed(5);
const TOLERANCE: f64 = 1e-5;

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn gpu() -> Device {
    Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "metal")))]
fn gpu() -> Device {
    Device::cuda(0)
}

/// Values and gradients of an operation on a device.
fn run(
    inputs: &[(Vec<f64>, [usize; 2])],
    device: &Device,
    dtype: DType,
    op: &dyn Fn(&[Tensor<2>]) -> Tensor<2>,
) -> Vec<Vec<f64>> {
    let device = device.clone().autodiff();
    let leaves: Vec<Tensor<2>> =
        inputs.iter().map(|(x, shape)| tensor(x, *shape, &device, dtype).require_grad()).collect();
    let output = op(&leaves);
    assert_eq!(output.dtype(), dtype);
    let [rows, columns] = output.dims();
    let weights = tensor(&numbers(99, rows * columns), [rows, columns], &device, dtype);
    let gradients = (output.clone() * weights).sum().backward();
    let gradients = leaves.iter().map(|leaf| values(leaf.grad(&gradients).expect("a gradient for every input")));
    [values(output)].into_iter().chain(gradients).collect()
}

/// Holds an operation on the GPU against the same in `f64`.
fn check(what: &str, inputs: &[(Vec<f64>, [usize; 2])], op: impl Fn(&[Tensor<2>]) -> Tensor<2>) {
    let expected = run(inputs, &Device::flex(), DType::F64, &op);
    let found = run(inputs, &gpu(), DType::F32, &op);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let part = if index == 0 { "value".to_owned() } else { format!("gradient of input {}", index - 1) };
        assert_near(&format!("{what}: {part}"), found, expected, TOLERANCE);
    }
    assert_eq!(run(inputs, &gpu(), DType::F32, &op), found, "{what}: not the same twice");
}

fn input(seed: u64, shape: [usize; 2]) -> (Vec<f64>, [usize; 2]) {
    (numbers(seed, shape[0] * shape[1]), shape)
}

/// The same with each number multiplied by `factor`.
fn scaled(seed: u64, shape: [usize; 2], factor: f64) -> (Vec<f64>, [usize; 2]) {
    let (values, shape) = input(seed, shape);
    (values.into_iter().map(|x| f64::from((x * factor) as f32)).collect(), shape)
}

fn label_tensor(count: usize, classes: usize, device: &Device) -> Tensor<1, Int> {
    let labels: Vec<i32> = (0..count as u64).map(|i| KEY.below(i, classes as u64) as i32).collect();
    Tensor::from_data(TensorData::new(labels, [count]), device)
}

/// Columns `from..` of a matrix that was made as wide as two.
fn window(x: &Tensor<2>, half: usize) -> Tensor<2> {
    let width = x.dims()[1];
    Tensor::cat(vec![x.clone(), x.clone()], 1).narrow(1, half * width, width)
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
fn dropout_and_sums() {
    for shape in [[1, 1], [5, 3], [7, 128]] {
        check("dropout", &[input(1, shape)], |x| dropout(x[0].clone(), Dropout::new(0.3, KEY)));
        check("add_dropout", &[input(1, shape), input(2, shape)], |x| {
            add_dropout(x[0].clone(), x[1].clone(), Dropout::new(0.3, KEY))
        });
    }
    check("transposed", &[input(1, [5, 12])], |x| dropout(x[0].clone().transpose(), Dropout::new(0.3, KEY)));
}

#[test]
fn gates() {
    for shape in [[1, 1], [1, 8], [5, 3], [3, 128], [70, 65]] {
        for dropout in [None, Dropout::new(0.25, KEY)] {
            check("gelu_gate", &[scaled(1, shape, 2.0), input(2, shape)], |x| {
                gelu_gate(beside(x[0].clone(), x[1].clone()), dropout)
            });
        }
    }
    for shape in [[5, 64], [5, 6]] {
        check("window", &[input(1, shape)], |x| gelu_gate(window(&x[0], 1), Dropout::new(0.25, KEY)));
    }
    // Where the exponential would overflow.
    check("far out", &[scaled(1, [3, 8], 20.0), input(2, [3, 8])], |x| {
        gelu_gate(beside(x[0].clone(), x[1].clone()), None)
    });
}

#[test]
fn norms() {
    for (rows, width) in [(1, 1), (1, 8), (40, 3), (5, 128), (33, 300), (2, 1000)] {
        // With one element and a small epsilon the gradient is nothing but cancellation, in any precision.
        let epsilon = if width < 8 { 0.5 } else { 1e-6 };
        check(&format!("rms_norm [{rows}, {width}]"), &[input(1, [rows, width]), input(2, [1, width])], |x| {
            rms_norm(x[0].clone(), x[1].clone().reshape([width]), epsilon)
        });
    }
    check("transposed", &[input(1, [24, 5]), input(2, [1, 24])], |x| {
        rms_norm(x[0].clone().transpose(), x[1].clone().reshape([24]), 1e-6)
    });
}

#[test]
fn losses() {
    for (rows, classes) in [(1, 1), (5, 13), (4, 1301)] {
        check(&format!("cross_entropy [{rows}, {classes}]"), &[input(1, [rows, classes])], |x| {
            let labels = label_tensor(rows, classes, &x[0].device());
            cross_entropy(x[0].clone(), labels).reshape([rows, 1])
        });
        // One width: each new shape of a product is tuned first, which takes longer than the test.
        let d = 8;
        for smoothing in [0.0, 0.1, 1.0] {
            let what = format!("linear_cross_entropy [{rows}, {classes}], {d}, {smoothing}");
            check(&what, &[input(1, [rows, d]), input(2, [classes, d])], |x| {
                let labels = label_tensor(rows, classes, &x[0].device());
                linear_cross_entropy(x[0].clone(), x[1].clone(), labels, smoothing).reshape([rows, 1])
            });
        }
    }
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

/// How the rows of an attention's inputs lie.
fn layouts(lengths: &[usize], packed: bool, device: &Device) -> RowLayout {
    if packed { RowLayout::packed(lengths, device) } else { RowLayout::padded(lengths, 4, device) }
}

/// The visibilities of attentions over these rows: of all keys of others, of one's own row, and of what is before, after `first`.
fn visibilities(
    queries: &[usize],
    others: &[usize],
    first: usize,
    heads: usize,
    packed: bool,
    device: &Device,
) -> [Visibility; 3] {
    let own: Vec<usize> = queries.iter().map(|queries| first + queries).collect();
    let [queries, others, own] = [queries, others, &own].map(|lengths| layouts(lengths, packed, device));
    [
        Visibility::full(heads, &queries, &others),
        Visibility::bidirectional(heads, &queries),
        Visibility::causal(heads, &queries, &own, first),
    ]
}

/// Which of [`visibilities`], whether with a bias by distance, and whether with dropout.
type Kind = (usize, bool, bool);

const KINDS: [Kind; 5] = [(0, false, true), (1, true, false), (1, false, false), (2, true, true), (2, true, false)];

fn check_attention(
    queries: &[usize],
    others: &[usize],
    first: usize,
    [heads, width]: [usize; 2],
    packed: bool,
    kinds: &[Kind],
) {
    let of_cpu = visibilities(queries, others, first, heads, packed, &Device::flex());
    for (kind, biased, drops) in kinds {
        let (visibility, columns) = (&of_cpu[*kind], heads * width);
        let (tokens, keys) = ([visibility.queries.tokens(), columns], [visibility.keys.tokens(), columns]);
        let inputs = [
            // Unscaled scores of wide heads would saturate the softmax.
            scaled(1, tokens, 1.0 / (width as f64).sqrt()),
            input(2, keys),
            input(3, keys),
            input(4, if *biased { [heads, visibility.bias_origin + visibility.keys.columns()] } else { [1, 1] }),
        ];
        let what = format!("attention {queries:?} {heads}x{width} packed {packed} {:?}", (kind, biased, drops));
        check(&what, &inputs, |x| {
            let visibilities = visibilities(queries, others, first, heads, packed, &x[0].device().inner());
            let [q, k, v, bias] = [0, 1, 2, 3].map(|i| x[i].clone());
            let y = attention(q, k, v, bias, &visibilities[*kind], Dropout::new(if *drops { 0.3 } else { 0.0 }, KEY));
            visibilities[*kind].queries.real_tokens(y)
        });
    }
}

#[test]
fn attention_of_short_rows() {
    check_attention(&[1], &[1], 0, [1, 8], true, &KINDS[..2]);
    for packed in [true, false] {
        check_attention(&[3, 1, 5], &[2, 7, 1], 2, [3, 8], packed, &KINDS);
    }
    check_attention(&[9, 4], &[3, 6], 1, [2, 5], true, &KINDS[2..4]);
    check_attention(&[9, 4], &[3, 6], 1, [2, 128], false, &KINDS[2..4]);
}

#[test]
fn attention_of_many_tiles() {
    check_attention(&[70, 33], &[45, 80], 3, [2, 8], false, &KINDS);
    check_attention(&[37], &[41], 5, [1, 64], true, &KINDS[3..4]);
    check_attention(&[37], &[41], 5, [1, 100], true, &KINDS[3..4]);
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
        let y = attention(q, k, v, Tensor::zeros([1, 1], device), &visibility, None);
        values(queries.real_tokens(y))
    };
    for packed in [true, false] {
        assert_near("shared keys", &attend(&gpu(), packed), &attend(&Device::flex(), packed), TOLERANCE);
    }
}

#[test]
fn attention_of_windows() {
    let inputs = [scaled(1, [6, 16], 0.3), input(2, [9, 16]), input(3, [9, 16]), input(4, [2, 7])];
    check("windows", &inputs, |x| {
        let [queries, keys] = [[4, 2], [5, 4]].map(|lengths| RowLayout::packed(&lengths, &x[0].device().inner()));
        let visibility = Visibility::causal(2, &queries, &keys, 1);
        let [q, k, v] = [window(&x[0], 1), window(&x[1], 0), window(&x[2], 1)];
        attention(q, k, v, x[3].clone(), &visibility, Dropout::new(0.2, KEY))
    });
    let inputs = [scaled(1, [16, 6], 0.3), input(2, [16, 6]), input(3, [16, 6]), input(4, [1, 1])];
    check("transposed", &inputs, |x| {
        let layout = RowLayout::packed(&[4, 2], &x[0].device().inner());
        let [q, k, v] = [0, 1, 2].map(|i| x[i].clone().transpose());
        attention(q, k, v, x[3].clone(), &Visibility::full(2, &layout, &layout), None)
    });
}

/// Two matrices as one.
fn beside(left: Tensor<2>, right: Tensor<2>) -> Tensor<2> {
    Tensor::cat(vec![left, right], 1)
}

#[test]
fn sites_that_share_an_input() {
    let (n, d, r) = (5, 24, 2);
    let inputs = [
        input(1, [n, d]),
        input(2, [9, d]),
        input(3, [4, d]),
        input(4, [r, d]),
        input(5, [9, r]),
        input(6, [r, d]),
        input(7, [4, r]),
    ];
    check("adapted_linears", &inputs, |x| {
        let branch = |first: usize, rows: Option<Tensor<1, Int>>| LowRank {
            a: x[first].clone(),
            b: x[first + 1].clone(),
            scale: 0.7,
            dropout: Dropout::new(0.25, KEY),
            rows,
        };
        let some = Tensor::from_ints([0, 2, 3], &x[0].device());
        let sites = vec![
            LinearOp { weight: Some(x[1].clone().into()), branches: vec![branch(3, None)] },
            LinearOp { weight: Some(x[2].clone().into()), branches: vec![branch(5, Some(some))] },
        ];
        adapted_linears(x[0].clone(), sites)
    });
}

#[test]
fn what_looks_at_itself() {
    let layout = |device: &Device| RowLayout::padded(&[3, 5], 6, &device.clone().inner());
    check("self_attention", &[input(1, [12, 48]), input(2, [2, 11])], |x| {
        let layout = layout(&x[0].device());
        let y =
            self_attention(x[0].clone(), x[1].clone(), &Visibility::bidirectional(2, &layout), Dropout::new(0.2, KEY));
        layout.real_tokens(y)
    });
}

#[test]
fn rows_of_a_table() {
    check("embedding", &[input(1, [7, 5])], |x| {
        embedding(x[0].clone(), Tensor::from_ints([6, 0, 3, 3], &x[0].device()))
    });
}

#[test]
fn low_rank_branches() {
    let (n, d, out) = (5, 24, 9);
    for rank in [1, 4] {
        let branch = [input(1, [n, d]), input(2, [rank, d]), input(3, [out, rank])];
        check("low_rank", &branch, |x| {
            low_rank(x[0].clone(), x[1].clone(), x[2].clone(), 0.7, Dropout::new(0.25, KEY))
        });
        let inputs = [input(1, [n, d]), input(4, [out, d]), input(2, [rank, d]), input(3, [out, rank])];
        check("adapted_linear", &inputs, |x| {
            let branch =
                LowRank { a: x[2].clone(), b: x[3].clone(), scale: 0.7, dropout: Dropout::new(0.25, KEY), rows: None };
            adapted_linear(x[0].clone(), x[1].clone(), branch)
        });
    }
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
            let y =
                attention(x[0].clone(), x[1].clone(), x[2].clone(), x[3].clone(), &visibility, Dropout::new(0.2, KEY));
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
