//! An adapter that is trained and saved here computes the same when it is loaded again, here and by `peft`.
//!
//! To let `peft` check it, name a directory and run the script on what the test leaves there:
//!
//! ```text
//! SIDEBURN_EXPORT=/tmp/export cargo test --release -p sideburn-train export_to_peft
//! python testdata/check_adapter_with_peft.py testdata/t5_gated_untied /tmp/export/adapter /tmp/export/io.safetensors
//! ```

use std::convert::Infallible;
use std::path::PathBuf;

use burn::tensor::Device;
use sideburn_adapters::methods::LoraConfig;
use sideburn_adapters::{Adapters, Key, Pass};
use sideburn_t5::{LanguageModel, T5};
use sideburn_train::{TrainConfig, Trainer};
use sideburn_weights::{Tensor, write_safetensors};

use sideburn_testing::{Golden, max_difference, values};

const BASE: &str = "t5_gated_untied";

/// The logits of the golden's inputs, `[4, 7, 256]`.
fn logits(model: &T5, io: &Golden) -> Vec<f32> {
    let source = io.source();
    let decoder_input = io.rows("decoder_input_ids", &[7; 4]);
    values(model.logits(&source, &decoder_input, &mut Pass::evaluate()).unwrap())
}

#[test]
fn a_trained_adapter_computes_the_same_after_saving() {
    let io = Golden::open(&format!("{BASE}/io.safetensors"));
    let device = Device::flex().autodiff();
    let base = T5::from_dir(sideburn_testing::path(BASE), &device).unwrap();
    let mut model = base.clone();
    let lora = LoraConfig { r: 4, lora_alpha: 12.0, lora_dropout: 0.1, ..LoraConfig::new(["q", "v", "wo"]) };
    model.attach("default", lora, Key::from_seed(3)).unwrap();
    let batch = io.batch();
    let config = TrainConfig { learning_rate: 1e-2, ..TrainConfig::new(20) };
    let batches = |_| Ok::<_, Infallible>(batch.clone());
    Trainer::new(config).unwrap().train(&mut model, batches, T5::token_losses).unwrap();
    let trained = logits(&model, &io);
    assert!(max_difference(&trained, &logits(&base, &io)) > 1.0, "training must have changed the model");

    let temporary = tempfile::tempdir().unwrap();
    let directory = std::env::var_os("SIDEBURN_EXPORT").map_or(temporary.path().to_owned(), PathBuf::from);
    model.save_adapter("default", directory.join("adapter")).unwrap();
    let mut reloaded = T5::from_dir(sideburn_testing::path(BASE), &Device::flex()).unwrap();
    reloaded.load_adapter("default", directory.join("adapter")).unwrap();
    assert_eq!(logits(&reloaded, &io), trained);

    let inputs = ["input_ids", "attention_mask", "decoder_input_ids"].map(|name| (name, io.tensor(name)));
    let logits = ("logits", Tensor::from_f32(vec![4, 7, 256], &trained).unwrap());
    write_safetensors(directory.join("io.safetensors"), inputs.into_iter().chain([logits]), None).unwrap();
}

/// `testdata/exported` was written by the test above, and `peft` accepted it. What is written today must be the same; the
/// hash of the configuration in the metadata, which `peft` does not read, came later.
#[test]
fn the_files_that_peft_accepted_are_what_is_written() {
    let io = Golden::open("exported/io.safetensors");
    let mut model = T5::from_dir(sideburn_testing::path(BASE), &Device::flex()).unwrap();
    model.load_adapter("default", sideburn_testing::path("exported")).unwrap();
    let difference = max_difference(&logits(&model, &io), &io.floats("logits"));
    assert!(difference <= 1e-4, "logits differ by {difference:e}");
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter("default", directory.path()).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let read = |directory: PathBuf| std::fs::read(directory.join(file)).unwrap();
        assert_eq!(read(directory.path().to_owned()), read(sideburn_testing::path("exported")), "{file}");
    }
}
