//! The CubeCL backends: every operation is composed of primitives, which Burn's fusion turns into few kernels.

use burn_cubecl::CubeBackend;

use crate::adamw::OptimizerOps;
use crate::attention::AttentionOps;
use crate::dropout::DropoutOps;
use crate::embedding::EmbeddingOps;
use crate::gate::GateOps;
use crate::linear::LinearOps;
use crate::loss::LossOps;
use crate::norm::NormOps;

impl AttentionOps for CubeBackend {}
impl DropoutOps for CubeBackend {}
impl EmbeddingOps for CubeBackend {}
impl GateOps for CubeBackend {}
impl LinearOps for CubeBackend {}
impl LossOps for CubeBackend {}
impl NormOps for CubeBackend {}
impl OptimizerOps for CubeBackend {}
