//! Where `peft` makes something else of a saved adapter.

use std::fmt;

/// What `peft` makes of an adapter's files that differs from what the adapter does here.
///
/// [`save_adapter`](crate::Adapters::save_adapter) returns those that it knows of, to be shown to whoever is to load the files in
/// Python; [`Display`](fmt::Display) is one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeftDifference {
    /// `peft` has no such method and refuses the files.
    NoSuchMethod {
        /// The `peft_type` of the adapter.
        peft_type: &'static str,
    },
    /// `peft` has no such field for the method and passes it over.
    NoSuchField {
        /// The `peft_type` of the adapter.
        peft_type: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The layers of the model read their embedding under other names in `peft`, so that the adapter does nothing there
    /// until it is merged.
    UnreadEmbedding {
        /// What the adapter adapts.
        embedding: &'static str,
        /// What the layers read there.
        read: Vec<&'static str>,
    },
    /// `peft` takes the output head for the embedding, and writes the rows of the adapter's tokens over its own.
    HeadTakenForEmbedding {
        /// The head.
        head: &'static str,
    },
}

impl fmt::Display for PeftDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchMethod { peft_type } => {
                write!(f, "`peft` has no method {peft_type} and cannot load the adapter")
            }
            Self::NoSuchField { peft_type, field } => {
                write!(
                    f,
                    "`peft` has no `{field}` for {peft_type} and adapts other layers, too; name the layers instead"
                )
            }
            Self::UnreadEmbedding { embedding, read } => write!(
                f,
                "in `peft` the layers read {}, not the adapted {embedding}: the adapter does nothing there until it is \
                 merged",
                read.join(" and ")
            ),
            Self::HeadTakenForEmbedding { head } => write!(
                f,
                "`peft` writes the embeddings of the adapter's tokens over the rows of {head}, which is no embedding: \
                 their logits differ there"
            ),
        }
    }
}
