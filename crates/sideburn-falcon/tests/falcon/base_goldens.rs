//! The base model against `transformers`: logits, loss, gradients, greedy tokens.

use burn::module::Module;
use burn::tensor::{DType, Device};
use sideburn_adapters::{AdaptedModel, Key, Pass, Precision};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_falcon::{Falcon, FalconConfig, LanguageModel, Quantization};
use sideburn_generate::{Decoder, GenerationConfig};
use sideburn_testing::{Cast, Golden, max_difference, relative_difference, values, written};

use crate::logits::{logits_in, rows};

const MODELS: [&str; 7] = ["mqa", "mqa_bias", "mha_seq", "new_gqa", "one_norm", "alibi_seq", "alibi_mqa"];

fn model(name: &str, device: &Device) -> Falcon {
    Falcon::from_dir(sideburn_testing::path(&format!("falcon/{name}")), device).unwrap()
}

fn io(name: &str) -> Golden {
    Golden::open(&format!("falcon/{name}/io.safetensors"))
}

/// The logits of a golden at its real tokens.
fn expected(io: &Golden) -> Vec<f32> {
    let width = io.shape("logits")[2];
    let mask = io.integers("attention_mask");
    let logits = io.floats("logits");
    logits.chunks(width).zip(mask).filter(|(_, real)| *real == 1).flat_map(|(row, _)| row.to_vec()).collect()
}

#[test]
fn logits_and_loss_of_rows_that_transformers_pads() {
    for name in MODELS {
        let (model, io) = (model(name, &Device::flex()), io(name));
        let difference = max_difference(&logits_in(&model, &io, Pass::evaluate()), &expected(&io));
        println!("{name}: logits differ by at most {difference:e}");
        assert!(difference <= 1e-4, "{name}: logits differ by {difference:e}");
        let batch = io.prompts_and_answers("");
        let loss = model.token_losses(&batch, &mut Pass::evaluate()).unwrap().mean();
        let difference = relative_difference(&values(loss), &io.floats("loss"));
        assert!(difference <= 1e-5, "{name}: loss differs by {difference:e}");
    }
}

/// Places that `bfloat16` does not hold, in which `transformers` reckons its bias.
#[test]
fn logits_at_the_end_of_a_long_row() {
    for name in ["alibi_seq", "alibi_mqa"] {
        let (model, io) = (model(name, &Device::flex()), io(name));
        let row = io.full_rows("long_input_ids");
        let (prompt, end) = row.ids().split_at(row.tokens() - 3);
        let [prompt, end] = [prompt, end].map(|part| TokenRows::from_rows([part]).unwrap());
        let found = values(model.logits(&prompt, &end, &mut Pass::evaluate()).unwrap());
        let difference = max_difference(&found, &io.floats("long_logits"));
        println!("{name}: logits differ by at most {difference:e}");
        assert!(difference <= 1e-4, "{name}: logits differ by {difference:e}");
    }
}

/// The goldens were computed in f64.
#[test]
fn gradients_of_every_weight() {
    for name in MODELS {
        let io = io(name);
        let model = model(name, &Device::flex().autodiff()).unfreeze().map(&mut Cast(DType::F64));
        let batch = io.prompts_and_answers("");
        let loss = model.token_losses(&batch, &mut Pass::evaluate()).unwrap().mean();
        let gradients = loss.backward();
        let (mut squared_error, mut squared_norm, mut compared) = (0.0, 0.0, 0);
        for (site, weight) in model.weights() {
            for (tensor, weight) in weight.tensors(&site) {
                let found =
                    weight.dense().grad(&gradients).unwrap_or_else(|| panic!("{name}: no gradient of {tensor}"));
                let (found, expected) = (values(found.cast(DType::F32)), io.floats(&format!("grad.{tensor}")));
                squared_error += found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                squared_norm += expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                compared += 1;
            }
        }
        assert_eq!(compared, io.names().iter().filter(|name| name.starts_with("grad.")).count(), "{name}");
        let difference = (squared_error / squared_norm).sqrt();
        println!("{name}: {compared} gradients differ by {difference:e} relative");
        assert!(difference <= 1e-5, "{name}: gradients differ by {difference:e}");
    }
}

#[test]
fn greedy_tokens_behind_prompts_that_transformers_pads() {
    for name in MODELS {
        let (model, io) = (model(name, &Device::flex()), io(name));
        let text = std::fs::read_to_string(sideburn_testing::path(&format!("falcon/{name}/generation.json"))).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (case, no_repeat_ngram_size) in [("greedy", 0), ("greedy_ngram2", 2)] {
            let sequences: Vec<Vec<u32>> = serde_json::from_value(reference[case]["sequences"].clone()).unwrap();
            let config = GenerationConfig { no_repeat_ngram_size, ..model.generation_config(24) };
            let written = written(model.start_decoding(&rows(&io), Pass::evaluate()).unwrap(), &config);
            assert_eq!(written.len(), sequences.len());
            for (mut found, expected) in written.into_iter().zip(sequences) {
                // `generate` pads behind the end.
                found.resize(expected.len(), 0);
                assert_eq!(found, expected, "{name}, {case}");
            }
        }
    }
}

