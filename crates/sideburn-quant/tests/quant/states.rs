//! Weights and states that are refused.

use sideburn_quant::{Packed, QuantError, QuantType, Quantization};
use sideburn_weights::{Dtype, SafetensorsFile, Tensor, safetensors_bytes};

const NAME: &str = "q.weight";
const SHAPE: [usize; 2] = [6, 96];
type Tensors = Vec<(String, Tensor)>;

fn stored(quantization: Quantization) -> Tensors {
    let values: Vec<f32> = (0..SHAPE[0] * SHAPE[1]).map(|x| (x as f32).sin()).collect();
    Packed::quantize(NAME, &values, SHAPE, quantization).unwrap().stored(NAME)
}

fn read(tensors: &Tensors) -> Result<Packed, QuantError> {
    let file = safetensors_bytes("m.safetensors", tensors.clone(), None).unwrap();
    Packed::read(&SafetensorsFile::from_bytes("m.safetensors", file).unwrap(), NAME, SHAPE)
}

/// What is said after one tensor has been changed.
fn error(quantization: Quantization, part: &str, change: impl FnOnce(&mut Tensor)) -> String {
    let mut tensors = stored(quantization);
    let name = format!("{}{part}", if part == "SCB" || part == "weight_format" { "q." } else { NAME });
    change(&mut tensors.iter_mut().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}")).1);
    read(&tensors).unwrap_err().to_string()
}

fn without(quantization: Quantization, part: &str) -> String {
    let mut tensors = stored(quantization);
    let before = tensors.len();
    tensors.retain(|(name, _)| !name.ends_with(part));
    assert!(tensors.len() < before);
    read(&tensors).unwrap_err().to_string()
}

fn text(text: &str) -> Tensor {
    Tensor::new(Dtype::U8, vec![text.len()], text.as_bytes().to_vec()).unwrap()
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::from_f32(vec![values.len()], values).unwrap()
}

const STATE: &str = ".quant_state.bitsandbytes__nf4";

/// The state of the weight with one piece of its text replaced.
fn state(from: &str, to: &str) -> String {
    error(Quantization::NF4, STATE, |tensor| {
        let before = String::from_utf8(tensor.bytes().to_vec()).unwrap();
        assert!(before.contains(from), "{before}");
        *tensor = text(&before.replace(from, to));
    })
}

