//! Reading and writing Hugging Face model directories.

use std::path::Path;

use burn::tensor::Device;
use sideburn_adapters::{Adapters, Key, Precision};
use sideburn_nn::{ModelDir, OneEmbedding, QuantizationConfig};
use sideburn_weights::TensorSource;

use crate::T5Error;
use crate::config::T5Config;
use crate::model::T5;

/// Names under which checkpoints store the embedding: any of them, or several.
const EMBEDDINGS: &[&str] = &["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
const HEAD: &str = "lm_head.weight";
/// A tensor that every encoder has.
const ENCODER_NORM: &str = "encoder.final_layer_norm.weight";
/// A table that the original checkpoints hold and no implementation uses.
const UNUSED: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

impl T5 {
    /// Reads a model directory: `config.json`, `generation_config.json` if there is one, and `model.safetensors` or
    /// `pytorch_model.bin`, or shards with an index. The weights are frozen and in `f32`; see [`from_source`](Self::from_source). Linear
    /// layers that bitsandbytes has quantised (`quantization_config`) stay packed in 4 or 8 bits, and matrices beside them in
    /// the 16 bits that they may be stored in.
    ///
    /// # Errors
    /// If a file is missing or broken, the weights are quantised by another method, or a tensor is missing, unexpected or
    /// misshapen; all are listed.
    pub fn from_dir(directory: impl AsRef<Path>, device: &Device) -> Result<Self, T5Error> {
        Self::from_files(&ModelDir::new(directory.as_ref()), None, device)
    }

    /// Reads the directory of an unquantised model, and packs its linear layers in 4 or 8 bits as they are read: all but
    /// `wo` and `lm_head`, as `transformers` does, or those that the configuration names. In memory is the packed model, and
    /// two tensors as they are stored. Other matrices stay in the 16 bits that they may be stored in, if the configuration does
    /// not say otherwise; what is computed is `f32`.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use sideburn_t5::{Quantization, T5};
    ///
    /// let model = T5::from_dir_quantized("flan-t5-xxl", Quantization::NF4, &Device::flex().autodiff())?;
    /// # Ok::<(), sideburn_t5::T5Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`from_dir`](Self::from_dir); if the model is quantised already, or has weights that are not finite.
    pub fn from_dir_quantized(
        directory: impl AsRef<Path>,
        quantization: impl Into<QuantizationConfig>,
        device: &Device,
    ) -> Result<Self, T5Error> {
        Self::from_files(&ModelDir::new(directory.as_ref()), Some(quantization.into()), device)
    }

    fn from_files(files: &ModelDir, asked: Option<QuantizationConfig>, device: &Device) -> Result<Self, T5Error> {
        let quantization = files.quantization_for(asked)?;
        let config = T5Config::of_file(&files.config_path(), &files.config()?)?;
        let generation = files.generation_config(&config.generation())?;
        let model = Self::filled(config, &files.weights()?, quantization.as_ref(), device)?;
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
    pub fn from_source(config: T5Config, source: &dyn TensorSource, device: &Device) -> Result<Self, T5Error> {
        Self::filled(config, source, None, device)
    }

    fn filled(
        mut config: T5Config,
        source: &dyn TensorSource,
        quantization: Option<&QuantizationConfig>,
        device: &Device,
    ) -> Result<Self, T5Error> {
        if source.contains(ENCODER_NORM) && !source.names().any(|name| name.starts_with("decoder.block.")) {
            return Err(T5Error::NoDecoder { path: source.path().to_owned() });
        }
        let source = OneEmbedding::of(source, EMBEDDINGS, HEAD)?;
        let is_tied = source.is_tied(config.tie_word_embeddings);
        if is_tied != config.tie_word_embeddings {
            // Whether the output is scaled stays what the configuration says.
            config.scale_decoder_outputs = Some(config.scales_decoder_outputs());
            config.tie_word_embeddings = is_tied;
        }
        let mut model = Self::random(&config, Key::from_seed(0), device);
        model.load_base_quantized(
            &source,
            |name| source.name_of(name, is_tied).filter(|name| *name != UNUSED),
            quantization,
        )?;
        Ok(model)
    }

    /// Writes a model directory that `transformers` reads, without adapters; packed weights as bitsandbytes has them. It
    /// appears whole or not at all.
    ///
    /// A tied head without scaling, which only `scale_decoder_outputs` can say, needs transformers 5.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_dir(&self, directory: impl AsRef<Path>, precision: Precision) -> Result<(), T5Error> {
        let files = ModelDir::new(directory.as_ref());
        let save = |weights: &Path| Ok(self.save_base(weights, precision)?);
        files.write(self.config().to_json(), &self.generation, self.quantization(), save)
    }
}
