//! Cases of each operation. `cpu` runs them by the kernels or by Burn's primitives, and in 16 bits; `gpu` runs them on
//! a GPU.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_kernels::{
    Dropout, Key, LinearOp, LowRank, PackedMatrix, Projections, RowLayout, Visibility, adapted_linear, adapted_linears,
    add_dropout, attention, cross_entropy, dropout, embedding, gelu_gate, linear_cross_entropy, low_rank, matmul,
    rms_norm, self_attention,
};

use sideburn_quant::{Packed, QuantType, Quantization};

use crate::loops::{numbers, tensor, values};

pub(crate) const KEY: Key = Key::from_seed(5);

/// An input of a case: its values and its shape.
pub(crate) type Input = (Vec<f64>, [usize; 2]);

/// The operation of a case.
pub(crate) type Op<'a> = &'a dyn Fn(&[Tensor<2>]) -> Tensor<2>;

/// What is done with each case, of which it is given the name.
pub(crate) type Check<'a> = &'a dyn Fn(&str, &[Input], Op<'_>);

/// A test for each group of cases.
macro_rules! test_cases {
    ($check:expr) => {
        crate::cases::test_cases! {
            $check;
            dropout_and_sums products gates norms losses attention_of_short_rows attention_of_many_tiles
            attention_of_windows attention_with_a_bias_by_place layers_that_share_an_input
            attention_of_tokens_to_each_other attention_at_the_end attention_of_long_rows rows_of_a_table
            low_rank_branches packed_weights
        }
    };
    ($check:expr; $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                crate::cases::$name(&$check);
            }
        )*
    };
}
pub(crate) use test_cases;

