//! Rotary positions on a GPU: composed of Burn's primitives.

use burn_cubecl::CubeBackend;

use crate::ops::rotary::RotaryKernels;

impl RotaryKernels for CubeBackend {}
