//! Which inputs get a gradient, how they may lie in memory, and what is refused.

use crate::loops::{assert_near, bits, f32s, numbers, values};
use burn::tensor::{Device, Int, Tensor, s};
use sideburn_kernels::{
    Dropout, KernelMode, Key, LowRank, Projections, RowLayout, Visibility, adapted_linear, add_dropout, attention,
    cross_entropy, dropout, embedding, gelu_gate, kernel_mode, linear, linear_cross_entropy, low_rank, rms_norm,
    self_attention,
};

const KEY: Key = Key::from_seed(2);
fn labels(labels: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_ints(labels, device)
}

/// Attention of three heads, of width 4, in two rows.
fn attend(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, bias: Tensor<2>) -> Tensor<2> {
    let [queries, keys] = [[4, 2], [5, 3]].map(|lengths| RowLayout::packed(&lengths, &q.device()));
    let visibility = Visibility::causal(3, &queries, &keys, 1);
    attention(q, k, v, Some(bias), &visibility, Dropout::new(0.1, KEY))
}

/// Two matrices as one.
fn beside(left: Tensor<2>, right: Tensor<2>) -> Tensor<2> {
    Tensor::cat(vec![left, right], 1)
}

/// The shapes of its inputs.
const ATTENDED: [[usize; 2]; 4] = [[6, 12], [8, 12], [8, 12], [3, 5]];

/// The gradient of each leaf, of which those named by the bits of `tracked` require one.
fn gradients<const D: usize, const N: usize>(
    tracked: usize,
    leaves: [Tensor<D>; N],
    op: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) -> [Option<Vec<u8>>; N] {
    let mut index = 0;
    let leaves = leaves.map(|leaf| {
        index += 1;
        leaf.set_require_grad(tracked >> (index - 1) & 1 == 1)
    });
    let output = op(leaves.clone());
    if tracked == 0 {
        assert!(!output.is_tracked());
        return [const { None }; N];
    }
    let gradients = output.powi_scalar(2).sum().backward();
    leaves.map(|leaf| leaf.grad(&gradients).map(bits))
}

#[test]
fn only_tracked_inputs_get_a_gradient() {
    let device = Device::flex().autodiff();
    let low = |tracked| {
        let leaves = [f32s(1, [7, 16], &device), f32s(2, [2, 16], &device), f32s(3, [9, 2], &device)];
        gradients(tracked, leaves, |[x, a, b]| low_rank(x, a, b, 0.5, Dropout::new(0.2, KEY)))
    };
    let all = low(0b111);
    for tracked in 0..8 {
        let expected = [0, 1, 2].map(|leaf| all[leaf].clone().filter(|_| tracked >> leaf & 1 == 1));
        assert!(low(tracked) == expected, "low_rank, tracked {tracked:03b}");
    }
    let attention = |tracked| {
        let leaves = [0, 1, 2, 3].map(|leaf| f32s(leaf as u64, ATTENDED[leaf], &device));
        gradients(tracked, leaves, |[q, k, v, bias]| attend(q, k, v, bias))
    };
    let all = attention(0b1111);
    for tracked in 0..16 {
        let expected = [0, 1, 2, 3].map(|leaf| all[leaf].clone().filter(|_| tracked >> leaf & 1 == 1));
        assert!(attention(tracked) == expected, "attention, tracked {tracked:04b}");
    }
    let adapted = |tracked| {
        let shapes = [[7, 16], [9, 16], [2, 16], [9, 2]];
        let leaves = [0, 1, 2, 3].map(|leaf| f32s(leaf as u64, shapes[leaf], &device));
        gradients(tracked, leaves, |[x, weight, a, b]| {
            adapted_linear(x, weight, LowRank { a, b, scale: 0.5, dropout: Dropout::new(0.2, KEY), rows: None })
        })
    };
    let all = adapted(0b1111);
    for tracked in 0..16 {
        for (leaf, (found, expected)) in adapted(tracked).into_iter().zip(&all).enumerate() {
            assert_eq!(found.is_some(), tracked >> leaf & 1 == 1, "adapted_linear, tracked {tracked:04b}");
            // With nothing but `x` trained, its two gradients are summed as they come.
            assert!(found.is_none() || leaf == 0 || found == *expected, "adapted_linear, tracked {tracked:04b}");
        }
    }
    let two = |op: fn(Tensor<2>, Tensor<2>) -> Tensor<2>, what: &str| {
        let run = |tracked| gradients(tracked, [f32s(1, [3, 5], &device), f32s(2, [3, 5], &device)], |[x, y]| op(x, y));
        let all = run(0b11);
        assert!(run(0b01) == [all[0].clone(), None] && run(0b10) == [None, all[1].clone()], "{what}");
    };
    two(|gate, up| gelu_gate(beside(gate, up), None), "gelu_gate");
    two(linear, "linear");
    two(|x, y| add_dropout(x, y, Dropout::new(0.2, KEY)), "add_dropout");
    two(
        |hidden, weight| {
            let labels = labels(&[0, 2, 1], &hidden.device());
            linear_cross_entropy(hidden, weight, labels, 0.1).unsqueeze()
        },
        "linear_cross_entropy",
    );
    let norm = |tracked| {
        gradients(tracked, [f32s(1, [3, 5], &device), f32s(2, [1, 5], &device)], |[x, w]| {
            rms_norm(x, w.reshape([5]), 1e-6)
        })
    };
    let all = norm(0b11);
    assert!(norm(0b01) == [all[0].clone(), None] && norm(0b10) == [None, all[1].clone()], "rms_norm");
}

