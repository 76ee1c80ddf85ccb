//! Code for code against bitsandbytes.

use sideburn_quant::{Absmax, Blockwise, DynamicMap, FourBit, INT8_PRODUCT_SCALE, Int8, Int8Rows, Packed, QuantType};
use sideburn_weights::{Dtype, SafetensorsFile, TensorSource, safetensors_bytes};

use crate::{goldens, weight};

fn bytes(goldens: &SafetensorsFile, name: &str) -> Vec<u8> {
    goldens.read(name).unwrap().into_bytes()
}

/// That each value is at most one unit in the last place from the expected one.
fn assert_within_one_ulp(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let units = (found.to_bits() as i64 - expected.to_bits() as i64).abs();
        assert!(units <= 1 || (*found == 0.0 && *expected == 0.0), "{what}: {found} for {expected}");
    }
}

#[test]
fn codes_stand_for_the_same_values() {
    let goldens = goldens();
    assert_eq!(QuantType::Nf4.code()[..], goldens.read_f32("nf4_code").unwrap());
    assert_eq!(QuantType::Fp4.code()[..], goldens.read_f32("fp4_code").unwrap());
    assert_eq!(DynamicMap::signed().values()[..], goldens.read_f32("dynamic_map").unwrap());
}

#[test]
fn four_bit_codes_and_scales() {
    let goldens = goldens();
    let mut cases = 0;
    for name in goldens.names().filter_map(|name| name.strip_suffix(".packed")) {
        let [quant_type, shape, kind, block, double] = name.split('.').collect::<Vec<_>>()[..] else {
            panic!("{name}")
        };
        let quant_type = if quant_type == "nf4" { QuantType::Nf4 } else { QuantType::Fp4 };
        let (shape, values) = weight(&goldens, &format!("{shape}.{kind}"));
        let block = block[2..].parse().unwrap();
        let packed = FourBit::quantize(name, &values, shape, quant_type, block, double == "dq").unwrap();
        assert_eq!(packed.codes(), bytes(&goldens, &format!("{name}.packed")), "{name}");
        match packed.absmax() {
            Absmax::Floats(absmax) => {
                assert_eq!(double, "nodq");
                assert_eq!(*absmax, goldens.read_f32(&format!("{name}.absmax")).unwrap(), "{name}");
            }
            Absmax::Nested { rest, offset } => {
                assert_eq!([*offset][..], goldens.read_f32(&format!("{name}.nested_offset")).unwrap(), "{name}");
                assert_eq!(rest.absmax, goldens.read_f32(&format!("{name}.nested_absmax")).unwrap(), "{name}");
                assert_eq!(rest.codes, bytes(&goldens, &format!("{name}.absmax")), "{name}");
            }
        }
        if let Ok(expected) = goldens.read_f32(&format!("{name}.dequant")) {
            assert_within_one_ulp(&packed.dequantize(), &expected, name);
        }
        cases += 1;
    }
    assert_eq!(cases, 30, "five weights, NF4 with two block sizes and FP4 with one, each with and without");
}

#[test]
fn a_layer_is_written_byte_for_byte() {
    let goldens = goldens();
    let (shape, values) = weight(&goldens, "linear4bit.weight");
    let packed = FourBit::quantize("weight", &values, shape, QuantType::Nf4, 64, true).unwrap();
    let tensors = Packed::FourBit(packed).stored("linear4bit.state_dict.weight");
    let expected: Vec<&str> = goldens.names().filter(|name| name.starts_with("linear4bit.state_dict.")).collect();
    assert_eq!(tensors.len(), expected.len());
    for (name, tensor) in tensors {
        assert_eq!(tensor, goldens.read(&name).unwrap(), "{name}");
    }
}

#[test]
fn a_layer_is_read() {
    let goldens = goldens();
    let (shape, values) = weight(&goldens, "linear4bit.weight");
    let read = Packed::read(&goldens, "linear4bit.state_dict.weight", shape).unwrap();
    let quantized = FourBit::quantize("weight", &values, shape, QuantType::Nf4, 64, true).unwrap();
    assert_eq!(read, Packed::FourBit(quantized));
}

