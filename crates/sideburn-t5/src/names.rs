//! The weights of a T5 model under the names that `transformers` gives them.

use burn::tensor::Device;
use sideburn_adapters::{AdaptedModel, AdapterSet, ModelShape, Weight, WeightMut};

use crate::model::T5;

/// Lists the weights of a model, borrowed with `&` or `&mut`, which Rust cannot be generic over.
macro_rules! named_weights {
    ($model:expr, $weight:ident, $iter:ident, $as_option:ident, ($($reference:tt)+)) => {{
        let model = $model;
        let mut list = vec![("shared.weight".to_owned(), $weight::Table($($reference)+ model.shared))];
        for (side, stack) in [("encoder", $($reference)+ model.encoder), ("decoder", $($reference)+ model.decoder)] {
            let mut biases = stack.relative_attention_biases.$iter();
            for (index, block) in stack.blocks.$iter().enumerate() {
                let mut layer = 0;
                macro_rules! attention {
                    ($name:literal, $attention:expr, $bias:expr, $norm:expr) => {
                        let (attention, norm) = ($attention, $norm);
                        let prefix = format!("{side}.block.{index}.layer.{layer}");
                        for (projection, linear) in [
                            ("q", $($reference)+ attention.q),
                            ("k", $($reference)+ attention.k),
                            ("v", $($reference)+ attention.v),
                            ("o", $($reference)+ attention.o),
                        ] {
                            list.push((format!("{prefix}.{}.{projection}", $name), $weight::Linear(linear)));
                        }
                        if let Some(bias) = $bias {
                            let name = format!("{prefix}.{}.relative_attention_bias.weight", $name);
                            list.push((name, $weight::Table(bias)));
                        }
                        list.push((format!("{prefix}.layer_norm.weight"), $weight::Vector($($reference)+ norm.weight)));
                        layer += 1;
                    };
                }
                let (attention, norm) = ($($reference)+ block.self_attention, $($reference)+ block.self_norm);
                attention!("SelfAttention", attention, biases.next(), norm);
                let cross = (block.cross_attention.$as_option(), block.cross_norm.$as_option());
                if let (Some(attention), Some(norm)) = cross {
                    attention!("EncDecAttention", attention, None, norm);
                }
                let prefix = format!("{side}.block.{index}.layer.{layer}");
                let gated = block.feed_forward.wi.len() > 1;
                for (projection, linear) in block.feed_forward.wi.$iter().enumerate() {
                    let name = if gated { format!("wi_{projection}") } else { "wi".to_owned() };
                    list.push((format!("{prefix}.DenseReluDense.{name}"), $weight::Linear(linear)));
                }
                let wo = $($reference)+ block.feed_forward.wo;
                list.push((format!("{prefix}.DenseReluDense.wo"), $weight::Linear(wo)));
                let norm = $($reference)+ block.feed_forward_norm.weight;
                list.push((format!("{prefix}.layer_norm.weight"), $weight::Vector(norm)));
            }
            let norm = $($reference)+ stack.final_norm.weight;
            list.push((format!("{side}.final_layer_norm.weight"), $weight::Vector(norm)));
        }
        if let Some(head) = model.lm_head.$as_option() {
            list.push((HEAD.to_owned(), $weight::Linear(head)));
        }
        list
    }};
}

const HEAD: &str = "lm_head";

impl AdaptedModel for T5 {
    fn weights(&self) -> Vec<(String, Weight<'_>)> {
        named_weights!(self, Weight, iter, as_ref, (&))
    }

    fn weights_mut(&mut self) -> Vec<(String, WeightMut<'_>)> {
        named_weights!(self, WeightMut, iter_mut, as_mut, (&mut))
    }

    fn shape(&self) -> ModelShape {
        ModelShape {
            model_type: self.config.model_type.name(),
            embedding: "shared",
            embedding_copies: &["encoder.embed_tokens", "decoder.embed_tokens", HEAD],
            head: HEAD,
            tied_head: self.lm_head.is_none(),
            encoder_decoder: true,
            d_model: self.config.d_model,
            num_layers: self.config.decoder_layers(),
            num_heads: self.config.num_heads,
            d_kv: self.config.d_kv,
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

#[cfg(test)]
mod tests {
    use sideburn_adapters::Key;

    use super::*;
    use crate::config::{Family, T5Config};
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
        assert!(relu.sites().iter().any(|(name, _)| name == "encoder.block.0.layer.1.DenseReluDense.wi"));
        assert!(relu.shape().tied_head && !relu.sites().iter().any(|(name, _)| name == HEAD), "a tied head is no site");
    }
}
