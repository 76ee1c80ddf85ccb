//! Every method of fine-tuning on Falcon against `peft`: logits, loss, gradients, merging, and files both ways.

use burn::tensor::Device;
use sideburn_adapters::methods::LoraConfig;
use sideburn_adapters::{Adapters, Key, ParameterReport};
use sideburn_falcon::{Falcon, FalconConfig};
use sideburn_testing::AdapterGoldens;

const GOLDENS: AdapterGoldens<Falcon> = AdapterGoldens {
    folder: "falcon/adapters",
    open: |directory, device| Falcon::from_dir(directory, device).unwrap(),
    inputs: |own| own,
    logits: crate::logits::logits_in,
    batch: |io| io.prompts_and_answers(""),
    with_network: |golden, _, _| panic!("{} has no network", golden.name()),
};

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

/// The figures of the notebook that fine-tunes Falcon-7B, from the configuration alone.
#[test]
fn parameters_of_falcon_7b() {
    let mut model = Falcon::random(&FalconConfig::default(), Key::from_seed(0), &Device::flex());
    let targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
    let lora = LoraConfig { r: 16, lora_alpha: 32.0, ..LoraConfig::new(targets) };
    assert_eq!(model.attach("default", lora, Key::from_seed(0)).unwrap().len(), 4 * 32);
    let report = ParameterReport::of(&model);
    assert_eq!((report.trainable, report.all), (32_636_928, 6_921_720_704 + 32_636_928));
}
