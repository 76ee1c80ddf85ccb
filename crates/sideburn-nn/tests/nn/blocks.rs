//! Blocks against what they stand for, written out in loops.

use burn::tensor::{DType, Device, Tensor, TensorData};
use sideburn_adapters::{AdaptedLinear, AdapterSet, Key, Pass, TokenPass};
use sideburn_kernels::{RowLayout, Visibility};
use sideburn_nn::{
    Activation, Alibi, Attention, AttentionConfig, FeedForward, KeysValues, LayerNorm, Position, RmsNorm, Rotary,
};
use sideburn_testing::{max_difference, values};

const WIDTH: usize = 6;
const HEADS: usize = 4;
const HEAD_WIDTH: usize = 4;

fn random(name: &str, [rows, columns]: [usize; 2]) -> Tensor<2> {
    let key = Key::from_seed(3).fold_in_name(name);
    let values: Vec<f32> = (0..rows * columns).map(|index| key.normal(index as u64) as f32).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex())
}

fn layer(kv_heads: usize, scale: f64) -> Attention {
    let config = AttentionConfig { width: WIDTH, heads: HEADS, kv_heads, head_width: HEAD_WIDTH, scale, dropout: 0.0 };
    Attention::new(config, |name, out, input| AdaptedLinear::from_weights(random(name, [out, input]), None))
}

fn rows(x: Tensor<2>) -> Vec<Vec<f64>> {
    let width = x.dims()[1];
    values(x).chunks(width).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}

/// `x W^T`.
fn product(x: &[Vec<f64>], weight: &AdaptedLinear) -> Vec<Vec<f64>> {
    let weight = rows(weight.weight().dense());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.iter().map(|x| weight.iter().map(|row| dot(x, row)).collect()).collect()
}

/// Causal attention of one row, head by head and query by query.
fn by_loops(layer: &Attention, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let AttentionConfig { kv_heads, scale, .. } = *layer.config();
    let [q, k, v] = [0, 1, 2].map(|part| product(x, &layer.qkv[part]));
    let mut mixed = vec![vec![0.0; HEADS * HEAD_WIDTH]; x.len()];
    for head in 0..HEADS {
        let seen = head / (HEADS / kv_heads) * HEAD_WIDTH;
        for query in 0..x.len() {
            let score = |key: &Vec<f64>| {
                let products = (0..HEAD_WIDTH).map(|column| q[query][head * HEAD_WIDTH + column] * key[seen + column]);
                (scale * products.sum::<f64>()).exp()
            };
            let scores: Vec<f64> = k[..=query].iter().map(score).collect();
            let total: f64 = scores.iter().sum();
            for column in 0..HEAD_WIDTH {
                let values = scores.iter().zip(&v).map(|(score, value)| score / total * value[seen + column]);
                mixed[query][head * HEAD_WIDTH + column] = values.sum();
            }
        }
    }
    product(&mixed, &layer.o)
}

fn flat(rows: &[Vec<f64>]) -> Vec<f32> {
    rows.iter().flatten().map(|x| *x as f32).collect()
}

/// The pass over one row of so many tokens.
fn tokens(pass: &mut Pass, count: usize) -> TokenPass<'_> {
    AdapterSet::default().enter(pass, &RowLayout::packed(&[count], &Device::flex())).unwrap()
}

#[test]
fn attention_with_shared_heads_and_a_scale() {
    let device = Device::flex();
    let layout = RowLayout::packed(&[5, 2], &device);
    let visibility = Visibility::causal(HEADS, &layout, &layout, 0);
    let x = random("x", [7, WIDTH]);
    let rows_of_x = rows(x.clone());
    for (kv_heads, scale) in [(HEADS, 1.0), (HEADS, 0.4), (2, 1.0), (1, 0.4)] {
        let layer = layer(kv_heads, scale);
        assert_eq!(layer.qkv[1].shape(), [kv_heads * HEAD_WIDTH, WIDTH]);
        let mut pass = Pass::evaluate();
        let pass = &mut tokens(&mut pass, 7);
        let projections = layer.projections(x.clone(), pass);
        let found = values(layer.among_themselves(projections, &Position::None, &visibility, pass));
        let (first, second) = rows_of_x.split_at(5);
        let expected = [by_loops(&layer, first), by_loops(&layer, second)].concat();
        let difference = max_difference(&found, &flat(&expected));
        assert!(difference < 1e-4, "{kv_heads} heads of keys, scale {scale}: {difference:e}");
    }
}

