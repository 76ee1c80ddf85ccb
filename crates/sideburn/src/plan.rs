//! How much memory a training run takes, worked out before anything is loaded.

use std::collections::BTreeMap;

use sideburn_adapters::{AdaptedLinear, BaseBytes, ParameterReport, Weight};
use sideburn_nn::{LanguageModel, QuantizationConfig};

/// What a step of training reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows of a micro-batch.
    pub rows: usize,
    /// Tokens of the prompt of each.
    pub prompt: usize,
    /// Tokens of the target of each.
    pub target: usize,
    /// Whether each block keeps only what goes in, and is run again in the backward pass.
    pub gradient_checkpointing: bool,
}

/// Where it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the CPU: rows are packed, and packed weights are unpacked tile by tile.
    Cpu,
    /// On a GPU: rows are padded to multiples of 32 tokens, and a packed weight is floats while it is multiplied.
    Gpu,
}

/// Bytes that a training run holds.
///
/// Base, adapter and optimiser follow from shapes. Activations are what the operations of `sideburn-kernels` keep for the backward
/// pass where the adapters are low-rank branches; other methods keep more, which is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The base.
    pub base: BaseBytes,
    /// The tensors of adapters, in `f32`.
    pub adapter: u64,
    /// For each trained element a gradient, two moments of AdamW, and, of an adapter, a copy to go back to.
    pub optimizer: u64,
    /// What a step keeps for its backward pass.
    pub activations: u64,
    /// What comes and goes in a step: gradients of activations, tiles of packed weights, and memory that waits to be used
    /// again.
    pub workspace: u64,
}

impl MemoryPlan {
    /// The most that is held at once, in training.
    pub fn peak(&self) -> u64 {
        self.base.total() + self.adapter + self.optimizer + self.activations + self.workspace
    }
}

