//! The base model against `transformers`: logits, loss, hidden states, position buckets, greedy tokens.

// Each test says how far it is from the reference.
use burn::tensor::{Device, Tensor};
use sideburn_adapters::{AdaptedModel, Key, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::{Decoder, GenerationConfig};
use sideburn_t5::{LanguageModel, T5, T5Config};

#[allow(dead_code)]
use sideburn_testing::{Golden, max_difference, relative_difference, values, written};

const FAMILIES: [&str; 2] = ["t5_gated_untied", "t5_relu_tied"];

fn model(family: &str) -> T5 {
    T5::from_dir(sideburn_testing::path(family), &Device::flex()).unwrap()
}

/// The logits for full rows of decoder input, `[rows * columns, vocab_size]`.
fn logits(model: &T5, source: &TokenRows, decoder_input: &TokenRows) -> Tensor<2> {
    model.logits(source, decoder_input, &mut Pass::evaluate()).unwrap()
}

#[test]
fn logits_and_loss_of_padded_batches() {
    for family in FAMILIES {
        let (model, io) = (model(family), Golden::open(&format!("{family}/io.safetensors")));
        let source = io.source();
        let found = values(logits(&model, &source, &io.full_rows("decoder_input_ids")));
        let difference = max_difference(&found, &io.floats("logits"));
        println!("{family}: logits differ by at most {difference:e}");
        assert!(difference <= 1e-4, "{family}: logits differ by {difference:e}");

        // The reference has rows of padding as well, which nobody looks at.
        let encoded = model.encode(&source, &mut Pass::evaluate()).unwrap();
        let width = io.shape("encoder_last_hidden_state")[1] * 64;
        let hidden: Vec<f32> = io
            .floats("encoder_last_hidden_state")
            .chunks(width)
            .zip(source.lengths())
            .flat_map(|(row, length)| row[..length * 64].to_vec())
            .collect();
        let difference = max_difference(&values(encoded.hidden), &hidden);
        assert!(difference <= 1e-4, "{family}: the encoder's output differs by {difference:e}");

        let target = io.rows("labels", &io.label_lengths("labels"));
        let batch = PromptBatch::new(source, target).unwrap();
        let loss = model.token_losses(&batch, &mut Pass::evaluate()).unwrap().mean();
        let difference = relative_difference(&values(loss), &io.floats("loss"));
        println!("{family}: loss differs by {difference:e} relative");
        assert!(difference <= 1e-5, "{family}: loss differs by {difference:e}");
    }
}

#[test]
fn logits_without_a_mask() {
    for family in FAMILIES {
        let (model, io) = (model(family), Golden::open(&format!("{family}/io.safetensors")));
        let [rows, columns] = io.shape("input_ids")[..] else { panic!("a rectangle") };
        let source = io.rows("input_ids", &vec![columns; rows]);
        let found = values(logits(&model, &source, &io.full_rows("decoder_input_ids")));
        let difference = max_difference(&found, &io.floats("logits_no_mask"));
        assert!(difference <= 1e-4, "{family}: logits differ by {difference:e}");
    }
}

#[test]
fn greedy_tokens_of_a_padded_batch() {
    for family in FAMILIES {
        let (model, io) = (model(family), Golden::open(&format!("{family}/io.safetensors")));
        let text = std::fs::read_to_string(sideburn_testing::path(&format!("{family}/generation.json"))).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
        let source = io.source();
        for (case, no_repeat_ngram_size) in [("greedy", 0), ("greedy_ngram2", 2)] {
            let sequences: Vec<Vec<u32>> = serde_json::from_value(reference[case]["sequences"].clone()).unwrap();
            let eos_token_id = vec![1];
            let config = GenerationConfig { eos_token_id, no_repeat_ngram_size, ..GenerationConfig::new(24) };
            let written = written(model.start_decoding(&source, Pass::evaluate()).unwrap(), &config);
            assert_eq!(written.len(), sequences.len());
            for (mut found, expected) in written.into_iter().zip(sequences) {
                // `generate` returns the start token first, and pads behind the end.
                found.insert(0, 0);
                found.resize(expected.len(), 0);
                assert_eq!(found, expected, "{family}, {case}");
            }
        }
    }
}

#[test]
fn dropout_stands_where_transformers_has_it() {
    // Embedding, attention weights, what attention adds, inside the feed-forward layer, what it adds, final norm.
    let (encoder, decoder) = (1 + 2 * 4 + 1, 1 + 2 * 6 + 1);
    for family in FAMILIES {
        let rows = TokenRows::from_rows([[5, 6, 1]]).unwrap();
        let batch = PromptBatch::new(rows.clone(), rows).unwrap();
        let mut pass = Pass::train(Key::from_seed(0));
        model(family).token_losses(&batch, &mut pass).unwrap();
        assert_eq!(pass.dropouts(), encoder + decoder, "{family}");
    }
}

#[test]
fn configurations_of_transformers_5_load() {
    // transformers 5 writes `tie_word_embeddings: true` beside a head of its own: the stored head wins.
    let directory = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(sideburn_testing::path(from), directory.path().join(to)).unwrap();
    copy("t5_gated_untied/config_v5.json", "config.json");
    copy("t5_gated_untied/model.safetensors", "model.safetensors");
    let model = T5::from_dir(directory.path(), &Device::flex()).unwrap();
    let io = Golden::open("t5_gated_untied/io.safetensors");
    let source = io.source();
    let found = values(logits(&model, &source, &io.full_rows("decoder_input_ids")));
    assert!(max_difference(&found, &io.floats("logits")) <= 1e-4);
}

#[test]
fn a_saved_model_is_the_same_model() {
    let directory = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let saved = directory.path().join(family);
        model(family).save_dir(&saved, sideburn_adapters::Precision::F32).unwrap();
        let io = Golden::open(&format!("{family}/io.safetensors"));
        let source = io.source();
        let run = |model: T5| values(logits(&model, &source, &io.full_rows("decoder_input_ids")));
        let again = T5::from_dir(&saved, &Device::flex()).unwrap();
        assert_eq!(run(again), run(model(family)), "{family}");
    }
}

