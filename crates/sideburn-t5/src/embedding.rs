//! The one embedding of a model, wherever a checkpoint has it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sideburn_weights::{Tensor, TensorInfo, TensorSource, WeightsError};

use crate::T5Error;

/// The model's name for its embedding.
pub(crate) const EMBEDDING: &str = "shared.weight";
pub(crate) const HEAD: &str = "lm_head.weight";
/// The embedding, as the encoder has it in `transformers`.
pub(crate) const ENCODER: &str = "encoder.embed_tokens";
/// The same of the decoder.
pub(crate) const DECODER: &str = "decoder.embed_tokens";
/// Names under which checkpoints store the embedding: any of them, or several.
const EMBEDDINGS: [&str; 3] = [EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

/// The tensors of a checkpoint, among which the embedding was found. What was read to find it is kept until it is asked
/// for, so that each tensor is read once.
pub(crate) struct OneEmbedding<'a> {
    source: &'a dyn TensorSource,
    /// The name of the embedding in the checkpoint.
    embedding: &'static str,
    own_head: bool,
    read: Mutex<HashMap<&'static str, Tensor>>,
}

impl<'a> OneEmbedding<'a> {
    /// Compares all tensors that may be the embedding; no more than two are held.
    pub(crate) fn of(source: &'a dyn TensorSource) -> Result<Self, T5Error> {
        let found = |embedding, own_head, read: HashMap<_, _>| Self { source, embedding, own_head, read: read.into() };
        let mut names = EMBEDDINGS.into_iter().filter(|name| source.contains(name));
        let Some(embedding) = names.next() else {
            let embedding = if source.contains(HEAD) { HEAD } else { EMBEDDING };
            return Ok(found(embedding, false, HashMap::new()));
        };
        let copies: Vec<&str> = names.collect();
        let shape = |name| source.info(name).map(|info| &info.shape);
        let compare_head = source.contains(HEAD) && shape(HEAD) == shape(embedding);
        if copies.is_empty() && !compare_head {
            return Ok(found(embedding, source.contains(HEAD), HashMap::new()));
        }
        let values = source.read(embedding)?;
        for copy in copies {
            if !is_equal(&source.read(copy)?, &values)? {
                let path = source.path().to_owned();
                return Err(T5Error::NotACopy { path, tensor: copy.to_owned(), of: embedding });
            }
        }
        let mut read = HashMap::new();
        let mut own_head = source.contains(HEAD);
        if compare_head {
            let head = source.read(HEAD)?;
            own_head = !is_equal(&head, &values)?;
            if own_head {
                read.insert(HEAD, head);
            }
        }
        read.insert(embedding, values);
        Ok(found(embedding, own_head, read))
    }

    /// Whether there is a head that is not a copy of the embedding.
    pub(crate) fn has_own_head(&self) -> bool {
        self.own_head
    }

    /// Whether the embedding is stored as the head alone.
    pub(crate) fn is_head_alone(&self) -> bool {
        self.embedding == HEAD
    }

    /// The model's name for a tensor of the checkpoint; none for copies.
    pub(crate) fn name_of<'n>(&self, name: &'n str) -> Option<&'n str> {
        match name {
            name if name == self.embedding => Some(EMBEDDING),
            name if EMBEDDINGS.contains(&name) => None,
            name => Some(name),
        }
    }
}

impl TensorSource for OneEmbedding<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn names(&self) -> Box<dyn ExactSizeIterator<Item = &str> + '_> {
        self.source.names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source.info(name)
    }

    fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        let kept = self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        kept.map_or_else(|| self.source.read(name), Ok)
    }

    fn promised(&self, name: &str) -> Option<&str> {
        self.source.promised(name)
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.source.metadata(key)
    }
}

/// Whether two tensors hold the same numbers, whatever dtype they are stored in.
fn is_equal(a: &Tensor, b: &Tensor) -> Result<bool, T5Error> {
    if a.dtype() == b.dtype() || a.shape() != b.shape() {
        return Ok(a == b);
    }
    Ok(a.to_f32()? == b.to_f32()?)
}
