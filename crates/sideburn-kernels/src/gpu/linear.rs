//! Linear layers on a GPU: products are those of Burn, which tunes them, and what is around them is not worth a kernel.

use burn_cubecl::CubeBackend;

use crate::ops::linear::LinearKernels;

impl LinearKernels for CubeBackend {}
