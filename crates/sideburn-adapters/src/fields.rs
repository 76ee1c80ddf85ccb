//! Reading `adapter_config.json`, field by field.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sideburn_files::{MAX_CONFIG, read_text};

use crate::AdapterError;

/// Fields with the JSON of their values, as a map.
macro_rules! fields {
    ($($name:literal: $value:expr),* $(,)?) => {
        serde_json::Map::from_iter([$(($name.to_owned(), serde_json::json!($value))),*])
    };
}
pub(crate) use fields;

/// The text of a configuration, and what it says.
///
/// # Errors
/// If the file cannot be read or is not JSON; it is named.
pub(crate) fn read_json(path: &Path) -> Result<(String, Value), AdapterError> {
    let text = read_text(path, MAX_CONFIG)?;
    match serde_json::from_str(&text) {
        Ok(value) => Ok((text, value)),
        Err(error) => Err(AdapterError::UnreadableConfig { path: path.to_owned(), message: error.to_string() }),
    }
}

/// The fields of an `adapter_config.json`, which remembers what has been read.
///
/// PEFT adds fields with every release. Those that nobody read pass while they hold a neutral value (null, false, or
/// empty), or say nothing of the result; any other might change what the adapter computes, and is refused by
/// [`finish`](Self::finish).
#[derive(Debug)]
pub struct Fields<'a> {
    fields: &'a Map<String, Value>,
    read: RefCell<BTreeSet<&'static str>>,
}

/// Fields that say something about the file or its origin, but nothing about the result.
pub(crate) const DESCRIPTIVE: [&str; 9] = [
    "peft_type",
    "inference_mode",
    "auto_mapping",
    "revision",
    "peft_version",
    "megatron_core",
    "merge_weights", // Of releases before 0.3: whether evaluation merges.
    "qalora_group_size",
    "runtime_config",
];

impl<'a> Fields<'a> {
    /// The fields of a parsed file.
    ///
    /// # Errors
    /// If it is not an object.
    pub fn new(value: &'a Value) -> Result<Self, AdapterError> {
        let fields = value.as_object().ok_or_else(|| AdapterError::InvalidField {
            field: "(the whole file)",
            found: kind(value).to_owned(),
            expected: "a JSON object",
        })?;
        Ok(Self { fields, read: RefCell::default() })
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// If it is not, or is null or ill-typed.
    pub fn required<T: DeserializeOwned>(&self, name: &'static str, expected: &'static str) -> Result<T, AdapterError> {
        self.optional(name, expected)?.ok_or_else(|| AdapterError::InvalidField {
            field: name,
            found: "nothing".into(),
            expected,
        })
    }

    /// A field that may be absent or null.
    ///
    /// # Errors
    /// If it is ill-typed.
    pub fn optional<T: DeserializeOwned>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, AdapterError> {
        self.read.borrow_mut().insert(name);
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|_| AdapterError::InvalidField {
                field: name,
                found: value.to_string(),
                expected,
            }),
        }
    }

    /// A switch, off if absent.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub fn flag(&self, name: &'static str) -> Result<bool, AdapterError> {
        Ok(self.optional(name, "true or false")?.unwrap_or(false))
    }

    /// A field that has this value if it is there.
    ///
    /// # Errors
    /// If it has another.
    pub fn only(&self, name: &'static str, value: impl Into<Value>) -> Result<(), AdapterError> {
        match self.value(name) {
            Some(found) if !found.is_null() && *found != value.into() => {
                Err(AdapterError::UnsupportedField { field: name.into(), value: found.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// A field whose value does not matter.
    pub fn ignore(&self, name: &'static str) {
        self.read.borrow_mut().insert(name);
    }

    /// The value of a field as it stands.
    pub fn value(&self, name: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(name);
        self.fields.get(name)
    }

    /// Refuses what nobody has read and might matter.
    ///
    /// # Errors
    /// If there is such a field; it is named.
    pub fn finish(self) -> Result<(), AdapterError> {
        let read = self.read.into_inner();
        for (field, value) in self.fields {
            let neutral = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Object(map) => map.is_empty(),
                Value::Array(list) => list.is_empty(),
                _ => false,
            };
            if !neutral && !read.contains(field.as_str()) && !DESCRIPTIVE.contains(&field.as_str()) {
                return Err(AdapterError::UnsupportedField { field: field.clone(), value: value.to_string() });
            }
        }
        Ok(())
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
