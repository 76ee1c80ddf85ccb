//! Pickles of state dicts, read and never run.
//!
//! A pickle is a program for a stack machine: it names Python objects (globals) and calls them. The [`machine`] here has
//! no Python behind it. It builds plain values, and of all globals it knows an empty `collections.OrderedDict`,
//! `torch._utils._rebuild_tensor_v2`, `torch._utils._rebuild_parameter` and the storage types of PyTorch, each as a
//! tag. There is nothing to call: what a tensor is made from is noted, and everything else is refused by its name.
//!
//! The opcodes are described in CPython's `Lib/pickletools.py`; what PyTorch writes with them, in
//! `torch/serialization.py` (persistent ids of storages) and `torch/_utils.py` (the functions named above).
//!
//! Values that contain others lie in one vector and name each other by position. So sharing and cycles cost nothing,
//! and neither reading nor dropping a deep nest recurses.

mod machine;
mod op;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use self::machine::{Fault, Machine};
use crate::error::WeightsError;

/// The cap on the size of a pickle, in bytes. PyTorch needs about 170 for each tensor.
pub(crate) const MAX_PICKLE: usize = 16 << 20;

/// A value as it lies on the stack.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    None,
    Bool,
    Int(i128),
    Float,
    Str(&'a str),
    Global(Global),
    /// A position in the vector of objects.
    Object(usize),
}

/// The globals that are known.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// A value that holds others.
#[derive(Debug)]
enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict { ordered: bool, entries: Vec<(Value<'a>, Value<'a>)> },
    Storage(Storage<'a>),
    Tensor(Box<View<'a>>),
}

/// A run of elements that lies outside the pickle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) key: &'a str,
    /// The number of elements.
    pub(crate) numel: usize,
}

/// A tensor as the pickle describes it: nothing of it is checked against its storage.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) storage: Storage<'a>,
    /// The position of the first element in the storage, in elements.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// The distance to the next index of each dimension, in elements.
    pub(crate) strides: Vec<usize>,
}

/// What one pickle has built.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    root: Value<'a>,
    objects: Vec<Object<'a>>,
    /// The position after the pickle, in bytes from the start of the data.
    pub(crate) end: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that begins at byte `start` of `data`. `path` is used in messages only.
    pub(crate) fn read(data: &'a [u8], start: usize, path: &Path) -> Result<Self, WeightsError> {
        let mut machine = Machine::new(data, start);
        match (machine.run(), path.to_owned(), machine.opcode_at) {
            (Ok(root), ..) => Ok(Self { root, objects: machine.objects, end: machine.at }),
            (Err(Fault::Refused(found)), path, at) => Err(WeightsError::UnsafePickle { path, found, at }),
            (Err(Fault::Damaged(what)), path, at) => {
                Err(WeightsError::BadTorchFile { path, detail: format!("byte {at} of its pickle: {what}") })
            }
        }
    }

    /// The value, if it is an integer.
    pub(crate) fn int(&self) -> Option<i128> {
        if let Value::Int(int) = self.root { Some(int) } else { None }
    }

    /// The values, if it is a list of strings.
    pub(crate) fn strings(&self) -> Option<Vec<&'a str>> {
        let Value::Object(root) = self.root else { return None };
        let Object::List(items) = &self.objects[root] else { return None };
        items.iter().map(|item| if let Value::Str(text) = item { Some(*text) } else { None }).collect()
    }

    /// All storages that were named.
    pub(crate) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.objects
            .iter()
            .filter_map(|object| if let Object::Storage(storage) = object { Some(storage) } else { None })
    }

    /// The tensors, if it is a dict from strings to tensors. `path` is used in messages only.
    pub(crate) fn state_dict(&self, path: &Path) -> Result<BTreeMap<&'a str, &View<'a>>, WeightsError> {
        let refuse = |detail| Err(WeightsError::NotAStateDict { path: path.to_owned(), detail });
        let entries = match self.root {
            Value::Object(root) if let Object::Dict { entries, .. } = &self.objects[root] => entries,
            other => return refuse(format!("it holds {}", kind(other, &self.objects))),
        };
        let mut values = BTreeMap::new();
        for &(key, value) in entries {
            let Value::Str(key) = key else {
                return refuse(format!("it has {} for a key", kind(key, &self.objects)));
            };
            // At once, not in a list: a short pickle can repeat a long key a million times.
            if values.insert(key, value).is_some() {
                return refuse(format!("it has the key {key:?} twice"));
            }
        }
        let (mut tensors, mut others) = (BTreeMap::new(), Vec::new());
        for (key, value) in values {
            match value {
                Value::Object(at) if let Object::Tensor(view) = &self.objects[at] => {
                    tensors.insert(key, &**view);
                }
                other => others.push(format!("{key:?} ({})", kind(other, &self.objects))),
            }
        }
        if others.is_empty() { Ok(tensors) } else { refuse(format!("not tensors are {}", others.join(", "))) }
    }
}

/// What a value is, for messages.
fn kind(value: Value<'_>, objects: &[Object<'_>]) -> &'static str {
    match value {
        Value::None => "None",
        Value::Bool => "a bool",
        Value::Int(_) => "an int",
        Value::Float => "a float",
        Value::Str(_) => "a str",
        Value::Global(_) => "a class or function",
        Value::Object(at) => match &objects[at] {
            Object::Tuple(_) => "a tuple",
            Object::List(_) => "a list",
            Object::Dict { .. } => "a dict",
            Object::Storage(_) => "a storage",
            Object::Tensor(_) => "a tensor",
        },
    }
}
