//! A JSON object read without losing keys: serde's maps keep the last of two equal keys, so a file could show one
//! tensor to one reader and another tensor to the next.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// The entries of a JSON object, and the keys that came more than once (a key that came thrice may be there twice).
#[derive(Debug)]
pub(crate) struct UniqueMap<V> {
    pub(crate) entries: BTreeMap<String, V>,
    pub(crate) duplicates: Vec<String>,
}

impl<V> Default for UniqueMap<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), duplicates: Vec::new() }
    }
}

impl<V> UniqueMap<V> {
    /// Adds an entry, or notes its key as a duplicate.
    pub(crate) fn insert(&mut self, key: String, value: V) {
        match self.entries.entry(key) {
            Entry::Vacant(free) => {
                free.insert(value);
            }
            Entry::Occupied(taken) => self.duplicates.push(taken.key().clone()),
        }
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut map = UniqueMap::default();
                while let Some(key) = access.next_key::<String>()? {
                    let value =
                        access.next_value().map_err(|e: A::Error| A::Error::custom(format!("key {key:?}: {e}")))?;
                    map.insert(key, value);
                }
                Ok(map)
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}
