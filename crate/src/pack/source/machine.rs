//! The stack machine of pickle, without the part that calls things. Opcodes as in CPython `Lib/pickletools.py`.

use std::collections::HashMap;

use super::bytes::Cursor;
use super::pickle::{Global, Id, Storage, Tensor, Value, global, wrong};
use crate::error::Result;

/// The stack machine. Every opcode takes at least a byte and makes at most one value, and what calls copy is counted, so
/// memory is bounded by the length of the pickle.
pub(super) struct Machine<'a> {
    cursor: Cursor<'a>,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Lengths of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Entries that calls may still copy. A dictionary of a file that `torch.save` wrote is filled after its call.
    copies: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let cursor = Cursor::new(bytes, 0, "the pickle");
        let copies = bytes.len();
        Self { cursor, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), copies }
    }

    /// All values, and which of them is the result.
    pub(super) fn run(mut self) -> Result<(Vec<Value<'a>>, Id)> {
        loop {
            match self.cursor.u8()? {
                b'.' => {
                    let root = self.pop()?;
                    return Ok((self.values, root));
                }
                0x80 => drop(self.cursor.u8()?),
                0x95 => drop(self.cursor.u64()?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.pop()?;
                    self.stack.extend([top, top]);
                }
                b'N' | 0x88 | 0x89 => self.push(Value::Opaque),
                b'G' => {
                    self.cursor.take(8)?;
                    self.push(Value::Opaque);
                }
                b'J' => {
                    let value = self.cursor.i32()?;
                    self.push(Value::Int(value.into()));
                }
                b'K' => {
                    let value = self.cursor.u8()?;
                    self.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = self.cursor.u16()?;
                    self.push(Value::Int(value.into()));
                }
                0x8a => self.long()?,
                b'X' => {
                    let length = self.cursor.u32()? as usize;
                    self.text(length)?;
                }
                0x8c => {
                    let length = self.cursor.u8()?.into();
                    self.text(length)?;
                }
                0x8d => {
                    let length = self.cursor.length()?;
                    self.text(length)?;
                }
                b'U' | b'C' => {
                    let length = self.cursor.u8()?.into();
                    self.bytes(length)?;
                }
                b'T' | b'B' => {
                    let length = self.cursor.u32()? as usize;
                    self.bytes(length)?;
                }
                b')' => self.push(Value::Tuple(Vec::new())),
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Tuple(items));
                }
                b']' => self.push(Value::List(Vec::new())),
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Value::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Value::Dict(Vec::new())),
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Dict(Vec::new()));
                    self.set(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set(items)?;
                }
                b'q' => {
                    let key = self.cursor.u8()?.into();
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.cursor.u32()?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                b'h' => {
                    let key = self.cursor.u8()?.into();
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.cursor.u32()?;
                    self.recall(key)?;
                }
                b'c' => {
                    let (module, name) = (self.cursor.line()?, self.cursor.line()?);
                    self.push(Value::Global(Box::new(global(module, name)?)));
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.push(Value::Global(Box::new(global(module, name)?)));
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                opcode => {
                    let at = self.cursor.position() - 1;
                    return wrong(format!("the opcode {opcode:#04x} at byte {at} is not one that tensors need"));
                }
            }
        }
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => wrong("the stack runs empty"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => wrong("a mark is missing"),
        }
    }

    fn pop_text(&mut self) -> Result<&'a str> {
        let id = self.pop()?;
        self.text_of(id)
    }

    fn text_of(&self, id: Id) -> Result<&'a str> {
        match self.values[id] {
            Value::Text(text) => Ok(text),
            _ => wrong("a name is not text"),
        }
    }

    fn items(&self, id: Id) -> Result<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) => Ok(items),
            _ => wrong("a list is missing where one is needed"),
        }
    }

    fn number(&self, id: Id) -> Result<usize> {
        match self.values[id] {
            Value::Int(value) => match usize::try_from(value) {
                Ok(value) => Ok(value),
                Err(_) => wrong(format!("{value} is no length")),
            },
            _ => wrong("a number is missing where one is needed"),
        }
    }

    fn numbers(&self, id: Id) -> Result<Vec<usize>> {
        let items = self.items(id)?;
        if items.len() > super::MAX_RANK {
            return wrong(format!("a tensor has {} axes, at most {} are possible", items.len(), super::MAX_RANK));
        }
        items.iter().map(|&item| self.number(item)).collect()
    }

    fn text(&mut self, length: usize) -> Result<()> {
        let text = self.cursor.text(length)?;
        self.push(Value::Text(text));
        Ok(())
    }

    /// Python 2 wrote text as bytes; what is no text is of no use here.
    fn bytes(&mut self, length: usize) -> Result<()> {
        let bytes = self.cursor.take(length)?;
        self.push(std::str::from_utf8(bytes).map_or(Value::Opaque, Value::Text));
        Ok(())
    }

    /// A whole number of up to 255 bytes, two's complement; one that fits no machine word is of no use here.
    fn long(&mut self) -> Result<()> {
        let length = self.cursor.u8()?.into();
        let bytes = self.cursor.take(length)?;
        let value = if length <= 8 {
            let fill = if bytes.last().is_some_and(|&top| top >= 0x80) { 0xff } else { 0 };
            let mut array = [fill; 8];
            array[..length].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(array))
        } else {
            Value::Opaque
        };
        self.push(value);
        Ok(())
    }

    fn tuple(&mut self, length: usize) -> Result<()> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.pop()?;
        self.stack.push(list);
        match &mut self.values[list] {
            Value::List(list) => {
                list.extend(items);
                Ok(())
            }
            _ => wrong("something is appended to what is no list"),
        }
    }

    /// Puts keys and values, in turn, into the dictionary on the stack.
    fn set(&mut self, items: Vec<Id>) -> Result<()> {
        let dict = self.pop()?;
        self.stack.push(dict);
        if !items.len().is_multiple_of(2) {
            return wrong("a key has no value");
        }
        match &mut self.values[dict] {
            Value::Dict(entries) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => wrong("a key is set in what is no dictionary"),
        }
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let top = self.pop()?;
        self.stack.push(top);
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => wrong(format!("value {key} is used before it is there")),
        }
    }

    /// `('storage', torch.FloatStorage, key, device, values)`
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let items = self.items(id)?;
        let [kind, class, key, ..] = *items else { return wrong("a storage is not described in full") };
        if self.text_of(kind)? != "storage" {
            return wrong("something is kept outside the pickle that is no storage");
        }
        let class = if let Value::Global(global) = &self.values[class] { Some(&**global) } else { None };
        let Some(Global::Storage(encoding, size)) = class else {
            return wrong("a storage has no known type");
        };
        let storage = Storage { encoding: encoding.clone(), size: *size, key: self.text_of(key)? };
        self.push(Value::Storage(Box::new(storage)));
        Ok(())
    }

    /// Calls something in Python; here, turns the arguments of one of the known names into data.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Value::Global(global) = self.values[callable].clone() else {
            return wrong("something is called that is no function");
        };
        let items = self.items(arguments)?.to_vec();
        let value = match (*global, items.as_slice()) {
            (Global::Dict, []) => Value::Dict(Vec::new()),
            (Global::Dict, [pairs]) => {
                let pairs = self.items(*pairs)?.to_vec();
                let Some(copies) = self.copies.checked_sub(pairs.len()) else {
                    return wrong("the same entries are copied over and over");
                };
                self.copies = copies;
                let mut entries = Vec::with_capacity(pairs.len());
                for pair in pairs {
                    let [key, value] = *self.items(pair)? else { return wrong("a key has no value") };
                    entries.push((key, value));
                }
                Value::Dict(entries)
            }
            (Global::Size, [items]) => {
                let items = self.items(*items)?;
                if items.len() > super::MAX_RANK {
                    return wrong(format!("a size has {} axes, at most {} are possible", items.len(), super::MAX_RANK));
                }
                Value::Tuple(items.to_vec())
            }
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let Value::Storage(storage) = self.values[*storage].clone() else {
                    return wrong("a tensor has no storage");
                };
                let (offset, shape, strides) = (self.number(*offset)?, self.numbers(*shape)?, self.numbers(*strides)?);
                if shape.len() != strides.len() {
                    return wrong(format!("a tensor has {} axes and {} strides", shape.len(), strides.len()));
                }
                Value::Tensor(Box::new(Tensor { storage: *storage, offset, shape, strides }))
            }
            (Global::RebuildParameter, [tensor, ..]) => match &self.values[*tensor] {
                Value::Tensor(tensor) => Value::Tensor(tensor.clone()),
                _ => return wrong("a parameter holds no tensor"),
            },
            (Global::Harmless, _) => Value::Opaque,
            (global, _) => return wrong(format!("{global:?} is called with arguments it does not take")),
        };
        self.push(value);
        Ok(())
    }

    /// Sets attributes of an object; those of a dictionary (PyTorch's `_metadata`) say nothing about weights.
    fn build(&mut self) -> Result<()> {
        let (_state, object) = (self.pop()?, self.pop()?);
        self.stack.push(object);
        match self.values[object] {
            Value::Dict(_) | Value::Opaque => Ok(()),
            _ => wrong("attributes are set on what has none"),
        }
    }
}
