//! Reading and writing Hugging Face model directories.

use std::path::Path;

use burn::tensor::Device;
use sideburn_adapters::{Key, Precision, load_base, save_base};
use sideburn_weights::{AtomicDir, ModelFiles, Tensor, TensorSource, write_atomic};

use crate::T5Error;
use crate::config::T5Config;
use crate::model::T5;
use crate::special_tokens::SpecialTokens;

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
/// The model's name for its one embedding.
const EMBEDDING: &str = "shared.weight";
const HEAD: &str = "lm_head.weight";
/// Names under which checkpoints store the embedding: any of them, or several.
const EMBEDDINGS: [&str; 3] = [EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
/// A tensor that every encoder has.
const ENCODER_NORM: &str = "encoder.final_layer_norm.weight";
/// A table that the original checkpoints hold and no implementation uses.
const UNUSED: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

impl T5 {
    /// Reads a model directory: `config.json`, and `model.safetensors` or shards with an index. The weights are frozen
    /// and in `f32`.
    ///
    /// The embedding may be stored as `shared`, `encoder.embed_tokens`, `decoder.embed_tokens` or, for a tied head,
    /// `lm_head`, and more than once: safetensors keeps but one of several names. A stored `lm_head.weight` that is not a
    /// copy of the embedding makes an untied head, whatever `tie_word_embeddings` says: transformers 5 writes `true`
    /// beside it.
    ///
    /// # Errors
    /// If a file is missing or broken, or a tensor is missing, unexpected or misshapen; all are listed.
    pub fn from_dir(directory: impl AsRef<Path>, device: &Device) -> Result<Self, T5Error> {
        let directory = directory.as_ref();
        let mut config = T5Config::from_file(directory.join(CONFIG_FILE))?;
        let files = ModelFiles::open(directory)?;
        let mut names = files.names();
        if files.contains(ENCODER_NORM) && !names.any(|name| name.starts_with("decoder.block.")) {
            return Err(T5Error::NoDecoder { path: directory.to_owned() });
        }
        let Stored { embedding, own_head } = Stored::of(&files, directory)?;
        if own_head || embedding == HEAD {
            // Whether the output is scaled stays what the configuration says.
            config.scale_decoder_outputs = Some(config.scales_decoder_outputs());
            config.tie_word_embeddings = !own_head;
        }
        let tied = config.tie_word_embeddings;
        let mut model = T5::random(&config, Key::from_seed(0), device);
        model.special_tokens = SpecialTokens::read(directory, &config)?;
        load_base(&mut model, &files, |name| match name {
            name if name == embedding => Some(EMBEDDING),
            UNUSED => None,
            HEAD if tied => None,
            name if EMBEDDINGS.contains(&name) => None,
            name => Some(name),
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
        save_base(self, directory.path().join(WEIGHTS_FILE), precision)?;
        directory.commit()?;
        Ok(())
    }
}

/// Where a checkpoint has the embedding.
struct Stored {
    /// The name of the tensor.
    embedding: &'static str,
    /// Whether there is a head that is not a copy of it.
    own_head: bool,
}

impl Stored {
    /// Compares all tensors that may be the embedding: each is read once, and no more than two are held.
    fn of(source: &dyn TensorSource, directory: &Path) -> Result<Self, T5Error> {
        let mut names = EMBEDDINGS.into_iter().filter(|name| source.contains(name));
        let Some(embedding) = names.next() else {
            let embedding = if source.contains(HEAD) { HEAD } else { EMBEDDING };
            return Ok(Self { embedding, own_head: false });
        };
        let copies: Vec<&str> = names.collect();
        let shape = |name| source.info(name).map(|info| &info.shape);
        let compare_head = source.contains(HEAD) && shape(HEAD) == shape(embedding);
        if copies.is_empty() && !compare_head {
            return Ok(Self { embedding, own_head: source.contains(HEAD) });
        }
        let values = source.read(embedding)?;
        for copy in copies {
            if !is_equal(&source.read(copy)?, &values)? {
                return Err(T5Error::NotACopy { path: directory.to_owned(), tensor: copy.to_owned(), of: embedding });
            }
        }
        let own_head = source.contains(HEAD) && !(compare_head && is_equal(&source.read(HEAD)?, &values)?);
        Ok(Self { embedding, own_head })
    }
}

/// Whether two tensors hold the same numbers, whatever dtype they are stored in.
fn is_equal(a: &Tensor, b: &Tensor) -> Result<bool, T5Error> {
    if a.dtype() == b.dtype() || a.shape() != b.shape() {
        return Ok(a == b);
    }
    Ok(a.to_f32()? == b.to_f32()?)
}