/// A leaf whose transpose is `leaf.transpose()`, as a view of it and as a tensor of its own.
fn view_and_copy(seed: u64, shape: [usize; 2], device: &Device) -> [Tensor<2>; 2] {
    let base = f32s(seed, [shape[1] + 1, shape[0]], device);
    let view = base.slice(s![1..]).transpose();
    [Tensor::from_data(view.to_data(), device), view]
}

#[test]
fn views_give_what_their_copies_give() {
    let device = Device::flex().autodiff();
    let run = |which: usize| {
        let leaf = |seed, shape| view_and_copy(seed, shape, &device)[which].clone().require_grad();
        let (x, a, b, up) = (leaf(1, [6, 9]), leaf(2, [2, 9]), leaf(3, [4, 2]), leaf(4, [6, 9]));
        let weight = leaf(5, [9, 3]);
        let column = weight.clone().slice([0..9, 1..2]).reshape([9]);
        // Transposed outputs make the incoming gradients views, too.
        let outputs = [
            dropout(x.clone(), Dropout::new(0.5, KEY)).transpose(),
            low_rank(x.clone(), a.clone(), b.clone(), 1.0, None).transpose(),
            rms_norm(x.clone(), column, 1e-6).transpose(),
            gelu_gate(beside(x.clone(), up.clone()), Dropout::new(0.5, KEY)).transpose(),
            add_dropout(x.clone(), up.clone(), Dropout::new(0.5, KEY)).transpose(),
            linear(x.clone(), up.clone()).transpose(),
            embedding(x.clone(), labels(&[5, 0, 5], &device)).transpose(),
            linear_cross_entropy(x.clone(), up.clone(), labels(&[0, 5, 3, 1, 2, 2], &device), 0.1).reshape([1, 6]),
            cross_entropy(x.clone(), labels(&[0, 8, 3, 1, 2, 2], &device)).reshape([1, 6]),
        ];
        let loss = |y: &Tensor<2>| (y.clone() * f32s(6, y.dims(), &device)).sum();
        let loss = outputs.iter().map(loss).reduce(|x, y| x + y).unwrap();
        let gradients = loss.backward();
        let gradients = [x, a, b, up, weight].map(|leaf| values(leaf.grad(&gradients).unwrap()));
        outputs.map(values).into_iter().chain(gradients).collect::<Vec<_>>()
    };
    for (index, (view, copy)) in run(1).iter().zip(run(0)).enumerate() {
        assert_near(&format!("result {index}"), view, &copy, 1e-6);
    }
}

#[test]
fn attention_takes_views() {
    let device = Device::flex().autodiff();
    let run = |which: usize| {
        let leaves = [0, 1, 2, 3].map(|leaf| view_and_copy(leaf as u64, ATTENDED[leaf], &device)[which].clone());
        let [q, k, v, bias] = leaves.map(Tensor::require_grad);
        let y = attend(q.clone(), k.clone(), v.clone(), bias.clone());
        let gradients = y.clone().transpose().powi_scalar(3).sum().backward();
        [q, k, v, bias].map(|x| values(x.grad(&gradients).unwrap())).into_iter().chain([values(y)]).collect::<Vec<_>>()
    };
    for (index, (view, copy)) in run(1).iter().zip(run(0)).enumerate() {
        assert_near(&format!("result {index}"), view, &copy, 1e-6);
    }
}

