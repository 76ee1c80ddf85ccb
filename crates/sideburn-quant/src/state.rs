//! The tensors that bitsandbytes keeps of a quantised weight in a file.
//!
//! Of 4 bits, for the weight `q.weight`: the codes under that name, `q.weight.absmax`, `q.weight.quant_map`, with double
//! quantisation `q.weight.nested_absmax` and `q.weight.nested_quant_map`, and `q.weight.quant_state.bitsandbytes__nf4` (or
//! `fp4`), a JSON object as bytes (`QuantState.as_dict` of bitsandbytes' `functional.py`). Of 8 bits: the integers, `q.SCB`,
//! and `q.weight_format`, which is 0 (`Linear8bitLt._save_to_state_dict` of `nn/modules.py`).

use std::fmt::Display;

use serde::Deserialize;
use sideburn_weights::{Dtype, Tensor, TensorSource};

use crate::blockwise::Blockwise;
use crate::code::QuantType;
use crate::error::QuantError;
use crate::four_bit::{Absmax, FourBit, check_block_size};
use crate::int8::Int8;
use crate::packed::Packed;

const QUANT_STATE: &str = ".quant_state.bitsandbytes__";
/// `{}` of a 4-bit weight is followed by these.
const FOUR_BIT_PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
/// And the name of an 8-bit weight without `weight` by these.
const INT8_PARTS: [&str; 2] = ["SCB", "weight_format"];

/// The bytes of a `quant_state` that is read; those of bitsandbytes have fewer than 200.
const LARGEST_QUANT_STATE: usize = 1 << 16;

/// What `quant_state` says.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    #[serde(default)]
    dtype: Option<String>,
    #[serde(default)]
    nested_blocksize: Option<usize>,
    #[serde(default)]
    nested_offset: Option<f64>,
}

impl Packed {
    /// Whether `source` holds the weight `name` quantised: as integers, or with a state beside it.
    pub fn is_stored(source: &dyn TensorSource, name: &str) -> bool {
        let is_integer = source.info(name).is_some_and(|info| matches!(info.dtype, Dtype::I8 | Dtype::U8));
        is_integer || quant_types(source, name).next().is_some()
    }

    /// The names of the tensors beside `name` that `source` has of a quantised weight of that name.
    pub fn stored_beside(source: &dyn TensorSource, name: &str) -> Vec<String> {
        let states = QuantType::ALL.map(|quant_type| format!("{name}{QUANT_STATE}{quant_type}"));
        let parts = FOUR_BIT_PARTS.map(|part| format!("{name}{part}"));
        let layer = name.strip_suffix("weight").map(|layer| INT8_PARTS.map(|part| format!("{layer}{part}")));
        let all = states.into_iter().chain(parts).chain(layer.into_iter().flatten());
        all.filter(|name| source.contains(name)).collect()
    }

    /// Reads the quantised weight `name` of a matrix of this `shape`.
    ///
    /// # Errors
    /// If a part is missing, cannot be read, or contradicts the others or the shape; if a scale is not finite.
    pub fn read(source: &dyn TensorSource, name: &str, shape: [usize; 2]) -> Result<Self, QuantError> {
        let reader = Reader { source, name };
        let mut types = quant_types(source, name);
        match (types.next(), types.next()) {
            (None, _) if reader.is(Dtype::I8) => reader.int8(shape).map(Self::Int8),
            (None, _) => Err(reader.incomplete(&[&format!("{QUANT_STATE}nf4 (or fp4)")])),
            (Some(quant_type), None) => reader.four_bit(quant_type, shape).map(Self::FourBit),
            (Some(_), Some(_)) => {
                let error = reader.contradiction("quant_state", "there for nf4 and for fp4", "there once");
                Err(error)
            }
        }
    }

    /// The tensors that bitsandbytes would write for the weight `name`.
    pub fn stored(&self, name: &str) -> Vec<(String, Tensor)> {
        match self {
            Self::FourBit(matrix) => matrix.stored(name),
            Self::Int8(matrix) => matrix.stored(name),
        }
    }
}

/// The types for which there is a state beside the weight.
fn quant_types<'a>(source: &'a dyn TensorSource, name: &'a str) -> impl Iterator<Item = QuantType> + use<'a> {
    let is_there = move |quant_type: &QuantType| source.contains(&format!("{name}{QUANT_STATE}{quant_type}"));
    QuantType::ALL.into_iter().filter(is_there)
}

struct Reader<'a> {
    source: &'a dyn TensorSource,
    name: &'a str,
}

