//! Every method of fine-tuning on T5 against `peft`: logits, loss, gradients, merging, and files both ways.

use burn::tensor::Device;
use sideburn_adapters::methods::{MethodRegistry, PTuningConfig, PrefixTuningConfig, VeraConfig};
use sideburn_adapters::{Adapters, Key};
use sideburn_t5::T5;
use sideburn_testing::{AdapterGoldens, Entry, Golden, max_difference, values};

const GOLDENS: AdapterGoldens<T5> = AdapterGoldens {
    folder: "adapters",
    open: |directory, device| T5::from_dir(directory, device).unwrap(),
    inputs: |_| Golden::open("lora/t5_gated_untied/io.safetensors"),
    logits: crate::logits::logits_in,
    batch: Golden::batch,
    with_network,
};

/// A model with an adapter that can be trained, although its file holds only what its network makes.
fn with_network(golden: &Entry, mut model: T5, io: &Golden) -> Option<T5> {
    let key = Key::from_seed(0);
    match golden.name() {
        // Its LSTM cannot be trained here.
        "p_tuning_lstm" => return None,
        "p_tuning" => {
            let config = PTuningConfig { encoder_hidden_size: Some(16), ..PTuningConfig::new(5) };
            model.attach("default", config, key).unwrap();
        }
        _ => {
            let (prefix_projection, encoder_hidden_size) = (true, Some(16));
            let config = PrefixTuningConfig { prefix_projection, encoder_hidden_size, ..PrefixTuningConfig::new(5) };
            model.attach("default", config, key).unwrap();
        }
    }
    model.set_adapter_tensors("default", |tensor| Some(io.floats(&format!("param.{tensor}")))).unwrap();
    Some(model)
}

#[test]
fn logits_and_loss() {
    GOLDENS.logits_and_loss();
}

#[test]
fn gradients() {
    GOLDENS.gradients();
}

#[test]
fn gradients_are_what_the_loss_does() {
    GOLDENS.gradients_are_what_the_loss_does();
}

#[test]
fn merged_and_unmerged() {
    GOLDENS.merged_and_unmerged();
}

#[test]
fn what_is_saved_is_what_was_loaded() {
    GOLDENS.what_is_saved_is_what_was_loaded();
}

#[test]
fn a_saved_network_is_what_it_makes() {
    for name in ["p_tuning", "prefix_tuning_proj"] {
        let golden = sideburn_testing::golden(&format!("adapters/{name}"));
        let io = AdapterGoldens::<T5>::numbers(&golden);
        let model = with_network(&golden, GOLDENS.base(&golden, &Device::flex()), &io).unwrap();
        let logits = GOLDENS.logits(&model, &golden);
        let difference = max_difference(&logits, &io.floats("logits"));
        assert!(difference <= 1e-4, "{name}: logits differ by {difference:e}");
        let directory = tempfile::tempdir().unwrap();
        model.save_adapter("default", directory.path()).unwrap();
        let mut loaded = GOLDENS.base(&golden, &Device::flex());
        loaded.load_adapter("default", directory.path()).unwrap();
        assert_eq!(GOLDENS.logits(&loaded, &golden), logits, "{name}");
    }
}

/// The matrices of VeRA that `peft` drew, once in a file and once not.
#[test]
fn what_is_drawn_again_is_drawn_to_the_bit() {
    for (name, file, prefix) in [("vera", "adapter_model", ""), ("vera_unsaved_projection", "io", "drawn.")] {
        let golden = Golden::open(&format!("adapters/{name}/{file}.safetensors"));
        let method = MethodRegistry::peft()
            .read_file(&sideburn_testing::path(&format!("adapters/{name}/adapter_config.json")))
            .unwrap();
        let config = method.downcast_ref::<VeraConfig>().unwrap().clone();
        let mut model = T5::from_dir(sideburn_testing::path("t5_gated_untied"), &Device::flex()).unwrap();
        model.attach("new", config, Key::from_seed(5)).unwrap();
        let tensors = model.adapter_tensors("new").unwrap();
        for matrix in ["base_model.vera_A", "base_model.vera_B"] {
            assert_eq!(values(tensors[matrix].val()), golden.floats(&format!("{prefix}{matrix}")), "{name}, {matrix}");
        }
    }
}
