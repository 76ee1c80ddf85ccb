//! Rows of a table on a GPU: those of Burn.

use burn_cubecl::CubeBackend;

use crate::ops::embedding::EmbeddingOps;

impl EmbeddingOps for CubeBackend {}
