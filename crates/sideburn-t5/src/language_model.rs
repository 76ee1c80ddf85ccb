//! What a T5 can be asked for, like any language model.

use burn::tensor::Tensor;
use sideburn_adapters::{AdaptedModel, Pass};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::GenerationConfig;
use sideburn_kernels::on_workers;
use sideburn_nn::LanguageModel;

use crate::T5Error;
use crate::decoding::Decoding;
use crate::model::T5;

impl LanguageModel for T5 {
    type Error = T5Error;
    type Decoding = Decoding;

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn default_generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    fn tokens_at(&self, site: &str, prompts: usize, targets: usize) -> usize {
        // The decoder's keys and values of the encoder's output are of the prompts.
        let of_source = site.ends_with("EncDecAttention.k") || site.ends_with("EncDecAttention.v");
        if of_source || site.starts_with("encoder.") { prompts } else { targets }
    }

    fn token_losses(&self, batch: &PromptBatch, pass: &mut Pass) -> Result<Tensor<1>, T5Error> {
        on_workers(&self.device(), || self.token_losses_here(batch, pass))
    }

    fn logits(&self, prompts: &TokenRows, written: &TokenRows, pass: &mut Pass) -> Result<Tensor<2>, T5Error> {
        assert_eq!(written.len(), prompts.len(), "every prompt needs one row of decoder input");
        let encoded = self.encode(prompts, pass)?;
        let (hidden, layout) = self.decode(&encoded, written, pass)?;
        Ok(self.head(hidden, &mut self.adapters.enter_real_tokens(pass, &layout)?))
    }

    fn start_decoding(&self, prompts: &TokenRows, pass: Pass) -> Result<Decoding, T5Error> {
        Decoding::start(self, prompts, pass)
    }
}