impl Reader<'_> {
    fn is(&self, dtype: Dtype) -> bool {
        self.source.info(self.name).is_some_and(|info| info.dtype == dtype)
    }

    fn contradiction(&self, part: impl Display, found: impl Display, expected: impl Display) -> QuantError {
        let detail = format!("{part} is {found}, expected {expected}");
        QuantError::Contradiction { path: self.source.path().to_owned(), tensor: self.name.to_owned(), detail }
    }

    fn incomplete(&self, parts: &[&str]) -> QuantError {
        let missing = parts.iter().map(|part| format!("{}{part}", self.name)).collect();
        QuantError::Incomplete { path: self.source.path().to_owned(), tensor: self.name.to_owned(), missing }
    }

    /// Reads floats that must be as many, and finite.
    fn floats(&self, name: &str, count: usize) -> Result<Vec<f32>, QuantError> {
        self.check_count(name, count)?;
        let floats = self.source.read_f32(name)?;
        match floats.iter().find(|x| !x.is_finite()) {
            None => Ok(floats),
            Some(found) => Err(self.contradiction(name, format!("{found} in one place"), "finite")),
        }
    }

    fn check_count(&self, name: &str, count: usize) -> Result<(), QuantError> {
        let info = self.source.info(name);
        match info.map(|info| info.num_elements()) {
            Some(found) if found != count => {
                Err(self.contradiction(name, format!("of {found} elements"), format!("{count} of them")))
            }
            _ => Ok(()),
        }
    }

    fn four_bit(&self, quant_type: QuantType, shape: [usize; 2]) -> Result<FourBit, QuantError> {
        let Self { source, name } = self;
        let state = self.quant_state(quant_type)?;
        if state.shape != shape {
            return Err(self.contradiction("`shape` of its state", format!("{:?}", state.shape), format!("{shape:?}")));
        }
        let block_size = state.blocksize;
        check_block_size(name, block_size)?;
        let dtype = match state.dtype.as_deref() {
            None | Some("float32") => Dtype::F32,
            Some("bfloat16") => Dtype::BF16,
            Some("float16") => Dtype::F16,
            Some(found) => {
                return Err(self.contradiction("`dtype` of its state", found, "float32, bfloat16 or float16"));
            }
        };

        let count = shape[0] * shape[1];
        let [absmax_name, map_name, nested_name, nested_map_name] = FOUR_BIT_PARTS.map(|part| format!("{name}{part}"));
        let missing: Vec<&str> =
            FOUR_BIT_PARTS[..2].iter().copied().filter(|part| !source.contains(&format!("{name}{part}"))).collect();
        if !missing.is_empty() {
            return Err(self.incomplete(&missing));
        }
        let map = self.floats(&map_name, 16)?;
        if map.iter().zip(quant_type.code()).any(|(found, expected)| (found - expected).abs() > 1e-6) {
            return Err(self.contradiction(map_name, format!("{map:?}"), format!("that of {quant_type}")));
        }

        let blocks = count.div_ceil(block_size);
        self.check_count(&absmax_name, blocks)?;
        let is_nested = source.info(&absmax_name).is_some_and(|info| info.dtype == Dtype::U8);
        let absmax = if is_nested {
            let missing: Vec<&str> =
                FOUR_BIT_PARTS[2..].iter().copied().filter(|part| !source.contains(&format!("{name}{part}"))).collect();
            if !missing.is_empty() {
                return Err(self.incomplete(&missing));
            }
            if state.nested_blocksize != Some(FourBit::NESTED_BLOCK_SIZE) {
                let found = state.nested_blocksize.map_or("absent".to_owned(), |found| found.to_string());
                return Err(self.contradiction("`nested_blocksize` of its state", found, FourBit::NESTED_BLOCK_SIZE));
            }
            let offset = match state.nested_offset.map(|offset| offset as f32) {
                Some(offset) if offset.is_finite() => offset,
                found => {
                    let found = found.map_or("absent".to_owned(), |found| found.to_string());
                    return Err(self.contradiction("`nested_offset` of its state", found, "a number"));
                }
            };
            let absmax = self.floats(&nested_name, blocks.div_ceil(FourBit::NESTED_BLOCK_SIZE))?;
            let code = self.floats(&nested_map_name, 256)?.try_into().expect("as many as were asked for");
            let codes = source.read(&absmax_name)?.into_bytes();
            let rest = Blockwise { codes, absmax, code: Box::new(code), block_size: FourBit::NESTED_BLOCK_SIZE };
            Absmax::Nested { rest, offset }
        } else {
            Absmax::Floats(self.floats(&absmax_name, blocks)?)
        };

        // Codes may be stored as wider numbers (`bnb_4bit_quant_storage`): the bytes are the same.
        let codes = source.read(name)?.into_bytes();
        if codes.len() != count.div_ceil(2) {
            let found = format!("{} bytes of codes", codes.len());
            return Err(self.contradiction("the weight", found, format!("{}, two codes a byte", count.div_ceil(2))));
        }
        Ok(FourBit { quant_type, block_size, shape, codes, absmax, dtype })
    }

    fn quant_state(&self, quant_type: QuantType) -> Result<QuantState, QuantError> {
        let name = format!("{}{QUANT_STATE}{quant_type}", self.name);
        let info = self.source.info(&name).expect("it has been looked for");
        if info.dtype != Dtype::U8 || info.num_elements() > LARGEST_QUANT_STATE {
            let found = format!("{} elements of {:?}", info.num_elements(), info.dtype);
            return Err(self.contradiction(name, found, "a JSON object as U8"));
        }
        let bytes = self.source.read(&name)?.into_bytes();
        let state: QuantState = serde_json::from_slice(&bytes)
            .map_err(|error| self.contradiction(&name, format!("no state ({error})"), "a JSON object as U8"))?;
        match QuantType::of_name(&state.quant_type) == Some(quant_type) {
            true => Ok(state),
            false => Err(self.contradiction("`quant_type` of its state", &state.quant_type, quant_type)),
        }
    }

    fn int8(&self, shape: [usize; 2]) -> Result<Int8, QuantError> {
        let Self { source, name } = self;
        let Some(layer) = name.strip_suffix("weight") else { return Err(self.incomplete(&[".SCB"])) };
        let [scb, format] = INT8_PARTS.map(|part| format!("{layer}{part}"));
        if !source.contains(&scb) {
            let (path, tensor) = (source.path().to_owned(), (*name).to_owned());
            return Err(QuantError::Incomplete { path, tensor, missing: vec![scb] });
        }
        if source.contains(&format) {
            let found = source.read(&format)?.into_bytes();
            if found.iter().any(|byte| *byte != 0) {
                return Err(self.contradiction(format, format!("{found:?}"), "0, the order of rows"));
            }
        }
        let found = &source.info(name).expect("it has been looked at").shape;
        if *found != shape {
            return Err(self.contradiction("its shape", format!("{found:?}"), format!("{shape:?}")));
        }
        let scb = self.floats(&scb, shape[0])?;
        let codes = source.read(name)?.into_bytes().into_iter().map(|byte| byte as i8).collect();
        Ok(Int8 { shape, codes, scb })
    }
}

