//! From files to batches.

mod caching;
mod containers;
mod dialogsum;
mod forms;
mod outside;
mod own_files;
mod sample_assets;
mod tokenizing;
mod whole_data;
mod writing;