#[test]
fn padding_changes_nothing() {
    // The same rows with room behind them, which holds what must not be looked at.
    let device = Device::flex().autodiff();
    let lengths = [3, 1];
    let run = |layout: &RowLayout| {
        let leaf = |seed| {
            let real = f32s(seed, [4, 4], &device);
            let mut out = Tensor::full([layout.tokens(), 4], 1e3, &device);
            for (row, start) in [(0, 0), (1, 3)] {
                let tokens = layout.row(row);
                out = out.slice_assign([tokens.clone(), 0..4], real.clone().slice([start..start + tokens.len(), 0..4]));
            }
            out.detach().require_grad()
        };
        let (q, k, v) = (leaf(1), leaf(2), leaf(3));
        let bias = f32s(4, [2, 2 * layout.columns() - 1], &device);
        // The same column for the same distance.
        let bias = bias.clone().slice([0..2, 0..5]).mul_scalar(0.0) + f32s(4, [2, 5], &device);
        let bias = Tensor::cat(vec![Tensor::zeros([2, layout.columns() - 3], &device), bias], 1);
        let bias = Tensor::cat(vec![bias, Tensor::zeros([2, layout.columns() - 3], &device)], 1);
        let y = layout.real_tokens(attention(
            q.clone(),
            k.clone(),
            v.clone(),
            Some(bias),
            &Visibility::bidirectional(2, layout),
            None,
        ));
        let gradients = y.clone().powi_scalar(2).sum().backward();
        let gradients = [q, k, v].map(|x| values(layout.real_tokens(x.grad(&gradients).unwrap())));
        gradients.into_iter().chain([values(y)]).collect::<Vec<_>>()
    };
    let packed = run(&RowLayout::packed(&lengths, &device));
    let padded = run(&RowLayout::in_columns(&lengths, 6, &device));
    for (index, (padded, packed)) in padded.iter().zip(&packed).enumerate() {
        assert_near(&format!("result {index}"), padded, packed, 1e-6);
    }
}

/// Rows that look into the rows of others see what they would see in copies.
#[test]
fn rows_may_share_their_keys() {
    let (device, looking) = (Device::flex(), [2, 0, 0, 2]);
    for queries in [[1, 1, 1, 1], [2, 1, 3, 1]] {
        let queries = RowLayout::packed(&queries, &device);
        let q = f32s(1, [queries.tokens(), 8], &device);
        for keys in [RowLayout::packed(&[4, 2, 3], &device), RowLayout::in_columns(&[4, 2, 3], 5, &device)] {
            let [k, v] = [2, 3].map(|seed| f32s(seed, [keys.tokens(), 8], &device));
            let attend = |k: &Tensor<2>, v: &Tensor<2>, keys: &RowLayout| {
                let visibility = Visibility::full(2, &queries, keys);
                values(attention(q.clone(), k.clone(), v.clone(), None, &visibility, None))
            };
            let copies = |x: &Tensor<2>| Tensor::cat(looking.map(|row| x.clone().slice([keys.row(row)])).to_vec(), 0);
            let copied = RowLayout::packed(&looking.map(|row| keys.lengths()[row]), &device);
            let (shared, apart) = (attend(&k, &v, &keys.rows_of(&looking)), attend(&copies(&k), &copies(&v), &copied));
            assert_near("shared keys", &shared, &apart, 1e-6);
            // Rows of rows: beams are reordered again and again.
            let again = keys.rows_of(&[1, 0, 2]).rows_of(&[2, 1, 1, 2]);
            assert_eq!(attend(&k, &v, &again), shared);
            // And so do rows whose tokens lie anywhere.
            let places = looking.map(|row| keys.row(row).map(|token| token as u32).collect()).to_vec();
            let scattered = RowLayout::scattered(places, 6, keys.tokens(), &device);
            assert_near("scattered keys", &attend(&k, &v, &scattered), &apart, 1e-6);
            let again = attend(&k, &v, &scattered.rows_of(&[1, 2, 0, 3]));
            assert_near("scattered again", &again, &attend(&k, &v, &keys.rows_of(&[0, 0, 2, 2])), 1e-6);
        }
    }
}

