//! The encoder and the decoder: blocks, and their biases by relative position.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sideburn_adapters::{AdaptedTable, Boundary, Key, TokenPass, random_weight};
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
    /// What the tokens see that `queries` lays out.
    fn visibility(&self, heads: usize, queries: &RowLayout) -> Visibility {
        Visibility::full(heads, queries, &self.layout)
    }
}

/// Adds an output to the hidden states, which stay in `f32` behind a `wo` that is.
fn add(hidden: Tensor<2>, output: Tensor<2>, dropout: Option<Dropout>) -> Tensor<2> {
    let dtype = if output.dtype() == DType::F32 { DType::F32 } else { hidden.dtype() };
    add_dropout(hidden.cast(dtype), output.cast(dtype), dropout)
}

impl Block {
    /// What the block makes of the hidden states. `attend` lets the tokens with these projections look at each other; what they
    /// see of the encoder is `seen`, in the decoder.
    fn forward(
        &self,
        mut hidden: Tensor<2>,
        attend: impl FnOnce(Tensor<2>, &mut TokenPass<'_>) -> Tensor<2>,
        seen: Option<(KeysValues, &Visibility)>,
        dropout: f64,
        pass: &mut TokenPass<'_>,
    ) -> Tensor<2> {
        let normed = self.self_norm.forward(hidden.clone(), pass);
        let output = attend(self.self_attention.projections(normed, pass), pass);
        hidden = add(hidden, output, pass.next_dropout(dropout));

        if let (Some(attention), Some(norm), Some((seen, visibility))) = (&self.cross_attention, &self.cross_norm, seen)
        {
            let queries = attention.queries(norm.forward(hidden.clone(), pass), pass);
            // Positions in the source and in the target do not relate.
            let output = attention.look_at(queries, seen, &Position::None, visibility, pass);
            hidden = add(hidden, output, pass.next_dropout(dropout));
        }

        let output = self.feed_forward.forward(self.feed_forward_norm.forward(hidden.clone(), pass), pass);
        add(hidden, output, pass.next_dropout(dropout))
    }
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
        let seen = cross.map(|cross| (cross, cross.visibility(own.visibility.heads, &own.visibility.queries)));
        let mut hidden = pass.dropout(x, self.dropout);
        if pass.has_checkpoints() && cache.is_none() {
            hidden = self.run_checkpointed(hidden, own, seen.as_ref(), pass);
        } else {
            for (index, block) in self.blocks.iter().enumerate() {
                let position = own.position(index);
                let attend = |projections, pass: &mut TokenPass<'_>| {
                    let attention = &block.self_attention;
                    match &mut cache {
                        None => attention.among_themselves(projections, position, &own.visibility, pass),
                        Some(cache) => {
                            let (queries, fresh) = attention.split(projections, position);
                            attention.look_at(queries, cache(index, fresh), position, &own.visibility, pass)
                        }
                    }
                };
                let seen = seen.as_ref().map(|(cross, visibility)| (cross.blocks[index].clone(), visibility));
                hidden = block.forward(hidden, attend, seen, self.dropout, pass);
            }
        }
        let normed = self.final_norm.forward(hidden, pass);
        pass.dropout(normed, self.dropout)
    }

    /// Runs the blocks so that each is run again in the backward pass.
    fn run_checkpointed(
        &self,
        hidden: Tensor<2>,
        own: &Scores,
        seen: Option<&(&Cross, Visibility)>,
        pass: &mut TokenPass<'_>,
    ) -> Tensor<2> {
        let biases: Vec<Boundary> = own.positions.iter().filter_map(Position::bias).map(|x| pass.boundary(x)).collect();
        let mut hidden = pass.boundary(hidden);
        for (index, block) in self.blocks.iter().enumerate() {
            let mut inputs = vec![hidden];
            inputs.extend(biases.get(index).or(biases.first()).cloned());
            if let Some((Cross { blocks, .. }, _)) = seen {
                let KeysValues { keys, values } = blocks[index].clone();
                inputs.extend([keys, values].map(|part| pass.boundary(part)));
            }
            let visibility = own.visibility.clone();
            let of_encoded = seen.map(|(_, visibility)| visibility.clone());
            let dropout = self.dropout;
            hidden = pass.checkpointed(inputs, block, move |block, inputs, pass| {
                let mut inputs = inputs.into_iter();
                let mut next = || inputs.next().expect("as many inputs as were given");
                let (hidden, position) = (next(), Position::Bias(next()));
                let seen = of_encoded.as_ref().map(|visibility| {
                    let (keys, values) = (next(), next());
                    (KeysValues { keys, values }, visibility)
                });
                let attend = |projections, pass: &mut TokenPass<'_>| {
                    block.self_attention.among_themselves(projections, &position, &visibility, pass)
                };
                block.forward(hidden, attend, seen, dropout, pass)
            });
        }
        hidden.into_tensor()
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
