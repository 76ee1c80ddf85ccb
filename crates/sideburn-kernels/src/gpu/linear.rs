//! Linear layers on a GPU: composed of products, and what is around them is not worth a kernel.

use burn_cubecl::CubeBackend;

use crate::ops::linear::LinearKernels;

impl LinearKernels for CubeBackend {}