/// A tensor whose bytes are as many as its shape says.
fn tensor(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Tensor {
    Tensor::new(dtype, shape, bytes).expect("as many bytes as the shape says")
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::from_f32(vec![values.len()], values).expect("as many values as the shape says")
}

fn bytes(values: &[u8]) -> Tensor {
    tensor(Dtype::U8, vec![values.len()], values.to_vec())
}

impl FourBit {
    fn stored(&self, name: &str) -> Vec<(String, Tensor)> {
        let Self { quant_type, block_size, shape: [rows, columns], codes, absmax, dtype } = self;
        let dtype = match dtype {
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
            _ => "float32",
        };
        let mut state = format!(
            r#"{{"quant_type": "{quant_type}", "blocksize": {block_size}, "dtype": "{dtype}", "shape": [{rows}, {columns}]"#
        );
        let [absmax_name, map_name, nested_name, nested_map_name] = FOUR_BIT_PARTS.map(|part| format!("{name}{part}"));
        let mut tensors = vec![
            (name.to_owned(), tensor(Dtype::U8, vec![codes.len(), 1], codes.clone())),
            (map_name, floats(quant_type.code())),
        ];
        match absmax {
            Absmax::Floats(absmax) => tensors.push((absmax_name, floats(absmax))),
            Absmax::Nested { rest, offset } => {
                let offset = f64::from(*offset);
                state += &format!(
                    r#", "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {offset:?}"#,
                    rest.block_size
                );
                tensors.extend([
                    (absmax_name, bytes(&rest.codes)),
                    (nested_name, floats(&rest.absmax)),
                    (nested_map_name, floats(rest.code.as_slice())),
                ]);
            }
        }
        state.push('}');
        tensors.push((format!("{name}{QUANT_STATE}{quant_type}"), bytes(state.as_bytes())));
        tensors
    }

    /// The same, made from a weight that was stored in this dtype, which is told in the state.
    pub fn with_dtype(self, dtype: Dtype) -> Self {
        Self { dtype, ..self }
    }
}

impl Int8 {
    fn stored(&self, name: &str) -> Vec<(String, Tensor)> {
        let [scb, format] = INT8_PARTS.map(|part| format!("{}{part}", name.strip_suffix("weight").unwrap_or(name)));
        let codes = self.codes.iter().map(|code| *code as u8).collect();
        vec![
            (name.to_owned(), tensor(Dtype::I8, self.shape.to_vec(), codes)),
            (scb, floats(&self.scb)),
            (format, tensor(Dtype::U8, Vec::new(), vec![0])),
        ]
    }
}
