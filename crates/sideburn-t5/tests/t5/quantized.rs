//! T5 in 4 and 8 bits against `transformers` and bitsandbytes.

// How far the numbers are apart is worth seeing.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sideburn_adapters::methods::LoraConfig;
use sideburn_adapters::{AdaptedModel, Adapters, Key, LoftqConfig, ParameterReport, Pass, Precision, Weight};
use sideburn_t5::{LanguageModel, QuantType, Quantization, QuantizationConfig, T5, T5Config};
use sideburn_weights::{Dtype, ModelFiles, SafetensorsFile, Tensor as Stored, TensorSource, write_safetensors};

use sideburn_testing::{Entry, Golden, golden, goldens, max_difference, path, values};

const BASE: &str = "t5_gated_untied";

fn quantization(name: &str) -> Quantization {
    let four_bit = |double_quant| Quantization::FourBit { quant_type: QuantType::Nf4, block_size: 64, double_quant };
    match name {
        "t5_nf4_dq" => four_bit(true),
        "t5_nf4" => four_bit(false),
        _ => Quantization::INT8,
    }
}

fn logits(model: &T5) -> Vec<f32> {
    logits_in(model, &mut Pass::evaluate())
}

fn logits_in(model: &T5, pass: &mut Pass) -> Vec<f32> {
    let io = Golden::open(&format!("{BASE}/io.safetensors"));
    values(model.logits(&io.source(), &io.full_rows("decoder_input_ids"), pass).unwrap())
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

/// Which sites are packed.
fn packed(model: &T5) -> Vec<String> {
    let packed = model.linears().into_iter().filter(|(_, linear)| linear.weight().packed().is_some());
    packed.map(|(name, _)| name).collect()
}

#[test]
fn checkpoints_of_transformers_load() {
    for entry in goldens("quant") {
        let model = T5::from_dir(path(&entry.path), &Device::flex()).unwrap();
        // All but `wo` of four blocks and the head.
        assert_eq!((packed(&model).len(), model.linears().len()), (32, 37), "{}", entry.path);
        assert!(packed(&model).iter().all(|name| !name.ends_with("wo") && name != "lm_head"));

        let golden = Golden::open(&format!("{}/io.safetensors", entry.path));
        let distance = |mut pass: Pass, name: &str| {
            let (found, expected) = (logits_in(&model, &mut pass), golden.floats(name));
            let difference = max_difference(&found, &expected) / deviation(&expected);
            println!("{}: {name} differ by at most {difference:e} of their spread", entry.path);
            f64::from(difference)
        };
        if entry.name() == "t5_int8" {
            let in_training = Pass::train(Key::from_seed(0));
            assert!(distance(in_training, "logits_in_training") <= entry.tolerance, "{}", entry.path);
            // Inputs at which no rounding hangs by a hair.
            let (source, target) = (golden.full_rows("firm_input_ids"), golden.full_rows("firm_decoder_input_ids"));
            let (found, expected) =
                (values(model.logits(&source, &target, &mut Pass::evaluate()).unwrap()), golden.floats("firm_logits"));
            let difference = f64::from(max_difference(&found, &expected) / deviation(&expected));
            println!("{}: firm logits differ by at most {difference:e} of their spread", entry.path);
            assert!(difference <= entry.tolerance, "{}", entry.path);
            // With integers a single one that is rounded the other way is 0.08, in bitsandbytes, too: testdata/README.md.
            assert!(distance(Pass::evaluate(), "logits") <= 0.2, "{}", entry.path);
            let batch = Golden::open(&format!("{BASE}/io.safetensors")).batch();
            let loss = values(model.token_losses(&batch, &mut Pass::evaluate()).unwrap().mean())[0];
            let expected = golden.floats("loss")[0];
            assert!((loss - expected).abs() <= 2e-3 * expected, "{loss} for {expected}");
        } else {
            assert!(distance(Pass::evaluate(), "logits") <= entry.tolerance, "{}", entry.path);
        }
    }
}

#[test]
fn what_is_quantised_here_is_what_transformers_saves() {
    for entry in goldens("quant") {
        let model = T5::from_dir_quantized(path(BASE), quantization(entry.name()), &Device::flex()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("model");
        model.save_dir(&output, Precision::F32).unwrap();
        let [found, expected] = [output.clone(), path(&entry.path)]
            .map(|directory| SafetensorsFile::open(directory.join("model.safetensors")).unwrap());
        assert!(found.names().eq(expected.names()), "{}", entry.path);
        for name in expected.names() {
            assert_eq!(found.read(name).unwrap(), expected.read(name).unwrap(), "{name} of {}", entry.path);
        }
        let config = |directory: &std::path::Path| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(directory.join("config.json")).unwrap()).unwrap()
        };
        let field = "quantization_config";
        assert_eq!(config(&output)[field], config(&path(&entry.path))[field], "{}", entry.path);
        let again = T5::from_dir(&output, &Device::flex()).unwrap();
        assert_eq!(logits(&again), logits(&model), "{}", entry.path);
    }
}