/// Works out what the training of the adapters of `model` takes, if its base is quantised so (or is as it is), in steps of such
/// batches. The weights need not be there: a model of [`AutoModel::random`](crate::AutoModel::random) draws none until they
/// are needed.
///
/// ```
/// use sideburn::plan::{BatchShape, Place, plan_training};
/// use sideburn::prelude::*;
///
/// let config = FalconConfig::default(); // Falcon-7B
/// let mut model = Falcon::random(&config, Key::from_seed(0), &Device::flex().autodiff());
/// let targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"];
/// model.attach("chats", LoraConfig { r: 16, ..LoraConfig::new(targets) }, Key::from_seed(0))?;
/// let batch = BatchShape { rows: 1, prompt: 96, target: 32, gradient_checkpointing: false };
/// let plan = plan_training(&model, Some(&Quantization::NF4.into()), batch, Place::Cpu);
/// assert_eq!(plan.adapter, 4 * 32_636_928);
/// assert!(plan.peak() < 7_000_000_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn plan_training<M: LanguageModel>(
    model: &M,
    quantization: Option<&QuantizationConfig>,
    batch: BatchShape,
    place: Place,
) -> MemoryPlan {
    const FLOAT: u64 = size_of::<f32>() as u64;
    /// Tiles of a packed weight on the CPU.
    const TILES: u64 = 32 << 20;
    /// Memory that waits to be used again.
    const WAITING: u64 = 64 << 20;
    let tokens = |length: usize| match place {
        Place::Cpu => batch.rows * length,
        Place::Gpu => batch.rows * length.next_multiple_of(32),
    } as u64;
    let (prompts, targets) = (tokens(batch.prompt), tokens(batch.target));
    let weights = model.weights();
    let slots = weights.iter().flat_map(|(_, weight)| weight.slots()).chain(model.adapters().input_slots());
    let of_adapters =
        slots.flat_map(|slot| slot.tensors().map(|(_, tensor)| tensor.lazy_shape().num_elements() as u64));
    let adapter = FLOAT * of_adapters.sum::<u64>();
    let trained = ParameterReport::of(model).trainable;
    let base = model.base_bytes(quantization);

    // The embedded tokens, the encoder's output, and the gradient that the loss keeps.
    let (shape, width) = (model.shape(), model.shape().d_model as u64);
    let all = prompts + targets;
    let mut kept =
        Kept { outside: width * (all + targets + if shape.encoder_decoder { prompts } else { 0 }), ..Kept::default() };
    let mut modules: BTreeMap<&str, Vec<(&str, &AdaptedLinear)>> = BTreeMap::new();
    for (name, weight) in &weights {
        match weight {
            Weight::Linear(linear) if name != shape.head => {
                let (module, part) = name.rsplit_once('.').unwrap_or(("", name.as_str()));
                modules.entry(module).or_default().push((part, *linear));
            }
            // A norm keeps its input; one with a bias keeps no more.
            Weight::Vector(vector) if !name.ends_with("bias") => {
                let floats = (model.tokens_at(name, prompts as usize, targets as usize) * vector.len()) as u64;
                kept.add(name, floats);
                if let Some(block) = kept.block(name) {
                    block.input = floats;
                }
            }
            _ => {}
        }
    }
    let mut largest = 0;
    for (module, layers) in &modules {
        let mut reads_kept = false;
        for (index, (part, linear)) in layers.iter().enumerate() {
            let [out, input] = linear.shape().map(|size| size as u64);
            let tokens = model.tokens_at(&format!("{module}.{part}"), prompts as usize, targets as usize) as u64;
            // All but the last layer of a module read the same; what the last writes is added to what went in, and is not kept.
            let is_last = index + 1 == layers.len();
            let mut floats = if is_last { 0 } else { tokens * out };
            if linear.slots().len() > 0 {
                floats += if is_last || !reads_kept { tokens * input } else { 0 };
                reads_kept |= !is_last;
                floats += if linear.is_low_rank() { 0 } else { tokens * (input + out) };
            }
            kept.add(module, floats);
            largest = largest.max(2 * tokens * (out + input));
        }
    }
    let activations = FLOAT * kept.floats(batch.gradient_checkpointing);
    let dense = |sites: u64| if base.packed > 0 { sites } else { 0 };
    let workspace = match place {
        // The backward pass gives activations back as it goes.
        Place::Cpu => dense(TILES) + WAITING,
        // Codes as integers, what they stand for, and their product with the scales.
        Place::Gpu => {
            let sizes = modules.values().flatten().map(|(_, linear)| linear.shape().iter().product::<usize>());
            FLOAT * largest + dense(3 * FLOAT * sizes.max().unwrap_or(0) as u64)
        }
    };
    MemoryPlan { base, adapter, optimizer: 4 * FLOAT * trained, activations, workspace }
}

/// What the parts of a model keep for the backward pass, in floats.
#[derive(Default)]
struct Kept<'a> {
    blocks: BTreeMap<&'a str, Block>,
    outside: u64,
}

#[derive(Default)]
struct Block {
    input: u64,
    kept: u64,
}

impl<'a> Kept<'a> {
    /// The block that something is in: `decoder.block.3` of `decoder.block.3.layer.0.SelfAttention.q`.
    fn block(&mut self, name: &'a str) -> Option<&mut Block> {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let mut end = 0;
        for part in name.split('.') {
            end += part.len();
            if is_number(part) {
                return Some(self.blocks.entry(&name[..end]).or_default());
            }
            end += 1;
        }
        None
    }

    fn add(&mut self, name: &'a str, floats: u64) {
        match self.block(name) {
            Some(block) => block.kept += floats,
            None => self.outside += floats,
        }
    }

    /// With checkpoints, the inputs of all blocks, and what the largest keeps while it is run again.
    fn floats(&self, gradient_checkpointing: bool) -> u64 {
        let blocks = self.blocks.values();
        self.outside
            + match gradient_checkpointing {
                true => {
                    blocks.clone().map(|block| block.input).sum::<u64>()
                        + blocks.map(|block| block.kept).max().unwrap_or(0)
                }
                false => blocks.map(|block| block.kept).sum(),
            }
    }
}