/// What is read token by token, with a cache, is what is read at once; rows are dropped and repeated on the way.
#[test]
fn reading_with_a_cache() {
    for name in MODELS {
        let model = model(name, &Device::flex());
        let prompts = TokenRows::from_rows([[5, 6, 7, 8].as_slice(), &[9], &[10, 11]]).unwrap();
        let mut decoding = model.start_decoding(&prompts, Pass::evaluate()).unwrap();
        // A row can be repeated before anything is read.
        decoding.select_rows(&[0, 1, 2, 1]);
        decoding.next_logits(&[8, 9, 11, 9]).unwrap();
        decoding.select_rows(&[3, 0, 2, 0]);
        decoding.next_logits(&[20, 21, 22, 23]).unwrap();
        decoding.select_rows(&[1, 0]);
        let found = values(decoding.next_logits(&[30, 31]).unwrap());
        for (found, row) in found.chunks(model.vocab_size()).zip([&[5, 6, 7, 8, 21, 30][..], &[9, 20, 31]]) {
            let alone = TokenRows::from_rows([row]).unwrap();
            let mut alone = model.start_decoding(&alone, Pass::evaluate()).unwrap();
            let expected = values(alone.next_logits(&[row[row.len() - 1]]).unwrap());
            let difference = max_difference(found, &expected);
            assert!(difference <= 1e-4, "{name}, {row:?}: {difference:e}");
        }
    }
}

/// Several tokens of each row at a time, some of which are taken back, are what single ones are.
#[test]
fn reading_several_tokens_at_a_time() {
    for name in MODELS {
        let model = model(name, &Device::flex());
        let prompts = TokenRows::from_rows([[5, 6, 7, 8].as_slice(), &[9], &[10, 11]]).unwrap();
        let mut decoding = model.start_decoding(&prompts, Pass::evaluate()).unwrap();
        decoding.next_logits(&[8, 9, 11]).unwrap();
        decoding.select_rows(&[1, 0]);
        decoding.next_logits(&[20, 21, 22, 23]).unwrap();
        decoding.forget(1);
        let found = values(decoding.next_logits(&[30, 31, 32, 33]).unwrap());
        assert_eq!(decoding.hidden().unwrap().dims()[0], 4);
        let rows = [&[9, 20, 30][..], &[9, 20, 30, 31], &[5, 6, 7, 8, 22, 32], &[5, 6, 7, 8, 22, 32, 33]];
        for (found, row) in found.chunks(model.vocab_size()).zip(rows) {
            let mut alone = model.start_decoding(&TokenRows::from_rows([row]).unwrap(), Pass::evaluate()).unwrap();
            let expected = values(alone.next_logits(&[row[row.len() - 1]]).unwrap());
            assert_eq!(alone.hidden().unwrap().dims()[0], row.len(), "those of the whole prompt");
            let difference = max_difference(found, &expected);
            assert!(difference <= 1e-4, "{name}, {row:?}: {difference:e}");
        }
    }
}

/// Rows of a batch lie behind each other in one matrix, places begin anew in each, and none sees another: what a pack of
/// examples loses and teaches is what they do one by one.
#[test]
fn a_pack_is_its_examples() {
    let examples = [
        (&[5, 6, 7, 8, 9, 10, 11][..], &[12, 13, 1][..]),
        (&[20], &[1]),
        (&[30, 31, 32], &[33, 34, 35, 36, 37, 1]),
        (&[40, 41], &[42, 1]),
        (&[5, 6, 7, 8, 9, 10, 12], &[13, 1]),
    ];
    let batch = |examples: &[(&[u32], &[u32])]| {
        let (prompts, targets): (Vec<&[u32]>, Vec<&[u32]>) = examples.iter().copied().unzip();
        let [prompts, targets] = [prompts, targets].map(|rows| TokenRows::from_rows(rows).unwrap());
        PromptBatch::new(prompts, targets).unwrap()
    };
    for name in ["mqa", "alibi_seq", "new_gqa"] {
        let model = model(name, &Device::flex().autodiff()).unfreeze();
        let learn = |batch: &PromptBatch| {
            let losses = model.token_losses(batch, &mut Pass::evaluate()).unwrap();
            let gradients = losses.clone().sum().backward();
            let weights = model.weights().into_iter().flat_map(|(site, weight)| weight.tensors(&site));
            let gradients: Vec<f32> =
                weights.flat_map(|(_, weight)| values(weight.dense().grad(&gradients).unwrap())).collect();
            (values(losses.inner()), gradients)
        };
        let (losses, gradients) = learn(&batch(&examples));
        let (mut alone, mut sum) = (Vec::new(), vec![0.0; gradients.len()]);
        for example in examples {
            let (losses, gradients) = learn(&batch(&[example]));
            alone.extend(losses);
            sum.iter_mut().zip(gradients).for_each(|(sum, gradient)| *sum += gradient);
        }
        let [losses, gradients] = [relative_difference(&losses, &alone), relative_difference(&gradients, &sum)];
        println!("{name}: losses differ by {losses:e}, gradients by {gradients:e}");
        assert!(losses <= 1e-5 && gradients <= 1e-5, "{name}: {losses:e}, {gradients:e}");
    }
}

