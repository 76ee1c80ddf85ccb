//! The weights of a Falcon under the names that `transformers` gives them.

use burn::tensor::Device;
use sideburn_adapters::{AdaptedModel, AdapterSet, ModelShape, Usual, list_weights};

use crate::model::Falcon;

pub(crate) const EMBEDDING: &str = "transformer.word_embeddings";
pub(crate) const HEAD: &str = "lm_head";

impl AdaptedModel for Falcon {
    list_weights! { |model, list, borrow, each, some| {
        let [first, second] = match model.config.parallel_attn {
            true if model.config.has_two_norms() => ["ln_attn", "ln_mlp"],
            _ => ["input_layernorm", "post_attention_layernorm"],
        };
        list.push((format!("{EMBEDDING}.weight"), borrow!(model.word_embeddings).into()));
        for (index, block) in each!(model.blocks).enumerate() {
            let name = |part: &str| format!("transformer.h.{index}.{part}");
            list.push((name(&format!("{first}.weight")), borrow!(block.norm.weight).into()));
            list.push((name(&format!("{first}.bias")), borrow!(block.norm.bias).into()));
            if let Some(norm) = some!(block.feed_forward_norm) {
                list.push((name(&format!("{second}.weight")), borrow!(norm.weight).into()));
                list.push((name(&format!("{second}.bias")), borrow!(norm.bias).into()));
            }
            let attention = borrow!(block.attention);
            list.push((name("self_attention.query_key_value"), borrow!(attention.qkv[0]).into()));
            list.push((name("self_attention.dense"), borrow!(attention.o).into()));
            let feed_forward = borrow!(block.feed_forward);
            list.push((name("mlp.dense_h_to_4h"), borrow!(feed_forward.inner[0]).into()));
            list.push((name("mlp.dense_4h_to_h"), borrow!(feed_forward.outer).into()));
        }
        list.push(("transformer.ln_f.weight".to_owned(), borrow!(model.final_norm.weight).into()));
        list.push(("transformer.ln_f.bias".to_owned(), borrow!(model.final_norm.bias).into()));
        if let Some(head) = some!(model.lm_head) {
            list.push((HEAD.to_owned(), head.into()));
        }
    }}

    fn shape(&self) -> ModelShape {
        ModelShape {
            embedding: EMBEDDING,
            embedding_copies: &[HEAD],
            head: HEAD,
            tied_head: self.lm_head.is_none(),
            encoder_decoder: false,
            d_model: self.config.hidden_size,
            num_layers: self.config.num_hidden_layers,
            num_heads: self.config.kv_heads(),
            d_kv: self.config.head_width(),
            usual: USUAL,
        }
    }

    fn device(&self) -> Device {
        self.word_embeddings.device()
    }

    fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.adapters
    }
}

/// What `peft` adapts of a Falcon, in its `utils/constants.py`.
const USUAL: Usual = Usual {
    lora: &["query_key_value"],
    ia3: &["query_key_value", "dense_4h_to_h"],
    ia3_feedforward: &["dense_4h_to_h"],
    norms: &["input_layernorm", "post_attention_layernorm", "ln_f"],
    ..Usual::NOTHING
};