/// Packed in memory what was loaded as floats: the same as packed while it was read.
#[test]
fn a_model_can_be_quantised_in_memory() {
    let mut model = T5::from_dir(path(BASE), &Device::flex()).unwrap();
    let before = ParameterReport::of(&model);
    let fingerprint = model.fingerprint();
    let names = model.quantize_base(&Quantization::NF4.into()).unwrap();
    assert_eq!((names.len(), packed(&model).len()), (32, 32));
    assert_eq!(ParameterReport::of(&model).all, before.all, "what is packed counts as what it stands for");
    assert_ne!(model.fingerprint(), fingerprint);
    let read = T5::from_dir_quantized(path(BASE), Quantization::NF4, &Device::flex()).unwrap();
    assert_eq!(logits(&model), logits(&read));
    assert_eq!(model.fingerprint(), read.fingerprint());
    assert_eq!(model.quantization(), Some(Quantization::NF4.into()));
}

#[test]
fn modules_that_a_configuration_names_stay_as_they_are() {
    let skip = vec!["lm_head".to_owned(), "encoder".to_owned(), "EncDecAttention.q".to_owned()];
    let config = QuantizationConfig { llm_int8_skip_modules: Some(skip), ..Quantization::INT8.into() };
    let model = T5::from_dir_quantized(path(BASE), config, &Device::flex()).unwrap();
    let names = packed(&model);
    // Of each of two blocks: four of self-attention, three of cross-attention, two of the feed-forward layer.
    assert_eq!(names.len(), 18, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("decoder.") && !name.ends_with("EncDecAttention.q")));
    // What is saved names all that is not packed, so that it loads in the same way.
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("model");
    model.save_dir(&output, Precision::Bf16).unwrap();
    assert_eq!(packed(&T5::from_dir(&output, &Device::flex()).unwrap()), names);
}