#[test]
fn a_state_that_contradicts_its_weight() {
    let message = state("[6, 96]", "[96, 6]");
    let expected =
        "the quantised weight \"q.weight\" of \"m.safetensors\": `shape` of its state is [96, 6], expected [6, 96]";
    assert!(message.contains(expected), "{message}");
    assert!(message.contains("quantise the unquantised model anew"), "{message}");
    for (from, to, expected) in [
        ("\"nf4\"", "\"fp4\"", "`quant_type` of its state is fp4, expected nf4"),
        ("\"blocksize\": 64", "\"blocksize\": 128", "q.weight.absmax is of 9 elements, expected 5 of them"),
        ("float32\", \"shape", "float8\", \"shape", "`dtype` of its state is float8"),
        (
            "\"nested_blocksize\": 256",
            "\"nested_blocksize\": 128",
            "`nested_blocksize` of its state is 128, expected 256",
        ),
        ("\"nested_blocksize\": 256, ", "", "`nested_blocksize` of its state is absent"),
        ("nested_offset", "nested_onset", "`nested_offset` of its state is absent, expected a number"),
        ("{", "", "is no state (invalid type: string"),
        ("\"blocksize\": 64, ", "", "missing field `blocksize`"),
        ("\"blocksize\": 64", "\"blocksize\": -1", "is no state (invalid value"),
    ] {
        let message = state(from, to);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn parts_that_contradict_each_other() {
    let quantization = Quantization::NF4;
    let plain = Quantization::FourBit { quant_type: QuantType::Nf4, block_size: 64, double_quant: false };
    let codes = |tensor: &mut Tensor| *tensor = Tensor::new(Dtype::U8, vec![287, 1], vec![0; 287]).unwrap();
    for (message, expected) in [
        (error(quantization, "", codes), "the weight is 287 bytes of codes, expected 288, two codes a byte"),
        (error(quantization, ".quant_map", |map| *map = floats(&[0.0; 16])), "expected that of nf4"),
        (
            error(quantization, ".quant_map", |map| *map = floats(&[0.0; 15])),
            "quant_map is of 15 elements, expected 16",
        ),
        (
            error(quantization, ".nested_absmax", |x| *x = floats(&[1.0, 2.0])),
            "nested_absmax is of 2 elements, expected 1",
        ),
        (error(quantization, ".nested_absmax", |x| *x = floats(&[f32::NAN])), "is NaN in one place, expected finite"),
        (error(quantization, ".nested_quant_map", |x| *x = floats(&[0.5; 255])), "is of 255 elements, expected 256"),
        (error(plain, ".absmax", |x| *x = floats(&[f32::INFINITY; 9])), "q.weight.absmax is inf in one place"),
        (error(plain, ".absmax", |x| *x = floats(&[1.0; 8])), "q.weight.absmax is of 8 elements, expected 9"),
        (error(Quantization::INT8, "SCB", |x| *x = floats(&[1.0; 5])), "q.SCB is of 5 elements, expected 6"),
        (error(Quantization::INT8, "SCB", |x| *x = floats(&[f32::NAN; 6])), "q.SCB is NaN in one place"),
        (
            error(Quantization::INT8, "weight_format", |x| *x = Tensor::new(Dtype::U8, vec![], vec![2]).unwrap()),
            "q.weight_format is [2], expected 0, the order of rows",
        ),
        (
            error(Quantization::INT8, "", |x| *x = Tensor::new(Dtype::I8, vec![96, 6], vec![0; 576]).unwrap()),
            "its shape is [96, 6], expected [6, 96]",
        ),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    let mut both = stored(quantization);
    both.push((format!("{NAME}.quant_state.bitsandbytes__fp4"), text("{}")));
    let message = read(&both).unwrap_err().to_string();
    assert!(message.contains("quant_state is there for nf4 and for fp4, expected there once"), "{message}");
}

#[test]
fn parts_that_are_not_there() {
    let message = without(Quantization::NF4, ".absmax");
    assert!(
        message.contains("\"q.weight\" of \"m.safetensors\" has no q.weight.absmax; copy or download"),
        "{message}"
    );
    for (message, expected) in [
        (without(Quantization::NF4, STATE), "has no q.weight.quant_state.bitsandbytes__nf4 (or fp4)"),
        (without(Quantization::NF4, ".quant_map"), "has no q.weight.quant_map"),
        (without(Quantization::NF4, "nested_absmax"), "has no q.weight.nested_absmax"),
        (without(Quantization::INT8, "SCB"), "has no q.SCB"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_block_size_that_is_none() {
    let message = state("\"blocksize\": 64", "\"blocksize\": 48");
    assert!(message.contains("a block size of 48 is none of [32, 64, 128, 256, 512, 1024, 2048, 4096]"), "{message}");
    for block_size in [0, 1, 63, 8192] {
        let quantization = Quantization::FourBit { quant_type: QuantType::Nf4, block_size, double_quant: false };
        let message = Packed::quantize(NAME, &[0.0; 8], [2, 4], quantization).unwrap_err().to_string();
        assert!(message.contains(&format!("\"q.weight\": a block size of {block_size} is none of")), "{message}");
    }
}

#[test]
fn weights_that_are_not_finite() {
    for quantization in [Quantization::NF4, Quantization::FP4, Quantization::INT8] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.5; 70_000];
            values[66_321] = value;
            let message =
                Packed::quantize("encoder.q.weight", &values, [700, 100], quantization).unwrap_err().to_string();
            let expected = format!("\"encoder.q.weight\" has {value} in row 663, column 21: what is not finite");
            assert!(message.contains(&expected), "{message}");
        }
    }
}

#[test]
fn weights_that_are_too_large() {
    let message = Packed::quantize(NAME, &[7e4, 1.0], [1, 2], Quantization::INT8).unwrap_err().to_string();
    assert!(message.contains("its largest absolute value is 70000, above the range of f16, 65504"), "{message}");
    let message = Packed::quantize(NAME, &[3e38; 128], [1, 128], Quantization::NF4).unwrap_err().to_string();
    assert!(message.contains("the mean of its absmax is above the range of f32"), "{message}");
}

/// `bnb_4bit_quant_storage` of another dtype, a weight turned on its side, no `dtype` in the state, blocks that do not divide
/// rows: all are valid.
#[test]
fn other_forms_of_the_same() {
    let tensors = stored(Quantization::NF4);
    let expected = read(&tensors).unwrap();
    for (dtype, shape) in [(Dtype::BF16, vec![144, 1]), (Dtype::F32, vec![72, 1]), (Dtype::U8, vec![1, 288])] {
        let mut tensors = tensors.clone();
        let codes = tensors[0].1.bytes().to_vec();
        tensors[0].1 = Tensor::new(dtype, shape, codes).unwrap();
        assert_eq!(read(&tensors).unwrap(), expected, "{dtype:?}");
    }
    let mut tensors = tensors;
    let state = tensors.last_mut().unwrap();
    state.1 = text(&String::from_utf8(state.1.bytes().to_vec()).unwrap().replace("\"dtype\": \"float32\", ", ""));
    assert_eq!(read(&tensors).unwrap(), expected);
}

#[test]
fn a_dense_weight_is_not_taken_for_a_packed_one() {
    let file = safetensors_bytes("m", [(NAME, floats(&[1.0]))], None).unwrap();
    let file = SafetensorsFile::from_bytes("m", file).unwrap();
    assert!(!Packed::is_stored(&file, NAME) && !Packed::is_stored(&file, "absent"));
    assert!(Packed::stored_beside(&file, NAME).is_empty());
}
