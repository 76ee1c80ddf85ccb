//! Blocks that are run again in the backward pass give the same gradients, to the last bit.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, TensorData};
use sideburn_adapters::methods::{AdaLoraConfig, LoraConfig, LoraInit, PrefixTuningConfig, PromptTuningConfig};
use sideburn_adapters::{Adapters, Key, parameters};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_falcon::{Falcon, FalconConfig};
use sideburn_t5::{Family, LanguageModel, T5, T5Config};
use sideburn_train::{Differentiate, StepInfo, TrainConfig};

/// Rows of several lengths.
fn batches() -> Vec<PromptBatch> {
    let rows = |rows: &[&[u32]]| TokenRows::from_rows(rows).unwrap();
    let prompts: [&[u32]; 3] = [&[5, 6, 7, 8, 1], &[9, 1], &[10, 11, 12, 1]];
    let targets: [&[u32]; 3] = [&[20, 1], &[21, 22, 23, 24, 25, 1], &[26, 27, 1]];
    let batch =
        |range: std::ops::Range<usize>| PromptBatch::new(rows(&prompts[range.clone()]), rows(&targets[range])).unwrap();
    vec![batch(0..2), batch(1..3)]
}

/// The losses and the gradients of two micro-batches.
fn gradients<M: LanguageModel>(
    model: &M,
    gradient_checkpointing: bool,
) -> (Vec<TensorData>, BTreeMap<String, TensorData>) {
    let config = TrainConfig { gradient_checkpointing, neftune_noise_alpha: Some(5.0), ..TrainConfig::new(9) };
    let info = StepInfo { config: &config, step: 3, loss_tokens: 17, first_micro_batch: 0 };
    let found = M::token_losses.gradient(model, &batches(), &info).unwrap();
    let gradient = |parameter: &sideburn_adapters::Parameter<'_>| {
        Some((parameter.whole_name(), found.gradients.get::<2>(parameter.id())?.into_data()))
    };
    let gradients = parameters(model).iter().filter_map(gradient).collect();
    (found.losses.into_iter().map(|loss| loss.into_data()).collect(), gradients)
}

fn check<M: LanguageModel>(name: &str, model: &M) {
    let ((losses, kept), (again, run_again)) = (gradients(model, false), gradients(model, true));
    assert_eq!(losses, again, "{name}");
    let trained = parameters(model).iter().filter(|parameter| parameter.is_trainable()).count();
    assert_eq!(kept.len(), trained, "{name}");
    assert_eq!(kept.keys().collect::<Vec<_>>(), run_again.keys().collect::<Vec<_>>(), "{name}");
    for (parameter, gradient) in kept {
        assert_eq!(gradient, run_again[&parameter], "{name}, {parameter}");
    }
}

fn lora(targets: &[&str]) -> LoraConfig {
    // Of a second factor of zeros the first has no gradient.
    let init_lora_weights = LoraInit::Random;
    LoraConfig { r: 4, lora_dropout: 0.1, init_lora_weights, ..LoraConfig::new(targets) }
}

#[test]
fn of_encoder_decoders() {
    let config = |model_type, tie_word_embeddings| T5Config {
        vocab_size: 64,
        d_model: 16,
        d_kv: 4,
        d_ff: 32,
        num_layers: 2,
        num_heads: 4,
        dropout_rate: 0.2,
        tie_word_embeddings,
        model_type,
        ..T5Config::default()
    };
    let device = Device::flex().autodiff();
    let base = || T5::random(&config(Family::T5, true), Key::from_seed(7), &device);
    check("everything", &base().unfreeze());
    // It has a table of positions for each block.
    check("everything of umt5", &T5::random(&config(Family::Umt5, false), Key::from_seed(7), &device).unfreeze());
    let with = |attach: &dyn Fn(&mut T5)| {
        let mut model = base();
        attach(&mut model);
        model
    };
    let key = Key::from_seed(8);
    check("lora", &with(&|model| drop(model.attach("default", lora(&["q", "v", "wi", "wo"]), key).unwrap())));
    let late = ["decoder.block.1.layer.1.EncDecAttention.k"];
    check("lora in the last block", &with(&|model| drop(model.attach("default", lora(&late), key).unwrap())));
    check("adalora", &with(&|model| drop(model.attach("default", AdaLoraConfig::new(["q", "v"], 9), key).unwrap())));
    check("prompt", &with(&|model| drop(model.attach("default", PromptTuningConfig::new(3), key).unwrap())));
    check("prefix", &with(&|model| drop(model.attach("default", PrefixTuningConfig::new(3), key).unwrap())));
}

#[test]
fn of_decoders_alone() {
    let device = Device::flex().autodiff();
    for name in ["mqa", "new_gqa"] {
        let directory = sideburn_testing::path(&format!("falcon/{name}"));
        let with_dropout = |mut config: FalconConfig| {
            (config.hidden_dropout, config.attention_dropout) = (0.2, 0.1);
            config
        };
        let config = with_dropout(FalconConfig::from_file(directory.join("config.json")).unwrap());
        let base = || Falcon::random(&config, Key::from_seed(7), &device);
        check(name, &base().unfreeze());
        let mut model = base();
        model.attach("default", lora(&["query_key_value"]), Key::from_seed(8)).unwrap();
        check(name, &model);
        let mut model = base();
        model.attach("default", PrefixTuningConfig::new(3), Key::from_seed(8)).unwrap();
        check(name, &model);
    }
}
