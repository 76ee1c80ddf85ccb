//! Which layer first gives something that is not finite.

use burn::tensor::{Device, Tensor};
use sideburn_adapters::{AdaptedModel, Key, Pass, first_not_finite};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_t5::{LanguageModel, T5, T5Config};

#[test]
fn the_first_layer_is_named() {
    let config =
        T5Config { vocab_size: 50, d_model: 16, d_kv: 4, d_ff: 32, num_layers: 2, num_heads: 8, ..T5Config::default() };
    let mut model = T5::random(&config, Key::from_seed(0), &Device::flex());
    let rows = || TokenRows::from_rows([[7, 8, 1]]).unwrap();
    let batch = PromptBatch::new(rows(), rows()).unwrap();
    let losses = |model: &T5, pass: &mut Pass| drop(model.token_losses(&batch, pass));
    assert_eq!(first_not_finite(&model, Pass::evaluate(), losses), None);

    let broken = "encoder.block.1.layer.0.SelfAttention.k";
    let (_, weight) = model.weights_mut().into_iter().find(|(name, _)| name == broken).unwrap();
    weight.into_weight_mut().replace(Tensor::full([4 * 8, 16], f32::NAN, &Device::flex()));
    let found = first_not_finite(&model, Pass::evaluate(), losses).unwrap();
    assert_eq!(found.to_string(), "the output of encoder.block.1.layer.0.SelfAttention.k.weight");
}
