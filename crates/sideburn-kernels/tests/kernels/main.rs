//! The operations against plain loops in `f64`, on the CPU and on a GPU.

#[cfg(feature = "flex")]
mod against_loops;
#[cfg(feature = "flex")]
mod cases;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod draws;
#[cfg(all(feature = "flex", any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda")))]
mod gpu;
#[cfg(feature = "flex")]
mod inputs;
#[cfg(all(feature = "wgpu", target_os = "linux"))]
mod kept_kernels;
#[cfg(feature = "flex")]
mod layers;
mod loops;
#[cfg(feature = "flex")]
mod optimizer;
#[cfg(feature = "flex")]
mod outside;
#[cfg(feature = "flex")]
mod packed;
