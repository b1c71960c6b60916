//! Safetensors files, single or with an index over several.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors};

use super::encoding::Encoding;
use super::{Entry, MAX_TENSORS};
use crate::error::{Error, Result};

/// Lists the tensors of a safetensors file.
///
/// # Errors
/// [`Error::WeightFile`] when the header is damaged or does not fit the length of the file.
pub(super) fn list(bytes: &[u8], file: usize) -> Result<BTreeMap<String, Entry>> {
    let wrong = |reason: String| Error::WeightFile(format!("safetensors: {reason}"));
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| wrong(error.to_string()))?;
    let tensors = metadata.tensors();
    if tensors.len() > MAX_TENSORS {
        return Err(wrong(format!("{} tensors are more than any model has", tensors.len())));
    }
    let mut entries = BTreeMap::new();
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        let offset = header.checked_add(8).and_then(|begin| begin.checked_add(start));
        let (Some(offset), Some(length)) = (offset, end.checked_sub(start)) else {
            return Err(wrong(format!("tensor {name:?} lies beyond what can be counted")));
        };
        let encoding = match info.dtype {
            Dtype::F64 => Encoding::F64,
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::BF16,
            other => Encoding::Other(format!("{other:?}")),
        };
        let entry = Entry { shape: info.shape.clone(), encoding, file, offset, bytes: length, strides: None };
        entries.insert(name, entry);
    }
    Ok(entries)
}

/// File names of an index (`*.safetensors.index.json`), each once, and in which file each tensor is.
///
/// # Errors
/// [`Error::WeightFile`] when it is no index, or a name would lead out of the folder.
pub(super) fn index(text: &str) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = serde_json::from_str(text)
        .map_err(|error| Error::WeightFile(format!("the index of safetensors files cannot be read, {error}")))?;
    for (tensor, file) in &weight_map {
        if file.is_empty() || file.contains(['/', '\\', ':']) || file == ".." || file == "." {
            return Err(Error::WeightFile(format!(
                "the index says that {tensor:?} is in {file:?}, which is no file name"
            )));
        }
    }
    Ok(weight_map)
}
