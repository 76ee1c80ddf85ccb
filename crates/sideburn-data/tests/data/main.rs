//! From files to batches.

mod dialogsum;
mod forms;
mod outside;
mod sample_assets;
mod tokenizing;
mod whole_data;