/// Rows that look at the same keys are computed together, and long ones some heads at a time: to the same bits.
#[test]
fn rows_that_share_their_keys_are_as_they_are_apart() {
    let (device, looking) = (Device::flex(), [0, 0, 0, 0, 0, 1, 1]);
    let (keys, queries) = (RowLayout::packed(&[1700, 3], &device), RowLayout::packed(&[1; 7], &device));
    let [q, k, v] = [7, 1703, 1703].map(|rows| f32s(rows as u64, [rows, 60], &device));
    let attend = |k: &Tensor<2>, v: &Tensor<2>, keys: &RowLayout| {
        let visibility = Visibility::full(3, &queries, keys);
        values(attention(q.clone(), k.clone(), v.clone(), None, &visibility, None))
    };
    let copies = |x: &Tensor<2>| Tensor::cat(looking.map(|row| x.clone().slice([keys.row(row)])).to_vec(), 0);
    let apart = RowLayout::packed(&looking.map(|row| keys.lengths()[row]), &device);
    let shared = attend(&k, &v, &keys.rows_of(&looking));
    assert_near("shared keys", &shared, &attend(&copies(&k), &copies(&v), &apart), 1e-5);
    if kernel_mode() == KernelMode::Fused {
        assert_eq!(shared, attend(&copies(&k), &copies(&v), &apart));
    }
}

#[test]
#[should_panic(expected = "rows that share their keys have no gradient")]
fn shared_keys_have_no_gradient() {
    let device = Device::flex().autodiff();
    let keys = RowLayout::packed(&[2], &device).rows_of(&[0, 0]);
    let [q, k, v] = [1, 2, 3].map(|seed| f32s(seed, [2, 4], &device).require_grad());
    let visibility = Visibility::full(1, &RowLayout::packed(&[1, 1], &device), &keys);
    attention(q, k, v, None, &visibility, None).sum().backward();
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let device = Device::flex();
    let with = |bad: f32| Tensor::<2>::from_floats([[bad, 1.0, 2.0], [0.5, 1.0, 2.0]], &device);
    let ones = || Tensor::<2>::ones([2, 3], &device);
    for bad in [f32::NAN, f32::INFINITY] {
        let not_finite = |row: usize, what: &str, y: Vec<f64>| {
            let width = y.len() / 2;
            let finite = |row: usize| y[row * width..][..width].iter().all(|y| y.is_finite());
            assert!(!finite(row) && finite(1 - row), "{what} of {bad}: {y:?}");
        };
        not_finite(0, "cross_entropy", values(cross_entropy(with(bad), labels(&[1, 1], &device))));
        not_finite(0, "gelu_gate", values(gelu_gate(beside(with(bad), ones()), None)));
        not_finite(0, "gelu_gate", values(gelu_gate(beside(ones(), with(bad)), None)));
        not_finite(0, "rms_norm", values(rms_norm(with(bad), Tensor::ones([3], &device), 1e-6)));
        let low = low_rank(with(bad), Tensor::ones([1, 3], &device), Tensor::ones([4, 1], &device), 1.0, None);
        not_finite(0, "low_rank", values(low));
        let (kept, dropped) =
            (values(dropout(with(bad), Dropout::new(0.01, KEY))), values(dropout(ones(), Dropout::new(0.01, KEY))));
        assert!(dropped[0] != 0.0, "the key must keep element 0 for this test to say anything");
        not_finite(0, "dropout", kept);
        let rows = RowLayout::packed(&[1, 1], &device);
        let visibility = Visibility::full(1, &rows, &rows);
        not_finite(0, "attention", values(attention(with(bad), ones(), ones(), None, &visibility, None)));
        not_finite(0, "linear", values(linear(with(bad), ones())));
        let loss = linear_cross_entropy(with(bad), ones(), labels(&[1, 1], &device), 0.0);
        not_finite(0, "linear_cross_entropy", values(loss));
    }
    // A logit of minus infinity is a probability of zero, which is fine unless it is the label's.
    let logits = with(f32::NEG_INFINITY);
    let loss = values(cross_entropy(logits, labels(&[0, 0], &device)));
    assert!(loss[0] == f64::INFINITY && loss[1].is_finite(), "{loss:?}");
    let loss = values(cross_entropy(with(f32::NEG_INFINITY), labels(&[2, 0], &device)));
    assert_near("loss", &loss[..1], &[(1.0 + (-1.0f64).exp()).ln()], 1e-6);
}

