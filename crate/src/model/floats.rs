//! Floats of safetensors files as f32.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// Bytes of a value; `None` for a type that holds no weights.
pub(crate) fn size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Values of `bytes`, which hold a whole number of them; `first` is the index of the first one within its tensor.
///
/// # Errors
/// What is wrong, for a type that holds no weights and for a value that is not finite.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8], first: usize) -> Result<Vec<f32>, String> {
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    let values: Vec<f32> = match dtype {
        Dtype::F16 => pairs.map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::BF16 => pairs.map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F64 => {
            let eights = bytes.chunks_exact(8);
            eights.map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32).collect()
        }
        other => return Err(format!("its values are {other:?} and must be F64, F32, F16 or BF16")),
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            let (value, index) = (values[index], first + index);
            Err(format!("value {index} is {value}, not a finite number"))
        }
        None => Ok(values),
    }
}