#[test]
fn keys_and_values_apart_are_those_of_the_projections() {
    let (layer, mut pass) = (layer(2, 1.0), Pass::evaluate());
    let (x, pass) = (random("x", [4, WIDTH]), &mut tokens(&mut pass, 4));
    let (queries, KeysValues { keys, values: v }) = layer.split(layer.projections(x.clone(), pass), &Position::None);
    assert_eq!([queries.dims(), keys.dims()], [[4, HEADS * HEAD_WIDTH], [4, 2 * HEAD_WIDTH]]);
    let alone = layer.keys_values(&x, pass);
    assert!(max_difference(&values(keys), &values(alone.keys)) < 1e-5);
    assert!(max_difference(&values(v), &values(alone.values)) < 1e-5);
}

#[test]
#[should_panic(expected = "3 heads of keys do not divide 4 heads")]
fn heads_that_cannot_be_shared_out() {
    layer(3, 1.0);
}

#[test]
fn norms() {
    let (device, mut pass) = (Device::flex(), Pass::evaluate());
    let (x, pass) = (random("x", [3, WIDTH]) * 2.0 + 1.0, &tokens(&mut pass, 3));
    let scaled = |row: &Vec<f64>, mean: f64, epsilon: f64| {
        let centred: Vec<f64> = row.iter().map(|x| x - mean).collect();
        let square = centred.iter().map(|x| x * x).sum::<f64>() / WIDTH as f64;
        centred.iter().map(|x| x / (square + epsilon).sqrt()).collect::<Vec<f64>>()
    };
    let rows_of_x = rows(x.clone());
    let mut norm = LayerNorm::new(WIDTH, 1e-5, &device);
    let expected: Vec<Vec<f64>> =
        rows_of_x.iter().map(|row| scaled(row, row.iter().sum::<f64>() / WIDTH as f64, 1e-5)).collect();
    assert!(max_difference(&values(norm.forward(x.clone(), pass)), &flat(&expected)) < 1e-5);
    let of = |values: [f32; WIDTH]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, WIDTH]), &device);
    let (weight, bias) = ([1.0, 2.0, 3.0, -1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 2.0, 5.0, -1.0]);
    norm.weight.weight_mut().replace(of(weight));
    norm.bias.weight_mut().replace(of(bias));
    let changed: Vec<Vec<f64>> = expected
        .iter()
        .map(|row| {
            row.iter().zip(weight.iter().zip(bias)).map(|(x, (w, b))| x * f64::from(*w) + f64::from(b)).collect()
        })
        .collect();
    assert!(max_difference(&values(norm.forward(x.clone(), pass)), &flat(&changed)) < 1e-5);

    let norm = RmsNorm::new(WIDTH, 0.5, 1e-6, &device);
    let expected: Vec<Vec<f64>> =
        rows_of_x.iter().map(|row| scaled(row, 0.0, 1e-6).into_iter().map(|x| x / 2.0).collect()).collect();
    assert!(max_difference(&values(norm.forward(x, pass)), &flat(&expected)) < 1e-5);
}

/// PyTorch's values, to 7 digits.
#[test]
fn activations() {
    let x = Tensor::<2>::from_data(TensorData::new(vec![-2.0f32, -0.5, 0.0, 1.0, 3.0], [1, 5]), &Device::flex());
    for (activation, expected) in [
        (Activation::Relu, [0.0, 0.0, 0.0, 1.0, 3.0]),
        (Activation::Gelu, [-0.0455003, -0.1542688, 0.0, 0.8413447, 2.9959503]),
        (Activation::GeluNew, [-0.0454023, -0.154286, 0.0, 0.841192, 2.9963626]),
        (Activation::Silu, [-0.2384058, -0.1887703, 0.0, 0.7310586, 2.8577224]),
    ] {
        let difference = max_difference(&values(activation.apply(x.clone())), &expected);
        assert!(difference < 1e-6, "{activation:?}: {difference:e}");
        assert_eq!(Activation::from_name(activation.name()), Some(activation));
    }
    assert_eq!(Activation::from_name("gelu_pytorch_tanh"), Some(Activation::GeluNew));
    assert_eq!(Activation::from_name("mish"), None);
}

/// The fused gate and the composed ones are one formula.
#[test]
fn gates() {
    let x = random("x", [3, WIDTH]);
    let linear = |name: &str, shape| AdaptedLinear::from_weights(random(name, shape), None);
    for activation in [Activation::Relu, Activation::Gelu, Activation::GeluNew, Activation::Silu] {
        let inner = vec![linear("gate", [5, WIDTH]), linear("up", [5, WIDTH])];
        let layer = FeedForward::new(inner, linear("outer", [WIDTH, 5]), activation, 0.0);
        let mut pass = Pass::evaluate();
        let pass = &mut tokens(&mut pass, 3);
        let [gate, up] = [&layer.inner[0], &layer.inner[1]].map(|inner| inner.forward(x.clone(), pass));
        let expected = layer.outer.forward(activation.apply(gate) * up, pass);
        let difference = max_difference(&values(layer.forward(x.clone(), pass)), &values(expected));
        assert!(difference < 1e-5, "{activation:?}: {difference:e}");
    }
}