#[test]
fn large_numbers_do_not_overflow() {
    let device = Device::flex().autodiff();
    let logits = Tensor::<2>::from_floats([[1e4, -1e4, 0.0], [-1e4, 9_999.0, 1e4]], &device).require_grad();
    let loss = cross_entropy(logits.clone(), labels(&[1, 2], &device));
    assert_near("loss", &values(loss.clone()), &[2e4, (1.0 + (-1.0f64).exp()).ln()], 1e-6);
    let gradient = values(logits.grad(&loss.sum().backward()).unwrap());
    let share = 1.0 / (1.0 + 1f64.exp());
    assert_near("gradient", &gradient, &[1.0, -1.0, 0.0, 0.0, share, -share], 1e-6);

    // gelu of large numbers is the identity or zero.
    let gate = Tensor::<2>::from_floats([[-1e4, -30.0, 30.0, 1e4]], &device).require_grad();
    let y = gelu_gate(beside(gate.clone(), Tensor::ones([1, 4], &device)), None);
    assert_near("gelu", &values(y.clone())[..3], &[0.0, 0.0, 30.0], 1e-7);
    assert_eq!(values(y.clone())[3], 1e4);
    assert_near("slope", &values(gate.grad(&y.sum().backward()).unwrap()), &[0.0, 0.0, 1.0, 1.0], 1e-6);
}

#[test]
fn gelu_is_exact_far_below_zero() {
    // Relative to the value itself: 1 + tanh cancels there, in the composed form, which has no other way.
    if kernel_mode() == KernelMode::Composed {
        return;
    }
    for x in [-0.5_f64, -2.0, -3.5, -5.0] {
        let gate = Tensor::<2>::from_floats([[x]], &Device::flex());
        let y = values(gelu_gate(beside(gate, Tensor::ones([1, 1], &Device::flex())), None))[0];
        // x / (1 + exp(-2 u)), the same function.
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        let expected = x / (1.0 + (-2.0 * u).exp());
        assert!((y / expected - 1.0).abs() < 1e-5, "gelu({x}): {y} instead of {expected}");
    }
}

#[test]
#[should_panic(expected = "a dropout probability lies in [0, 1), not at 1")]
fn dropout_of_everything_is_refused() {
    dropout(f32s(1, [2], &Device::flex()), Dropout::new(1.0, KEY));
}

#[test]
#[should_panic(expected = "a dropout probability lies in [0, 1), not at NaN")]
fn a_probability_that_is_no_number_is_refused() {
    dropout(f32s(1, [2], &Device::flex()), Dropout::new(f64::NAN, KEY));
}

#[test]
#[should_panic(expected = "a dropout probability lies in [0, 1), not at -0.5")]
fn low_rank_refuses_a_negative_probability() {
    let x = f32s(1, [1, 1], &Device::flex());
    low_rank(x.clone(), x.clone(), x, 1.0, Dropout::new(-0.5, KEY));
}

#[test]
#[should_panic(expected = "x [n, in], a [r, in] and b [out, r] must fit")]
fn low_rank_refuses_misfitting_factors() {
    let [x, a, b] = [[4, 8], [2, 8], [8, 3]].map(|shape| f32s(1, shape, &Device::flex()));
    low_rank(x, a, b, 1.0, None);
}

#[test]
#[should_panic(expected = "x [n, d] and weight [d] must fit")]
fn rms_norm_refuses_a_misfitting_weight() {
    rms_norm(f32s(1, [4, 8], &Device::flex()), f32s(1, [4], &Device::flex()), 1e-6);
}

#[test]
#[should_panic(expected = "7 columns do not make a gate and as many others")]
fn gelu_gate_refuses_an_odd_number_of_columns() {
    gelu_gate(f32s(1, [4, 7], &Device::flex()), None);
}

#[test]
#[should_panic(expected = "every row of logits needs one label")]
fn cross_entropy_refuses_missing_labels() {
    cross_entropy(f32s(1, [4, 8], &Device::flex()), labels(&[1], &Device::flex()));
}

