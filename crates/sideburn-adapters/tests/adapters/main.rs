//! The adapters crate, over a Burn module and models of its own.

mod burn_modules;
mod decoder_only;
mod outside;
mod torch_random;
