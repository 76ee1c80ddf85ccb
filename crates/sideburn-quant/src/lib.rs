//! Quantised weights as bitsandbytes has them, code for code: 4-bit NF4 and FP4 with double quantisation, LLM.int8(), 8-bit
//! dynamic blockwise quantisation.
//!
//! This crate does not know Burn. It quantises floats and gives them back, reads and writes the tensors that bitsandbytes
//! and `transformers` keep of a quantised weight, and reads the `quantization_config` of a `config.json`. The layers that
//! compute with packed weights are in `sideburn-kernels`.
//!
//! | type | bits a value, 4096 x 4096 | what a code stands for |
//! |---|---|---|
//! | [`FourBit`], blocks of 64 | 4.5 | one of 16 values, times the largest absolute value of its block |
//! | the same with double quantisation | 4.127 | the same; the largest absolute values have 8 bits |
//! | [`Int8`] | 8.008 | an integer, times the largest absolute value of its row, over 127 |
//!
//! "As bitsandbytes" is version 0.50 on the CPU. Its CUDA kernels give the same 4-bit codes but for values half way between
//! two; for the absmax of double quantisation they take the nearest code, where the CPU rounds to a table first.
//!
//! ```
//! use sideburn_quant::{Packed, Quantization};
//! use sideburn_weights::{SafetensorsFile, safetensors_bytes};
//!
//! let values: Vec<f32> = (0..256).map(|x| (x as f32).sin()).collect();
//! let packed = Packed::quantize("q.weight", &values, [4, 64], Quantization::NF4)?;
//! let file = safetensors_bytes("model.safetensors", packed.stored("q.weight"), None)?;
//!
//! let file = SafetensorsFile::from_bytes("model.safetensors", file)?;
//! assert!(Packed::is_stored(&file, "q.weight"));
//! assert_eq!(Packed::read(&file, "q.weight", [4, 64])?, packed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod blockwise;
mod code;
mod config;
mod error;
mod four_bit;
mod int8;
mod packed;
mod state;
mod values;

pub use blockwise::Blockwise;
pub use code::{BLOCK_SIZES, DynamicMap, QuantType};
pub use config::QuantizationConfig;
pub use error::QuantError;
pub use four_bit::{Absmax, FourBit};
pub use int8::{INT8_PRODUCT_SCALE, Int8, Int8Rows};
pub use packed::{Packed, Quantization};
pub use values::Values;
