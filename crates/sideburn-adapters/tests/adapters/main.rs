//! The adapters crate, over a Burn module and a decoder of its own.

mod burn_modules;
mod decoder_only;