/// An adapter of any method, over a packed base of any kind, computes and differentiates what it does over the same base as
/// floats.
#[test]
fn all_methods_work_over_packed_bases() {
    let device = Device::flex().autodiff();
    let io = Golden::open(&format!("{BASE}/io.safetensors"));
    let adapters = goldens("adapters").into_iter().filter(|entry| entry.base == BASE).map(|entry| entry.path);
    let adapters: Vec<String> = adapters.filter(|adapter| path(adapter).join("adapter_config.json").exists()).collect();
    assert!(adapters.len() > 20);
    let read = |entry: Entry| (T5::from_dir(path(&entry.path), &device).unwrap(), entry.path);
    let mut bases: Vec<(T5, String)> = goldens("quant").into_iter().map(read).collect();
    // With embedding, head and `wo` in 16 bits beside what is packed.
    let half = in_bf16();
    let half = T5::from_dir_quantized(half.path(), Quantization::NF4, &device).unwrap();
    bases.push((half, "a base in bf16".to_owned()));
    for (packed_base, base) in bases {
        let mut dense_base = packed_base.clone();
        for (_, weight) in dense_base.weights_mut() {
            let floats = weight.as_weight().weight().dense();
            weight.into_weight_mut().replace(floats);
        }
        assert!(packed(&dense_base).is_empty());
        assert_eq!(dense_base.base_bytes(None).floats, 4 * ParameterReport::of(&dense_base).all);
        for name in &adapters {
            let run = |base: &T5| {
                let mut model = base.clone();
                model.load_adapter("default", path(name)).unwrap();
                // In training 8-bit weights take floats, too; there is no dropout in this model.
                let mut pass = Pass::train(Key::from_seed(7));
                let loss = model.token_losses(&io.batch(), &mut pass).unwrap().mean();
                let gradients = loss.clone().backward();
                let tensors = model.adapter_tensors("default").unwrap();
                let gradients: Vec<f32> = tensors
                    .values()
                    .filter_map(|param| Some(values(param.val().grad(&gradients)?)))
                    .flatten()
                    .collect();
                (values(loss)[0], gradients)
            };
            let ((loss, found), (expected_loss, expected)) = (run(&packed_base), run(&dense_base));
            assert!((loss - expected_loss).abs() <= 1e-5 * expected_loss, "{name} over {base}: {loss}");
            let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            assert!(largest > 0.0, "{name} trains something");
            let difference = max_difference(&found, &expected) / largest;
            assert!(difference <= 2e-4, "{name} over {base}: gradients differ by {difference:e}");
        }
    }
}

/// The unquantised base with all its tensors in bf16.
fn in_bf16() -> tempfile::TempDir {
    changed(BASE, |tensors| tensors.iter_mut().for_each(|(_, tensor)| *tensor = tensor.to_bf16().unwrap()))
}

/// What is not packed stays in 16 bits if it is stored so, or if that is asked for, and computes the same: widening is exact.
#[test]
fn floats_beside_packed_weights_stay_in_16_bits() {
    const WO: &str = "encoder.block.0.layer.1.DenseReluDense.wo.weight";
    const NORM: &str = "encoder.final_layer_norm.weight";
    let half = in_bf16();
    let read = |directory: &std::path::Path, config: QuantizationConfig| {
        T5::from_dir_quantized(directory, config, &Device::flex()).unwrap()
    };
    let asked = |dtype| QuantizationConfig { dtype: Some(dtype), ..Quantization::NF4.into() };
    let wide = read(half.path(), asked(Dtype::F32));
    let narrow = read(half.path(), Quantization::NF4.into());
    assert!(max_difference(&logits(&narrow), &logits(&wide)) <= 1e-5 * deviation(&logits(&wide)));
    assert_eq!(narrow.fingerprint(), wide.fingerprint());
    let (bytes, before) = (narrow.base_bytes(None), wide.base_bytes(None));
    assert_eq!(bytes.packed, before.packed);
    let vectors: usize = narrow
        .weights()
        .iter()
        .map(|(_, weight)| weight.weight().shape())
        .filter(|shape| shape.len() == 1)
        .map(|shape| shape[0])
        .sum();
    assert_eq!(2 * bytes.floats, before.floats + 4 * vectors as u64, "all but the scales of norms take half");
    // Nothing is read to know that.
    let outline = T5::random(narrow.config(), Key::from_seed(0), &Device::flex());
    assert_eq!(outline.base_bytes(Some(&asked(Dtype::BF16))).floats, bytes.floats);

    // Saved in 16 bits, and read again as it was.
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("model");
    narrow.save_dir(&output, Precision::F32).unwrap();
    let dtype = |directory: &std::path::Path, name: &str| {
        SafetensorsFile::open(directory.join("model.safetensors")).unwrap().info(name).unwrap().dtype
    };
    assert_eq!(["shared.weight", "lm_head.weight", WO].map(|name| dtype(&output, name)), [Dtype::BF16; 3]);
    assert_eq!(dtype(&output, NORM), Dtype::F32);
    let again = T5::from_dir(&output, &Device::flex()).unwrap();
    assert_eq!(again.base_bytes(None), bytes);
    assert_eq!(logits(&again), logits(&narrow));
    assert_eq!(again.quantization(), Some(asked(Dtype::BF16)));

    // Rounded while it is read; what transformers keeps in f32 beside f16 stays so.
    let rounded = read(&path(BASE), asked(Dtype::F16));
    let other = directory.path().join("f16");
    rounded.save_dir(&other, Precision::F32).unwrap();
    let found = ["shared.weight", "lm_head.weight", WO].map(|name| dtype(&other, name));
    assert_eq!(found, [Dtype::F16, Dtype::F16, Dtype::F32]);
    let whole = read(&path(BASE), Quantization::NF4.into());
    let difference = max_difference(&logits(&rounded), &logits(&whole)) / deviation(&logits(&whole));
    assert!(difference > 0.0 && difference < 1e-2, "{difference}");
}

