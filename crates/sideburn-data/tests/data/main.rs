//! From files to batches.

mod dialogsum;
mod outside;
mod sample_assets;
mod tokenizing;
mod whole_data;
