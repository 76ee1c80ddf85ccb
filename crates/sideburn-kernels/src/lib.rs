//! Fused differentiable operations for transformer fine-tuning on [Burn](burn).
//!
//! Burn differentiates one primitive at a time, and its tape keeps an input or an output of each. The operations here
//! have a backward pass of their own that keeps less and recomputes the rest:
//!
//! | operation | kept for the backward pass | composed of primitives, Burn would keep |
//! |---|---|---|
//! | [`dropout`] | nothing: the mask is drawn again from its [`Key`] | the mask, as floats |
//! | [`low_rank`] | `x`, `A`, `B` (shared, not copied) | also `dropout(x)`, its mask and `dropout(x) A^T` |
//! | [`rms_norm`] | `x`, `weight` | three tensors of the size of `x` |
//! | [`gelu_gate`] | `gate`, `up` | nine tensors of the size of `gate` |
//! | [`attention`] | `q`, `k`, `v`, the weights before dropout | five tensors of the size of the scores |
//! | [`cross_entropy`] | `logits`, `labels` | also the log-softmax |
//!
//! On [`Device::flex`](burn::tensor::Device::flex) the elementwise parts and reductions are one pass over memory, parallel
//! over rows, and products are Burn's; on the CubeCL backends (`wgpu`, `vulkan`, `metal`, `cuda`) each operation is composed
//! of Burn's primitives, which Burn fuses.
//!
//! On the CPU a mask is a pure function of its [`Key`]. On the CubeCL backends it is drawn from Burn's generator, which is
//! seeded with the key each time: train with one thread in a process there, or the masks of two threads may mix.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use sideburn_kernels::{Key, dropout};
//!
//! let device = Device::flex().autodiff();
//! let x = Tensor::<2>::ones([4, 8], &device).require_grad();
//! let y = dropout(x.clone(), 0.25, Key::from_seed(7));
//! let gradient = x.grad(&y.clone().sum().backward()).unwrap();
//! // The same elements were dropped in both directions, and the others scaled by 1 / (1 - 0.25).
//! gradient.into_data().assert_eq(&y.into_data(), false);
//! ```

mod api;
mod autodiff;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "gpu")]
mod gpu;
mod ops;
mod reference;
mod row_layout;

pub use api::{attention, cross_entropy, dropout, gelu_gate, low_rank, rms_norm};
pub use row_layout::RowLayout;
pub use sideburn_batch::Key;