#[test]
#[should_panic(expected = "label 8 is none of 8 classes")]
fn cross_entropy_refuses_a_label_that_is_no_class() {
    cross_entropy(f32s(1, [2, 8], &Device::flex()), labels(&[1, 8], &Device::flex()));
}

#[test]
#[should_panic(expected = "label -100 is none of 8 classes")]
fn cross_entropy_refuses_the_label_to_be_ignored_of_other_libraries() {
    cross_entropy(f32s(1, [2, 8], &Device::flex()), labels(&[-100, 0], &Device::flex()));
}

#[test]
#[should_panic(expected = "id 4 is none of the table's 4 rows")]
fn embedding_refuses_an_id_that_is_no_row() {
    embedding(f32s(1, [4, 8], &Device::flex()), labels(&[3, 4], &Device::flex()));
}

#[test]
#[should_panic(expected = "id -1 is none of the table's 4 rows")]
fn embedding_refuses_a_negative_id() {
    embedding(f32s(1, [4, 8], &Device::flex()), labels(&[-1], &Device::flex()));
}

#[test]
fn a_table_gets_one_gradient_on_any_number_of_threads() {
    let device = Device::flex().autodiff();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let table = f32s(1, [3, 700], &device).require_grad();
            let ids: Vec<i32> = (0..999).map(|token| token % 7 % 3).collect();
            let rows = embedding(table.clone(), labels(&ids, &device));
            bits(table.grad(&rows.powi_scalar(2).sum().backward()).unwrap())
        })
    };
    assert!([2, 3, 8].iter().all(|threads| on(*threads) == on(1)));
}

#[test]
#[should_panic(expected = "x [n, in], a [r, in] and b [out, r] must fit")]
fn adapted_linear_refuses_misfitting_factors() {
    let [x, weight, a, b] = [[4, 8], [3, 8], [2, 8], [8, 2]].map(|shape| f32s(1, shape, &Device::flex()));
    adapted_linear(x, weight, LowRank { a, b, scale: 1.0, dropout: None, rows: None });
}

#[test]
#[should_panic(expected = "label smoothing lies in [0, 1], not at 1.5")]
fn too_much_smoothing_is_refused() {
    let x = f32s(1, [2, 2], &Device::flex());
    linear_cross_entropy(x.clone(), x, labels(&[0, 1], &Device::flex()), 1.5);
}

/// An attention of zeros with these shapes, over two rows of 2 queries and 3 keys.
fn attention_of(heads: usize, q: [usize; 2], k: [usize; 2], v: [usize; 2], bias: [usize; 2]) {
    let zeros = |shape| Tensor::<2>::zeros(shape, &Device::flex());
    let [queries, keys] = [2, 3].map(|length| RowLayout::packed(&[length, length], &Device::flex()));
    let visibility = Visibility::causal(heads, &queries, &keys, 1);
    attention(zeros(q), zeros(k), zeros(v), Some(zeros(bias)), &visibility, None);
}

#[test]
#[should_panic(expected = "k and v must have one shape")]
fn attention_refuses_values_without_keys() {
    attention_of(2, [4, 8], [6, 8], [5, 8], [1, 1]);
}

#[test]
#[should_panic(expected = "8 columns do not make 6 heads of queries, keys and values")]
fn self_attention_refuses_what_cannot_be_three_parts() {
    let layout = RowLayout::packed(&[4], &Device::flex());
    let zeros = |columns| Tensor::<2>::zeros([4, columns], &Device::flex());
    self_attention(zeros(8), Projections::of(2), None, None, &Visibility::bidirectional(2, &layout), None);
}

#[test]
#[should_panic(expected = "2 heads of keys do not divide 3 heads")]
fn self_attention_refuses_heads_that_cannot_be_shared_out() {
    let (x, layout) = (f32s(1, [4, 14], &Device::flex()), RowLayout::packed(&[4], &Device::flex()));
    let projections = Projections { kv_heads: 2, ..Projections::of(3) };
    self_attention(x, projections, None, None, &Visibility::bidirectional(3, &layout), None);
}

