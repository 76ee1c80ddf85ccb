//! What a model is made of, as far as methods need to know.

use crate::AdapterError;
use crate::in_peft::PeftDifference;

/// What kind of model it is, as far as adapters need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// The site that embeds tokens.
    pub embedding: &'static str,
    /// Other names that `transformers` has for what the embedding is tied to.
    pub embedding_copies: &'static [&'static str],
    /// The name of the output head, a linear layer of its own or the embedding.
    pub head: &'static str,
    /// Whether the embedding is the output head.
    pub tied_head: bool,
    /// Whether there is an encoder before the decoder.
    pub encoder_decoder: bool,
    /// The width of the embedding.
    pub d_model: usize,
    /// Layers of the decoder.
    pub num_layers: usize,
    /// Heads of the decoder's self-attention that have keys and values of their own.
    pub num_heads: usize,
    /// The width of each head.
    pub d_kv: usize,
    /// What is adapted where a configuration does not say.
    pub usual: Usual,
}

/// The targets that `peft` has for a family of models where a configuration names none. Empty lists mean that it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual {
    /// `target_modules` of LoRA and most of its kin.
    pub lora: &'static [&'static str],
    /// `target_modules` of AdaLoRA.
    pub adalora: &'static [&'static str],
    /// `target_modules` of IA3.
    pub ia3: &'static [&'static str],
    /// `feedforward_modules` of IA3.
    pub ia3_feedforward: &'static [&'static str],
    /// `target_modules` of LN tuning.
    pub norms: &'static [&'static str],
}

impl Usual {
    /// Nothing is usual.
    pub const NOTHING: Self = Self { lora: &[], adalora: &[], ia3: &[], ia3_feedforward: &[], norms: &[] };
}

impl ModelShape {
    /// `task_type` of `peft`, of a language model.
    pub(crate) fn task_type(&self) -> Option<&'static str> {
        let is_language_model = !self.embedding.is_empty();
        is_language_model.then_some(if self.encoder_decoder { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" })
    }

    /// Of a model that is no language model: nothing is usual for it, and it has no embedding.
    pub const fn of_layers() -> Self {
        Self {
            embedding: "",
            embedding_copies: &[],
            head: "",
            tied_head: false,
            encoder_decoder: false,
            d_model: 0,
            num_layers: 0,
            num_heads: 0,
            d_kv: 0,
            usual: Usual::NOTHING,
        }
    }
}

/// What a model is made of: its sites in order.
#[derive(Clone, Debug)]
pub struct ModelOutline {
    /// What kind of model it is.
    pub shape: ModelShape,
    /// Where adapters can attach.
    pub sites: Vec<Site>,
}

/// Where an adapter can attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The name of the module, as Hugging Face has it: `encoder.block.0.layer.0.SelfAttention.q`, `shared`.
    pub name: String,
    /// What is there.
    pub kind: SiteKind,
}

/// What is at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear layer: a site.
    Linear {
        /// The width of its output.
        out: usize,
        /// The width of its input.
        input: usize,
        /// Whether it has a bias.
        bias: bool,
    },
    /// The table that embeds tokens.
    Embedding {
        /// Tokens.
        rows: usize,
        /// The width of their embeddings.
        width: usize,
    },
    /// Any other table.
    Table {
        /// Its rows.
        rows: usize,
        /// Their width.
        width: usize,
    },
    /// The embedding, as a part of the model reads it that `transformers` gives a module of its own, such as one half.
    Reader {
        /// Tokens.
        rows: usize,
        /// The width of their embeddings.
        width: usize,
    },
    /// The output head, where that is the embedding.
    TiedHead {
        /// Tokens.
        rows: usize,
        /// The width of their embeddings.
        width: usize,
    },
    /// A vector.
    Vector {
        /// Its length.
        len: usize,
    },
}

impl Site {
    /// Whether it is a linear layer.
    pub fn is_linear(&self) -> bool {
        matches!(self.kind, SiteKind::Linear { .. })
    }

    /// Whether it is a table: the embedding under any of its names, or another.
    pub fn is_table(&self) -> bool {
        matches!(self.kind, SiteKind::Embedding { .. } | SiteKind::Table { .. }) || self.is_name_of_embedding()
    }

    /// Whether it is one more name of the embedding: of a part that reads it, or of the head that it is.
    pub fn is_name_of_embedding(&self) -> bool {
        matches!(self.kind, SiteKind::Reader { .. } | SiteKind::TiedHead { .. })
    }

    /// Whether it is a vector.
    pub fn is_vector(&self) -> bool {
        matches!(self.kind, SiteKind::Vector { .. })
    }

    /// Of a vector that is the bias of a norm, the name of the norm.
    pub(crate) fn norm_of_bias(&self) -> Option<&str> {
        self.is_vector().then(|| self.name.strip_suffix(".bias")).flatten()
    }

    /// Whether it embeds tokens.
    pub fn is_embedding(&self) -> bool {
        matches!(self.kind, SiteKind::Embedding { .. })
    }

    /// A linear layer, for tests.
    #[cfg(test)]
    pub(crate) fn of(name: &str, [out, input]: [usize; 2]) -> Self {
        Self { name: name.to_owned(), kind: SiteKind::Linear { out, input, bias: false } }
    }

