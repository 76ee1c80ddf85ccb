//! Fused differentiable operations for transformer fine-tuning on [Burn](burn).
//!
//! Burn differentiates one primitive at a time, and its tape keeps an input or an output of each. The operations here
//! have a backward pass of their own that keeps less and recomputes the rest:
//!
//! | operation | kept for the backward pass | composed of primitives, Burn would keep |
//! |---|---|---|
//! | [`embedding`] | the ids | the ids |
//! | [`dropout`], [`add_dropout`] | nothing: the mask is drawn again | the mask, as floats |
//! | [`linear`] | the weight; `x` only if the weight is trained | both |
//! | the same with a [`PackedMatrix`] | the weight as it is packed | `x` and the weight as floats |
//! | [`adapted_linears`], [`low_rank`] | `x`, `W`, `A`, `B` (shared, not copied) | also `dropout(x)`, its mask and `dropout(x) A^T` |
//! | [`rms_norm`] | `x`, `weight` | three tensors of the size of `x` |
//! | [`gelu_gate`] | `gate` and `up` | nine tensors of the size of `gate` |
//! | [`attention`], [`self_attention`] | `q`, `k`, `v`, the bias, the angles | five tensors of the size of the scores |
//! | [`rotary`] | the angles | six tensors of half the size of `x` |
//! | [`linear_cross_entropy`] | a gradient of the size of the hidden states | the logits, twice |
//!
//! On [`Device::flex`](burn::tensor::Device::flex) each is a kernel of this crate for `f32`. Products go through the
//! `gemm` crate, everything else through blocks that stay in cache, and results into memory that is used again. Neither
//! scores nor logits are ever in memory as a whole. On the CubeCL backends (`wgpu`, `vulkan`, `metal`, `cuda`) they are
//! kernels of this crate for `f32`, `f16` and `bf16`: one launch each, or two or three for some gradients. Linear layers are
//! composed of products there, and [`matmul`] says what those are. For other dtypes, and where a GPU cannot compile a kernel
//! ([`refused_kernels`]), each operation is composed of Burn's primitives, and [`set_kernel_mode`] chooses that form everywhere.
//!
//! A weight of a linear layer may be packed in 4 or 8 bits ([`PackedMatrix`]): on the CPU it is unpacked tile by tile on the
//! way into the product, in both directions, and for up to 16 rows never. On GPUs it is, too, in `f32`; for products by tensor
//! cores it is unpacked first.
//!
//! The mask of a [`Dropout`] is the same on every device, element for element.
//!
//! [`adamw_steps`] and [`norm`] are for optimisers: they work outside of autodiff, on many tensors at once.
//! [`adamw_8bit_step`] keeps the moments in 8 bits.
//!
//! An operation of another crate can have kernels and a backward pass, too: [`fused`] chooses between a kernel and its
//! composed form, `checked` sees to it that a GPU could compile it, and [`record`] puts an operation on autodiff's tape.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use sideburn_kernels::{Dropout, Key, dropout};
//!
//! let device = Device::flex().autodiff();
//! let x = Tensor::<2>::ones([4, 8], &device).require_grad();
//! let y = dropout(x.clone(), Dropout::new(0.25, Key::from_seed(7)));
//! let gradient = x.grad(&y.clone().sum().backward()).unwrap();
//! // The same elements were dropped in both directions, and the others scaled by 1 / (1 - 0.25).
//! gradient.into_data().assert_eq(&y.into_data(), false);
//! ```

#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "gpu")]
mod gpu;
mod ops;
mod runtime;

#[cfg(feature = "flex")]
pub use flex::instructions::{CpuInstructions, cpu_instructions};
#[cfg(feature = "gpu")]
pub use gpu::checked::{Outputs, checked};
pub use ops::adamw::{AdamWStep, AdamWUpdate, adamw_step, adamw_steps, adamw_undo, norm};
pub use ops::adamw_8bit::adamw_8bit_step;
pub use ops::attention::{Projections, Visibility, attention, self_attention};
pub use ops::dropout::{add_dropout, dropout};
pub use ops::embedding::embedding;
pub use ops::fused;
pub use ops::gate::gelu_gate;
pub use ops::linear::{LinearOp, LowRank, adapted_linear, adapted_linears, linear, low_rank};
pub use ops::loss::{cross_entropy, linear_cross_entropy};
pub use ops::many::AnyRank;
pub use ops::matmul::matmul;
pub use ops::matrix::Matrix;
pub use ops::moment_8bit::Moment8Bit;
pub use ops::norm::rms_norm;
pub use ops::packed::PackedMatrix;
pub use ops::rotary::rotary;
pub use ops::tape::{BackwardPass, record};
#[cfg(feature = "gpu")]
pub use runtime::compiled::keep_kernels;
#[cfg(feature = "gpu")]
pub use runtime::launches::{count_launches, device_memory};
#[cfg(feature = "flex")]
pub use runtime::memory::{MemoryUse, memory_use, release_memory};
pub use runtime::mode::{KernelMode, kernel_mode, set_kernel_mode};
pub use runtime::out_of_memory::OutOfMemory;
pub use runtime::precision::{MatmulPrecision, UnknownPrecision, matmul_precision, set_matmul_precision};
pub use runtime::profile::{ChromeEvents, Event, Span, record_profile, take_profile};
pub use runtime::refused::refused_kernels;
pub use runtime::row_layout::{RowLayout, is_cpu};
pub use runtime::vectorized::vectorized;
pub use runtime::workers::{elements, on_workers};
pub use sideburn_batch::{Dropout, Key};
