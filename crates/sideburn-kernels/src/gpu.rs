//! The CubeCL backends: every operation is composed of primitives, which Burn's fusion turns into few kernels.

use burn_cubecl::CubeBackend;

use crate::ops::FusedOps;

impl FusedOps for CubeBackend {}
