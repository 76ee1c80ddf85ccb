//! The encoder-decoder with its output head.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sideburn_adapters::{AdaptedLinear, AdaptedModel, AdaptedTable, AdapterSet, Key, Pass, TokenPass, random_weight};
use sideburn_batch::{PromptBatch, TokenRows};
use sideburn_generate::GenerationConfig;
use sideburn_kernels::{RowLayout, Visibility};
use sideburn_nn::{Head, KeysValues, add_noise, behind, check_ids, places_behind, shift_right};

use crate::T5Error;
use crate::config::T5Config;
use crate::layers::{DECODER, ENCODER, Scores};
use crate::stack::{Cross, Stack};

/// `T5ForConditionalGeneration`, `MT5ForConditionalGeneration` and `UMT5ForConditionalGeneration`.
///
/// Every linear layer is an [`AdaptedLinear`], so that adapters attach anywhere. A tied head is the embedding itself,
/// one parameter.
#[derive(Module, Debug)]
pub struct T5 {
    pub(crate) shared: AdaptedTable,
    pub(crate) encoder: Stack,
    pub(crate) decoder: Stack,
    pub(crate) lm_head: Option<AdaptedLinear>,
    pub(crate) adapters: AdapterSet,
    #[module(skip)]
    pub(crate) config: T5Config,
    #[module(skip)]
    pub(crate) generation: GenerationConfig,
}

/// What the encoder makes of the source rows.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The last hidden state of each token, `[tokens, d_model]`, as `layout` lays them out.
    pub hidden: Tensor<2>,
    /// Where the rows lie in `hidden`.
    pub layout: RowLayout,
}

impl T5 {
    /// A new model with weights drawn as `transformers` draws them, when they are first needed.
    pub fn random(config: &T5Config, key: Key, device: &Device) -> Self {
        let (vocabulary, d_model, factor) = (config.vocab_size, config.d_model, config.initializer_factor);
        Self {
            shared: AdaptedTable::new(random_weight([vocabulary, d_model], factor, key.fold_in_name("shared"), device)),
            encoder: Stack::new(config, false, key.fold_in_name("encoder"), device),
            decoder: Stack::new(config, true, key.fold_in_name("decoder"), device),
            lm_head: (!config.tie_word_embeddings)
                .then(|| AdaptedLinear::random(vocabulary, d_model, factor, key.fold_in_name("lm_head"), device)),
            adapters: AdapterSet::default(),
            config: config.clone(),
            generation: config.generation(),
        }
    }

