//! What a family from outside has for its one file: it loads, trains and writes, with adapters.

use std::convert::Infallible;

use burn::tensor::Device;
use sideburn_adapters::methods::{LoraConfig, PrefixTuningConfig};
use sideburn_adapters::{Adapters, Key, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::Decoder;
use sideburn_nn::{LanguageModel, ModelDir};
use sideburn_testing::{max_difference, values, written};
use sideburn_train::{TrainConfig, Trainer};

use crate::tiny::{Tiny, TinyConfig, moved};

fn config() -> TinyConfig {
    TinyConfig { vocab_size: 32, width: 8, heads: 4, layers: 2, positions: 24 }
}

fn model(device: &Device) -> Tiny {
    moved(Tiny::random(&config(), Key::from_seed(1), device))
}

fn batch() -> PromptBatch {
    let source = TokenRows::from_rows([[5, 6, 7, 8].as_slice(), &[9, 10]]).unwrap();
    let target = TokenRows::from_rows([[11, 12].as_slice(), &[13, 14, 15, 1]]).unwrap();
    PromptBatch::new(source, target).unwrap()
}

fn losses(model: &Tiny) -> Vec<f32> {
    values(model.token_losses(&batch(), &mut Pass::evaluate()).unwrap())
}

#[test]
fn it_loads_what_it_saved_and_says_what_does_not_fit() {
    let directory = tempfile::tempdir().unwrap();
    let files = ModelDir::new(directory.path());
    let (model, device) = (model(&Device::flex()), Device::flex());
    model.save_dir(&files).unwrap();
    assert_eq!(losses(&Tiny::from_dir(&files, &device).unwrap()), losses(&model));

    let error = |text: &str| {
        std::fs::write(files.config_path(), text).unwrap();
        Tiny::from_dir(&files, &device).unwrap_err().to_string()
    };
    let heads = error(r#"{"model_type": "tiny", "n_head": "4"}"#);
    assert!(heads.ends_with("config.json: `n_head` is \"4\", expected a whole number"), "{heads}");
    let missing = error(r#"{"model_type": "tiny", "n_layer": 3}"#);
    assert!(missing.contains("missing (10): h.2.ln_1.weight; h.2.ln_1.bias; h.2.attn.q.weight"), "{missing}");
}

#[test]
fn it_trains_an_adapter_that_is_saved_and_loaded() {
    let device = Device::flex().autodiff();
    let mut trained = model(&device);
    let before = losses(&trained);
    trained.attach("new", LoraConfig::new(["q", "v", "fc_in"]), Key::from_seed(2)).unwrap();
    let trainer = Trainer::new(TrainConfig { learning_rate: 1e-2, ..TrainConfig::new(20) }).unwrap();
    let report = trainer.train(&mut trained, |_| Ok::<_, Infallible>(batch()), Tiny::token_losses).unwrap();
    assert_eq!(report.steps.len(), 20);
    let after = losses(&trained);
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    assert!(mean(&after) < mean(&before) - 0.1, "from {} to {}", mean(&before), mean(&after));

    let directory = tempfile::tempdir().unwrap();
    trained.save_adapter("new", directory.path()).unwrap();
    let mut loaded = model(&device);
    loaded.load_adapter("again", directory.path()).unwrap();
    assert_eq!(losses(&loaded), after);
}

/// The logits of what follows `row`, when it is read from its beginning.
fn without_a_cache(model: &Tiny, row: &[u32]) -> Vec<f32> {
    let mut decoding = model.start_decoding(&TokenRows::from_rows([row]).unwrap(), Pass::evaluate()).unwrap();
    values(decoding.next_logits(&[*row.last().unwrap()]).unwrap())
}

#[test]
fn it_writes_behind_prompts_of_any_length() {
    // No token ends a row, so that all are as long as allowed.
    let config = model(&Device::flex()).generation_config(6);
    let prompts: [&[u32]; 3] = [&[5, 6, 7, 8], &[9], &[10, 11]];
    let with_prefix = {
        let mut model = model(&Device::flex());
        model.attach("new", PrefixTuningConfig::new(3), Key::from_seed(2)).unwrap();
        model
    };
    for model in [model(&Device::flex()), with_prefix] {
        let source = TokenRows::from_rows(prompts).unwrap();
        let mut decoding = model.start_decoding(&source, Pass::evaluate()).unwrap();
        let mut rows: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt[..prompt.len() - 1].to_vec()).collect();
        for tokens in [[8, 9, 11], [20, 21, 22], [23, 24, 25]] {
            rows.iter_mut().zip(tokens).for_each(|(row, token)| row.push(token));
            let found = values(decoding.next_logits(&tokens).unwrap());
            for (row, found) in rows.iter().zip(found.chunks(32)) {
                assert!(max_difference(found, &without_a_cache(&model, row)) < 1e-5, "{row:?}");
            }
            assert!(max_difference(&found[..32], &found[32..64]) > 1e-2);
        }
        let written = written(model.start_decoding(&source, Pass::evaluate()).unwrap(), &config);
        for (prompt, written) in prompts.iter().zip(written) {
            let whole = [*prompt, &written].concat();
            for at in prompt.len()..whole.len() {
                let logits = without_a_cache(&model, &whole[..at]);
                let best = (0..32).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
                assert_eq!(whole[at] as usize, best);
            }
        }
    }
}

#[test]
fn rows_are_dropped_and_repeated() {
    let model = model(&Device::flex());
    let source = TokenRows::from_rows([[5, 6, 7].as_slice(), &[9]]).unwrap();
    let mut decoding = model.start_decoding(&source, Pass::evaluate()).unwrap();
    decoding.next_logits(&[7, 9]).unwrap();
    let mut one = decoding.clone();
    decoding.select_rows(&[1, 0, 1]);
    one.select_rows(&[1]);
    let all = values(decoding.next_logits(&[12, 13, 12]).unwrap());
    let alone = values(one.next_logits(&[12]).unwrap());
    assert!(max_difference(&all[..32], &alone) < 1e-5 && max_difference(&all[64..], &alone) < 1e-5);
    assert!(max_difference(&all[32..64], &alone) > 1e-2);
}
