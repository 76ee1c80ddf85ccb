//! Layers with packed weights against plain loops in `f64` over what the weights stand for, and LLM.int8() against
//! bitsandbytes.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use sideburn_kernels::{
    LinearOp, LowRank, Matrix, PackedMatrix, adapted_linears, embedding, linear, linear_cross_entropy,
};
use sideburn_quant::{INT8_PRODUCT_SCALE, Packed, QuantType, Quantization};
use sideburn_weights::{SafetensorsFile, TensorSource};

use crate::loops::{bits, check, numbers, tensor, values};

fn quantize(weight: &[f64], shape: [usize; 2], quantization: Quantization) -> Packed {
    let weight: Vec<f32> = weight.iter().map(|x| *x as f32).collect();
    Packed::quantize("w", &weight, shape, quantization).unwrap()
}

fn dense(packed: &Packed) -> Vec<f64> {
    packed.dequantize().into_iter().map(f64::from).collect()
}

/// A weight that takes its inputs as they are.
fn operand(packed: &Packed, device: &Device) -> Matrix {
    PackedMatrix::new(packed.clone(), 6.0, device).with_float_inputs().into()
}

fn quantizations() -> impl Strategy<Value = Quantization> {
    let four_bit =
        |quant_type, block_size, double_quant| Quantization::FourBit { quant_type, block_size, double_quant };
    prop::sample::select(vec![
        four_bit(QuantType::Nf4, 64, true),
        four_bit(QuantType::Nf4, 32, false),
        four_bit(QuantType::Fp4, 64, true),
        four_bit(QuantType::Fp4, 256, false),
        Quantization::INT8,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_packed_layer_is_the_loops(
        n in prop::sample::select(vec![1usize, 2, 5, 8, 11, 16, 17, 40]),
        d in prop::sample::select(vec![1usize, 3, 32, 64, 96, 130]),
        out in prop::sample::select(vec![1usize, 3, 16, 65]),
        quantization in quantizations(),
    ) {
        let packed = quantize(&numbers(2, out * d), [out, d], quantization);
        let weight = dense(&packed);
        check(&[numbers(1, n * d)], |x| crate::loops::linear(&x[0], &weight, d), |x| {
            linear(x[0].clone().reshape([n, d]), operand(&packed, &x[0].device())).reshape([n * out])
        });
    }

    /// Packed and dense layers in one operation, with branches.
    #[test]
    fn packed_layers_share_an_input_with_others(
        n in prop::sample::select(vec![1usize, 4, 9, 18]),
        quantization in quantizations(),
        other in quantizations(),
    ) {
        let (d, outs, r) = (64, [5, 8, 3], 2);
        let [first, second] = [(quantization, 0), (other, 1)]
            .map(|(quantization, index)| quantize(&numbers(10 + index as u64, outs[index] * d), [outs[index], d], quantization));
        let weights = [dense(&first), dense(&second)];
        let inputs = [numbers(1, n * d), numbers(3, outs[2] * d), numbers(4, r * d), numbers(5, outs[1] * r)];
        let loops = |x: &[Vec<f64>]| {
            let mut second = crate::loops::linear(&x[0], &weights[1], d);
            let inner = crate::loops::linear(&x[0], &x[2], d);
            let branch = crate::loops::linear(&inner, &x[3], r);
            second.iter_mut().zip(branch).for_each(|(y, branch)| *y += 0.7 * branch);
            let parts = [crate::loops::linear(&x[0], &weights[0], d), second, crate::loops::linear(&x[0], &x[1], d)];
            (0..n).flat_map(|row| {
                let rows = parts.iter().zip(outs).map(move |(part, out)| part[row * out..(row + 1) * out].to_vec());
                rows.flatten().collect::<Vec<_>>()
            }).collect()
        };
        check(&inputs, loops, |x| {
            let device = x[0].device();
            let branch = LowRank {
                a: x[2].clone().reshape([r, d]),
                b: x[3].clone().reshape([outs[1], r]),
                scale: 0.7,
                dropout: None,
                rows: None,
            };
            let layers = vec![
                LinearOp { weight: Some(operand(&first, &device)), branches: Vec::new() },
                LinearOp { weight: Some(operand(&second, &device)), branches: vec![branch] },
                LinearOp { weight: Some(x[1].clone().reshape([outs[2], d]).into()), branches: Vec::new() },
            ];
            adapted_linears(x[0].clone().reshape([n, d]), layers).reshape([n * outs.iter().sum::<usize>()])
        });
    }
}

/// Numbers that are exact in 16 bits, as the loops take them and on a device.
fn halves(seed: u64, shape: [usize; 2], dtype: DType) -> (Vec<f64>, impl Fn(&Device) -> Tensor<2>) {
    let rounded = tensor(&numbers(seed, shape[0] * shape[1]), shape, &Device::flex(), dtype);
    let exact = values(rounded);
    (exact.clone(), move |device: &Device| tensor(&exact, shape, device, dtype))
}

/// A weight in 16 bits beside `x` in 32, which is widened on the way: a layer, alone and beside another with a branch.
#[test]
fn a_weight_in_16_bits_is_the_loops() {
    for dtype in [DType::BF16, DType::F16] {
        for (n, d, out) in [(1, 3, 2), (3, 64, 5), (7, 96, 9), (16, 33, 3), (17, 64, 40), (40, 130, 7)] {
            let (exact, weight) = halves(2, [out, d], dtype);
            check(
                &[numbers(1, n * d)],
                |x| crate::loops::linear(&x[0], &exact, d),
                |x| {
                    let x = x[0].clone().reshape([n, d]);
                    let weight = weight(&x.device()).cast(if x.dtype() == DType::F64 { DType::F64 } else { dtype });
                    linear(x, weight).reshape([n * out])
                },
            );
        }
    }
}

/// A head in 16 bits: losses and the gradient of the hidden state.
#[test]
fn a_head_in_16_bits_is_the_loops() {
    let d = 5;
    for dtype in [DType::BF16, DType::F16] {
        for (n, classes, smoothing) in [(1, 3, 0.0), (4, 700, 0.1), (150, 40, 0.0)] {
            let (exact, weight) = halves(2, [classes, d], dtype);
            let labels: Vec<usize> = (0..n).map(|row| row * 7 % classes).collect();
            let reference = |x: &[Vec<f64>]| crate::loops::linear_cross_entropy(&x[0], &exact, &labels, d, smoothing);
            check(&[numbers(1, n * d)], reference, |x| {
                let x = x[0].clone().reshape([n, d]);
                let weight = weight(&x.device()).cast(if x.dtype() == DType::F64 { DType::F64 } else { dtype });
                let labels: Vec<i32> = labels.iter().map(|label| *label as i32).collect();
                linear_cross_entropy(
                    x.clone(),
                    weight,
                    Tensor::from_data(TensorData::new(labels, [n]), &x.device()),
                    smoothing,
                )
            });
        }
    }
}

/// The layer of bitsandbytes in evaluation, its inputs with outliers; the gradient of the input takes the weight as floats.
#[test]
fn llm_int8_is_that_of_bitsandbytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../sideburn-quant/testdata/goldens.safetensors");
    let goldens = SafetensorsFile::open(path).unwrap();
    let (device, [n, d, out]) = (Device::flex().autodiff(), [10, 128, 96]);
    let packed = Packed::quantize("W", &goldens.read_f32("int8.W").unwrap(), [out, d], Quantization::INT8).unwrap();
    let x = goldens.read_f32("int8.X").unwrap();
    for threshold in [0.0, 6.0] {
        let expected = goldens.read_f32(&format!("int8.linear8bitlt.thr{threshold:.1}.y")).unwrap();
        let largest = expected.iter().fold(0f32, |largest, y| largest.max(y.abs()));
        // As they are, and twice over: more rows than are multiplied one by one.
        for times in [1, 2] {
            let x = Tensor::<2>::from_data(TensorData::new(x.repeat(times), [times * n, d]), &device).require_grad();
            let y = linear(x.clone(), PackedMatrix::new(packed.clone(), threshold, &device));
            let difference = values(y.clone())
                .iter()
                .zip(expected.repeat(times))
                .map(|(found, expected)| (*found as f32 - expected).abs())
                .fold(0.0, f32::max);
            assert!(difference / largest <= 1e-6, "threshold {threshold}, {times}: {:e}", difference / largest);

            let gradient = x.grad(&y.sum().backward()).unwrap();
            let dense = packed.dequantize();
            let expected: Vec<f64> =
                (0..d).map(|column| (0..out).map(|row| f64::from(dense[row * d + column])).sum()).collect();
            crate::loops::assert_near("gradient", &values(gradient), &expected.repeat(times * n), 1e-5);
        }
    }
}

/// A weight whose inputs are rounded: each row of the input as integers, exact sums of products, scaled in the end.
#[test]
fn rounded_inputs_are_the_loops() {
    let device = Device::flex();
    for (n, d, out) in [(1, 64, 5), (3, 33, 64), (17, 192, 7), (40, 130, 65), (5, 1, 1)] {
        let packed = quantize(&numbers(2, out * d), [out, d], Quantization::INT8);
        let Packed::Int8(weight) = &packed else { unreachable!() };
        // A row of zeros, and one above the range of f16.
        let mut x: Vec<f32> = numbers(1, n * d).into_iter().map(|x| x as f32).collect();
        x[..d].iter_mut().for_each(|x| *x *= if n > 1 { 0.0 } else { 1e6 });
        x[(n - 1) * d..].iter_mut().for_each(|x| *x *= 1e6);
        let mut expected = Vec::new();
        for row in x.chunks(d) {
            let absmax = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let code =
                |x: &f32| if absmax == 0.0 { 0 } else { (x * ((1.0 / absmax) * 127.0)).round_ties_even() as i64 };
            for (weight, scb) in weight.codes().chunks(d).zip(weight.scb()) {
                let sum: i64 = row.iter().zip(weight).map(|(x, weight)| code(x) * i64::from(*weight)).sum();
                expected.push(sum as f64 * f64::from(absmax) * f64::from(*scb) * f64::from(INT8_PRODUCT_SCALE));
            }
        }
        let x = Tensor::<2>::from_data(TensorData::new(x, [n, d]), &device);
        let y = values(linear(x, PackedMatrix::new(packed.clone(), 6.0, &device).with_rounded_inputs()));
        for (found, expected) in y.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{n} x {d} x {out}: {found} for {expected}");
        }
    }
}

