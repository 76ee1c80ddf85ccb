//! Which files of a repository loading needs.

/// The files of a model that are neither architecture nor weights: those of its tokenizer, and how it writes.
pub const COMPANIONS: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// What a repository is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    /// The configuration of a model alone.
    Config,
    Adapter,
}

impl Kind {
    /// The file without which it is none.
    pub(crate) fn config(self) -> &'static str {
        match self {
            Self::Model | Self::Config => "config.json",
            Self::Adapter => "adapter_config.json",
        }
    }

    /// The files of weights, of which the first that is there is wanted, if there are any. One whose name ends in `.index.json`
    /// names others.
    pub(crate) fn weights(self) -> &'static [&'static str] {
        match self {
            Self::Model => &[
                "model.safetensors",
                "model.safetensors.index.json",
                "pytorch_model.bin",
                "pytorch_model.bin.index.json",
            ],
            Self::Config => &[],
            Self::Adapter => &["adapter_model.safetensors", "adapter_model.bin"],
        }
    }

    /// The files that are wanted if they are there.
    #[cfg(feature = "net")]
    pub(crate) fn companions(self) -> &'static [&'static str] {
        match self {
            Self::Model => &COMPANIONS,
            Self::Config | Self::Adapter => &[],
        }
    }
}
