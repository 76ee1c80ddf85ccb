//! Reading and writing Hugging Face model directories.

use std::path::Path;

use burn::tensor::Device;
use sideburn_adapters::{Adapters, Key, Precision};
use sideburn_nn::{ModelDir, OneEmbedding, QuantizationConfig};
use sideburn_weights::TensorSource;

use crate::FalconError;
use crate::config::FalconConfig;
use crate::model::Falcon;

const EMBEDDINGS: &[&str] = &["transformer.word_embeddings.weight"];
const HEAD: &str = "lm_head.weight";
/// The end of the names of what old checkpoints hold and every model computes anew.
const ANGLES: &str = "rotary_emb.inv_freq";

impl Falcon {
    /// Reads a model directory: `config.json`, `generation_config.json` if there is one, and `model.safetensors` or
    /// `pytorch_model.bin`, or shards with an index. The weights are frozen and in `f32`; see [`from_source`](Self::from_source). Linear
    /// layers that bitsandbytes has quantised (`quantization_config`) stay packed in 4 or 8 bits, and matrices beside them in
    /// the 16 bits that they may be stored in.
    ///
    /// # Errors
    /// If a file is missing or broken, the weights are quantised by another method, or a tensor is missing, unexpected or
    /// misshapen; all are listed.
    pub fn from_dir(directory: impl AsRef<Path>, device: &Device) -> Result<Self, FalconError> {
        Self::from_files(&ModelDir::new(directory.as_ref()), None, device)
    }

    /// Reads the directory of an unquantised model, and packs its linear layers in 4 or 8 bits as they are read: all but
    /// `lm_head`, as `transformers` does, or those that the configuration names. In memory is the packed model, and two
    /// tensors as they are stored. Other matrices stay in the 16 bits that they may be stored in, if the configuration does not
    /// say otherwise; what is computed is `f32`.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use sideburn_falcon::{Falcon, Quantization};
    ///
    /// let model = Falcon::from_dir_quantized("falcon-7b", Quantization::NF4, &Device::flex().autodiff())?;
    /// # Ok::<(), sideburn_falcon::FalconError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`from_dir`](Self::from_dir); if the model is quantised already, or has weights that are not finite.
    pub fn from_dir_quantized(
        directory: impl AsRef<Path>,
        quantization: impl Into<QuantizationConfig>,
        device: &Device,
    ) -> Result<Self, FalconError> {
        Self::from_files(&ModelDir::new(directory.as_ref()), Some(quantization.into()), device)
    }

    fn from_files(files: &ModelDir, asked: Option<QuantizationConfig>, device: &Device) -> Result<Self, FalconError> {
        let quantization = files.quantization_for(asked)?;
        let config = FalconConfig::of_file(&files.config_path(), &files.config()?)?;
        let generation = files.generation_config(&config.generation())?;
        let model = Self::filled(config, &files.weights()?, quantization.as_ref(), device)?;
        Ok(Self { generation, ..model })
    }

    /// A model with the weights that `source` holds under the names of `transformers`, frozen and in `f32`.
    ///
    /// For a tied head, the embedding may be stored as `lm_head`, or twice. A stored `lm_head.weight` that is not a copy of
    /// the embedding makes an untied head, whatever `tie_word_embeddings` says.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen, all of which are listed, or cannot be read.
    pub fn from_source(config: FalconConfig, source: &dyn TensorSource, device: &Device) -> Result<Self, FalconError> {
        Self::filled(config, source, None, device)
    }

    fn filled(
        mut config: FalconConfig,
        source: &dyn TensorSource,
        quantization: Option<&QuantizationConfig>,
        device: &Device,
    ) -> Result<Self, FalconError> {
        let source = OneEmbedding::of(source, EMBEDDINGS, HEAD)?;
        config.tie_word_embeddings = source.is_tied(config.tie_word_embeddings);
        let mut model = Self::random(&config, Key::from_seed(0), device);
        let is_tied = config.tie_word_embeddings;
        model.load_base_quantized(
            &source,
            |name| source.name_of(name, is_tied).filter(|name| !name.ends_with(ANGLES)),
            quantization,
        )?;
        Ok(model)
    }

    /// Writes a model directory that `transformers` reads, without adapters; packed weights as bitsandbytes has them. It
    /// appears whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_dir(&self, directory: impl AsRef<Path>, precision: Precision) -> Result<(), FalconError> {
        let files = ModelDir::new(directory.as_ref());
        let save = |weights: &Path| Ok(self.save_base(weights, precision)?);
        files.write(self.config().to_json(), &self.generation, self.quantization(), save)
    }
}