#[test]
fn more_padding_changes_nothing() {
    // On the CPU a batch is packed: what a longer neighbour pads a row with is never computed.
    let (model, io) = (model("t5_gated_untied"), Golden::open("t5_gated_untied/io.safetensors"));
    let source = io.source();
    let config = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(24) };
    let together = written(model.start_decoding(&source, Pass::evaluate()).unwrap(), &config);
    for (index, row) in source.iter().enumerate() {
        let decoder_input = TokenRows::from_rows([[0, 7, 9]]).unwrap();
        let alone = TokenRows::from_rows([row]).unwrap();
        let written = written(model.start_decoding(&alone, Pass::evaluate()).unwrap(), &config);
        assert_eq!(written[0], together[index], "tokens of row {index}");

        let longer = TokenRows::from_rows([row, [3; 50].as_slice()]).unwrap();
        let two_inputs = TokenRows::from_rows([[0, 7, 9].as_slice(), &[0, 7, 9, 11, 13]]).unwrap();
        let alone = values(logits(&model, &alone, &decoder_input));
        let padded = values(logits(&model, &longer, &two_inputs));
        let difference = relative_difference(&padded[..alone.len()], &alone);
        assert!(difference <= 1e-5, "row {index}: {difference:e}");
    }
}

#[test]
fn the_flan_t5_small_architecture() {
    let config = T5Config::from_file(sideburn_testing::path("flan_t5_small/config.json")).unwrap();
    let model = crate::formula::model(&config, &Device::flex());
    let io = Golden::open("flan_t5_small/io.safetensors");
    let source = io.source();
    let logits = logits(&model, &source, &io.full_rows("decoder_input_ids"));
    let normaliser = burn::tensor::activation::log_softmax(logits.clone(), 1);
    let normaliser = logits.clone().slice([0..16, 0..1]) - normaliser.slice([0..16, 0..1]);
    let difference = max_difference(&values(normaliser), &io.floats("log_normaliser"));
    assert!(difference <= 1e-4, "the normaliser differs by {difference:e}");
    let [tokens, vocab_size] = logits.dims();
    let every_16: Vec<f32> = values(logits).into_iter().step_by(16).collect();
    assert_eq!(every_16.len(), tokens * vocab_size / 16);
    let difference = max_difference(&every_16, &io.floats("logits_every_16"));
    println!("flan-t5-small: logits differ by at most {difference:e}");
    assert!(difference <= 1e-4, "logits differ by {difference:e}");

    let target = io.rows("labels", &io.label_lengths("labels"));
    let loss = model.token_losses(&PromptBatch::new(source, target).unwrap(), &mut Pass::evaluate()).unwrap();
    let difference = relative_difference(&values(loss.mean()), &io.floats("loss"));
    assert!(difference <= 1e-5, "loss differs by {difference:e}");
}

/// A row that goes on from another, as beams do, writes what it would have written alone; the source is not copied.
#[test]
fn rows_are_dropped_and_repeated() {
    let (model, io) = (model("t5_gated_untied"), Golden::open("t5_gated_untied/io.safetensors"));
    let source = io.source();
    let start = |rows: &[usize]| {
        let rows = TokenRows::from_rows(rows.iter().map(|row| source.iter().nth(*row).unwrap())).unwrap();
        model.start_decoding(&rows, Pass::evaluate()).unwrap()
    };
    let mut decoding = start(&[0, 1, 2]);
    decoding.next_logits(&[0, 0, 0]).unwrap();
    decoding.select_rows(&[2, 0, 2]);
    decoding.next_logits(&[5, 6, 7]).unwrap();
    decoding.select_rows(&[1, 2, 0, 1]);
    assert_eq!(decoding.rows(), 4);
    let together = values(decoding.next_logits(&[8, 9, 10, 11]).unwrap());
    let width = together.len() / 4;
    for (row, (of, tokens)) in
        [(0, [0, 6, 8]), (2, [0, 7, 9]), (2, [0, 5, 10]), (0, [0, 6, 11])].into_iter().enumerate()
    {
        let mut alone = start(&[of]);
        let logits = tokens.map(|token| alone.next_logits(&[token]).unwrap());
        let difference = max_difference(&together[row * width..][..width], &values(logits[2].clone()));
        assert!(difference <= 1e-4, "row {row}: {difference:e}");
    }
}

/// What `transformers` saved before there was safetensors: two shards of `torch.save`, with the embedding under four names.
#[test]
fn torch_files_are_a_model() {
    let found = T5::from_dir(sideburn_testing::path("torch_model"), &Device::flex()).unwrap();
    let expected = model("t5_relu_tied");
    let dense = |model: &T5| -> Vec<(String, Vec<f32>)> {
        let weights = model.weights().into_iter();
        weights.map(|(name, weight)| (name, values(weight.weight().dense()))).collect()
    };
    for ((name, found), (expected_name, expected)) in dense(&found).into_iter().zip(dense(&expected)) {
        // Rounded to bf16, of which the nearest is within 1 / 512.
        let near =
            found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= expected.abs() / 256.0);
        assert!(name == expected_name && near && found.iter().any(|x| *x != 0.0), "{name}");
    }
}