/// `_keep_in_fp32_modules = None` of transformers: `wo` is packed like any other layer, in memory; a file has it as floats, which
/// transformers expects.
#[test]
fn what_is_kept_in_f32_can_be_packed() {
    let config = QuantizationConfig { keep_in_fp32_modules: false, ..Quantization::INT8.into() };
    let model = T5::from_dir_quantized(path(BASE), config.clone(), &Device::flex()).unwrap();
    assert_eq!((packed(&model).len(), model.linears().len()), (36, 37));
    let outline = T5::random(model.config(), Key::from_seed(0), &Device::flex());
    assert_eq!(outline.base_bytes(Some(&config)).total(), model.base_bytes(None).total());
    let kept = T5::from_dir_quantized(path(BASE), Quantization::INT8, &Device::flex()).unwrap();
    let train = || Pass::train(Key::from_seed(0));
    let difference = max_difference(&logits_in(&model, &mut train()), &logits_in(&kept, &mut train()));
    assert!(difference > 0.0 && difference < 0.1 * deviation(&logits(&kept)), "{difference}");
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("model");
    model.save_dir(&output, Precision::F32).unwrap();
    assert_eq!(packed(&T5::from_dir(&output, &Device::flex()).unwrap()).len(), 32);
}

#[test]
fn merging_into_a_packed_base_gives_floats_until_it_is_asked_to_pack_them() {
    let golden = golden("quant/t5_nf4_dq");
    let mut model = T5::from_dir(path(&golden.path), &Device::flex()).unwrap();
    let bare = logits(&model);
    model.load_adapter("default", path(&golden.path).join("initial_adapter")).unwrap();
    // A new LoRA adapter has no effect; this one has.
    let names: Vec<String> = model.adapter_tensors("default").unwrap().into_keys().collect();
    assert!(names.iter().any(|name| name.contains("lora_B")));
    model
        .set_adapter_tensors("default", |name| {
            let is_b = name.contains("lora_B");
            is_b.then(|| (0..64 * 8).map(|index| (index as f32).sin() * 0.05).collect())
        })
        .unwrap();
    let before = logits(&model);
    assert!(max_difference(&before, &bare) > 0.1);
    let drift = model.merge_drift(|model| Ok::<_, sideburn_t5::T5Error>(tensor_of(logits(model)))).unwrap();
    assert!(drift < 1e-3, "{drift}");

    let packed_before = packed(&model);
    model.merge().unwrap();
    assert_eq!(packed(&model).len(), 32 - 12, "q and v of six attentions are floats now");
    assert!(max_difference(&logits(&model), &before) < 1e-3);
    // Asked for, they are packed again, and then rounding costs what it costs.
    let mut again = model.clone();
    again.quantize_base(&Quantization::NF4.into()).unwrap();
    assert_eq!(packed(&again), packed_before);
    let cost = max_difference(&logits(&again), &before);
    assert!(cost > 10.0 * drift, "rounding to 4 bits cannot be as fine as to 32: {cost}");
    // And unmerging gives the packed weights back, bit for bit.
    model.unmerge().unwrap();
    assert_eq!(packed(&model), packed_before);
    model.set_active(&[]).unwrap();
    assert_eq!(logits(&model), bare);
}