/// Values and gradients of an operation on a device.
pub(crate) fn run(inputs: &[Input], device: &Device, dtype: DType, op: Op<'_>) -> Vec<Vec<f64>> {
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

pub(crate) fn input(seed: u64, shape: [usize; 2]) -> Input {
    (numbers(seed, shape[0] * shape[1]), shape)
}

/// The same with each number multiplied by `factor`.
pub(crate) fn scaled(seed: u64, shape: [usize; 2], factor: f64) -> Input {
    let (values, shape) = input(seed, shape);
    (values.into_iter().map(|x| f64::from((x * factor) as f32)).collect(), shape)
}

pub(crate) fn label_tensor(count: usize, classes: usize, device: &Device) -> Tensor<1, Int> {
    let labels: Vec<i32> = (0..count as u64).map(|i| KEY.below(i, classes as u64) as i32).collect();
    Tensor::from_data(TensorData::new(labels, [count]), device)
}

/// Columns `from..` of a matrix that was made as wide as two.
fn window(x: &Tensor<2>, half: usize) -> Tensor<2> {
    let width = x.dims()[1];
    Tensor::cat(vec![x.clone(), x.clone()], 1).narrow(1, half * width, width)
}

/// Two matrices as one.
pub(crate) fn beside(left: Tensor<2>, right: Tensor<2>) -> Tensor<2> {
    Tensor::cat(vec![left, right], 1)
}

pub(crate) fn dropout_and_sums(check: Check<'_>) {
    for shape in [[1, 1], [5, 3], [7, 128]] {
        check("dropout", &[input(1, shape)], &|x| dropout(x[0].clone(), Dropout::new(0.3, KEY)));
        check("add_dropout", &[input(1, shape), input(2, shape)], &|x| {
            add_dropout(x[0].clone(), x[1].clone(), Dropout::new(0.3, KEY))
        });
    }
    check("transposed", &[input(1, [5, 12])], &|x| dropout(x[0].clone().transpose(), Dropout::new(0.3, KEY)));
}

pub(crate) fn products(check: Check<'_>) {
    // Within a tile, at its edges and beyond, and with sums long enough to be taken in parts.
    for [m, k, n] in [[1, 1, 1], [1, 33, 70], [5, 3, 4], [64, 16, 64], [65, 34, 130], [3, 1100, 2]] {
        let inputs = [scaled(1, [m, k], 1.0 / (k as f64).sqrt()), input(2, [k, n])];
        check(&format!("[{m}, {k}] times [{k}, {n}]"), &inputs, &|x| matmul(x[0].clone(), x[1].clone()));
    }
    check("both transposed", &[input(1, [9, 70]), input(2, [6, 9])], &|x| {
        matmul(x[0].clone().transpose(), x[1].clone().transpose())
    });
    check("columns of larger ones", &[input(1, [5, 8]), input(2, [8, 3])], &|x| {
        matmul(window(&x[0], 1), window(&x[1], 1))
    });
    check("batches", &[input(1, [12, 5]), input(2, [10, 6])], &|x| {
        let (lhs, rhs) = (x[0].clone().reshape([2, 6, 5]), x[1].clone().reshape([2, 5, 6]));
        matmul(lhs, rhs).reshape([12, 6])
    });
    check("heads of rows", &[input(1, [6, 8]), input(2, [6, 8])], &|x| {
        // From [rows 2, tokens 3, heads 2, width 4].
        let [q, k] = [0, 1].map(|index| x[index].clone().reshape([2, 3, 2, 4]).swap_dims(1, 2));
        matmul(q, k.swap_dims(2, 3)).reshape([12, 3])
    });
    check("one matrix for all", &[input(1, [8, 5]), input(2, [5, 3])], &|x| {
        let rhs = x[1].clone().unsqueeze::<3>().expand([4, 5, 3]);
        matmul(x[0].clone().reshape([4, 2, 5]), rhs).reshape([8, 3])
    });
}

pub(crate) fn gates(check: Check<'_>) {
    for shape in [[1, 1], [1, 8], [5, 3], [3, 128], [70, 65]] {
        for dropout in [None, Dropout::new(0.25, KEY)] {
            check("gelu_gate", &[scaled(1, shape, 2.0), input(2, shape)], &|x| {
                gelu_gate(beside(x[0].clone(), x[1].clone()), dropout)
            });
        }
    }
    for shape in [[5, 64], [5, 6]] {
        check("window", &[input(1, shape)], &|x| gelu_gate(window(&x[0], 1), Dropout::new(0.25, KEY)));
    }
    // Where the exponential would overflow.
    check("far out", &[scaled(1, [3, 8], 20.0), input(2, [3, 8])], &|x| {
        gelu_gate(beside(x[0].clone(), x[1].clone()), None)
    });
}

pub(crate) fn norms(check: Check<'_>) {
    for (rows, width) in [(1, 1), (1, 8), (40, 3), (5, 128), (33, 300), (2, 1000)] {
        // With one element and a small epsilon the gradient is nothing but cancellation, in any precision.
        let epsilon = if width < 8 { 0.5 } else { 1e-6 };
        check(&format!("rms_norm [{rows}, {width}]"), &[input(1, [rows, width]), input(2, [1, width])], &|x| {
            rms_norm(x[0].clone(), x[1].clone().reshape([width]), epsilon)
        });
    }
    check("transposed", &[input(1, [24, 5]), input(2, [1, 24])], &|x| {
        rms_norm(x[0].clone().transpose(), x[1].clone().reshape([24]), 1e-6)
    });
}

pub(crate) fn losses(check: Check<'_>) {
    for (rows, classes) in [(1, 1), (5, 13), (4, 1301)] {
        check(&format!("cross_entropy [{rows}, {classes}]"), &[input(1, [rows, classes])], &|x| {
            let labels = label_tensor(rows, classes, &x[0].device());
            cross_entropy(x[0].clone(), labels).reshape([rows, 1]).cast(x[0].dtype())
        });
        let d = 8;
        for smoothing in [0.0, 0.1, 1.0] {
            let what = format!("linear_cross_entropy [{rows}, {classes}], {d}, {smoothing}");
            check(&what, &[input(1, [rows, d]), input(2, [classes, d])], &|x| {
                let labels = label_tensor(rows, classes, &x[0].device());
                linear_cross_entropy(x[0].clone(), x[1].clone(), labels, smoothing)
                    .reshape([rows, 1])
                    .cast(x[0].dtype())
            });
        }
    }
}

/// How the rows of an attention's inputs lie.
pub(crate) fn layouts(lengths: &[usize], packed: bool, device: &Device) -> RowLayout {
    if packed { RowLayout::packed(lengths, device) } else { RowLayout::padded(lengths, 4, device) }
}

/// The visibilities of attentions over these rows: of all keys of others, of one's own row, and of what is before,
/// after `first`.
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
    check: Check<'_>,
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
            input(4, [heads, visibility.bias_origin + visibility.keys.columns()]),
        ];
        let inputs = if *biased { &inputs[..] } else { &inputs[..3] };
        let what = format!("attention {queries:?} {heads}x{width} packed {packed} {:?}", (kind, biased, drops));
        check(&what, inputs, &|x| {
            let visibilities = visibilities(queries, others, first, heads, packed, &x[0].device().inner());
            let ([q, k, v], bias) = ([0, 1, 2].map(|i| x[i].clone()), x.get(3).cloned());
            let y = attention(q, k, v, bias, &visibilities[*kind], Dropout::new(if *drops { 0.3 } else { 0.0 }, KEY));
            visibilities[*kind].queries.real_tokens(y)
        });
    }
}

