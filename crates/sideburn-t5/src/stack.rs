//! The encoder and the decoder: blocks, and their biases by relative position.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_adapters::{AdaptedTable, Key, TokenPass, random_weight};
use sideburn_kernels::{Dropout, RowLayout, Visibility, add_dropout, embedding};
use sideburn_nn::{Attention, FeedForward, KeysValues, Position, RmsNorm};

use crate::config::{Family, T5Config};
use crate::layers::{Scores, attention, feed_forward, norm};
use crate::position::relative_position_bucket;

/// One block. Norms come before each layer, and each layer's output is added to what went in.
#[derive(Module, Debug)]
pub(crate) struct Block {
    pub(crate) self_attention: Attention,
    pub(crate) self_norm: RmsNorm,
    /// Of the decoder's blocks only.
    pub(crate) cross_attention: Option<Attention>,
    pub(crate) cross_norm: Option<RmsNorm>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) feed_forward_norm: RmsNorm,
}

/// `T5Stack`: the encoder, or the decoder.
#[derive(Module, Debug)]
pub(crate) struct Stack {
    pub(crate) blocks: Vec<Block>,
    /// `[buckets, heads]`: one for all blocks, which `transformers` keeps in the first, or (uMT5) one for each block.
    pub(crate) relative_attention_biases: Vec<AdaptedTable>,
    pub(crate) final_norm: RmsNorm,
    bidirectional: bool,
    max_distance: usize,
    dropout: f64,
}

/// What the decoder's blocks see of the encoder: for each block its keys and values, and where the rows lie in them.
#[derive(Clone, Debug)]
pub(crate) struct Cross {
    pub(crate) blocks: Vec<KeysValues>,
    pub(crate) layout: RowLayout,
}

impl Cross {
    /// Scores of the tokens that `queries` lays out.
    fn scores(&self, heads: usize, queries: &RowLayout) -> Scores {
        // Positions in the source and in the target do not relate.
        Scores { positions: vec![Position::None], visibility: Visibility::full(heads, queries, &self.layout) }
    }
}

/// Adds an output to the hidden states, which stay in `f32` behind a `wo` that is.
fn add(hidden: Tensor<2>, output: Tensor<2>, dropout: Option<Dropout>) -> Tensor<2> {
    let dtype = if output.dtype() == DType::F32 { DType::F32 } else { hidden.dtype() };
    add_dropout(hidden.cast(dtype), output.cast(dtype), dropout)
}

impl Stack {
    pub(crate) fn new(config: &T5Config, decoder: bool, key: Key, device: &Device) -> Self {
        let layers = if decoder { config.decoder_layers() } else { config.num_layers };
        let block = |index: usize| {
            let key = key.fold_in(index as u64);
            let attention = |name: &str| attention(config, key.fold_in_name(name), device);
            Block {
                self_attention: attention("SelfAttention"),
                self_norm: norm(config, device),
                cross_attention: decoder.then(|| attention("EncDecAttention")),
                cross_norm: decoder.then(|| norm(config, device)),
                feed_forward: feed_forward(config, key.fold_in_name("DenseReluDense"), device),
                feed_forward_norm: norm(config, device),
            }
        };
        let deviation = config.initializer_factor / (config.d_model as f64).sqrt();
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let key_of_bias = key.fold_in_name("relative_attention_bias");
        let bias = |key| AdaptedTable::new(random_weight(shape, deviation, key, device));
        Self {
            blocks: (0..layers).map(block).collect(),
            relative_attention_biases: match config.model_type {
                Family::T5 | Family::Mt5 => vec![bias(key_of_bias)],
                Family::Umt5 => (0..layers as u64).map(|block| bias(key_of_bias.fold_in(block))).collect(),
            },
            final_norm: norm(config, device),
            bidirectional: !decoder,
            max_distance: config.relative_attention_max_distance,
            dropout: config.dropout_rate,
        }
    }

    /// Runs the blocks over the embedded tokens `x [tokens, d_model]`, whose scores among themselves are `own`. The tokens
    /// look at each other unless `cache` turns each block's fresh keys and values into what they look at.
    pub(crate) fn run(
        &self,
        x: Tensor<2>,
        own: &Scores,
        cross: Option<&Cross>,
        pass: &mut TokenPass<'_>,
        mut cache: Option<&mut dyn FnMut(usize, KeysValues) -> KeysValues>,
    ) -> Tensor<2> {
        let cross = cross.map(|cross| (cross, cross.scores(own.visibility.heads, &own.visibility.queries)));
        let mut hidden = pass.dropout(x, self.dropout);
        for (index, block) in self.blocks.iter().enumerate() {
            let normed = block.self_norm.forward(hidden.clone(), pass);
            let attention = &block.self_attention;
            let projections = attention.projections(normed, pass);
            let output = match &mut cache {
                None => attention.among_themselves(projections, own.position(index), &own.visibility, pass),
                Some(cache) => {
                    let (queries, fresh) = attention.split(projections, own.position(index));
                    attention.look_at(queries, cache(index, fresh), own.position(index), &own.visibility, pass)
                }
            };
            hidden = add(hidden, output, pass.next_dropout(self.dropout));

            if let (Some(attention), Some(norm), Some((cross, scores))) =
                (&block.cross_attention, &block.cross_norm, &cross)
            {
                let seen = cross.blocks[index].clone();
                let queries = attention.queries(norm.forward(hidden.clone(), pass), pass);
                let output = attention.look_at(queries, seen, scores.position(index), &scores.visibility, pass);
                hidden = add(hidden, output, pass.next_dropout(self.dropout));
            }

            let output = block.feed_forward.forward(block.feed_forward_norm.forward(hidden.clone(), pass), pass);
            hidden = add(hidden, output, pass.next_dropout(self.dropout));
        }
        let normed = self.final_norm.forward(hidden, pass);
        pass.dropout(normed, self.dropout)
    }

    /// The biases of keys from `back` places before their query to `ahead` places behind it, each
    /// `[heads, back + 1 + ahead]`: one for all blocks, or one for each.
    pub(crate) fn positions(&self, back: usize, ahead: usize, pass: &TokenPass<'_>) -> Vec<Position> {
        let buckets = self.relative_attention_biases[0].shape()[0];
        let bucket = |key| relative_position_bucket(key, back, self.bidirectional, buckets, self.max_distance) as i32;
        let index: Vec<i32> = (0..=back + ahead).map(bucket).collect();
        let device = self.relative_attention_biases[0].device();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [back + 1 + ahead]), &device);
        let bias = |table: &AdaptedTable| Position::Bias(embedding(table.value(pass), index.clone()).transpose());
        self.relative_attention_biases.iter().map(bias).collect()
    }

    /// What the decoder's blocks see of the encoder's output.
    pub(crate) fn cross(&self, encoded: &Tensor<2>, layout: &RowLayout, pass: &mut TokenPass<'_>) -> Cross {
        let attentions = self.blocks.iter().filter_map(|block| block.cross_attention.as_ref());
        Cross {
            blocks: attentions.map(|attention| attention.keys_values(encoded, pass)).collect(),
            layout: layout.clone(),
        }
    }
}