/// Base and factors of LoftQ against `peft`, and the error that they leave.
#[test]
fn factors_begin_as_what_quantising_has_lost() {
    let entry = golden("loftq");
    let (golden, original) = (Golden::open("loftq/io.safetensors"), ModelFiles::open(path(BASE)).unwrap());
    let four_bit = Quantization::FourBit { quant_type: QuantType::Nf4, block_size: 64, double_quant: false };
    for (bits, loftq_iter) in [(4, 1), (4, 3), (8, 1)] {
        let quantization = if bits == 4 { four_bit } else { Quantization::INT8 };
        let mut model = T5::from_dir_quantized(path(BASE), quantization, &Device::flex()).unwrap();
        // A scaling of 2: the product of the factors is half as large.
        let lora = LoraConfig { r: 8, lora_alpha: 16.0, ..LoraConfig::new(["q", "v"]) };
        model.attach("default", lora, Key::from_seed(0)).unwrap();
        let config = LoftqConfig { loftq_iter, ..LoftqConfig::default() };
        let sites = model.init_loftq("default", &original, config).unwrap();
        assert_eq!(sites.len(), 12, "q and v of six attentions");
        let tensors = model.adapter_tensors("default").unwrap();
        let names: Vec<String> = golden.names();
        let prefix = format!("{bits}.{loftq_iter}.");
        for site in names.iter().filter_map(|name| name.strip_prefix(&prefix)?.strip_suffix(".base")) {
            let [a, b] = ["A", "B"].map(|part| tensors[&format!("base_model.model.{site}.lora_{part}.weight")].val());
            let (_, linear) = model.linears().into_iter().find(|(name, _)| name == site).unwrap();
            assert!(linear.weight().packed().is_some());
            let (base, delta) = (values(linear.weight().dense()), values(b.matmul(a).mul_scalar(2.0)));
            for (found, part) in [(base, "base"), (delta, "delta")] {
                let expected = golden.floats(&format!("{prefix}{site}.{part}"));
                let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                let difference = f64::from(max_difference(&found, &expected) / largest);
                println!("{prefix}{site}: {part} differs by {difference:e}");
                assert!(difference <= entry.tolerance, "{prefix}{site}: {part} differs by {difference:e}");
            }
        }
    }
}

/// The nearer to the original, the more often it is packed; and a sketch finds almost as much.
#[test]
fn loftq_comes_nearer_to_the_original() {
    let original = ModelFiles::open(path(BASE)).unwrap();
    let expected = logits(&T5::from_dir(path(BASE), &Device::flex()).unwrap());
    let distance = |config: Option<LoftqConfig>| {
        let mut model = T5::from_dir_quantized(path(BASE), Quantization::NF4, &Device::flex()).unwrap();
        let lora = LoraConfig { r: 16, ..LoraConfig::new(["q", "k", "v", "o", "wi_0", "wi_1"]) };
        model.attach("default", lora, Key::from_seed(0)).unwrap();
        if let Some(config) = config {
            model.init_loftq("default", &original, config).unwrap();
        }
        let found = logits(&model);
        found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
    };
    let loftq = |loftq_iter, iterations| distance(Some(LoftqConfig { loftq_iter, iterations }));
    let (without, once, often, sketched) = (distance(None), loftq(1, None), loftq(5, None), loftq(1, Some(4)));
    println!("distance of logits {without}, LoftQ once {once}, five times {often}, sketched {sketched}");
    assert!(once < 0.9 * without && often < once && sketched < 0.95 * without);
}

