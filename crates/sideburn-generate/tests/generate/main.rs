//! Generation over decoders that write by script, and strategies, processors and criteria from outside.

mod config;
mod outside;
mod rows;
mod script;
