//! The encoder-decoder with its output head.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use sideburn_adapters::{AdaptedLinear, Key, Pass, random_weight};
use sideburn_batch::{Seq2SeqBatch, TokenRows};
use sideburn_kernels::{RowLayout, cross_entropy};

use crate::T5Error;
use crate::config::T5Config;
use crate::layers::Scores;
use crate::stack::Stack;

/// `T5ForConditionalGeneration`: T5 1.0, T5 1.1, FLAN-T5.
///
/// Every linear layer is an [`AdaptedLinear`], so that adapters attach anywhere. A tied head is the embedding itself,
/// one parameter.
#[derive(Module, Debug)]
pub struct T5 {
    pub(crate) shared: Param<Tensor<2>>,
    pub(crate) encoder: Stack,
    pub(crate) decoder: Stack,
    pub(crate) lm_head: Option<AdaptedLinear>,
    #[module(skip)]
    pub(crate) config: T5Config,
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
            shared: random_weight([vocabulary, d_model], factor, key.fold_in_name("shared"), device),
            encoder: Stack::new(config, false, key.fold_in_name("encoder"), device),
            decoder: Stack::new(config, true, key.fold_in_name("decoder"), device),
            lm_head: (!config.tie_word_embeddings)
                .then(|| AdaptedLinear::random(vocabulary, d_model, factor, key.fold_in_name("lm_head"), device)),
            config: config.clone(),
        }
    }

    /// The architecture.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.shared.lazy_device()
    }

    /// Runs the encoder over the source rows.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn encode(&self, source: &TokenRows, pass: &mut Pass) -> Result<Encoded, T5Error> {
        let layout = RowLayout::new(source.lengths(), &self.device());
        let columns = layout.columns();
        let scores = Scores { bias: self.encoder.position_bias(0, columns, columns), mask: layout.key_mask() };
        let x = self.embed(source, &layout)?;
        let hidden = self.encoder.forward(x, &layout, &scores, None, pass);
        Ok(Encoded { hidden, layout })
    }

    /// Runs the decoder over `input` rows, each beginning with the start token: its last hidden states
    /// `[tokens, d_model]`, one for each real token of `input`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    ///
    /// # Panics
    /// If `input` has another number of rows than were encoded.
    pub fn decode(&self, encoded: &Encoded, input: &TokenRows, pass: &mut Pass) -> Result<Tensor<2>, T5Error> {
        assert_eq!(input.len(), encoded.layout.rows(), "every encoded row needs one row of decoder input");
        let layout = RowLayout::new(input.lengths(), &self.device());
        let columns = layout.columns();
        let scores = Scores { bias: self.decoder.position_bias(0, columns, columns), mask: layout.causal_mask() };
        let cross = self.decoder.cross(&encoded.hidden, &encoded.layout, pass);
        let x = self.embed(input, &layout)?;
        let hidden = self.decoder.forward(x, &layout, &scores, Some(&cross), pass);
        Ok(layout.real_tokens(hidden))
    }

    /// The logits `[tokens, vocab_size]` of the decoder's hidden states.
    pub fn head(&self, hidden: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let hidden = if self.config.scales_decoder_outputs() {
            hidden.mul_scalar(1.0 / (self.config.d_model as f64).sqrt())
        } else {
            hidden
        };
        match &self.lm_head {
            Some(head) => head.forward(hidden, pass),
            None => hidden.matmul(self.shared.val().transpose()),
        }
    }

    /// The negative log-likelihood of every target token, `[tokens]`, in nats.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn token_losses(&self, batch: &Seq2SeqBatch, pass: &mut Pass) -> Result<Tensor<1>, T5Error> {
        let target = batch.target();
        self.check_ids(target)?;
        let encoded = self.encode(batch.source(), pass)?;
        let hidden = self.decode(&encoded, &self.shift_right(target), pass)?;
        let logits = self.head(hidden, pass);
        let labels: Vec<i32> = target.ids().iter().map(|id| *id as i32).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [target.tokens()]), &self.device());
        Ok(cross_entropy(logits, labels))
    }

    /// What the decoder reads to write `target`: the start token, and all tokens but the last.
    pub fn shift_right(&self, target: &TokenRows) -> TokenRows {
        let start = self.config.decoder_start_token_id;
        let shifted = target.iter().map(|row| {
            let mut input = vec![start];
            input.extend_from_slice(&row[..row.len() - 1]);
            input
        });
        TokenRows::from_rows(shifted).expect("rows of the same lengths as the target's")
    }

    pub(crate) fn embed(&self, rows: &TokenRows, layout: &RowLayout) -> Result<Tensor<2>, T5Error> {
        self.check_ids(rows)?;
        Ok(self.shared.val().select(0, layout.ids(rows, self.config.pad_token_id)))
    }

    fn check_ids(&self, rows: &TokenRows) -> Result<(), T5Error> {
        let vocab_size = self.config.vocab_size;
        match rows.ids().iter().find(|id| **id as usize >= vocab_size) {
            Some(id) => Err(T5Error::TokenOutsideVocabulary { id: *id, vocab_size }),
            None => Ok(()),
        }
    }
}
