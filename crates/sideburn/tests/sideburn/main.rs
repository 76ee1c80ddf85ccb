//! The same model on every backend that is compiled in.

mod auto;
mod batch_size;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
mod gpu_parity;
mod half_precision;
mod texts;
