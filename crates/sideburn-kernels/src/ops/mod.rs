//! The operations: each a function on tensors, a backend trait whose defaults are composed of Burn's primitives, and the
//! backward pass.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gate;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod many;
pub(crate) mod norm;