    /// The architecture.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Runs the encoder over the source rows.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn encode(&self, source: &TokenRows, pass: &mut Pass) -> Result<Encoded, T5Error> {
        let virtual_tokens = self.adapters.virtual_tokens();
        let added = virtual_tokens.as_ref().map_or(0, |tokens| tokens.dims()[0]);
        let lengths: Vec<usize> = source.lengths().iter().map(|length| length + added).collect();
        let layout = RowLayout::new(&lengths, &self.device());
        let pass = &mut self.adapters.enter(pass, &layout)?;
        let x = match virtual_tokens {
            Some(tokens) => {
                let own = RowLayout::packed(source.lengths(), layout.device());
                let embedded = self.embed(ENCODER, source, &own, &self.adapters.enter(pass, &own)?)?;
                behind(tokens, embedded, &own, &layout)
            }
            None => self.embed(ENCODER, source, &layout, pass)?,
        };
        let far = layout.columns() - 1;
        let visibility = Visibility::bidirectional(self.config.num_heads, &layout);
        let scores = Scores { positions: self.encoder.positions(far, far, pass), visibility };
        let hidden = self.encoder.run(x, &scores, None, pass, None);
        Ok(Encoded { hidden, layout })
    }

    /// Runs the decoder over `input` rows, each beginning with the start token: its last hidden states
    /// `[tokens, d_model]`, one for each real token of `input`, and where the rows lay.
    pub(crate) fn decode(
        &self,
        encoded: &Encoded,
        input: &TokenRows,
        pass: &mut Pass,
    ) -> Result<(Tensor<2>, RowLayout), T5Error> {
        let cross = self.cross(encoded, pass)?;
        let prefix = self.prefix();
        let layout = RowLayout::new(input.lengths(), &self.device());
        let pass = &mut self.adapters.enter(pass, &layout)?;
        let x = self.embed(DECODER, input, &layout, pass)?;
        let heads = self.config.num_heads;
        let hidden = match prefix {
            None => {
                let positions = self.decoder.positions(layout.columns() - 1, 0, pass);
                let own = Scores { positions, visibility: Visibility::causal(heads, &layout, &layout, 0) };
                self.decoder.run(x, &own, Some(&cross), pass, None)
            }
            Some(prefix) => {
                let before = prefix[0].tokens();
                let lengths: Vec<usize> = input.lengths().iter().map(|length| before + length).collect();
                let keys = RowLayout::new(&lengths, &self.device());
                let places = places_behind(before, &layout, &keys);
                let positions = self.decoder.positions(before + layout.columns() - 1, 0, pass);
                let own = Scores { positions, visibility: Visibility::causal(heads, &layout, &keys, before) };
                let mut behind_prefix = |block: usize, fresh| prefix[block].clone().pick_with(fresh, &places);
                self.decoder.run(x, &own, Some(&cross), pass, Some(&mut behind_prefix))
            }
        };
        Ok((layout.real_tokens(hidden), layout))
    }

    /// What stands before the first token of the decoder for each block, if an adapter has something there.
    pub(crate) fn prefix(&self) -> Option<Vec<KeysValues>> {
        self.adapters.prefix().map(|layers| KeysValues::of_prefix(layers, self.shared.dtype()))
    }

    /// What the decoder's blocks see of the encoded rows.
    pub(crate) fn cross(&self, encoded: &Encoded, pass: &mut Pass) -> Result<Cross, T5Error> {
        let pass = &mut self.adapters.enter(pass, &encoded.layout)?;
        // All blocks look at it.
        let hidden = pass.boundary(encoded.hidden.clone()).into_tensor();
        Ok(self.decoder.cross(&hidden, &encoded.layout, pass))
    }

    /// The logits `[tokens, vocab_size]` of the decoder's hidden states.
    pub(crate) fn head(&self, hidden: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        self.output_head().logits(self.scaled(hidden), pass)
    }

    fn output_head(&self) -> Head<'_> {
        Head::new(self.lm_head.as_ref(), &self.shared)
    }

    /// The hidden states as the head expects them.
    fn scaled(&self, hidden: Tensor<2>) -> Tensor<2> {
        if self.config.scales_decoder_outputs() {
            hidden.mul_scalar(1.0 / (self.config.d_model as f64).sqrt())
        } else {
            hidden
        }
    }

    pub(crate) fn token_losses_here(&self, batch: &PromptBatch, pass: &mut Pass) -> Result<Tensor<1>, T5Error> {
        let target = batch.targets();
        check_ids(target, self.config.vocab_size)?;
        let encoded = self.encode(batch.prompts(), pass)?;
        let (hidden, layout) = self.decode(&encoded, &shift_right(target, self.start_token()?), pass)?;
        let pass = &mut self.adapters.enter_real_tokens(pass, &layout)?;
        Ok(self.output_head().token_losses(self.scaled(hidden), target, pass))
    }

    /// What the decoder starts from in training, where `transformers` asks `config.json` first.
    fn start_token(&self) -> Result<u32, T5Error> {
        self.config.decoder_start_token_id.or(self.generation.decoder_start_token_id).ok_or(T5Error::NoStartToken)
    }

    /// The embedded tokens of one half of the model, which is called `half`.
    pub(crate) fn embed(
        &self,
        half: &str,
        rows: &TokenRows,
        layout: &RowLayout,
        pass: &TokenPass<'_>,
    ) -> Result<Tensor<2>, T5Error> {
        check_ids(rows, self.config.vocab_size)?;
        Ok(add_noise(self.shared.rows_as(half, layout.ids(rows, self.filler()), pass), half, layout, pass))
    }

    /// What stands where a batch has no token.
    fn filler(&self) -> u32 {
        self.config.pad_token_id.unwrap_or(0)
    }
}