/// Rows of a packed table are those of what it stands for.
#[test]
fn rows_of_a_packed_table() {
    let device = Device::flex();
    for quantization in [Quantization::NF4, Quantization::INT8] {
        let table = Matrix::from(PackedMatrix::new(quantize(&numbers(2, 7 * 64), [7, 64], quantization), 6.0, &device));
        let ids = Tensor::<1, Int>::from_data(TensorData::new(vec![3i32, 0, 6, 3], [4]), &device);
        let expected = table.dense().select(0, ids.clone());
        assert_eq!(bits(embedding(table, ids)), bits(expected), "{quantization:?}");
    }
}

/// A weight goes to a device, and comes back as it was; as floats it is what it stands for.
#[test]
fn a_packed_weight_comes_back() {
    let device = Device::flex();
    for quantization in [Quantization::NF4, Quantization::FP4, Quantization::INT8] {
        for shape in [[7, 13], [4, 64], [3, 33]] {
            let packed = quantize(&numbers(2, shape[0] * shape[1]), shape, quantization);
            let matrix = PackedMatrix::new(packed.clone(), 6.0, &device);
            assert_eq!((matrix.shape(), matrix.dtype(), matrix.quantization()), (shape, DType::F32, quantization));
            assert_eq!(matrix.to_packed(), packed);
            let floats: Tensor<2> = Tensor::from_data(TensorData::new(packed.dequantize(), shape), &device);
            assert_eq!(bits(Matrix::from(matrix).dense()), bits(floats), "{quantization:?} {shape:?}");
        }
    }
}

/// No result depends on how many threads share the work.
#[test]
fn results_do_not_depend_on_threads() {
    let device = Device::flex().autodiff();
    let run = |quantization, n: usize, is_rounded: bool| {
        let packed = quantize(&numbers(2, 300 * 640), [300, 640], quantization);
        let x: Vec<f32> = numbers(1, n * 640).into_iter().map(|x| x as f32).collect();
        let x = Tensor::<2>::from_data(TensorData::new(x, [n, 640]), &device).require_grad();
        let weight = PackedMatrix::new(packed, 6.0, &device);
        let y = linear(x.clone(), if is_rounded { weight.with_rounded_inputs() } else { weight });
        let gradient = x.grad(&(y.clone() * y.clone()).sum().backward()).unwrap();
        [bits(y), bits(gradient)]
    };
    for (quantization, is_rounded) in
        [(Quantization::NF4, false), (Quantization::INT8, false), (Quantization::INT8, true)]
    {
        for n in [1, 30] {
            let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
            let alone = threads(1).install(|| run(quantization, n, is_rounded));
            assert!(alone == threads(3).install(|| run(quantization, n, is_rounded)), "{quantization:?}, {n} rows");
        }
    }
}
