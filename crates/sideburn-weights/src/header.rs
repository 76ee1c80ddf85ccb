//! The header of a safetensors file: the JSON object that says where each tensor lies.
//!
//! The format is that of <https://github.com/huggingface/safetensors>: eight bytes of header length (little-endian),
//! the header, the tensors end to end. The reference parser keeps the last of two equal keys and, when it writes,
//! orders metadata by a random hash; both matter here, so the object is read and written by this module and the
//! reference supplies the dtypes and the entry format. What is written is byte for byte what the reference writes
//! when there is at most one metadata key.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo as RawInfo;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};

use crate::error::WeightsError;
use crate::unique_map::UniqueMap;

/// The cap on a header's length, in bytes: that of the reference implementation.
pub(crate) const MAX_HEADER: u64 = 100_000_000;
/// The size of the length that stands before the header, in bytes.
pub(crate) const LENGTH_BYTES: u64 = 8;
const METADATA_KEY: &str = "__metadata__";

/// What the header says about a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type of one element.
    pub dtype: Dtype,
    /// The size of each dimension, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The number of elements. The product cannot overflow for a tensor that was read from a file.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of bytes, which is as safe.
    pub fn num_bytes(&self) -> usize {
        self.num_elements() * self.dtype.bitsize() / 8
    }
}

/// A tensor's description and its byte range, counted from the first byte after the header.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    pub(crate) range: Range<usize>,
}

/// A parsed and validated header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) metadata: HashMap<String, String>,
    /// The size of all tensors together, in bytes.
    pub(crate) data_len: usize,
}

impl Header {
    /// Parses the JSON text `json` of the file at `path`, which is used in messages only.
    pub(crate) fn parse(json: &[u8], path: &Path) -> Result<Self, WeightsError> {
        let bad = |detail: String| WeightsError::BadHeader { path: path.to_owned(), detail };
        let json = std::str::from_utf8(json).map_err(|e| bad(e.to_string()))?;
        let raw: RawHeader = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;

        let mut keys = raw.tensors.duplicates;
        keys.extend(raw.metadata.duplicates.into_iter().map(|key| format!("{METADATA_KEY}.{key}")));
        if !keys.is_empty() {
            keys.sort_unstable();
            keys.dedup();
            return Err(WeightsError::DuplicateKeys { path: path.to_owned(), keys });
        }
        let data_len = check_layout(&raw.tensors.entries, path)?;
        let tensors = raw.tensors.entries.into_iter().map(|(name, raw)| {
            let info = TensorInfo { dtype: raw.dtype, shape: raw.shape };
            (name, Entry { info, range: raw.data_offsets.0..raw.data_offsets.1 })
        });
        Ok(Self { tensors: tensors.collect(), metadata: raw.metadata.entries.into_iter().collect(), data_len })
    }
}

/// The size of a tensor in bytes, or what is wrong with its shape.
pub(crate) fn byte_len(dtype: Dtype, shape: &[usize]) -> Result<usize, &'static str> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("the shape's product overflows")?;
    let bits = elements.checked_mul(dtype.bitsize()).ok_or("the size in bits overflows")?;
    if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err("the size is not a whole number of bytes") }
}

/// Checks that the tensors lie end to end from byte 0, each as large as its shape says; returns where they end.
fn check_layout(tensors: &BTreeMap<String, RawInfo>, path: &Path) -> Result<usize, WeightsError> {
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, info)| info.data_offsets);
    let (mut start, mut before) = (0, "the start of the data".to_owned());
    for (name, info) in by_offset {
        let fail = |detail| WeightsError::TensorLayout { path: path.to_owned(), tensor: name.clone(), detail };
        let (from, to) = info.data_offsets;
        if from < start {
            return Err(fail(format!("begins at byte {from} and overlaps {before}, which ends at byte {start}")));
        }
        if from > start {
            return Err(fail(format!("begins at byte {from} and leaves a hole after {before}, at byte {start}")));
        }
        let expected = byte_len(info.dtype, &info.shape)
            .map_err(|why| fail(format!("{:?} of shape {:?}: {why}", info.dtype, info.shape)))?;
        if to.checked_sub(from) != Some(expected) {
            return Err(fail(format!(
                "{:?} of shape {:?} takes {expected} bytes, its offsets are {from} to {to}",
                info.dtype, info.shape
            )));
        }
        (start, before) = (to, format!("tensor {name:?}"));
    }
    Ok(start)
}

/// The header as the JSON has it, nothing checked.
struct RawHeader {
    tensors: UniqueMap<RawInfo>,
    metadata: UniqueMap<String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let (mut tensors, mut metadata) = (UniqueMap::default(), None);
                while let Some(key) = access.next_key::<String>()? {
                    let place = |e: A::Error| A::Error::custom(format!("key {key:?}: {e}"));
                    if key == METADATA_KEY {
                        let value = access.next_value::<Option<UniqueMap<String>>>().map_err(place)?;
                        if metadata.replace(value.unwrap_or_default()).is_some() {
                            tensors.duplicates.push(key);
                        }
                    } else {
                        let value = access.next_value().map_err(place)?;
                        tensors.insert(key, value);
                    }
                }
                Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Writes a header, its length in front, for tensors (name, dtype, shape, size in bytes) in the order in which their
/// bytes will follow. That names are unique is for the caller to see to. The error, as text, is of a header longer
/// than readers accept.
pub(crate) fn encode<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], usize)>,
    metadata: Option<&HashMap<String, String>>,
) -> Result<Vec<u8>, String> {
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut json);
    let written = (|| {
        let mut map = serializer.serialize_map(None)?;
        if let Some(metadata) = metadata {
            // Sorted: a HashMap would give other bytes in every process.
            map.serialize_entry(METADATA_KEY, &metadata.iter().collect::<BTreeMap<_, _>>())?;
        }
        let mut start = 0;
        for (name, dtype, shape, len) in tensors {
            let data_offsets = (start, start + len);
            map.serialize_entry(name, &RawInfo { dtype, shape: shape.to_vec(), data_offsets })?;
            start += len;
        }
        map.end()
    })();
    written.map_err(|e: serde_json::Error| e.to_string())?;

    // Eight-byte alignment of the data, as the reference pads.
    json.resize(json.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    let len = json.len() as u64;
    if len > MAX_HEADER {
        return Err(format!("the header would take {len} bytes, more than the limit of {MAX_HEADER}"));
    }
    Ok([len.to_le_bytes().as_slice(), &json].concat())
}

/// Whether a tensor may have that name.
pub(crate) fn is_reserved(name: &str) -> bool {
    name == METADATA_KEY
}
