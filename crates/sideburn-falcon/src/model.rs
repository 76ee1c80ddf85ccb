//! The decoder with its output head.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sideburn_adapters::{AdaptedLinear, AdaptedTable, AdapterSet, Key, TokenPass, random_weight};
use sideburn_generate::GenerationConfig;
use sideburn_nn::{CausalTokens, DecoderOnly, Frame, Head, LayerNorm};

use crate::FalconError;
use crate::block::Block;
use crate::config::FalconConfig;

/// `FalconForCausalLM`.
///
/// Every linear layer is an [`AdaptedLinear`], so that adapters attach anywhere. A tied head is the embedding itself, one
/// parameter.
#[derive(Module, Debug)]
pub struct Falcon {
    pub(crate) word_embeddings: AdaptedTable,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: LayerNorm,
    pub(crate) lm_head: Option<AdaptedLinear>,
    pub(crate) adapters: AdapterSet,
    #[module(skip)]
    pub(crate) config: FalconConfig,
    #[module(skip)]
    pub(crate) generation: GenerationConfig,
}

impl Falcon {
    /// A new model with weights drawn as `transformers` draws them, when they are first needed.
    pub fn random(config: &FalconConfig, key: Key, device: &Device) -> Self {
        let (shape, deviation) = ([config.vocab_size, config.hidden_size], config.initializer_range);
        let block = |index: usize| Block::new(config, key.fold_in_name("h").fold_in(index as u64), device);
        let own_head = || AdaptedLinear::random(shape[0], shape[1], deviation, key.fold_in_name("lm_head"), device);
        Self {
            word_embeddings: AdaptedTable::new(random_weight(
                shape,
                deviation,
                key.fold_in_name("word_embeddings"),
                device,
            )),
            blocks: (0..config.num_hidden_layers).map(block).collect(),
            final_norm: LayerNorm::new(config.hidden_size, config.layer_norm_epsilon, device),
            lm_head: (!config.tie_word_embeddings).then(own_head),
            adapters: AdapterSet::default(),
            config: config.clone(),
            generation: config.generation(),
        }
    }

    /// The architecture.
    pub fn config(&self) -> &FalconConfig {
        &self.config
    }
}

impl DecoderOnly for Falcon {
    type Error = FalconError;

    fn frame(&self) -> Frame<'_> {
        Frame {
            embedding: &self.word_embeddings,
            head: Head::new(self.lm_head.as_ref(), &self.word_embeddings),
            heads: self.config.num_attention_heads,
            positions: self.config.positions(),
            generation: &self.generation,
        }
    }

    fn run(
        &self,
        x: Tensor<2>,
        tokens: &mut CausalTokens<'_>,
        pass: &mut TokenPass<'_>,
    ) -> Result<Tensor<2>, FalconError> {
        let x = tokens.run_blocks(&self.blocks, x, pass, Block::forward);
        Ok(self.final_norm.forward(x, pass))
    }
}
