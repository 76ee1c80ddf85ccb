//! The largest micro-batch that there is memory for.

use std::cmp::Reverse;

use burn::tensor::Device;
use sideburn_adapters::available_memory;
use sideburn_data::TokenizedSet;
use sideburn_kernels::is_cpu;
use sideburn_nn::LanguageModel;
use sideburn_train::{Run, TrainConfig, TrainError};

use crate::plan::{BatchShape, Place, plan_training};

/// The examples of a micro-batch, and how many micro-batches make a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSize {
    /// Examples of a micro-batch: `per_device_train_batch_size` of `transformers`.
    pub examples: usize,
    /// Micro-batches of a step: `gradient_accumulation_steps`.
    pub micro_batches: u64,
}

/// Why no micro-batch can be found.
#[derive(Debug, thiserror::Error)]
pub enum BatchSizeError {
    /// Not even one example at a time.
    #[error(
        "not even a micro-batch of one example fits: beside the model, a step takes {:.1} MiB and {:.1} are left; shorten the \
         examples, set `gradient_checkpointing`, or take a smaller base, or one in 4 or 8 bits",
        *needed as f64 / 1048576.0,
        *left as f64 / 1048576.0
    )]
    NothingFits {
        /// What a step over the longest example takes beside the model.
        needed: u64,
        /// What is left.
        left: u64,
    },
    /// A step that fails for another reason than memory.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// Finds the largest micro-batch that there is memory for on the device of `model`, so that a step has as many examples as
/// with `wanted`: `auto_find_batch_size` of `transformers`, which lowers the size alone, and so changes what is learned.
///
/// `wanted.examples` is tried first, then its divisors, from the largest on: 8 micro-batches of 1 do what one of 8 does. A size
/// fits if a step over the longest examples of `set` takes no more than `memory` bytes beside the model and its adapters, which
/// are there already, as [`plan_training`] works it out. If `memory` is `None`, it is what the device has left; where the system
/// does not say that, any size fits. On a GPU such a step is made, too, over a copy of the model.
///
/// # Errors
/// If none fits, or the model fails.
///
/// # Panics
/// If `set` is empty.
pub fn find_batch_size<M: LanguageModel>(
    model: &M,
    set: &TokenizedSet,
    wanted: BatchSize,
    config: &TrainConfig,
    memory: Option<u64>,
) -> Result<BatchSize, BatchSizeError> {
    let (device, lengths) = (model.device(), set.lengths());
    let place = if is_cpu(&device) { Place::Cpu } else { Place::Gpu };
    let memory = memory.or_else(|| match place {
        Place::Cpu => available_memory(),
        Place::Gpu => left_on_gpu(&device),
    });
    let mut longest: Vec<usize> = (0..lengths.len()).collect();
    longest.sort_by_key(|example| Reverse(lengths[*example].iter().sum::<usize>()));
    let mut needed = 0;
    for parts in (1..=wanted.examples).filter(|parts| wanted.examples.is_multiple_of(*parts)) {
        let found = BatchSize { examples: wanted.examples / parts, micro_batches: wanted.micro_batches * parts as u64 };
        let longest = &longest[..found.examples.min(longest.len())];
        needed = bytes_of_step(model, longest.iter().map(|example| lengths[*example]), config, place);
        if memory.is_none_or(|memory| needed <= memory) && (place == Place::Cpu || works(model, set, longest, config)?)
        {
            return Ok(found);
        }
    }
    Err(BatchSizeError::NothingFits { needed, left: memory.unwrap_or(0) })
}

/// What a step over examples of such lengths takes beside the model.
fn bytes_of_step<M: LanguageModel>(
    model: &M,
    lengths: impl ExactSizeIterator<Item = [usize; 2]> + Clone,
    config: &TrainConfig,
    place: Place,
) -> u64 {
    let rows = lengths.len();
    let tokens = |part: usize| {
        let of = lengths.clone().map(|lengths| lengths[part]);
        match place {
            Place::Cpu => of.sum::<usize>().div_ceil(rows),
            Place::Gpu => of.max().unwrap_or(0),
        }
    };
    let gradient_checkpointing = config.gradient_checkpointing;
    let batch = BatchShape { rows, prompt: tokens(0), target: tokens(1), gradient_checkpointing };
    let plan = plan_training(model, None, batch, place);
    plan.optimizer + plan.activations + plan.workspace
}

/// Whether the device has the memory for a step over these examples.
fn works<M: LanguageModel>(
    model: &M,
    set: &TokenizedSet,
    examples: &[usize],
    config: &TrainConfig,
) -> Result<bool, TrainError> {
    let batch = set.batch(examples).map_err(|source| TrainError::Step { step: 0, source: source.into() })?;
    match Run::begin(model, config)?.step(&mut model.clone(), &[batch], &M::token_losses) {
        Ok(_) => Ok(true),
        Err(TrainError::OutOfMemory { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many bytes a GPU has beside those in use, where its backend says.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
fn left_on_gpu(device: &Device) -> Option<u64> {
    let taken = device.memory_pool_usage().map_or(0, |usage| usage.bytes_in_use);
    Some(sideburn_kernels::device_memory(device)?.saturating_sub(taken))
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda")))]
fn left_on_gpu(_: &Device) -> Option<u64> {
    None
}
