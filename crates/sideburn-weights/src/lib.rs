//! Weights on disk: strict, streaming reading of safetensors files, sharded Hugging Face model directories and PyTorch
//! state dicts, and atomic writing.
//!
//! This crate does not know Burn. A [`Tensor`] is a dtype, a shape and little-endian bytes; whoever builds a model
//! turns it into parameters.
//!
//! * [`TensorSource`] is anything that holds named tensors and reads them one by one. Models are filled from one:
//!   * [`ModelFiles`] is a model directory (or a single file): one namespace of tensors, whatever the format and the sharding.
//!   * [`SafetensorsFile`] is one file. Opening it reads the header alone; [`read`](TensorSource::read) reads the bytes
//!     of one tensor. Nothing is memory-mapped, so a file that shrinks under a reader is an error and not a crash.
//!   * [`TorchFile`] is one file of `torch.save` (`.bin`, `.pt`) that holds a state dict.
//!   * [`StateDict`] is whichever of the two a directory has under one name.
//! * [`ReadAt`] is what the bytes of a file may come from: a disk, memory, ranges of something remote.
//! * [`write_safetensors`] never leaves a half-written file under its final name, nor does [`write_safetensors_lazily`], which makes one
//!   tensor after the other.
//!
//! Reading is strict. A file that is one byte too short or too long, a key that appears twice, a tensor that two
//! shards claim, an index that names a file outside its directory: each is a [`WeightsError`] that says which file,
//! which tensor, what was expected, what was found and what to do. Pickles are never run: [`TorchFile`] reads plain tensors out
//! of them and refuses the rest.
//!
//! Without the default feature `fs` no path is ever opened: what is left reads bytes and [`ReadAt`], as in a browser,
//! and needs no clock, no threads and no file system.
//!
//! ```
//! use sideburn_weights::{Dtype, ModelFiles, Tensor, TensorSource, write_safetensors};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let weight = Tensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0])?;
//! write_safetensors(dir.join("model.safetensors"), [("weight", weight.to_bf16()?)], None)?;
//!
//! let model = ModelFiles::open(dir)?;
//! let info = model.info("weight").expect("just written");
//! assert_eq!((info.dtype, info.shape.as_slice()), (Dtype::BF16, [2, 2].as_slice()));
//! assert_eq!(model.read_f32("weight")?, [1.0, 2.0, 3.0, 4.0]);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "fs")]
mod directory;
mod error;
mod header;
mod index;
mod model_files;
mod pickle;
mod read_at;
#[cfg(feature = "fs")]
mod regular_file;
mod safetensors_file;
mod serialize;
mod source;
mod state_dict;
mod tensor;
mod torch_file;
mod unique_map;
#[cfg(feature = "fs")]
mod write;

pub use error::WeightsError;
pub use header::TensorInfo;
pub use index::ShardIndex;
pub use model_files::ModelFiles;
pub use read_at::ReadAt;
pub use safetensors::Dtype;
pub use safetensors_file::{SafetensorsFile, bytes_read};
pub use serialize::safetensors_bytes;
pub use source::TensorSource;
pub use state_dict::StateDict;
pub use tensor::Tensor;
pub use torch_file::TorchFile;
#[cfg(feature = "fs")]
pub use write::{write_safetensors, write_safetensors_lazily};
