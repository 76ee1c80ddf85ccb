//! Benchmarks of Sideburn; run them with `cargo bench`, or one with `cargo bench --bench NAME`.
//!
//! * `kernels`: every fused operation, as a kernel and composed of primitives, beside the machine's roofline.
//! * `adapted_linear`: a linear layer with LoRA, factored as here, as Burn's own dense update, and merged.
//! * `many_adapters`: layers with one adapter and with 35, of which one is active, and attaching one more.
//! * `lora_step`: a LoRA training step of FLAN-T5-small's architecture, in tokens per second.
//! * `step_memory`: peak memory and time of a LoRA step, here and with Burn's `apply_lora`.
//! * `checkpointing`: peak memory and time of a LoRA step with and without activation checkpointing, T5 and Falcon.
//! * `allocations`: what a step asks the allocator for, and where.
//! * `adamw`: norm, clipping and update over 77 million parameters, and Burn's.
//! * `full_step`: peak memory and time of full fine-tuning steps.
//! * `large_base`: LoRA steps over frozen bases in 4 and 8 bits, at the size of Falcon-7B say.
//! * `packed_linear`: a linear layer in 4 and 8 bits, beside unpacking it first, and `f32`.
//! * `rouge`: ROUGE over a corpus.
//! * `peer`: our side of `benches/peer/run.py`, which measures Sideburn beside Hugging Face.
//!
//! This library holds what several of them measure.

pub mod clock;

use std::convert::Infallible;

use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Lora, Module, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams};
use sideburn::adapters::{AdaptedLinear, AdaptedModel, AdapterSet, ModelShape, list_weights};
use sideburn::kernels::RowLayout;
use sideburn::prelude::*;
use sideburn::t5::FeedForward;

/// Rows of a batch.
pub const ROWS: usize = 4;
/// Source tokens of a row.
pub const SOURCE: usize = 256;
/// Target tokens of a row.
pub const TARGET: usize = 64;

/// FLAN-T5-small's architecture with random weights.
pub fn flan_t5_small(device: &Device) -> T5 {
    let config = T5Config {
        d_ff: 1024,
        num_layers: 8,
        num_heads: 6,
        feed_forward_proj: FeedForward::GATED_GELU,
        tie_word_embeddings: false,
        ..T5Config::default()
    };
    T5::random(&config, Key::from_seed(0), device)
}

/// `base` with LoRA of rank 32 on q and v, factored as Sideburn does.
pub fn factored(base: &T5, lora_dropout: f64) -> T5 {
    let mut model = base.clone();
    let config = LoraConfig { r: 32, lora_alpha: 64.0, lora_dropout, ..LoraConfig::new(["q", "v"]) };
    model.attach("default", config, Key::from_seed(0)).expect("every T5 has q and v");
    model
}

/// The same with Burn's built-in adapter, which forms the dense update and has no dropout.
pub fn dense(base: &T5) -> T5 {
    let sites = ParamGroup::from_regex(r"\.(q|v)\.weight$").expect("a pattern without errors");
    base.clone().apply_lora(Lora::new(32, 64.0).set_param_group(sites))
}

/// One training step of [`dense`], by Burn's optimiser: its factors are inside of the weights, where ours does not look.
pub fn burn_step(model: &mut T5) {
    let mut optimizer = AdamWConfig::new().with_grad_clipping(Some(GradientClippingConfig::Norm(1.0))).init();
    let losses = model.token_losses(&batch(), &mut Pass::train(Key::from_seed(0))).expect("a batch of the vocabulary");
    let gradients = GradientsParams::from_grads(losses.mean().backward(), model);
    *model = optimizer.step(1e-3, model.clone(), gradients);
}

/// One training step: forward, backward, clipping, AdamW.
pub fn step(model: &mut T5) {
    let batches = |_| Ok::<_, Infallible>(batch());
    let trainer = Trainer::new(TrainConfig::new(1)).expect("the defaults are valid");
    trainer.train(model, batches, T5::token_losses).expect("the loss is finite");
}

fn batch() -> PromptBatch {
    batch_of(ROWS, SOURCE, TARGET)
}

/// A batch of random tokens in full rows.
pub fn batch_of(rows: usize, source: usize, target: usize) -> PromptBatch {
    let key = Key::from_seed(1);
    let full = |length: usize, key: Key| {
        let id = |row: usize, column: usize| 2 + key.below((row * length + column) as u64, 30_000) as u32;
        TokenRows::from_rows((0..rows).map(|row| (0..length).map(|column| id(row, column)).collect::<Vec<_>>()))
            .expect("full rows")
    };
    PromptBatch::new(full(source, key.fold_in(0)), full(target, key.fold_in(1))).expect("as many targets as sources")
}

/// Linear layers side by side, as a model that can be adapted.
#[derive(Module, Debug)]
pub struct Layers {
    /// The layers, called `layer.0`, `layer.1` and so on.
    pub layers: Vec<AdaptedLinear>,
    adapters: AdapterSet,
}

impl Layers {
    /// This many random layers `[out, input]`.
    pub fn random(layers: usize, [out, input]: [usize; 2], device: &Device) -> Self {
        let layer = |index| AdaptedLinear::random(out, input, 0.05, Key::from_seed(0).fold_in(index), device);
        Self { layers: (0..layers as u64).map(layer).collect(), adapters: AdapterSet::default() }
    }

    /// What each layer makes of `x [n, input]`, one row of `n` tokens.
    pub fn forward<'a>(&'a self, x: &'a Tensor<2>, pass: &'a mut Pass) -> impl Iterator<Item = Tensor<2>> + 'a {
        let mut tokens = self.adapters.enter(pass, &RowLayout::packed(&[x.dims()[0]], &x.device())).expect("no names");
        self.layers.iter().map(move |layer| layer.forward(x.clone(), &mut tokens))
    }
}

impl AdaptedModel for Layers {
    list_weights! { |model, list, borrow, each, some| {
        for (index, layer) in each!(model.layers).enumerate() {
            list.push((format!("layer.{index}"), layer.into()));
        }
    }}

    fn shape(&self) -> ModelShape {
        ModelShape::of_layers()
    }

    fn device(&self) -> Device {
        self.layers[0].device()
    }

    fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut AdapterSet {
        &mut self.adapters
    }
}
