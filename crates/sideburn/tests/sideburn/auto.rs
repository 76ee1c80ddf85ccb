//! A model of whichever family a directory holds.

use sideburn::AutoError;
use sideburn::prelude::*;
use sideburn_testing::{Golden, values};

const FAMILY: &str = "t5_gated_untied";

/// Holds an [`AutoModel`] against the model that it is: what it says of `written` behind `prompts`, and what it writes.
fn check<M: LanguageModel>(auto: &AutoModel, own: &M, prompts: &TokenRows, written: &TokenRows) {
    assert_eq!(
        values(auto.logits(prompts, written, &mut Pass::evaluate()).unwrap()),
        values(own.logits(prompts, written, &mut Pass::evaluate()).unwrap())
    );
    let config = auto.generation_config(8);
    let of_auto = sideburn_testing::written(auto.start_decoding(prompts, Pass::evaluate()).unwrap(), &config);
    let of_own = sideburn_testing::written(own.start_decoding(prompts, Pass::evaluate()).unwrap(), &config);
    assert_eq!(of_auto, of_own);
    assert_eq!((auto.vocab_size(), auto.shape()), (own.vocab_size(), own.shape()));
}

#[test]
fn it_is_the_model_of_its_family() {
    let (directory, device) = (sideburn_testing::path(FAMILY), Device::flex());
    let (auto, own) = (AutoModel::from_dir(&directory, &device).unwrap(), T5::from_dir(&directory, &device).unwrap());
    let io = Golden::open(&format!("{FAMILY}/io.safetensors"));
    check(&auto, &own, io.batch().prompts(), &io.full_rows("decoder_input_ids"));

    let directory = sideburn_testing::path("falcon/new_gqa");
    let own = Falcon::from_dir(&directory, &device).unwrap();
    let batch = Golden::open("falcon/new_gqa/io.safetensors").prompts_and_answers("");
    check(&AutoModel::from_dir(&directory, &device).unwrap(), &own, batch.prompts(), batch.targets());
}

#[test]
fn an_adapter_is_trained_saved_and_loaded() {
    let (directory, device) = (sideburn_testing::path(FAMILY), Device::flex().autodiff());
    let mut model = AutoModel::from_dir(&directory, &device).unwrap();
    model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(1)).unwrap();
    let batch = Golden::open(&format!("{FAMILY}/io.safetensors")).batch();
    let trainer = Trainer::new(TrainConfig { learning_rate: 1e-3, ..TrainConfig::new(2) }).unwrap();
    let batches = |_| Ok::<_, std::convert::Infallible>(batch.clone());
    trainer.train(&mut model, batches, AutoModel::token_losses).unwrap();
    let saved = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("auto_adapter");
    model.save_adapter("default", &saved).unwrap();
    let mut loaded = AutoModel::from_dir(&directory, &device).unwrap();
    loaded.load_adapter("default", &saved).unwrap();
    let losses = |model: &AutoModel| values(model.token_losses(&batch, &mut Pass::evaluate()).unwrap());
    assert_eq!(losses(&loaded), losses(&model));
}

#[test]
fn families_that_are_not_here_are_named() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("auto_families");
    std::fs::create_dir_all(&directory).unwrap();
    let error = |config: &str| {
        std::fs::write(directory.join("config.json"), config).unwrap();
        AutoModel::from_dir(&directory, &Device::flex()).unwrap_err()
    };
    let unknown = error(r#"{"model_type": "gpt\u001b2"}"#);
    assert!(matches!(unknown, AutoError::UnknownFamily { .. }));
    let text = unknown.to_string();
    assert!(
        text.contains(r"config.json: `model_type` is gpt\u{1b}2, expected one of t5, mt5, umt5, falcon;"),
        "{text}"
    );
    assert!(error("{}").to_string().contains("`model_type` is (absent), expected one of t5"));
    let long = error(r#"{"model_type": "longt5", "architectures": ["LongT5Model"]}"#).to_string();
    assert!(long.contains("which is LongT5, whose encoder attends in windows"), "{long}");
    let first = error(r#"{"model_type": "RefinedWebModel"}"#).to_string();
    assert!(first.contains("the same model is on the hub with `model_type` falcon"), "{first}");
    assert!(error("[]").to_string().contains("`model_type` is (absent)"));
}
