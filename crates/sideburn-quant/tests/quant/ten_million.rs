//! Ten million numbers in matrices of odd shapes, code for code, by checksums: `testdata/make_checksums.py` makes the same
//! numbers.

use std::collections::BTreeMap;

use sideburn_quant::{Absmax, FourBit, Int8, QuantType};

/// A well mixed word for each index.
fn bits(index: u32, salt: u32) -> u32 {
    let mut x = index.wrapping_mul(0x9e37_79b9).wrapping_add(salt);
    for factor in [0x85eb_ca6b, 0xc2b2_ae35] {
        x = (x ^ (x >> 15)).wrapping_mul(factor);
    }
    x ^ (x >> 16)
}

/// Products of two uniform numbers, in plus or minus a half; some thousandth is sixteen times as large.
fn values(count: usize) -> Vec<f32> {
    let uniform = |x: u32| (x >> 8) as f32 * 2f32.powi(-24);
    let value = |index: u32| {
        let product = (uniform(bits(index, 1)) - 0.5) * uniform(bits(index, 2));
        if bits(index, 3).is_multiple_of(1000) { product * 16.0 } else { product }
    };
    (0..count as u32).map(value).collect()
}

/// The sum of words, each times an odd number that depends on its place.
fn checksum(words: impl IntoIterator<Item = u64>) -> String {
    let place = |index: u64| index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(2).wrapping_add(1);
    let sum = (0..).zip(words).fold(0u64, |sum, (index, word)| sum.wrapping_add(word.wrapping_mul(place(index))));
    format!("{sum:016x}")
}

fn of_floats(values: &[f32]) -> String {
    checksum(values.iter().map(|value| u64::from(value.to_bits())))
}

fn of_bytes(values: &[u8]) -> String {
    checksum(values.iter().map(|byte| u64::from(*byte)))
}

#[test]
fn codes_and_scales_of_ten_million_numbers() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/checksums.json");
    let text = std::fs::read_to_string(file).unwrap();
    let checksums: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    let mut count = 0;
    for (name, expected) in &checksums {
        let mut parts = name.split('.');
        let (rows, columns) = parts.next().unwrap().split_once('x').unwrap();
        let shape: [usize; 2] = [rows, columns].map(|size| size.parse().unwrap());
        let numbers = values(shape[0] * shape[1]);
        let found = match (parts.next().unwrap(), parts.next(), parts.next()) {
            ("int8", _, _) => {
                count += numbers.len();
                let packed = Int8::quantize(name, &numbers, shape).unwrap();
                let codes = checksum(packed.codes().iter().map(|code| u64::from(*code as u8)));
                vec![("codes", codes), ("absmax", of_floats(packed.scb()))]
            }
            (quant_type, block, double) => {
                let quant_type = if quant_type == "nf4" { QuantType::Nf4 } else { QuantType::Fp4 };
                let block = block.unwrap().parse().unwrap();
                let packed = FourBit::quantize(name, &numbers, shape, quant_type, block, double.is_some()).unwrap();
                match packed.absmax() {
                    Absmax::Floats(absmax) => {
                        vec![("codes", of_bytes(packed.codes())), ("absmax", of_floats(absmax))]
                    }
                    Absmax::Nested { rest, offset } => vec![
                        ("absmax", of_bytes(&rest.codes)),
                        ("nested_absmax", of_floats(&rest.absmax)),
                        ("offset", of_floats(&[*offset])),
                    ],
                }
            }
        };
        for (part, found) in found {
            assert_eq!(found, expected[part], "{part} of {name}");
        }
    }
    assert!(count > 9_900_000, "{count}");
}