#[test]
#[should_panic(expected = "cos_sin [4, 6] does not fit [4, 8]")]
fn self_attention_refuses_angles_of_other_heads() {
    let (x, layout) = (f32s(1, [4, 24], &Device::flex()), RowLayout::packed(&[4], &Device::flex()));
    let angles = f32s(2, [4, 6], &Device::flex());
    self_attention(x, Projections::of(2), None, Some(angles), &Visibility::bidirectional(2, &layout), None);
}

#[test]
#[should_panic(expected = "q and k must be as their rows are laid out")]
fn attention_refuses_other_rows() {
    attention_of(2, [5, 8], [6, 8], [6, 8], [1, 1]);
}

#[test]
#[should_panic(expected = "bias [2, 2] has no column for some of the distances")]
fn attention_refuses_a_bias_for_fewer_distances() {
    attention_of(2, [4, 8], [6, 8], [6, 8], [2, 2]);
}

#[test]
#[should_panic(expected = "8 columns do not make 3 heads")]
fn attention_refuses_heads_that_do_not_fit() {
    attention_of(3, [4, 8], [6, 8], [6, 8], [1, 1]);
}

#[test]
fn without_dropout_no_key_matters() {
    let x = f32s(1, [4, 8], &Device::flex());
    assert_eq!(values(dropout(x, Dropout::new(0.0, KEY))), numbers(1, 32));
}

#[test]
fn what_is_shared_is_not_overwritten() {
    // The kernels work in place where nothing else holds a tensor: here everything is held twice.
    let device = Device::flex().autodiff();
    let leaves = || [1, 2, 3, 4].map(|seed| f32s(seed, [4, 5], &device).require_grad());
    let norm = |x: &Tensor<2>| rms_norm(x.clone(), Tensor::ones([5], &device), 1e-6);
    let loss = |x: &Tensor<2>| cross_entropy(x.clone(), labels(&[0, 1, 2, 3], &device)).reshape([4, 1]);
    let gradients = |run: &dyn Fn(&[Tensor<2>; 4]) -> Tensor<2>| {
        let leaves = leaves();
        let output = run(&leaves) * f32s(9, [4, 5], &device);
        let (before, gradients) = (output.to_data(), output.clone().sum().backward());
        before.assert_eq(&output.to_data(), true);
        for (leaf, seed) in leaves.iter().zip(1..) {
            assert_eq!(values(leaf.clone()), numbers(seed, 20));
        }
        leaves.map(|leaf| leaf.grad(&gradients).map(values))
    };
    // One incoming gradient for three operations.
    let together =
        gradients(&|[a, b, c, d]| gelu_gate(beside(a.clone(), b.clone()), None) + norm(c) + loss(d).expand([4, 5]));
    let [a, b, ..] = gradients(&|[a, b, ..]| gelu_gate(beside(a.clone(), b.clone()), None));
    let [_, _, c, _] = gradients(&|[_, _, c, _]| norm(c));
    let [.., d] = gradients(&|[.., d]| loss(d).expand([4, 5]));
    assert_eq!(together, [a, b, c, d]);
}

#[test]
fn memory_that_is_used_up_is_told_from_other_failures() {
    use sideburn_kernels::OutOfMemory;
    let device = Device::flex();
    let asked = |reason: &str| OutOfMemory::of(reason, &device).map(|memory| memory.asked);
    for (reason, bytes) in [
        (
            "An error happened during execution\nCaused by:\n  can't allocate buffer of size: 1099511627776\n  at",
            1 << 40,
        ),
        ("out of device memory allocating 4096 bytes\n", 4096),
        ("couldn't map storage for a deferred allocation of 96 bytes\nCaused by:", 96),
        ("Can't allocate 7 bytes: every page size the memory tracks still holds live allocations", 7),
    ] {
        assert_eq!(asked(reason), Some(bytes), "{reason}");
    }
    for other in ["the device was lost", "out of device memory allocating a lot", ""] {
        assert_eq!(asked(other), None, "{other}");
    }
    let memory = OutOfMemory { asked: 3 << 19, taken: Some(5 << 20), total: Some(6 << 20) };
    assert_eq!(memory.to_string(), "1.5 MiB were asked for in one piece, and this process has 5.0 of 6.0 MiB already");
    let unknown = OutOfMemory { taken: None, total: None, ..memory };
    assert_eq!(unknown.to_string(), "1.5 MiB were asked for in one piece");
}
