//! The blocks, and a family of models built of them from outside.

mod blocks;
mod outside;
mod processors;
mod tiny;
