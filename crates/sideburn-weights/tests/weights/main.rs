//! Files and directories of weights: what is read, what is refused, what is written.

mod checkpoints;
mod directories;
mod files;
mod state_dict;
mod torch_file;
