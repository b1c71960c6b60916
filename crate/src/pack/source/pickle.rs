//! Reads the part of Python's pickle that `torch.save` writes for tensors, and nothing else.
//!
//! A pickle is a program: it may name any function and call it. Here no name leads to code. The few that stand for
//! tensors, storages and dictionaries are turned into data; every other one ends the reading with an error that says
//! which it was. Opcodes as in CPython `Lib/pickletools.py`, names as in PyTorch `torch/_utils.py` and
//! `torch/serialization.py`.
//!
//! Values live in one list and refer to one another by index: a hostile file may nest them a million deep or in
//! circles, and neither a drop nor a comparison may then run away.

use super::encoding::Encoding;
use super::machine::Machine;
use crate::error::{Error, Result};

/// Longest pickle that is read; that of a model has about 100 bytes a tensor. The worst one takes a hundred times its
/// length in memory.
const MAX_BYTES: usize = 8 << 20;

/// Index of a value.
pub(super) type Id = usize;

/// A value. Small, since an opcode of one byte can make one: what is long is boxed.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    /// `None`, a flag, a float, bytes, or an object that says nothing about weights.
    Opaque,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Box<Global>),
    Storage(Box<Storage<'a>>),
    Tensor(Box<Tensor<'a>>),
}

/// A name that may stand in a pickle.
#[derive(Debug, Clone)]
pub(super) enum Global {
    /// `collections.OrderedDict`, `dict`.
    Dict,
    /// `torch.Size`.
    Size,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.FloatStorage` and the like.
    Storage(Encoding, usize),
    /// `torch.float32`, `torch.device` and the like.
    Harmless,
}

/// A storage: one entry of the archive.
#[derive(Debug, Clone)]
pub(super) struct Storage<'a> {
    pub(super) encoding: Encoding,
    /// Bytes of one value.
    pub(super) size: usize,
    /// Name of the entry below `data/`.
    pub(super) key: &'a str,
}

/// A tensor: a view of a storage. Offset and strides are in values.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

pub(super) fn wrong<T>(reason: impl std::fmt::Display) -> Result<T> {
    Err(Error::WeightFile(format!("pickle: {reason}")))
}

/// The data a pickle describes.
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a whole pickle.
    ///
    /// # Errors
    /// [`Error::WeightFile`] for a pickle that is damaged, or that holds anything but plain data and tensors.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return wrong(format!("{} bytes are more than the {MAX_BYTES} that a model needs", bytes.len()));
        }
        let (values, root) = Machine::new(bytes).run()?;
        Ok(Self { values, root })
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }
}

/// What a name stands for. Nothing is looked up anywhere: a name that is not listed is refused.
pub(super) fn global(module: &str, name: &str) -> Result<Global> {
    let other = |size| Global::Storage(Encoding::Other(name.replace("Storage", "")), size);
    Ok(match (module, name) {
        ("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict") => Global::Dict,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "DoubleStorage") => Global::Storage(Encoding::F64, 8),
        ("torch", "FloatStorage") => Global::Storage(Encoding::F32, 4),
        ("torch", "HalfStorage") => Global::Storage(Encoding::F16, 2),
        ("torch", "BFloat16Storage") => Global::Storage(Encoding::BF16, 2),
        ("torch", "LongStorage") => other(8),
        ("torch", "IntStorage") => other(4),
        ("torch", "ShortStorage") => other(2),
        ("torch", "CharStorage" | "ByteStorage" | "BoolStorage") => other(1),
        ("torch", "device" | "float16" | "float32" | "float64" | "bfloat16" | "int64" | "int32") => Global::Harmless,
        _ => {
            return wrong(format!(
                "the file asks to run {module}.{name}, and nothing in a weight file is ever run; only plain tensors \
                 are read"
            ));
        }
    })
}
