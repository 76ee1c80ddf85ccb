//! What holds for matrices of all shapes.

use proptest::prelude::*;
use sideburn_quant::{Absmax, BLOCK_SIZES, FourBit, Packed, QuantType, Quantization};
use sideburn_weights::{Dtype, SafetensorsFile, Tensor, safetensors_bytes};

/// A matrix of a shape of up to 70 x 300, with numbers of all sizes and zeros among them.
fn matrix() -> impl Strategy<Value = ([usize; 2], Vec<f32>)> {
    (1usize..70, 1usize..300, -12i32..12).prop_flat_map(|(rows, columns, exponent)| {
        let value = prop_oneof![
            8 => (-1.0f32..1.0).prop_map(move |x| x * 2f32.powi(exponent)),
            1 => Just(0.0),
            1 => Just(-0.0),
        ];
        (Just([rows, columns]), prop::collection::vec(value, rows * columns))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each code is of a value than which none is nearer, as far as rounding goes, and scales are the largest values.
    #[test]
    fn four_bit_codes_are_nearest(
        (shape, values) in matrix(),
        is_nf4 in any::<bool>(),
        block_size in prop::sample::select(&BLOCK_SIZES[..]),
    ) {
        let quant_type = if is_nf4 { QuantType::Nf4 } else { QuantType::Fp4 };
        let packed = FourBit::quantize("w", &values, shape, quant_type, block_size, false).unwrap();
        let Absmax::Floats(absmax) = packed.absmax() else { panic!("floats were asked for") };
        prop_assert_eq!(packed.codes().len(), values.len().div_ceil(2));
        for (index, (found, x)) in packed.dequantize().iter().zip(&values).enumerate() {
            let block = &values[index / block_size * block_size..];
            let largest = block[..block.len().min(block_size)].iter().fold(0f32, |largest, x| largest.max(x.abs()));
            let scale = absmax[index / block_size];
            prop_assert!(scale == largest || largest == 0.0 && scale == 1e-38);
            let nearest = quant_type.code().iter().map(|code| (code * scale - x).abs()).fold(f32::INFINITY, f32::min);
            prop_assert!((found - x).abs() <= nearest + 1e-6 * largest, "{} for {}, nearest {}", found, x, nearest);
        }
    }

    /// A file gives back what was written to it, and what is read again dequantises to the same bits.
    #[test]
    fn files_give_back_what_was_written(
        (shape, values) in matrix(),
        quantization in prop::sample::select(vec![
            Quantization::NF4,
            Quantization::FP4,
            Quantization::INT8,
            Quantization::FourBit { quant_type: QuantType::Nf4, block_size: 32, double_quant: false },
            Quantization::FourBit { quant_type: QuantType::Fp4, block_size: 4096, double_quant: true },
        ]),
    ) {
        let packed = Packed::quantize("q.weight", &values, shape, quantization).unwrap();
        let file = safetensors_bytes("m", packed.stored("q.weight"), None).unwrap();
        let file = SafetensorsFile::from_bytes("m", file).unwrap();
        let read = Packed::read(&file, "q.weight", shape).unwrap();
        let dense = packed.dequantize();
        prop_assert_eq!(&read.dequantize(), &dense);
        prop_assert!((0..dense.len()).all(|place| packed.value(place) == dense[place]));
        prop_assert_eq!(read, packed);
    }

    /// Integers are within half a step, and no row is scaled by more than its largest value.
    #[test]
    fn integers_are_nearest((shape, values) in matrix()) {
        let packed = Packed::quantize("w", &values, shape, Quantization::INT8).unwrap();
        for (found, x) in packed.dequantize().chunks(shape[1]).zip(values.chunks(shape[1])) {
            let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            for (found, x) in found.iter().zip(x) {
                // Half a step, and the rounding to f16 before.
                prop_assert!((found - x).abs() <= largest * (0.5 / 127.0 + 1e-3) + 1e-7, "{} for {}", found, x);
            }
        }
    }

    /// Double quantisation moves scales by at most half of what lies between two codes, where these are widest apart.
    #[test]
    fn double_quantisation_is_near((shape, values) in matrix()) {
        let scales = |double| match FourBit::quantize("w", &values, shape, QuantType::Nf4, 64, double).unwrap().absmax() {
            Absmax::Floats(floats) => (floats.clone(), 0.0),
            nested @ Absmax::Nested { rest, .. } => (nested.dequantize(), rest.absmax.iter().fold(0f32, |a, b| a.max(*b))),
        };
        let ((exact, _), (near, largest)) = (scales(false), scales(true));
        for (near, exact) in near.iter().zip(&exact) {
            prop_assert!((near - exact).abs() <= largest * 0.0075 + 1e-6 * exact, "{near} for {exact}, {largest}");
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let values: Vec<f32> = (0..300_000).map(|x| (x as f32 * 0.37).sin() * (1.0 + (x % 977) as f32)).collect();
    let quantized = || Packed::quantize("w", &values, [300, 1000], Quantization::NF4).unwrap();
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(quantized);
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(quantized);
    assert_eq!(alone, three);
}

/// What a file stores is quantised as the floats that it stands for, and what is not finite is named in the same way.
#[test]
fn stored_tensors_are_quantised_as_their_floats() {
    let shape = [300, 257];
    let values: Vec<f32> =
        (0..shape[0] * shape[1]).map(|x| (x as f32 * 0.37).sin() * (1.0 + (x % 977) as f32)).collect();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let stored = Tensor::from_f32(shape.to_vec(), &values).unwrap().cast(dtype).unwrap();
        let mut floats = stored.to_f32().unwrap();
        for quantization in [Quantization::NF4, Quantization::FP4, Quantization::INT8] {
            let expected = Packed::quantize("w", &floats, shape, quantization).unwrap();
            assert_eq!(Packed::quantize("w", &stored, shape, quantization).unwrap(), expected, "{dtype:?}");
        }
        floats[257 * 280 + 3] = f32::NAN;
        let broken = Tensor::from_f32(shape.to_vec(), &floats).unwrap().cast(dtype).unwrap();
        for quantization in [Quantization::NF4, Quantization::INT8] {
            let message = Packed::quantize("w", &broken, shape, quantization).unwrap_err().to_string();
            assert!(message.contains("\"w\" has NaN in row 280, column 3"), "{message}");
        }
    }
}

#[test]
fn bytes_are_known_before_there_are_any() {
    let four_bit =
        |block_size, double_quant| Quantization::FourBit { quant_type: QuantType::Nf4, block_size, double_quant };
    for quantization in [four_bit(64, true), four_bit(32, false), four_bit(4096, true), Quantization::INT8] {
        for shape in [[1, 1], [7, 13], [64, 64], [300, 257]] {
            let packed = Packed::quantize("w", &vec![0.5; shape[0] * shape[1]], shape, quantization).unwrap();
            assert_eq!(quantization.bytes(shape), packed.bytes(), "{quantization:?} of {shape:?}");
        }
    }
}
