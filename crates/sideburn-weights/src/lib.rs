//! Weights on disk: strict, streaming reading of safetensors files, sharded Hugging Face model directories and PyTorch
//! state dicts, and atomic writing.
//!
//! This crate does not know Burn. A [`Tensor`] is a dtype, a shape and little-endian bytes; whoever builds a model
//! turns it into parameters.
//!
//! * [`Checkpoint`] is a model directory (or a single file): one namespace of tensors, whatever the sharding.
//! * [`SafetensorsFile`] is one file. Opening it reads the header alone; [`SafetensorsFile::read`] reads the bytes of
//!   one tensor. Nothing is memory-mapped, so a file that shrinks under a reader is an error and not a crash.
//! * [`TorchFile`] is one file of `torch.save` (`.bin`, `.pt`) that holds a state dict.
//! * [`StateDict`] is whichever of the two a directory has under one name.
//! * [`write_safetensors`], [`write_atomic`] and [`AtomicDir`] never leave a half-written file under its final name.
//!
//! Reading is strict. A file that is one byte too short or too long, a key that appears twice, a tensor that two
//! shards claim, an index that names a file outside its directory: each is a [`WeightsError`] that says which file,
//! which tensor, what was expected, what was found and what to do. Pickles are never run: [`Checkpoint`] does not open
//! them, and [`TorchFile`] reads plain tensors out of them and refuses the rest.
//!
//! ```
//! use sideburn_weights::{Checkpoint, Dtype, Tensor, write_safetensors};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let weight = Tensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0])?;
//! write_safetensors(dir.join("model.safetensors"), [("weight", weight.to_bf16()?)], None)?;
//!
//! let model = Checkpoint::open(dir)?;
//! let info = model.info("weight").expect("just written");
//! assert_eq!((info.dtype, info.shape.as_slice()), (Dtype::BF16, [2, 2].as_slice()));
//! assert_eq!(model.read_f32("weight")?, [1.0, 2.0, 3.0, 4.0]);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod atomic_dir;
mod atomic_file;
mod checkpoint;
mod error;
mod file;
mod header;
mod index;
mod pickle;
mod state_dict;
mod tensor;
mod torch_file;
mod unique_map;

pub use atomic_dir::{AtomicDir, check_writable};
pub use atomic_file::{write_atomic, write_safetensors};
pub use checkpoint::Checkpoint;
pub use error::WeightsError;
pub use file::SafetensorsFile;
pub use header::TensorInfo;
pub use safetensors::Dtype;
pub use state_dict::StateDict;
pub use tensor::Tensor;
pub use torch_file::TorchFile;
