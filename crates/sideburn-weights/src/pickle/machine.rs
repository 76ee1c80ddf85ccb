//! The stack machine: it turns instructions into values, or says why not.

use std::collections::HashMap;

use safetensors::Dtype;

use super::{Global, Object, Storage, Value, View, kind, op};

/// The cap on executed instructions, and thereby on everything the machine can build: an instruction pushes, remembers
/// or makes one value at most. PyTorch needs about 30 for each tensor.
const MAX_INSTRUCTIONS: usize = 1 << 20;
/// The cap on the memory that values take: so many bytes, and so many for each byte of the data. PyTorch's pickles take
/// about 10 for each.
const MAX_BUILT: [usize; 2] = [16 << 20, 16];
/// The cap on the dimensions of a tensor, which is PyTorch's own. A million tensors may share one long shape.
const MAX_DIMS: usize = 64;
/// The cap on the name of a module or of a class, in bytes.
const MAX_NAME: usize = 255;

/// Module, name, and what stands for them.
const GLOBALS: [(&str, &str, Global); 13] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch", "DoubleStorage", Global::Storage(Dtype::F64)),
    ("torch", "FloatStorage", Global::Storage(Dtype::F32)),
    ("torch", "HalfStorage", Global::Storage(Dtype::F16)),
    ("torch", "BFloat16Storage", Global::Storage(Dtype::BF16)),
    ("torch", "LongStorage", Global::Storage(Dtype::I64)),
    ("torch", "IntStorage", Global::Storage(Dtype::I32)),
    ("torch", "ShortStorage", Global::Storage(Dtype::I16)),
    ("torch", "CharStorage", Global::Storage(Dtype::I8)),
    ("torch", "ByteStorage", Global::Storage(Dtype::U8)),
    ("torch", "BoolStorage", Global::Storage(Dtype::BOOL)),
];

/// Why the machine stopped.
pub(super) enum Fault {
    /// The pickle is valid and asks for something that is not known; by name.
    Refused(String),
    /// The pickle is not valid.
    Damaged(String),
}

fn damaged<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(what.into()))
}

fn refused<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Refused(what.into()))
}

pub(super) struct Machine<'a> {
    data: &'a [u8],
    /// The position of the instruction that is being executed.
    pub(super) opcode_at: usize,
    /// The position of the next byte.
    pub(super) at: usize,
    stack: Vec<Value<'a>>,
    /// The heights of the stack at which the open marks were set.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    pub(super) objects: Vec<Object<'a>>,
    /// How many bytes `memo` and `objects` take.
    built: usize,
}

impl<'a> Machine<'a> {
    /// A machine that is to run from byte `start` of `data`.
    pub(super) fn new(data: &'a [u8], start: usize) -> Self {
        let (stack, marks, memo, objects) = (Vec::new(), Vec::new(), HashMap::new(), Vec::new());
        Self { data, opcode_at: start, at: start, stack, marks, memo, objects, built: 0 }
    }