pub(crate) fn attention_of_short_rows(check: Check<'_>) {
    check_attention(check, &[1], &[1], 0, [1, 8], true, &KINDS[..2]);
    for packed in [true, false] {
        check_attention(check, &[3, 1, 5], &[2, 7, 1], 2, [3, 8], packed, &KINDS);
    }
    check_attention(check, &[9, 4], &[3, 6], 1, [2, 5], true, &KINDS[2..4]);
    check_attention(check, &[9, 4], &[3, 6], 1, [2, 128], false, &KINDS[2..4]);
}

pub(crate) fn attention_of_many_tiles(check: Check<'_>) {
    check_attention(check, &[70, 33], &[45, 80], 3, [2, 8], false, &KINDS);
    check_attention(check, &[37], &[41], 5, [1, 64], true, &KINDS[3..4]);
    check_attention(check, &[37], &[41], 5, [1, 100], true, &KINDS[3..4]);
}

pub(crate) fn attention_of_windows(check: Check<'_>) {
    let inputs = [scaled(1, [6, 16], 0.3), input(2, [9, 16]), input(3, [9, 16]), input(4, [2, 7])];
    check("windows", &inputs, &|x| {
        let [queries, keys] = [[4, 2], [5, 4]].map(|lengths| RowLayout::packed(&lengths, &x[0].device().inner()));
        let visibility = Visibility::causal(2, &queries, &keys, 1);
        let [q, k, v] = [window(&x[0], 1), window(&x[1], 0), window(&x[2], 1)];
        attention(q, k, v, Some(x[3].clone()), &visibility, Dropout::new(0.2, KEY))
    });
    let inputs = [scaled(1, [16, 6], 0.3), input(2, [16, 6]), input(3, [16, 6])];
    check("transposed", &inputs, &|x| {
        let layout = RowLayout::packed(&[4, 2], &x[0].device().inner());
        let [q, k, v] = [0, 1, 2].map(|i| x[i].clone().transpose());
        attention(q, k, v, None, &Visibility::full(2, &layout, &layout), None)
    });
}

pub(crate) fn attention_with_a_bias_by_place(check: Check<'_>) {
    for packed in [true, false] {
        let inputs = [scaled(1, [if packed { 6 } else { 8 }, 16], 0.3), input(2, [if packed { 9 } else { 16 }, 16])];
        let inputs = inputs.into_iter().chain([input(3, [if packed { 9 } else { 16 }, 16]), input(4, [2, 8])]);
        check(&format!("packed {packed}"), &inputs.collect::<Vec<_>>(), &|x| {
            let device = x[0].device().inner();
            let [queries, keys] = [[4, 2], [5, 4]].map(|lengths| layouts(&lengths, packed, &device));
            let visibility = Visibility::causal(2, &queries, &keys, 1).with_bias_by_place();
            let [q, k, v, bias] = [0, 1, 2, 3].map(|index| x[index].clone());
            queries.real_tokens(attention(q, k, v, Some(bias), &visibility, Dropout::new(0.2, KEY)))
        });
    }
}