#[test]
fn blocks_of_8_bits() {
    let goldens = goldens();
    let values = goldens.read_f32("blockwise8.x").unwrap();
    for block in [256, 4096] {
        let name = |part: &str| format!("blockwise8.bs{block}.{part}");
        let found = Blockwise::quantize(&values, block);
        assert_eq!(found.codes, bytes(&goldens, &name("q")), "{block}");
        assert_eq!(found.absmax, goldens.read_f32(&name("absmax")).unwrap(), "{block}");
        assert_within_one_ulp(&found.dequantize(), &goldens.read_f32(&name("dequant")).unwrap(), "blocks of 8 bits");
    }
}

#[test]
fn rows_of_8_bits() {
    let goldens = goldens();
    for threshold in [0.0, 6.0] {
        for name in ["W", "X"] {
            let part = |part: &str| format!("int8.{name}.thr{threshold:.1}.{part}");
            let ([_, columns], values) = weight(&goldens, &format!("int8.{name}"));
            let found = Int8Rows::quantize(&values, columns, threshold);
            let expected = bytes(&goldens, &part("q"));
            assert_eq!(found.codes, expected.iter().map(|byte| *byte as i8).collect::<Vec<_>>(), "{name} {threshold}");
            assert_eq!(found.absmax, goldens.read_f32(&part("absmax")).unwrap(), "{name} {threshold}");
            let expected = if (name, threshold) == ("X", 6.0) { vec![17, 90] } else { Vec::new() };
            assert_eq!(found.outlier_columns, expected, "{name} {threshold}");
        }
    }
    let (shape, values) = weight(&goldens, "int8.W");
    let packed = Int8::quantize("W", &values, shape).unwrap();
    assert_within_one_ulp(&packed.dequantize(), &goldens.read_f32("int8.W_dequant").unwrap(), "dequantised");
}

/// The layer of the paper, from its parts: integers times integers, and the columns with outliers in floats.
#[test]
fn the_product_of_llm_int8() {
    let goldens = goldens();
    let ([rows, columns], x) = weight(&goldens, "int8.X");
    let (shape, values) = weight(&goldens, "int8.W");
    let packed = Int8::quantize("W", &values, shape).unwrap();
    let dense = packed.dequantize();
    for threshold in [0.0, 6.0] {
        let Int8Rows { codes, absmax, outlier_columns } = Int8Rows::quantize(&x, columns, threshold);
        let expected = goldens.read_f32(&format!("int8.linear8bitlt.thr{threshold:.1}.y")).unwrap();
        let largest = expected.iter().fold(0f32, |largest, y| largest.max(y.abs()));
        for row in 0..rows {
            for out in 0..shape[0] {
                let at = |index: usize| (row * columns + index, out * columns + index);
                let sum: i32 = (0..columns)
                    .map(|index| i32::from(codes[at(index).0]) * i32::from(packed.codes()[at(index).1]))
                    .sum();
                let whole = sum as f32 * (absmax[row] * packed.scb()[out]) * INT8_PRODUCT_SCALE;
                let rest: f32 = outlier_columns.iter().map(|column| x[at(*column).0] * dense[at(*column).1]).sum();
                let difference = (whole + rest - expected[row * shape[0] + out]).abs() / largest;
                assert!(difference <= 1e-6, "{threshold}: {difference:e}");
            }
        }
    }
}

#[test]
fn eight_bits_are_written_and_read() {
    let goldens = goldens();
    let (shape, values) = weight(&goldens, "int8.W");
    let packed = Packed::Int8(Int8::quantize("W", &values, shape).unwrap());
    let tensors = packed.stored("q.weight");
    let described: Vec<_> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.dtype(), tensor.shape())).collect();
    let expected: [(&str, Dtype, &[usize]); 3] =
        [("q.weight", Dtype::I8, &[96, 128]), ("q.SCB", Dtype::F32, &[96]), ("q.weight_format", Dtype::U8, &[])];
    assert_eq!(described, expected);
    let file = SafetensorsFile::from_bytes("m", safetensors_bytes("m", tensors, None).unwrap()).unwrap();
    assert_eq!(Packed::stored_beside(&file, "q.weight"), ["q.SCB", "q.weight_format"]);
    assert_eq!(Packed::read(&file, "q.weight", shape).unwrap(), packed);
}