    /// Runs to the end of the pickle and returns its value.
    pub(super) fn run(&mut self) -> Result<Value<'a>, Fault> {
        let [least, ratio] = MAX_BUILT;
        let most = least + ratio * self.data.len();
        for _ in 0..MAX_INSTRUCTIONS {
            self.opcode_at = self.at;
            let opcode = self.byte()?;
            if opcode != op::STOP {
                self.execute(opcode)?;
                if self.built > most {
                    return damaged(format!("values of more than {most} bytes, the limit"));
                }
            } else if self.stack.len() == 1 && self.marks.is_empty() {
                return self.pop();
            } else {
                return damaged("the end, with more or less than one value on the stack");
            }
        }
        damaged(format!("more than {MAX_INSTRUCTIONS} instructions, the limit"))
    }

    /// Executes an instruction that leaves no new value, or has its value made.
    fn execute(&mut self, opcode: u8) -> Result<(), Fault> {
        match opcode {
            op::PROTO => match self.byte()? {
                2..=5 => {}
                version => return damaged(format!("protocol {version}, expected 2 to 5")),
            },
            op::FRAME => {
                let len = u64::from_le_bytes(self.array()?);
                if len > (self.data.len() - self.at) as u64 {
                    return damaged(format!("a frame of {len} bytes that goes on after the end"));
                }
            }
            op::MARK => self.marks.push(self.stack.len()),
            op::BINPUT => {
                let place = self.byte()?.into();
                self.remember(place)?;
            }
            op::LONG_BINPUT => {
                let place = u32::from_le_bytes(self.array()?);
                self.remember(place)?;
            }
            // At most one for each instruction, so it fits.
            op::MEMOIZE => self.remember(self.memo.len() as u32)?,
            op::APPEND => {
                let item = self.pop()?;
                self.extend_list([item])?;
            }
            op::APPENDS => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }
            op::BUILD => self.build()?,
            _ => {
                let value = self.value(opcode)?;
                self.stack.push(value);
            }
        }
        Ok(())
    }

    /// The value that an instruction makes.
    fn value(&mut self, opcode: u8) -> Result<Value<'a>, Fault> {
        Ok(match opcode {
            op::NONE => Value::None,
            op::NEWTRUE | op::NEWFALSE => Value::Bool,
            op::BININT => Value::Int(i32::from_le_bytes(self.array()?).into()),
            op::BININT1 => Value::Int(self.byte()?.into()),
            op::BININT2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            op::LONG1 => {
                let len = self.byte()?.into();
                self.long(len)?
            }
            op::LONG4 => {
                let len = u32::from_le_bytes(self.array()?).into();
                self.long(len)?
            }
            op::BINFLOAT => {
                self.array::<8>()?;
                Value::Float
            }
            op::SHORT_BINUNICODE => {
                let len = self.byte()?.into();
                self.text(len)?
            }
            op::BINUNICODE => {
                let len = u32::from_le_bytes(self.array()?).into();
                self.text(len)?
            }
            op::BINUNICODE8 => {
                let len = u64::from_le_bytes(self.array()?);
                self.text(len)?
            }
            op::EMPTY_TUPLE => self.object(Object::Tuple(Vec::new())),
            op::TUPLE1 => self.tuple(1)?,
            op::TUPLE2 => self.tuple(2)?,
            op::TUPLE3 => self.tuple(3)?,
            op::TUPLE => {
                let items = self.pop_to_mark()?;
                self.object(Object::Tuple(items))
            }
            op::EMPTY_LIST => self.object(Object::List(Vec::new())),
            op::EMPTY_DICT => self.object(Object::Dict { ordered: false, entries: Vec::new() }),
            op::BINGET => {
                let place = self.byte()?.into();
                self.recall(place)?
            }
            op::LONG_BINGET => {
                let place = u32::from_le_bytes(self.array()?);
                self.recall(place)?
            }
            op::GLOBAL | op::INST => {
                let (module, name) = (self.line()?, self.line()?);
                let value = global(module, name)?;
                if opcode == op::INST { refused("the opcode INST")? } else { value }
            }
            op::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) if name.len().max(module.len()) <= MAX_NAME => {
                    global(module, name)?
                }
                _ => return damaged("a global whose name is not two strings, or too long"),
            },
            op::BINPERSID => self.persistent()?,
            op::REDUCE => self.reduce()?,
            _ => match op::REFUSED.iter().find(|(refused, _)| *refused == opcode) {
                Some((_, name)) => return refused(format!("the opcode {name}")),
                None => return damaged(format!("0x{opcode:02x} is not an opcode")),
            },
        })
    }

    fn bytes(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let rest = &self.data[self.at..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => damaged(format!("{len} bytes needed, {} left", rest.len())),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N as u64)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    fn text(&mut self, len: u64) -> Result<Value<'a>, Fault> {
        match std::str::from_utf8(self.bytes(len)?) {
            Ok(text) => Ok(Value::Str(text)),
            Err(e) => damaged(format!("a string that is not UTF-8: {e}")),
        }
    }

    /// A line of a global's name.
    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.data[self.at..];
        let Some(len) = rest.iter().take(MAX_NAME + 1).position(|&byte| byte == b'\n') else {
            return damaged("a global's name that does not end, or is too long");
        };
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).or_else(|_| damaged("a global's name that is not UTF-8"))
    }

    /// A two's-complement integer of any length, little-endian; the longest that PyTorch writes has 10 bytes.
    fn long(&mut self, len: u64) -> Result<Value<'a>, Fault> {
        let bytes = self.bytes(len)?;
        let fill = if bytes.last().is_some_and(|high| high >> 7 == 1) { 0xff } else { 0 };
        let mut wide = [fill; size_of::<i128>()];
        match wide.get_mut(..bytes.len()) {
            Some(low) => low.copy_from_slice(bytes),
            None => return damaged(format!("an integer of {len} bytes")),
        }
        Ok(Value::Int(i128::from_le_bytes(wide)))
    }

    fn pop(&mut self) -> Result<Value<'a>, Fault> {
        // A mark protects what lies below it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor
            && let Some(value) = self.stack.pop()
        {
            return Ok(value);
        }
        damaged("a value is needed and the stack has none")
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, Fault> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => damaged("a mark is needed and none is set"),
        }
    }

    fn object(&mut self, object: Object<'a>) -> Value<'a> {
        let items = match &object {
            Object::Tuple(items) | Object::List(items) => items.len() * size_of::<Value<'_>>(),
            Object::Dict { entries, .. } => entries.len() * 2 * size_of::<Value<'_>>(),
            Object::Storage(_) => 0,
            Object::Tensor(view) => size_of::<View<'_>>() + 8 * (view.shape.len() + view.strides.len()),
        };
        self.built += size_of::<Object<'_>>() + items;
        self.objects.push(object);
        Value::Object(self.objects.len() - 1)
    }

    fn tuple(&mut self, len: usize) -> Result<Value<'a>, Fault> {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        Ok(self.object(Object::Tuple(items)))
    }

    fn remember(&mut self, place: u32) -> Result<(), Fault> {
        let top = self.pop()?;
        self.stack.push(top);
        if self.memo.insert(place, top).is_none() {
            self.built += 2 * size_of::<(u32, Value<'_>)>(); // A hash table is half full at worst.
        }
        Ok(())
    }

    fn recall(&self, place: u32) -> Result<Value<'a>, Fault> {
        self.memo.get(&place).copied().map_or_else(|| damaged(format!("the memo has no value {place}")), Ok)
    }

    /// The object on top of the stack, which stays there.
    fn top(&mut self) -> Result<Option<&mut Object<'a>>, Fault> {
        let top = self.pop()?;
        self.stack.push(top);
        Ok(if let Value::Object(at) = top { self.objects.get_mut(at) } else { None })
    }

    fn extend_list(
        &mut self,
        new: impl IntoIterator<Item = Value<'a>, IntoIter: ExactSizeIterator>,
    ) -> Result<(), Fault> {
        let new = new.into_iter();
        self.built += new.len() * size_of::<Value<'_>>();
        match self.top()? {
            Some(Object::List(items)) => {
                items.extend(new);
                Ok(())
            }
            _ => damaged("items for what is not a list"),
        }
    }

    fn extend_dict(&mut self, new: &[Value<'a>]) -> Result<(), Fault> {
        self.built += size_of_val(new);
        match (self.top()?, new.as_chunks()) {
            (Some(Object::Dict { entries, .. }), (pairs, [])) => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            _ => damaged("entries for what is not a dict, or a key without a value"),
        }
    }

    /// Sets the attributes of an object. Those of a state dict (`_metadata`: the versions of its modules) say nothing
    /// about its tensors and are dropped; nothing else may have any.
    fn build(&mut self) -> Result<(), Fault> {
        let state = self.pop()?;
        let is_dict = matches!(state, Value::Object(at) if matches!(self.objects[at], Object::Dict { .. }));
        match self.top()? {
            Some(Object::Dict { ordered: true, .. }) if is_dict => Ok(()),
            _ => refused("the opcode BUILD for what is not an OrderedDict"),
        }
    }

    fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        let Value::Object(at) = value else { return None };
        if let Object::Tuple(items) = &self.objects[at] { Some(items) } else { None }
    }

    /// A storage, by `("storage", type, key, location, number of elements)`. The format before torch 1.6 has `None` at
    /// the end, and long ago it had views there.
    fn persistent(&mut self) -> Result<Value<'a>, Fault> {
        let id = self.pop()?;
        match self.items(id) {
            Some(
                &[
                    Value::Str("storage"),
                    Value::Global(Global::Storage(dtype)),
                    Value::Str(key),
                    Value::Str(_),
                    numel,
                    ref rest @ ..,
                ],
            ) if matches!(rest, [] | [Value::None]) => {
                let numel = size(numel)?;
                Ok(self.object(Object::Storage(Storage { dtype, key, numel })))
            }
            Some([Value::Str("storage"), ..]) => refused("the persistent id \"storage\" with unusual parts"),
            Some([Value::Str(name), ..]) => refused(format!("the persistent id {:?}", clip(name))),
            _ => refused(format!("a persistent id that is {}", kind(id, &self.objects))),
        }
    }

    /// Calls a function, as far as there is something to call.
    fn reduce(&mut self) -> Result<Value<'a>, Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return refused(format!("a call of {}", kind(function, &self.objects)));
        };
        let Some(arguments) = self.items(arguments) else {
            return refused(format!("a call with {} of arguments", kind(arguments, &self.objects)));
        };
        match (function, arguments) {
            (Global::OrderedDict, []) => Ok(self.object(Object::Dict { ordered: true, entries: Vec::new() })),
            (Global::RebuildTensor, &[storage, offset, shape, strides, Value::Bool, _hooks, ref rest @ ..])
                if self.is_plain(rest) =>
            {
                let view = self.view(storage, offset, shape, strides)?;
                Ok(self.object(Object::Tensor(Box::new(view))))
            }
            (Global::RebuildParameter, &[tensor @ Value::Object(at), Value::Bool, _hooks])
                if matches!(self.objects[at], Object::Tensor(_)) =>
            {
                Ok(tensor)
            }
            _ => {
                let names = GLOBALS.iter().filter(|known| known.2 == function).map(|known| known.1);
                refused(format!("a call of {} with unusual arguments", names.collect::<String>()))
            }
        }
    }

    /// Whether the metadata of a tensor (its conjugate and negative bits) are absent.
    fn is_plain(&self, metadata: &[Value<'a>]) -> bool {
        match metadata {
            [] | [Value::None] => true,
            [Value::Object(at)] => {
                matches!(&self.objects[*at], Object::Dict { entries, .. } if entries.is_empty())
            }
            _ => false,
        }
    }

    fn view(
        &self,
        storage: Value<'a>,
        offset: Value<'a>,
        shape: Value<'a>,
        strides: Value<'a>,
    ) -> Result<View<'a>, Fault> {
        let Value::Object(at) = storage else { return damaged("a tensor without a storage") };
        let Object::Storage(storage) = self.objects[at] else { return damaged("a tensor without a storage") };
        let sizes = |value| match self.items(value) {
            Some(items) if items.len() <= MAX_DIMS => items.iter().map(|&item| size(item)).collect(),
            Some(items) => damaged(format!("a tensor of {} dimensions, the limit is {MAX_DIMS}", items.len())),
            None => damaged("a tensor whose shape or strides are not a tuple"),
        };
        Ok(View { storage, offset: size(offset)?, shape: sizes(shape)?, strides: sizes(strides)? })
    }
}

fn global<'a>(module: &str, name: &str) -> Result<Value<'a>, Fault> {
    match GLOBALS.iter().find(|known| (known.0, known.1) == (module, name)) {
        Some((_, _, global)) => Ok(Value::Global(*global)),
        None => refused(format!("the global {:?}", format!("{module}.{name}"))),
    }
}

/// A number of elements.
fn size(value: Value<'_>) -> Result<usize, Fault> {
    match value {
        Value::Int(int) => usize::try_from(int).or_else(|_| damaged(format!("{int} elements"))),
        _ => damaged("a number of elements that is not an integer"),
    }
}

/// The beginning of a string that a message is to show.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NAME)]
}