pub(crate) fn layers_that_share_an_input(check: Check<'_>) {
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
    check("adapted_linears", &inputs, &|x| {
        let branch = |first: usize, rows: Option<Tensor<1, Int>>| LowRank {
            a: x[first].clone(),
            b: x[first + 1].clone(),
            scale: 0.7,
            dropout: Dropout::new(0.25, KEY),
            rows,
        };
        let some = Tensor::from_ints([0, 2, 3], &x[0].device());
        let layers = vec![
            LinearOp { weight: Some(x[1].clone().into()), branches: vec![branch(3, None)] },
            LinearOp { weight: Some(x[2].clone().into()), branches: vec![branch(5, Some(some))] },
        ];
        adapted_linears(x[0].clone(), layers)
    });
}

pub(crate) fn packed_weights(check: Check<'_>) {
    let (n, d, r, out) = (5, 96, 2, 9);
    let plain = Quantization::FourBit { quant_type: QuantType::Nf4, block_size: 32, double_quant: false };
    for quantization in [Quantization::NF4, plain, Quantization::FP4, Quantization::INT8] {
        let weight: Vec<f32> = numbers(2, out * d).into_iter().map(|x| x as f32).collect();
        let packed = Packed::quantize("w", &weight, [out, d], quantization).unwrap();
        check("packed linears", &[input(1, [n, d]), input(4, [r, d]), input(5, [out, r])], &|x| {
            let weight = PackedMatrix::new(packed.clone(), 6.0, &x[0].device()).with_float_inputs();
            let branch = LowRank { a: x[1].clone(), b: x[2].clone(), scale: 0.7, dropout: None, rows: None };
            adapted_linear(x[0].clone(), weight, branch)
        });
    }
    // In 16 bits, beside `x` in more.
    check("linears in 16 bits", &[input(1, [n, d]), input(4, [r, d]), input(5, [out, r])], &|x| {
        let weight = tensor(&numbers(2, out * d), [out, d], &x[0].device(), DType::F16);
        let branch = LowRank { a: x[1].clone(), b: x[2].clone(), scale: 0.7, dropout: None, rows: None };
        adapted_linear(x[0].clone(), weight, branch)
    });
}

pub(crate) fn attention_of_tokens_to_each_other(check: Check<'_>) {
    let layout = |device: &Device| RowLayout::padded(&[3, 5], 6, &device.clone().inner());
    check("self_attention", &[input(1, [12, 48]), input(2, [2, 11])], &|x| {
        let layout = layout(&x[0].device());
        let (visibility, bias) = (Visibility::bidirectional(2, &layout), Some(x[1].clone()));
        let dropout = Dropout::new(0.2, KEY);
        layout.real_tokens(self_attention(x[0].clone(), Projections::of(2), bias, None, &visibility, dropout))
    });
    // Six heads that look through two, or one, turned.
    for (kv_heads, grouped, packed, width) in
        [(2, true, true, 4), (2, false, false, 4), (1, true, false, 4), (6, true, true, 4), (2, true, false, 16)]
    {
        turned(check, &[3, 5], [6, kv_heads, width], grouped, packed);
    }
    // Keys of their own rows, that several heads look through.
    let inputs = [scaled(1, [6, 16], 0.3), input(2, [9, 8]), input(3, [9, 8])];
    check("shared heads", &inputs, &|x| {
        let [queries, keys] = [[4, 2], [5, 4]].map(|lengths| RowLayout::packed(&lengths, &x[0].device().inner()));
        let [q, k, v] = [0, 1, 2].map(|i| x[i].clone());
        attention(q, k, v, None, &Visibility::causal(4, &queries, &keys, 1), Dropout::new(0.2, KEY))
    });
}