#[test]
fn dropout_stands_where_transformers_has_it() {
    let rows = TokenRows::from_rows([[5, 6, 1]]).unwrap();
    let batch = PromptBatch::new(rows.clone(), rows).unwrap();
    let losses = |config: &FalconConfig| {
        let model = Falcon::random(config, Key::from_seed(1), &Device::flex());
        values(model.token_losses(&batch, &mut Pass::train(Key::from_seed(0))).unwrap())
    };
    let small = FalconConfig {
        vocab_size: 16,
        hidden_size: 16,
        num_attention_heads: 2,
        num_hidden_layers: 1,
        initializer_range: 0.3,
        eos_token_id: vec![1],
        bos_token_id: None,
        ..FalconConfig::default()
    };
    let sequential = FalconConfig { parallel_attn: false, ..small.clone() };
    let biased = FalconConfig { alibi: true, ..small.clone() };
    for (what, config, by_attention) in [
        // No weight is dropped where positions are rotary.
        ("parallel", &small, false),
        ("sequential", &sequential, true),
        ("with ALiBi", &biased, true),
    ] {
        let plain = losses(config);
        assert_ne!(losses(&FalconConfig { hidden_dropout: 0.3, ..config.clone() }), plain, "{what}");
        let dropped = losses(&FalconConfig { attention_dropout: 0.3, ..config.clone() });
        assert_eq!(dropped != plain, by_attention, "{what}");
    }
}

#[test]
fn a_saved_model_is_the_same_model() {
    let directory = tempfile::tempdir().unwrap();
    for name in MODELS {
        let (saved, before) = (directory.path().join(name), model(name, &Device::flex()));
        before.save_dir(&saved, Precision::F32).unwrap();
        let after = Falcon::from_dir(&saved, &Device::flex()).unwrap();
        let logits = |model: &Falcon| logits_in(model, &io(name), Pass::evaluate());
        assert_eq!(logits(&after), logits(&before), "{name}");
        assert_eq!(after.config(), before.config(), "{name}");
    }
}

/// All layers of the blocks are packed, which changes little, and what is packed is written and read as it is.
#[test]
fn a_base_in_four_or_eight_bits() {
    let directory = tempfile::tempdir().unwrap();
    for (name, quantization) in [("mqa", Quantization::NF4), ("new_gqa", Quantization::INT8)] {
        let (dense, io) = (model(name, &Device::flex()), io(name));
        let path = sideburn_testing::path(&format!("falcon/{name}"));
        let packed = Falcon::from_dir_quantized(path, quantization, &Device::flex()).unwrap();
        let is_packed =
            |model: &Falcon| model.linears().iter().filter(|(_, layer)| layer.weight().packed().is_some()).count();
        assert_eq!((is_packed(&packed), is_packed(&dense)), (8, 0), "{name}");
        let logits = |model: &Falcon| logits_in(model, &io, Pass::evaluate());
        let difference = relative_difference(&logits(&packed), &logits(&dense));
        println!("{name}: logits differ by {difference:e} of the largest");
        assert!(difference > 1e-4 && difference < 0.3, "{name}: {difference:e}");
        packed.save_dir(directory.path().join(name), Precision::F32).unwrap();
        let again = Falcon::from_dir(directory.path().join(name), &Device::flex()).unwrap();
        assert_eq!(logits(&again), logits(&packed), "{name}");
    }
}

/// A head that is no copy of the embedding is a head of its own, and one that is, is none.
#[test]
fn the_head_may_be_stored() {
    use sideburn_weights::{SafetensorsFile, Tensor, TensorSource, write_safetensors};
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| sideburn_testing::path(&format!("falcon/mqa/{name}"));
    std::fs::copy(path("config.json"), directory.path().join("config.json")).unwrap();
    let file = SafetensorsFile::open(path("model.safetensors")).unwrap();
    let embedding = "transformer.word_embeddings.weight";
    let write = |head: Tensor, without: &str| {
        let tensors = file.names().filter(|name| *name != without).map(|name| (name, file.read(name).unwrap()));
        let tensors = tensors.chain([("lm_head.weight", head)]);
        write_safetensors(directory.path().join("model.safetensors"), tensors, None).unwrap();
        Falcon::from_dir(directory.path(), &Device::flex()).unwrap()
    };
    let copy = file.read(embedding).unwrap();
    assert!(write(copy.clone(), "").shape().tied_head, "a copy");
    assert!(write(copy, embedding).shape().tied_head, "the only copy");
    let other = Tensor::from_f32(vec![256, 64], &vec![0.5; 256 * 64]).unwrap();
    assert!(!write(other, "").shape().tied_head, "another");
}