/// Rows that begin at several places, packed and padded, turned as the formula says.
#[test]
fn rotary_positions() {
    let (device, rotary) = (Device::flex(), Rotary { theta: 10_000.0, head_width: 6 });
    for layout in [RowLayout::packed(&[3, 2], &device), RowLayout::in_columns(&[3, 2], 4, &device)] {
        let x = random("x", [layout.tokens(), 12]);
        let turned = rows(rotary.rotation(&layout, &[0, 7]).apply(x.clone()));
        let x = rows(x);
        for (row, first) in [(0, 0), (1, 7)] {
            for (place, token) in layout.row(row).enumerate() {
                for (head, pair) in (0..2).flat_map(|head| (0..3).map(move |pair| (head, pair))) {
                    let angle = f64::from(first + place as u32) * 10_000f64.powf(-f64::from(2 * pair as u32) / 6.0);
                    let [a, b] = [0, 3].map(|half| x[token][6 * head + half + pair]);
                    let found = [0, 3].map(|half| turned[token][6 * head + half + pair]);
                    let expected = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
                    assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5));
                }
            }
        }
    }
}

/// What one token finds depends on how far others are, not on where the row begins.
#[test]
fn rotary_attention_sees_distances() {
    let (device, mut pass) = (Device::flex(), Pass::evaluate());
    let (layer, pass) = (layer(2, 0.4), &mut tokens(&mut pass, 5));
    let layout = RowLayout::packed(&[5], &device);
    let visibility = Visibility::causal(HEADS, &layout, &layout, 0);
    let projections = layer.projections(random("x", [5, WIDTH]), pass);
    let rotary = Rotary { theta: 100.0, head_width: HEAD_WIDTH };
    let mut found = [0, 3, 900].map(|first| {
        let position = Position::Rotary(rotary.rotation(&layout, &[first]));
        values(layer.among_themselves(projections.clone(), &position, &visibility, pass))
    });
    assert!(max_difference(&found[0], &found[1]) < 1e-5 && max_difference(&found[0], &found[2]) < 1e-4);
    found[2] = values(layer.among_themselves(projections, &Position::None, &visibility, pass));
    assert!(max_difference(&found[0], &found[2]) > 1e-3, "positions must matter");
}

#[test]
fn alibi_is_a_bias_by_place() {
    let (device, mut pass) = (Device::flex(), Pass::evaluate());
    let (layer, pass) = (layer(HEADS, 1.0), &mut tokens(&mut pass, 4));
    let layout = RowLayout::packed(&[4], &device);
    let visibility = Visibility::causal(HEADS, &layout, &layout, 0).with_bias_by_place();
    let x = random("x", [4, WIDTH]);
    let projections = layer.projections(x.clone(), pass);
    let position = Alibi { heads: HEADS, scale: 1.0 }.position(4, (&device, DType::F32));
    let found = values(layer.among_themselves(projections, &position, &visibility, pass));
    let [q, k, v] = [0, 1, 2].map(|part| rows(layer.qkv[part].forward(x.clone(), pass)));
    let mut mixed = vec![vec![0.0; HEADS * HEAD_WIDTH]; 4];
    for (head, slope) in (0..HEADS).map(|head| (head, 0.25f64.powi(head as i32 + 1))) {
        let of_head = |row: &[f64]| row[head * HEAD_WIDTH..][..HEAD_WIDTH].to_vec();
        for (query, mixed) in mixed.iter_mut().enumerate() {
            let dot = |key: usize| of_head(&q[query]).iter().zip(of_head(&k[key])).map(|(a, b)| a * b).sum::<f64>();
            let weights: Vec<f64> = (0..=query).map(|key| (dot(key) + slope * key as f64).exp()).collect();
            let sum = weights.iter().sum::<f64>();
            for (key, weight) in weights.iter().enumerate() {
                for (element, value) in of_head(&v[key]).into_iter().enumerate() {
                    mixed[head * HEAD_WIDTH + element] += weight / sum * value;
                }
            }
        }
    }
    let mixed = Tensor::<1>::from_floats(flat(&mixed).as_slice(), &device).reshape([4, HEADS * HEAD_WIDTH]);
    let expected = values(layer.o.forward(mixed, pass));
    assert!(max_difference(&found, &expected) < 1e-4);
}