#[test]
fn what_cannot_begin_so_is_refused() {
    let original = ModelFiles::open(path(BASE)).unwrap();
    let packed = || T5::from_dir_quantized(path(BASE), Quantization::NF4, &Device::flex()).unwrap();
    let error = |mut model: T5, lora: LoraConfig, source: &dyn TensorSource, config| {
        model.attach("default", lora, Key::from_seed(0)).unwrap();
        let before = values(model.adapter_tensors("default").unwrap().into_values().next().unwrap().val());
        let error = model.init_loftq("default", source, config).unwrap_err().to_string();
        let after = values(model.adapter_tensors("default").unwrap().into_values().next().unwrap().val());
        assert_eq!(before, after);
        error
    };
    let (plain, once) = (|| LoraConfig::new(["q"]), LoftqConfig::default());
    let message = error(packed(), LoraConfig { use_dora: true, ..plain() }, &original, once);
    assert!(message.contains("\"default\" cannot begin") && message.contains("not plain LoRA"), "{message}");
    let message = error(packed(), LoraConfig::new(["wo"]), &original, once);
    assert!(message.contains("no layer that it adapts is packed"), "{message}");
    let message = error(packed(), LoraConfig { r: 65, ..plain() }, &original, once);
    assert!(message.contains("rank 65") && message.contains("SelfAttention.q, which is [64, 64]"), "{message}");
    let message = error(packed(), plain(), &original, LoftqConfig { loftq_iter: 0, ..once });
    assert!(message.contains("`loftq_iter` is 0, expected at least 1"), "{message}");
    let other =
        changed(BASE, |tensors| tensors.retain(|(name, _)| !name.ends_with("block.1.layer.0.SelfAttention.q.weight")));
    let message = error(packed(), plain(), &ModelFiles::open(other.path()).unwrap(), once);
    assert!(message.contains("missing (1): encoder.block.1.layer.0.SelfAttention.q.weight"), "{message}");
    assert!(packed().init_loftq("none", &original, once).is_err());
}

fn tensor_of(values: Vec<f32>) -> Tensor<1> {
    Tensor::from_floats(values.as_slice(), &Device::flex())
}

/// A copy of a model with some of its tensors changed.
fn changed(from: &str, change: impl FnOnce(&mut Vec<(String, Stored)>)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(path(from).join("config.json"), directory.path().join("config.json")).unwrap();
    let file = SafetensorsFile::open(path(from).join("model.safetensors")).unwrap();
    let mut tensors: Vec<_> = file.names().map(|name| (name.to_owned(), file.read(name).unwrap())).collect();
    change(&mut tensors);
    write_safetensors(directory.path().join("model.safetensors"), tensors, None).unwrap();
    directory
}

