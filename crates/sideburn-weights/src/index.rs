//! The index of a sharded model, `model.safetensors.index.json` or `pytorch_model.bin.index.json`: which tensor is in which file.
//!
//! The index comes from outside, and the files it names are opened. So a name must be a plain relative path.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::WeightsError;
use crate::unique_map::UniqueMap;

/// The index of a sharded model: which tensor is in which file. The name of every file has been checked: it is a plain relative
/// path, of a file that ends in `.safetensors`, or in `.bin` if the index is of those.
#[derive(Debug)]
pub struct ShardIndex {
    pub(crate) weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Parses the index text `json` of `path`, which is used in messages, and says by its name what shards are.
    ///
    /// # Errors
    /// [`BadIndex`](WeightsError::BadIndex) if it is none, [`DuplicateKeys`](WeightsError::DuplicateKeys), and
    /// [`UnsafeShardNames`](WeightsError::UnsafeShardNames) if a file must not be opened.
    pub fn parse(json: &[u8], path: &Path) -> Result<Self, WeightsError> {
        let bad = |detail: String| WeightsError::BadIndex { path: path.to_owned(), detail };
        let raw: RawIndex = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
        let mut maps = raw.weight_maps.into_iter();
        let map = maps.next().ok_or_else(|| bad("it has no \"weight_map\"".to_owned()))?;
        let mut keys = map.duplicates;
        if maps.next().is_some() {
            keys.push("weight_map".to_owned());
        }
        if !keys.is_empty() {
            keys.sort_unstable();
            keys.dedup();
            return Err(WeightsError::DuplicateKeys { path: path.to_owned(), keys });
        }
        if map.entries.is_empty() {
            return Err(bad("its \"weight_map\" is empty".to_owned()));
        }

        let index = Self { weight_map: map.entries };
        let names: Vec<_> = index
            .shards()
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), unsafe_name(name, ending(path))?)))
            .collect();
        if names.is_empty() { Ok(index) } else { Err(WeightsError::UnsafeShardNames { path: path.to_owned(), names }) }
    }

    /// The shards that the index names, each once, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// What the names of the shards of an index end in.
fn ending(index: &Path) -> &'static str {
    let is_torch = index.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".bin.index.json"));
    if is_torch { ".bin" } else { ".safetensors" }
}

/// Why a shard name is refused, or `None` if it is a plain relative path. The rules are those of all systems at once,
/// so that a model which loads on one loads on every other.
fn unsafe_name(name: &str, ending: &str) -> Option<String> {
    let why = if name.starts_with(['/', '\\']) {
        "an absolute path"
    } else if name.split(['/', '\\']).any(|part| part == "..") {
        "leaves the directory with `..`"
    } else if name.contains(['\\', ':']) {
        "has a backslash or a colon, which are separators on some systems"
    } else if name.chars().any(char::is_control) {
        "has a control character"
    } else if name.split('/').any(|part| part.is_empty() || part == ".") {
        "has an empty or `.` part"
    } else if !name.ends_with(ending) {
        return Some(format!("does not end in {ending}"));
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// The index as the JSON has it. Other keys (`metadata.total_size`, and what tools add) say nothing that the shards do
/// not, and are skipped.
struct RawIndex {
    weight_maps: Vec<UniqueMap<String>>,
}

impl<'de> Deserialize<'de> for RawIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawIndex;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object with a \"weight_map\"")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut weight_maps = Vec::new();
                while let Some(key) = access.next_key::<String>()? {
                    if key == "weight_map" {
                        weight_maps.push(access.next_value()?);
                    } else {
                        access.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(RawIndex { weight_maps })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["model-00001-of-00002.safetensors", "sub/m.safetensors", "..m.safetensors"] {
            assert_eq!(unsafe_name(name, ".safetensors"), None, "{name}");
        }
        assert_eq!(unsafe_name("pytorch_model-00001-of-00002.bin", ".bin"), None);
        assert_eq!(unsafe_name("m.safetensors", ".bin").unwrap(), "does not end in .bin");
        for (name, reason) in [
            ("/etc/m.safetensors", "absolute"),
            ("\\\\host\\m.safetensors", "absolute"),
            ("C:\\m.safetensors", "backslash or a colon"),
            ("C:m.safetensors", "colon"),
            ("../m.safetensors", ".."),
            ("sub/../../m.safetensors", ".."),
            ("sub\\..\\m.safetensors", ".."),
            ("./m.safetensors", "`.` part"),
            ("sub//m.safetensors", "empty"),
            ("", "empty"),
            ("m\0.safetensors", "control"),
            ("pytorch_model.bin", ".safetensors"),
        ] {
            let why = unsafe_name(name, ".safetensors");
            assert!(why.as_ref().is_some_and(|why| why.contains(reason)), "{name}: {why:?}");
        }
    }
}
