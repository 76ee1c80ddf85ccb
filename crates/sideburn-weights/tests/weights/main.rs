//! Files and directories of weights: what is read, what is refused, what is written.

mod files;
mod model_files;
mod sources;
mod state_dict;
mod torch_file;
mod without_files;