#[test]
fn broken_models_are_refused() {
    let error = |directory: &std::path::Path| T5::from_dir(directory, &Device::flex()).unwrap_err().to_string();
    const Q: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

    let absent = changed("quant/t5_nf4_dq", |tensors| tensors.retain(|(name, _)| *name != format!("{Q}.absmax")));
    let message = error(absent.path());
    assert!(message.contains(&format!("\"{Q}\"")) && message.contains(&format!("has no {Q}.absmax")), "{message}");

    let short = changed("quant/t5_int8", |tensors| {
        let scb = tensors.iter_mut().find(|(name, _)| name.ends_with("SelfAttention.q.SCB")).unwrap();
        scb.1 = Stored::from_f32(vec![3], &[1.0; 3]).unwrap();
    });
    let message = error(short.path());
    assert!(message.contains("SCB is of 3 elements, expected 64 of them"), "{message}");

    // A state of a weight that the model has not.
    let foreign = changed("quant/t5_nf4", |tensors| {
        let state = tensors.iter().find(|(name, _)| *name == format!("{Q}.absmax")).unwrap().1.clone();
        tensors.push(("encoder.block.9.weight.absmax".to_owned(), state));
    });
    let message = error(foreign.path());
    assert!(message.contains("encoder.block.9.weight.absmax"), "{message}");

    // Not finite: found while it is quantised, and named.
    let broken = changed(BASE, |tensors| {
        let q = &mut tensors.iter_mut().find(|(name, _)| name == Q).unwrap().1;
        let mut floats = q.to_f32().unwrap();
        floats[70] = f32::NAN;
        *q = Stored::from_f32(q.shape().to_vec(), &floats).unwrap();
    });
    let message = T5::from_dir_quantized(broken.path(), Quantization::NF4, &Device::flex()).unwrap_err().to_string();
    assert!(message.contains(&format!("\"{Q}\" has NaN in row 1, column 6")), "{message}");

    let message = T5::from_dir_quantized(path("quant/t5_int8"), Quantization::NF4, &Device::flex()).unwrap_err();
    assert!(message.to_string().contains("the model is quantised already"), "{message}");

    let other = changed(BASE, |_| {});
    let config = std::fs::read_to_string(path(BASE).join("config.json")).unwrap();
    let config = config.replacen('{', "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4},", 1);
    std::fs::write(other.path().join("config.json"), config).unwrap();
    let message = error(other.path());
    assert!(message.contains("config.json") && message.contains("quantised by GPTQ, which is not here"), "{message}");
}

