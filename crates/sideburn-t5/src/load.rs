//! Reading and writing Hugging Face model directories.

use std::path::Path;

use burn::tensor::Device;
use sideburn_adapters::{Adapters, Key, Precision};
use sideburn_files::{AtomicDir, write_atomic};
use sideburn_nn::ModelDir;
use sideburn_weights::TensorSource;

use crate::T5Error;
use crate::config::T5Config;
use crate::embedding::{HEAD, OneEmbedding};
use crate::model::T5;

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
/// A tensor that every encoder has.
const ENCODER_NORM: &str = "encoder.final_layer_norm.weight";
/// A table that the original checkpoints hold and no implementation uses.
const UNUSED: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

impl T5 {
    /// Reads a model directory: `config.json`, `generation_config.json` if there is one, and `model.safetensors` or shards
    /// with an index. The weights are frozen and in `f32`; see [`from_source`](Self::from_source).
    ///
    /// # Errors
    /// If a file is missing or broken, or a tensor is missing, unexpected or misshapen; all are listed.
    pub fn from_dir(directory: impl AsRef<Path>, device: &Device) -> Result<Self, T5Error> {
        let files = ModelDir::new(directory.as_ref());
        let config = T5Config::of_file(&files.config_path(), &files.config()?)?;
        let generation = files.generation_config(&config.generation())?;
        let model = Self::from_source(config, &files.weights()?, device)?;
        Ok(Self { generation, ..model })
    }

    /// A model with the weights that `source` holds under the names of `transformers`, frozen and in `f32`.
    ///
    /// The embedding may be stored as `shared`, `encoder.embed_tokens`, `decoder.embed_tokens` or, for a tied head,
    /// `lm_head`, and more than once: safetensors keeps but one of several names. A stored `lm_head.weight` that is not a
    /// copy of the embedding makes an untied head, whatever `tie_word_embeddings` says: transformers 5 writes `true`
    /// beside it.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen, all of which are listed, or cannot be read.
    pub fn from_source(mut config: T5Config, source: &dyn TensorSource, device: &Device) -> Result<Self, T5Error> {
        if source.contains(ENCODER_NORM) && !source.names().any(|name| name.starts_with("decoder.block.")) {
            return Err(T5Error::NoDecoder { path: source.path().to_owned() });
        }
        let source = OneEmbedding::of(source)?;
        if source.has_own_head() || source.is_head_alone() {
            // Whether the output is scaled stays what the configuration says.
            config.scale_decoder_outputs = Some(config.scales_decoder_outputs());
            config.tie_word_embeddings = !source.has_own_head();
        }
        let mut model = Self::random(&config, Key::from_seed(0), device);
        model.load_base(&source, |name| match source.name_of(name) {
            Some(UNUSED) => None,
            Some(HEAD) if config.tie_word_embeddings => None,
            name => name,
        })?;
        Ok(model)
    }

    /// Writes a model directory that `transformers` reads, without adapters. It appears whole or not at all.
    ///
    /// A tied head without scaling, which only `scale_decoder_outputs` can say, needs transformers 5.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_dir(&self, directory: impl AsRef<Path>, precision: Precision) -> Result<(), T5Error> {
        let directory = AtomicDir::create(directory)?;
        let text = serde_json::to_string_pretty(&self.config().to_json()).expect("a JSON value is always printable");
        write_atomic(directory.path().join(CONFIG_FILE), (text + "\n").as_bytes())?;
        self.save_base(directory.path().join(WEIGHTS_FILE), precision)?;
        directory.commit()?;
        Ok(())
    }
}
