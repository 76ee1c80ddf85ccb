//! The output head: a layer of its own, or the embedding.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use sideburn_adapters::{AdaptedLinear, AdaptedTable, TokenPass};
use sideburn_batch::TokenRows;
use sideburn_kernels::{cross_entropy, linear_cross_entropy};

/// What turns hidden states into a score for every token of the vocabulary.
#[derive(Clone, Copy, Debug)]
pub enum Head<'a> {
    /// A layer of its own, `[vocab_size, width]`.
    Own(&'a AdaptedLinear),
    /// The embedding, `[vocab_size, width]`: a tied head.
    Tied(&'a AdaptedTable),
}

impl<'a> Head<'a> {
    /// `own`, or where there is none the embedding.
    pub fn new(own: Option<&'a AdaptedLinear>, embedding: &'a AdaptedTable) -> Self {
        own.map_or(Self::Tied(embedding), Self::Own)
    }

    /// The logits `[tokens, vocab_size]` of `hidden [tokens, width]`.
    pub fn logits(self, hidden: Tensor<2>, pass: &mut TokenPass<'_>) -> Tensor<2> {
        match self {
            Self::Own(head) => head.forward(hidden, pass),
            Self::Tied(embedding) => embedding.scores(hidden, pass),
        }
    }

    /// The negative log-likelihood of every token of `targets`, end to end, where `hidden [tokens, width]` has the state
    /// that is to write it: `[tokens]`, in nats, with the label smoothing of the pass. A head without adapters never forms its
    /// logits.
    pub fn token_losses(self, hidden: Tensor<2>, targets: &TokenRows, pass: &mut TokenPass<'_>) -> Tensor<1> {
        let labels: Vec<i32> = targets.ids().iter().map(|id| *id as i32).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [targets.tokens()]), &hidden.device());
        let plain = match self {
            Self::Own(head) => head.plain_weight(pass),
            Self::Tied(embedding) => embedding.plain_table(pass),
        };
        let smoothing = pass.label_smoothing();
        let Some(weight) = plain else {
            let logits = self.logits(hidden, pass);
            let losses = cross_entropy(logits.clone(), labels);
            if smoothing == 0.0 {
                return losses;
            }
            let of_all = log_softmax(logits.cast(losses.dtype()), 1).mean_dim(1).squeeze_dim::<1>(1);
            return losses.mul_scalar(1.0 - smoothing) - of_all.mul_scalar(smoothing);
        };
        linear_cross_entropy(hidden, weight, labels, smoothing)
    }
}