/// A file that says more than any machine holds: a hole of a file system, of which nothing is read.
#[test]
#[cfg(target_os = "linux")]
fn too_little_memory_is_told_before_anything_is_read() {
    use std::io::Write;

    let config = std::fs::read_to_string(path(BASE).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    (config["vocab_size"], config["d_model"]) = ((1 << 24).into(), 8192.into());
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let config = T5Config::from_file(directory.path().join("config.json")).unwrap();
    let mut model = T5::random(&config, Key::from_seed(0), &Device::flex());
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, weight) in model.weights() {
        for (name, weight) in weight.tensors(&name) {
            let (shape, start) = (weight.shape(), end);
            end += 4 * shape.iter().product::<usize>();
            let entry =
                format!(r#""{name}": {{"dtype": "F32", "shape": {shape:?}, "data_offsets": [{start}, {end}]}}"#);
            entries.push(entry);
        }
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut output = std::fs::File::create(directory.path().join("model.safetensors")).unwrap();
    output.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    output.write_all(header.as_bytes()).unwrap();
    output.set_len((8 + header.len() + end) as u64).unwrap();
    // `from_dir` would find out first whether head and embedding are one, by reading them.
    let source = ModelFiles::open(directory.path()).unwrap();
    fn own(name: &str) -> Option<&str> {
        Some(name)
    }
    let message = model.load_base(&source, own).unwrap_err().to_string();
    for part in ["loading takes 1099.", "GB of it for weights", "GB are left", "quantise the model"] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A model that differentiates keeps its packed weights through [`Module::valid`] and back.
#[test]
fn packed_weights_follow_the_model() {
    let model = T5::from_dir(path("quant/t5_nf4_dq"), &Device::flex().autodiff()).unwrap();
    let plain = model.valid();
    assert_eq!(packed(&plain), packed(&model));
    assert_eq!(logits(&plain), logits(&model));
    assert_eq!(logits(&plain.train()), logits(&model));
}

/// The root mean square of the differences, in parts of the spread.
fn rms_distance(found: &[f32], expected: &[f32]) -> f32 {
    let squares: f32 = found.iter().zip(expected).map(|(found, expected)| (found - expected).powi(2)).sum();
    (squares / found.len() as f32).sqrt() / deviation(expected)
}

/// Everything is multiplied in integers, the head and the embedding too, whether they are one or two; logits stay near those in
/// f32, and adapters are what they are.
#[test]
fn a_model_computes_in_integers() {
    for base in [BASE, "t5_relu_tied"] {
        let io = Golden::open(&format!("{base}/io.safetensors"));
        let logits = |model: &T5| {
            values(model.logits(&io.source(), &io.full_rows("decoder_input_ids"), &mut Pass::evaluate()).unwrap())
        };
        let floats = T5::from_dir(path(base), &Device::flex()).unwrap();
        let mut model = floats.clone();
        model.compute_in_int8().unwrap();
        assert_eq!(packed(&model).len(), model.linears().len());
        let tables: Vec<String> = model
            .weights()
            .into_iter()
            .filter(|(_, weight)| matches!(weight, Weight::Table(table) if table.weight().packed().is_some()))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(tables, ["shared.weight"]);
        let (found, expected) = (logits(&model), logits(&floats));
        let distance = rms_distance(&found, &expected);
        println!("{base}: logits in integers differ from those in f32 by {distance:.4} of their spread");
        assert!(distance > 0.0 && distance <= 0.1, "{base}: {distance}");

        // Losses follow, of a tied head too.
        let loss = |model: &T5| values(model.token_losses(&io.batch(), &mut Pass::evaluate()).unwrap().mean())[0];
        assert!((loss(&model) - loss(&floats)).abs() <= 0.01 * loss(&floats), "{base}");

        // What an adapter adds is the same in both.
        let adapted = |mut model: T5| {
            model
                .attach("a", LoraConfig { lora_alpha: 32.0, ..LoraConfig::new(["q", "wo"]) }, Key::from_seed(0))
                .unwrap();
            let tensors = model.adapter_tensors("a").unwrap().into_iter();
            let sizes: BTreeMap<String, u64> =
                tensors.map(|(name, tensor)| (name, tensor.val().shape().num_elements() as u64)).collect();
            let value = |name: &str, index| 0.05 * Key::from_seed(1).fold_in_name(name).normal(index) as f32;
            let all = |name: &str| Some((0..sizes[name]).map(|index| value(name, index)).collect());
            model.set_adapter_tensors("a", all).unwrap();
            model
        };
        let (with, expected) = (logits(&adapted(model.clone())), logits(&adapted(floats)));
        assert!(max_difference(&with, &found) > 0.2 * deviation(&found), "{base}: the adapter does something");
        let distance = rms_distance(&with, &expected);
        assert!(distance <= 0.1, "{base}, with an adapter: {distance}");
    }
}

/// A file of a model that computes in integers is one that `transformers` reads: what it keeps in floats is floats.
#[test]
fn a_model_that_computes_in_integers_is_saved() {
    let mut model = T5::from_dir(path(BASE), &Device::flex()).unwrap();
    model.compute_in_int8().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("model");
    model.save_dir(&output, Precision::F32).unwrap();
    let file = SafetensorsFile::open(output.join("model.safetensors")).unwrap();
    let dtype = |name: &str| format!("{:?}", file.info(name).unwrap().dtype);
    let names = ["shared.weight", "lm_head.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"];
    assert_eq!(names.map(dtype), ["F32", "I8", "I8"]);
    assert_eq!(dtype("encoder.block.0.layer.1.DenseReluDense.wo.weight"), "F32");
    let mut again = T5::from_dir(&output, &Device::flex()).unwrap();
    again.compute_in_int8().unwrap();
    // Rounding what is rounded changes nothing but the last bits of scales.
    let (found, expected) = (logits(&again), logits(&model));
    assert!(max_difference(&found, &expected) <= 0.02 * deviation(&expected));
}

/// A weight that cannot be rounded is named, and the model stays as it was.
#[test]
fn a_weight_that_is_not_finite_is_named() {
    let mut model = T5::from_dir(path(BASE), &Device::flex()).unwrap();
    let (name, linear) = model.linears_mut().pop().unwrap();
    let weight = linear.weight_mut();
    weight.replace(weight.dense().mul_scalar(f32::NAN));
    let error = model.compute_in_int8().unwrap_err().to_string();
    assert!(error.contains(&name), "{error}");
    assert!(packed(&model).is_empty());
}
