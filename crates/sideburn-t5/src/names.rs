//! The weights of a T5 model under the names that `transformers` gives them.

use burn::tensor::Device;
use sideburn_adapters::{AdaptedModel, AdapterSet, ModelShape, Usual, list_weights};

use crate::config::Family;
use crate::layers::{DECODER, ENCODER};
use crate::model::T5;

const HEAD: &str = "lm_head";

impl AdaptedModel for T5 {
    list_weights! { |model, list, borrow, each, some| {
        list.push(("shared.weight".to_owned(), borrow!(model.shared).into()));
        for (side, stack) in [("encoder", borrow!(model.encoder)), ("decoder", borrow!(model.decoder))] {
            let mut biases = each!(stack.relative_attention_biases);
            for (index, block) in each!(stack.blocks).enumerate() {
                let name = |layer: usize, part: &str| format!("{side}.block.{index}.layer.{layer}.{part}");
                let attention = borrow!(block.self_attention);
                for (part, linear) in ["q", "k", "v"].into_iter().zip(each!(attention.qkv)) {
                    list.push((name(0, &format!("SelfAttention.{part}")), linear.into()));
                }
                list.push((name(0, "SelfAttention.o"), borrow!(attention.o).into()));
                if let Some(bias) = biases.next() {
                    list.push((name(0, "SelfAttention.relative_attention_bias.weight"), bias.into()));
                }
                list.push((name(0, "layer_norm.weight"), borrow!(block.self_norm.weight).into()));
                let mut last = 1;
                if let (Some(attention), Some(norm)) = (some!(block.cross_attention), some!(block.cross_norm)) {
                    for (part, linear) in ["q", "k", "v"].into_iter().zip(each!(attention.qkv)) {
                        list.push((name(1, &format!("EncDecAttention.{part}")), linear.into()));
                    }
                    list.push((name(1, "EncDecAttention.o"), borrow!(attention.o).into()));
                    list.push((name(1, "layer_norm.weight"), borrow!(norm.weight).into()));
                    last = 2;
                }
                let gated = block.feed_forward.inner.len() > 1;
                for (projection, linear) in each!(block.feed_forward.inner).enumerate() {
                    let wi = if gated { format!("wi_{projection}") } else { "wi".to_owned() };
                    list.push((name(last, &format!("DenseReluDense.{wi}")), linear.into()));
                }
                list.push((name(last, "DenseReluDense.wo"), borrow!(block.feed_forward.outer).into()));
                list.push((name(last, "layer_norm.weight"), borrow!(block.feed_forward_norm.weight).into()));
            }
            list.push((format!("{side}.final_layer_norm.weight"), borrow!(stack.final_norm.weight).into()));
        }
        if let Some(head) = some!(model.lm_head) {
            list.push((HEAD.to_owned(), head.into()));
        }
    }}

    fn keep_in_fp32_modules(&self) -> &'static [&'static str] {
        &["wo"]
    }

    fn shape(&self) -> ModelShape {
        ModelShape {
            embedding: "shared",
            embedding_copies: &[ENCODER, DECODER, HEAD],
            head: HEAD,
            tied_head: self.lm_head.is_none(),
            encoder_decoder: true,
            d_model: self.config.d_model,
            num_layers: self.config.decoder_layers(),
            num_heads: self.config.num_heads,
            d_kv: self.config.d_kv,
            usual: usual(self.config.model_type),
        }
    }

    fn device(&self) -> Device {
        self.shared.device()
    }

    fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.adapters
    }
}

/// What `peft` adapts of the family, in its `utils/constants.py`.
fn usual(family: Family) -> Usual {
    let usual = Usual { lora: &["q", "v"], norms: &["layer_norm", "final_layer_norm"], ..Usual::NOTHING };
    match family {
        Family::T5 => Usual {
            adalora: &["q", "k", "v", "o", "wi", "wo"],
            ia3: &["k", "v", "wo"],
            ia3_feedforward: &["wo"],
            ..usual
        },
        Family::Mt5 => {
            Usual { adalora: &["q", "k", "v", "o", "wi_0", "wi_1", "wo"], ia3: &["k", "v", "wi_1"], ..usual }
        }
        Family::Umt5 => Usual::NOTHING,
    }
}

#[cfg(test)]
mod tests {
    use sideburn_adapters::Key;

    use super::*;
    use crate::config::T5Config;
    use crate::feed_forward::FeedForward;

    #[test]
    fn names_are_those_of_transformers() {
        let config = T5Config {
            num_layers: 1,
            feed_forward_proj: FeedForward::GATED_GELU,
            tie_word_embeddings: false,
            ..T5Config::default()
        };
        let mut model = T5::random(&config, Key::from_seed(0), &Device::flex());
        let names: Vec<String> = model.weights().into_iter().map(|(name, _)| name).collect();
        for expected in [
            "shared.weight",
            "encoder.block.0.layer.0.SelfAttention.q",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_1",
            "decoder.block.0.layer.1.EncDecAttention.o",
            "decoder.block.0.layer.1.layer_norm.weight",
            "decoder.block.0.layer.2.DenseReluDense.wo",
            "decoder.final_layer_norm.weight",
            "lm_head",
        ] {
            assert!(names.iter().any(|name| name == expected), "{expected} is not among {names:#?}");
        }
        let mutable: Vec<String> = model.weights_mut().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, mutable, "both lists have one order");
        let tables = |config: T5Config| {
            let model = T5::random(&config, Key::from_seed(0), &Device::flex());
            model.weights().into_iter().filter(|(name, _)| name.ends_with("relative_attention_bias.weight")).count()
        };
        assert_eq!(tables(T5Config { num_layers: 3, ..T5Config::default() }), 2, "in the first blocks");
        assert_eq!(tables(T5Config { num_layers: 3, ..T5Config::of(Family::Umt5) }), 6, "in each block");
        let relu = T5::random(&T5Config { num_layers: 1, ..T5Config::default() }, Key::from_seed(0), &Device::flex());
        assert!(relu.linears().iter().any(|(name, _)| name == "encoder.block.0.layer.1.DenseReluDense.wi"));
        assert!(
            relu.shape().tied_head && !relu.linears().iter().any(|(name, _)| name == HEAD),
            "a tied head is no site"
        );
    }
}