    /// The name of the site that a weight is, from the weight's own.
    pub(crate) fn name_of(weight: &str) -> &str {
        weight.strip_suffix(".weight").unwrap_or(weight)
    }

    /// `[out, in]`, of a linear layer.
    ///
    /// # Panics
    /// If it is none.
    pub fn linear(&self) -> [usize; 2] {
        match self.kind {
            SiteKind::Linear { out, input, .. } => [out, input],
            _ => panic!("{} is no linear layer", self.name),
        }
    }
}

impl ModelOutline {
    /// The sites that `modules_to_save` names: a site itself, or all those inside a part of that name. As in `peft`, the
    /// end of a name is enough: `layer_norm` means `final_layer_norm`, too.
    ///
    /// # Errors
    /// If a name means nothing.
    pub(crate) fn saved_modules(&self, names: &[String]) -> Result<Vec<&Site>, AdapterError> {
        let within = |site: &Site, name: &str| {
            let mut ends = site.name.match_indices('.').map(|(end, _)| end).chain([site.name.len()]);
            ends.any(|end| ends_with(&site.name[..end], name))
        };
        let idle: Vec<String> =
            names.iter().filter(|name| !self.sites.iter().any(|site| within(site, name))).cloned().collect();
        if !idle.is_empty() {
            let sites = self.sites.iter().map(|site| site.name.clone()).collect();
            return Err(AdapterError::UnmatchedModulesToSave { names: idle, sites });
        }
        Ok(self.sites.iter().filter(|site| names.iter().any(|name| within(site, name))).collect())
    }

    /// Whether `modules_to_save` names this site and `peft` would make a copy there that no layer reads: the layers of a
    /// T5 hold `encoder.embed_tokens` and `decoder.embed_tokens`, and `shared` beside them is read by none.
    pub(crate) fn is_idle_to_save(&self, site: &Site, names: &[String]) -> bool {
        let is_read_elsewhere = self.shape.embedding_copies.iter().any(|copy| *copy != self.shape.head);
        site.is_embedding() && is_read_elsewhere && names.iter().any(|name| ends_with(&site.name, name))
    }

    /// What the layers of the model read in `peft` in place of the embedding's own name, if they do.
    pub(crate) fn unread_embedding(&self) -> Option<PeftDifference> {
        let ModelShape { embedding, embedding_copies, head, .. } = self.shape;
        let read: Vec<_> = embedding_copies.iter().copied().filter(|copy| *copy != head).collect();
        (!read.is_empty()).then_some(PeftDifference::UnreadEmbedding { embedding, read })
    }

    /// What `peft` does to an output head when it replaces rows of the embedding: it takes every model for tied whose head
    /// can be.
    pub(crate) fn head_taken_for_embedding(&self) -> Option<PeftDifference> {
        let ModelShape { embedding_copies, head, tied_head, .. } = self.shape;
        let is_taken = !tied_head && embedding_copies.contains(&head);
        is_taken.then_some(PeftDifference::HeadTakenForEmbedding { head })
    }

    /// Refuses modules of a new adapter that would be trained for nothing.
    ///
    /// # Errors
    /// If there is one.
    pub(crate) fn check_not_idle(&self, names: &[String]) -> Result<(), AdapterError> {
        match self.sites.iter().find(|site| self.is_idle_to_save(site, names)) {
            Some(site) => Err(AdapterError::InvalidField {
                field: "modules_to_save",
                found: format!("{names:?}, in which {} has no effect in `peft`: no layer reads its copy", site.name),
                expected: "what the layers read (`embed_tokens`, of a T5), or `trainable_token_indices` or FULL",
            }),
            None => Ok(()),
        }
    }

    /// The site called `name`, and if that is the embedding, all its other names.
    pub(crate) fn names_of(&self, name: &str) -> impl Iterator<Item = &Site> {
        let is_embedding = name == self.shape.embedding;
        self.sites.iter().filter(move |site| site.name == name || (is_embedding && site.is_name_of_embedding()))
    }

    /// How many tokens the model knows; 0 if it embeds none.
    pub fn vocabulary(&self) -> usize {
        let rows = |site: &Site| if let SiteKind::Embedding { rows, .. } = site.kind { Some(rows) } else { None };
        self.sites.iter().find_map(rows).unwrap_or(0)
    }

    /// Whether rows of a batch can differ in what is at the site called `name`.
    pub(crate) fn is_by_row(&self, name: &str) -> bool {
        self.sites
            .iter()
            .any(|site| site.name == name && (site.is_linear() || site.is_embedding() || site.is_name_of_embedding()))
    }

    /// Of nothing but linear layers, for tests.
    #[cfg(test)]
    pub(crate) fn of_linear(names: &[&str]) -> Self {
        let kind = SiteKind::Linear { out: 2, input: 3, bias: false };
        let shape = ModelShape { head: "lm_head", ..ModelShape::of_layers() };
        Self { shape, sites: names.iter().map(|name| Site { name: (*name).to_owned(), kind }).collect() }
    }
}

/// How `modules_to_save` matches names.
pub(crate) fn ends_with(module: &str, name: &str) -> bool {
    !name.is_empty() && module.ends_with(name)
}

/// Whether `name` names the site, or ends its name as a whole component.
pub(crate) fn is_suffix(site: &str, name: &str) -> bool {
    site.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
