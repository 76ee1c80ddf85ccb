//! Linear layers on a GPU: products are those of Burn, which tunes them, and what is around them is not worth a kernel.

use burn_cubecl::CubeBackend;

use crate::ops::linear::{LinearBackward, LinearOps};

impl LinearOps for CubeBackend {}
impl LinearBackward for CubeBackend {}
