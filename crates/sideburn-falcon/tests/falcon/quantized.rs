//! Falcon in 4 and 8 bits against `transformers` and bitsandbytes.

// How far the numbers are apart is worth seeing.
#![allow(clippy::print_stdout)]

use burn::tensor::Device;
use sideburn_adapters::{AdaptedModel, Pass, Precision};
use sideburn_batch::TokenRows;
use sideburn_falcon::{Falcon, LanguageModel, QuantType, Quantization};
use sideburn_testing::{Entry, Golden, goldens, max_difference, path, values};
use sideburn_weights::{SafetensorsFile, TensorSource};

fn quantization(entry: &Entry) -> Quantization {
    match entry.name() {
        "mqa_nf4_dq" => Quantization::NF4,
        "new_gqa_fp4" => Quantization::FourBit { quant_type: QuantType::Fp4, block_size: 64, double_quant: false },
        "mqa_bias_int8" => Quantization::INT8,
        name => panic!("what is {name}?"),
    }
}

fn packed(model: &Falcon) -> usize {
    model.linears().into_iter().filter(|(_, linear)| linear.weight().packed().is_some()).count()
}

#[test]
fn checkpoints_of_transformers_load() {
    for entry in goldens("falcon/quant") {
        let model = Falcon::from_dir(path(&entry.path), &Device::flex()).unwrap();
        assert_eq!(packed(&model), 8, "four layers of two blocks, {}", entry.path);
        let golden = Golden::open(&format!("{}/io.safetensors", entry.path));
        let (ids, vocabulary) = (golden.full_rows("firm_input_ids"), model.vocab_size());
        let rows = |row: &[u32]| TokenRows::from_rows([row.to_vec()]).unwrap();
        let (first, then) = ids.ids().split_at(1);
        let found = values(model.logits(&rows(first), &rows(then), &mut Pass::evaluate()).unwrap());
        let expected = &golden.floats("firm_logits")[vocabulary..];
        let mean = expected.iter().sum::<f32>() / expected.len() as f32;
        let spread = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / expected.len() as f32).sqrt();
        let difference = f64::from(max_difference(&found, expected) / spread);
        println!("{}: logits differ by at most {difference:e} of their spread", entry.path);
        assert!(difference <= entry.tolerance, "{}: {difference:e}", entry.path);
    }
}

#[test]
fn what_is_quantised_here_is_what_transformers_saves() {
    for entry in goldens("falcon/quant") {
        let model = Falcon::from_dir_quantized(path(&entry.base), quantization(&entry), &Device::flex()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("model");
        model.save_dir(&output, Precision::F32).unwrap();
        let [found, expected] = [output, path(&entry.path)]
            .map(|directory| SafetensorsFile::open(directory.join("model.safetensors")).unwrap());
        assert!(found.names().eq(expected.names()), "{}", entry.path);
        for name in expected.names() {
            assert_eq!(found.read(name).unwrap(), expected.read(name).unwrap(), "{name} of {}", entry.path);
        }
    }
}
