//! Every strategy, against `transformers`.

use std::collections::BTreeMap;

use burn::tensor::Device;
use serde::Deserialize;
use serde_json::{Map, Value};
use sideburn_adapters::Pass;
use sideburn_batch::TokenRows;
use sideburn_generate::{Answer, Generation, GenerationConfig, generate};
use sideburn_nn::read_generation_config;
use sideburn_t5::{LanguageModel, T5, T5Config};
use sideburn_testing::{Golden, path, written};

use crate::formula;

/// One configuration, and what was written behind each prompt.
#[derive(Deserialize)]
struct Case {
    args: Map<String, Value>,
    prompts: Vec<Written>,
}

#[derive(Deserialize)]
struct Written {
    sequences: Vec<Vec<u32>>,
    sequences_scores: Option<Vec<f32>>,
    /// The log-probabilities of the tokens, where beams were searched.
    transition_scores: Option<Vec<Vec<f32>>>,
}

const FAMILIES: [&str; 2] = ["t5_gated_untied", "t5_relu_tied"];

fn cases(name: &str) -> BTreeMap<String, Case> {
    serde_json::from_str(&std::fs::read_to_string(path(&format!("generation/{name}.json"))).unwrap()).unwrap()
}

impl Case {
    fn config(&self) -> GenerationConfig {
        let own = GenerationConfig {
            eos_token_id: vec![1],
            pad_token_id: Some(0),
            output_scores: true,
            ..GenerationConfig::new(24)
        };
        read_generation_config(&self.args, &own).unwrap()
    }
}

/// Holds answers against a case. `generate` of `transformers` returns the start token first, and pads behind the end.
fn check(name: &str, answers: &[Answer], case: &Case) {
    let config = case.config();
    let prompts: Vec<&[Answer]> = answers.chunk_by(|a, b| a.prompt == b.prompt).collect();
    assert_eq!(prompts.len(), case.prompts.len(), "{name}");
    for (prompt, (found, expected)) in prompts.iter().zip(&case.prompts).enumerate() {
        assert_eq!(found.len(), expected.sequences.len(), "{name}");
        for (rank, (answer, expected)) in found.iter().zip(&expected.sequences).enumerate() {
            let (own, padding) = expected[1..].split_at(answer.tokens.len().min(expected.len() - 1));
            assert_eq!(answer.tokens, own, "{name}, prompt {prompt}, answer {rank}");
            let ended = answer.tokens.last().is_some_and(|last| config.eos_token_id.contains(last));
            assert!(padding.is_empty() || ended, "{name}, prompt {prompt}, answer {rank}: {padding:?}");
            // What stands behind the end, 0, is no token id in Python where a search pads: there it is the first that ends rows.
            assert!(padding.iter().all(|token| [0, config.eos_token_id[0]].contains(token)), "{name}: {padding:?}");
        }
        for (answer, score) in found.iter().zip(expected.sequences_scores.iter().flatten()) {
            let own = answer.score.unwrap();
            // A negative length penalty multiplies: there a score is the sum of 24 tokens times 5.
            let tolerance = if config.length_penalty < 0.0 { 5e-4 } else { 1e-4 };
            assert!((own - score).abs() <= tolerance, "{name}, prompt {prompt}: scores {own}, expected {score}");
        }
        for (answer, expected) in found.iter().zip(expected.transition_scores.iter().flatten()) {
            assert_eq!(answer.log_probs.len(), answer.tokens.len(), "{name}");
            for (own, expected) in answer.log_probs.iter().zip(expected) {
                assert!((own - expected).abs() <= 1e-3, "{name}, prompt {prompt}: {own}, expected {expected}");
            }
        }
        let limit = config.limit(1);
        assert!(found.iter().all(|answer| answer.tokens.len() <= limit), "{name}");
    }
}

fn decoding(model: &T5, prompts: &TokenRows) -> sideburn_t5::Decoding {
    model.start_decoding(prompts, Pass::evaluate()).unwrap()
}

/// In one batch, though each golden was made by itself: rows that end leave, and the others do not notice.
#[test]
fn tiny_models_write_what_transformers_writes() {
    let mut count = 0;
    for family in FAMILIES {
        let model = T5::from_dir(path(family), &Device::flex()).unwrap();
        let prompts = Golden::open(&format!("{family}/io.safetensors")).source();
        for (name, case) in cases(family).into_iter().chain(cases(&format!("{family}_moved"))) {
            let answers = generate(decoding(&model, &prompts), &case.config()).unwrap();
            check(&format!("{family}, {name}"), &answers, &case);
            count += 1;
        }
    }
    assert_eq!(count, 2 * (17 + 20 + 9));
}

#[test]
fn so_does_a_model_of_flan_t5_smalls_size() {
    let config = T5Config::from_file(path("flan_t5_small/config.json")).unwrap();
    let model = formula::model(&config, &Device::flex());
    let prompts = Golden::open("flan_t5_small/io.safetensors").source();
    for (name, case) in cases("flan_t5_small").into_iter().chain(cases("flan_t5_small_moved")) {
        check(&name, &generate(decoding(&model, &prompts), &case.config()).unwrap(), &case);
    }
}

/// With another model as the draft, which is mostly wrong, and with the model itself, which is always right.
#[test]
fn a_draft_changes_nothing() {
    let [model, other] = FAMILIES.map(|family| T5::from_dir(path(family), &Device::flex()).unwrap());
    let prompts = Golden::open("t5_gated_untied/io.safetensors").source();
    let plain = GenerationConfig { eos_token_id: vec![1, 157], no_repeat_ngram_size: 2, ..GenerationConfig::new(24) };
    let drawn = GenerationConfig { do_sample: true, temperature: 1.5, seed: 3, ..plain.clone() };
    let one = GenerationConfig { num_assistant_tokens: 1, min_new_tokens: Some(9), ..plain.clone() };
    for config in [plain, drawn, one] {
        for prompt in prompts.iter() {
            let prompt = TokenRows::from_rows([prompt]).unwrap();
            let alone = written(decoding(&model, &prompt), &config);
            for draft in [&other, &model] {
                let assisted = Generation::assisted(decoding(&model, &prompt), decoding(draft, &prompt), &config);
                let answers = assisted.unwrap().finish().unwrap();
                assert_eq!(answers[0].tokens, alone[0]);
            }
        }
    }
}

/// What a row draws does not depend on the others.
#[test]
fn draws_do_not_depend_on_the_batch() {
    let model = T5::from_dir(path(FAMILIES[0]), &Device::flex()).unwrap();
    let prompts = Golden::open("t5_gated_untied/io.safetensors").source();
    let sampling = GenerationConfig {
        do_sample: true,
        temperature: 1.3,
        top_k: 20,
        seed: 5,
        num_return_sequences: 2,
        eos_token_id: vec![1, 157],
        ..GenerationConfig::new(16)
    };
    let beams = GenerationConfig { num_beams: 3, ..sampling.clone() };
    for config in [sampling, beams] {
        let together = generate(decoding(&model, &prompts), &config).unwrap();
        assert_ne!(together[0].tokens, together[1].tokens);
        let mut alone = Vec::new();
        for (row, prompt) in prompts.iter().enumerate() {
            let prompt = TokenRows::from_rows([prompt]).unwrap();
            let generation = Generation::new(decoding(&model, &prompt), &config).unwrap().with_numbers(&[row as u64]);
            alone.extend(generation.finish().unwrap().into_iter().map(|answer| answer.tokens));
        }
        assert_eq!(together.into_iter().map(|answer| answer.tokens).collect::<Vec<_>>(), alone);
    }
}
