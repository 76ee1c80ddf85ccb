//! Reading and writing Hugging Face model directories.

use std::path::Path;

use burn::tensor::Device;
use sideburn_adapters::{Key, Precision, load_base, save_base};
use sideburn_weights::{AtomicDir, Checkpoint, write_atomic};

use crate::T5Error;
use crate::config::T5Config;
use crate::model::T5;

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "model.safetensors";
const EMBEDDING: &str = "shared.weight";
const HEAD: &str = "lm_head.weight";
/// Names under which checkpoints store the embedding once more.
const EMBEDDING_COPIES: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
/// A table that the original checkpoints hold and no implementation uses.
const UNUSED: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

impl T5 {
    /// Reads a model directory: `config.json`, and `model.safetensors` or shards with an index. The weights are frozen
    /// and in `f32`.
    ///
    /// A stored `lm_head.weight` that is not a copy of the embedding makes an untied head, whatever
    /// `tie_word_embeddings` says: transformers 5 writes `true` beside it.
    ///
    /// # Errors
    /// If a file is missing or broken, or a tensor is missing, unexpected or misshapen; all are listed.
    pub fn from_dir(directory: impl AsRef<Path>, device: &Device) -> Result<Self, T5Error> {
        let directory = directory.as_ref();
        let mut config = T5Config::from_file(directory.join(CONFIG_FILE))?;
        let checkpoint = Checkpoint::open(directory)?;
        for copy in EMBEDDING_COPIES {
            if checkpoint.contains(copy) && !is_embedding(&checkpoint, copy)? {
                return Err(T5Error::NotACopy { path: directory.to_owned(), tensor: copy.to_owned() });
            }
        }
        let own_head = checkpoint.contains(HEAD) && !is_embedding(&checkpoint, HEAD)?;
        if own_head {
            // Whether the output is scaled stays what the configuration says.
            config.scale_decoder_outputs = Some(config.scales_decoder_outputs());
            config.tie_word_embeddings = false;
        }
        let tied = config.tie_word_embeddings;
        let mut model = T5::random(&config, Key::from_seed(0), device);
        load_base(&mut model, &checkpoint, |name| {
            EMBEDDING_COPIES.contains(&name) || name == UNUSED || (tied && name == HEAD)
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
        let mut config = serde_json::to_value(self.config()).expect("a configuration of plain fields");
        config["architectures"] = serde_json::json!(["T5ForConditionalGeneration"]);
        config["is_encoder_decoder"] = serde_json::json!(true);
        let text = serde_json::to_string_pretty(&config).expect("a JSON value is always printable");
        write_atomic(directory.path().join(CONFIG_FILE), (text + "\n").as_bytes())?;
        save_base(self, directory.path().join(WEIGHTS_FILE), precision)?;
        directory.commit()?;
        Ok(())
    }
}

/// Whether a stored tensor is a copy of the stored embedding.
fn is_embedding(checkpoint: &Checkpoint, name: &str) -> Result<bool, T5Error> {
    let same_info = checkpoint.info(name).is_some() && checkpoint.info(name) == checkpoint.info(EMBEDDING);
    Ok(same_info && checkpoint.read(name)? == checkpoint.read(EMBEDDING)?)
}
