//! The one embedding of a model, wherever a checkpoint has it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sideburn_quant::Packed;
use sideburn_weights::{Tensor, TensorInfo, TensorSource, WeightsError};

use crate::NnError;

/// The tensors of a checkpoint, among which the embedding was found: safetensors keeps but one of several names of a tensor,
/// and other files keep all. A stored head that is no copy of the embedding makes an untied head, whatever
/// `tie_word_embeddings` says. What was read to find out is kept until it is asked for, so that each tensor is read once.
pub struct OneEmbedding<'a> {
    source: &'a dyn TensorSource,
    /// Its names; the first is the model's.
    names: &'static [&'static str],
    head: &'static str,
    /// The name of the embedding in the checkpoint.
    embedding: &'static str,
    own_head: bool,
    read: Mutex<HashMap<&'static str, Tensor>>,
}

impl<'a> OneEmbedding<'a> {
    /// Compares all tensors that may be the embedding, which checkpoints store under any of `names`, of which the first is
    /// the model's, or, where the head is the embedding, as `head`. No more than two are held.
    ///
    /// # Errors
    /// If two tensors that ought to be one differ, or one cannot be read.
    ///
    /// # Panics
    /// If there are no names.
    pub fn of(
        source: &'a dyn TensorSource,
        names: &'static [&'static str],
        head: &'static str,
    ) -> Result<Self, NnError> {
        let found = |embedding, own_head, read: HashMap<_, _>| Self {
            source,
            names,
            head,
            embedding,
            own_head,
            read: read.into(),
        };
        let mut stored = names.iter().copied().filter(|name| source.contains(name));
        let Some(embedding) = stored.next() else {
            let embedding = if source.contains(head) { head } else { names[0] };
            return Ok(found(embedding, false, HashMap::new()));
        };
        let copies: Vec<&str> = stored.collect();
        let shape = |name| source.info(name).map(|info| &info.shape);
        // A quantised head is one of its own.
        let is_comparable = source.contains(head) && !Packed::is_stored(source, head);
        let compare_head = is_comparable && shape(head) == shape(embedding);
        if copies.is_empty() && !compare_head {
            return Ok(found(embedding, source.contains(head), HashMap::new()));
        }
        let values = source.read(embedding)?;
        for copy in copies {
            if !is_equal(&source.read(copy)?, &values)? {
                let path = source.path().to_owned();
                return Err(NnError::NotACopy { path, tensor: copy.to_owned(), of: embedding });
            }
        }
        let mut read = HashMap::new();
        let mut own_head = source.contains(head);
        if compare_head {
            let own = source.read(head)?;
            own_head = !is_equal(&own, &values)?;
            if own_head {
                read.insert(head, own);
            }
        }
        read.insert(embedding, values);
        Ok(found(embedding, own_head, read))
    }

    /// Whether the head is the embedding, given what `tie_word_embeddings` says: a head of its own is none, and a checkpoint
    /// that has the embedding as the head alone has one for both.
    pub fn is_tied(&self, tie_word_embeddings: bool) -> bool {
        self.embedding == self.head || tie_word_embeddings && !self.own_head
    }

    /// The model's name for a tensor of the checkpoint; none for copies of the embedding, of which a tied head is one.
    pub fn name_of<'n>(&self, name: &'n str, is_tied: bool) -> Option<&'n str> {
        match name {
            name if name == self.embedding => Some(self.names[0]),
            name if self.names.contains(&name) || is_tied && name == self.head => None,
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

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let is_kept = self.read.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name);
        if !is_kept {
            return self.source.read_f32(name);
        }
        self.read(name)?.to_f32_named(self.path(), name)
    }

    fn promised(&self, name: &str) -> Option<&str> {
        self.source.promised(name)
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.source.metadata(key)
    }
}

/// Whether two tensors hold the same numbers, whatever dtype they are stored in.
fn is_equal(a: &Tensor, b: &Tensor) -> Result<bool, NnError> {
    if a.dtype() == b.dtype() || a.shape() != b.shape() {
        return Ok(a == b);
    }
    Ok(a.to_f32()? == b.to_f32()?)
}
