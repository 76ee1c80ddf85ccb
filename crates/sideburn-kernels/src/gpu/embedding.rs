//! Rows of a table on a GPU: those of Burn.

use burn_cubecl::CubeBackend;

use crate::ops::embedding::EmbeddingKernels;

impl EmbeddingKernels for CubeBackend {}