/// Attention of rows to themselves, by heads that look through others and are turned.
fn turned(check: Check<'_>, lengths: &[usize], [heads, kv_heads, width]: [usize; 3], grouped: bool, packed: bool) {
    let layout = |device: &Device| layouts(lengths, packed, &device.clone().inner());
    let tokens = layout(&Device::flex()).tokens();
    let what = format!("{lengths:?}, {kv_heads} heads of keys {width} wide, grouped {grouped}, packed {packed}");
    check(&what, &[scaled(1, [tokens, (heads + 2 * kv_heads) * width], 1.4 / (width as f64).sqrt())], &|x| {
        let (device, layout) = (x[0].device(), layout(&x[0].device()));
        let half = width / 2;
        let angles = (0..tokens * half).map(|at| (at / half * 3 + at % half) as f64 * 0.37);
        let pairs: Vec<f64> = angles.collect();
        let row = |pairs: &[f64]| {
            let cos = pairs.iter().map(|angle| angle.cos());
            cos.chain(pairs.iter().map(|angle| angle.sin())).collect::<Vec<_>>()
        };
        let cos_sin: Vec<f64> = pairs.chunks(half).flat_map(row).collect();
        let cos_sin = tensor(&cos_sin, [tokens, width], &device, x[0].dtype());
        let projections = Projections { kv_heads, scale: 0.5, grouped };
        let visibility = Visibility::causal(heads, &layout, &layout, 0);
        let dropout = Dropout::new(0.2, KEY);
        layout.real_tokens(self_attention(x[0].clone(), projections, None, Some(cos_sin), &visibility, dropout))
    });
}

/// The queries of rows of different lengths, which are at the ends of their rows.
pub(crate) fn attention_at_the_end(check: Check<'_>) {
    for biased in [true, false] {
        let inputs = [scaled(1, [4, 16], 0.3), input(2, [9, 8]), input(3, [9, 8])];
        check(&format!("at the end, biased {biased}"), &inputs, &|x| {
            let device = x[0].device().inner();
            let [queries, keys] = [[2, 2], [3, 6]].map(|lengths| RowLayout::packed(&lengths, &device));
            let bias = tensor(&numbers(4, 4 * 6), [4, 6], &device, x[0].dtype());
            let [q, k, v] = [0, 1, 2].map(|i| x[i].clone());
            let bias = biased.then(|| Tensor::from_inner(bias));
            attention(q, k, v, bias, &Visibility::at_end(4, &queries, &keys), Dropout::new(0.2, KEY))
        });
    }
}

/// What the attention of long rows alone does otherwise, as tensor cores do it.
pub(crate) fn attention_of_long_rows(check: Check<'_>) {
    turned(check, &[37, 20], [4, 2, 32], true, false);
    turned(check, &[20, 41], [2, 1, 32], false, true);
    let inputs = [scaled(1, [24, 16], 0.3), input(2, [71, 8]), input(3, [71, 8])];
    check("at the end", &inputs, &|x| {
        let device = x[0].device().inner();
        let [queries, keys] = [[12, 12], [30, 41]].map(|lengths| RowLayout::packed(&lengths, &device));
        let [q, k, v] = [0, 1, 2].map(|i| x[i].clone());
        attention(q, k, v, None, &Visibility::at_end(4, &queries, &keys), Dropout::new(0.2, KEY))
    });
}

pub(crate) fn rows_of_a_table(check: Check<'_>) {
    check("embedding", &[input(1, [7, 5])], &|x| {
        embedding(x[0].clone(), Tensor::from_ints([6, 0, 3, 3], &x[0].device()))
    });
}

pub(crate) fn low_rank_branches(check: Check<'_>) {
    let (n, d, out) = (5, 24, 9);
    for rank in [1, 4] {
        let branch = [input(1, [n, d]), input(2, [rank, d]), input(3, [out, rank])];
        check("low_rank", &branch, &|x| {
            low_rank(x[0].clone(), x[1].clone(), x[2].clone(), 0.7, Dropout::new(0.25, KEY))
        });
        let inputs = [input(1, [n, d]), input(4, [out, d]), input(2, [rank, d]), input(3, [out, rank])];
        check("adapted_linear", &inputs, &|x| {
            let branch =
                LowRank { a: x[2].clone(), b: x[3].clone(), scale: 0.7, dropout: Dropout::new(0.25, KEY), rows: None };
            adapted_linear(x[0].clone(), x[1].clone(), branch)
        });
    }
}
