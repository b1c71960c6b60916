//! MLX's affine quantization within safetensors: 32-bit words, scales and biases under three names.
//!
//! `mx.quantize` packs `32 / bits` values into each word from the lowest bits on; a value is `q * scale + bias`, with
//! one scale and one bias for every group of neighbours along the last axis. The three tensors are called `x.weight`,
//! `x.scales`, `x.biases` by MLX, and `x.weight`, `x.weight.scales`, `x.weight.biases` by FastVideo
//! (`fastvideo/mlx_runtime/checkpoint.py`).

use super::Source;
use super::encoding::{Affine, Encoding};
use crate::error::{Error, Result};

/// Names of the scales and biases that belong to a packed tensor.
pub(super) fn companions(source: &Source, name: &str) -> Option<(String, String)> {
    let stem = name.strip_suffix(".weight");
    let names =
        [Some(name), stem].into_iter().flatten().map(|stem| (format!("{stem}.scales"), format!("{stem}.biases")));
    names.into_iter().find(|(scales, biases)| source.entry(scales).is_some() && source.entry(biases).is_some())
}

/// Bits and group of a packed tensor, from the shapes of all three and the shape it must have: the files need not say.
///
/// # Errors
/// [`Error::WeightFile`] when the shapes do not fit one another.
pub(super) fn affine(source: &Source, name: &str, columns: usize) -> Result<Option<Affine>> {
    let Some(entry) = source.entry(name).filter(|entry| entry.encoding == Encoding::Other("U32".into())) else {
        return Ok(None);
    };
    let Some((scales, biases)) = companions(source, name) else { return Ok(None) };
    let wrong = |reason: String| Err(Error::WeightFile(format!("MLX tensor {name:?}: {reason}")));
    let shape = |name: &str| source.entry(name).map(|entry| entry.shape.clone()).unwrap_or_default();
    let (packed, scale_shape, bias_shape) = (entry.shape.clone(), shape(&scales), shape(&biases));
    let ([rows, words], [scale_rows, groups]) = (packed.as_slice(), scale_shape.as_slice()) else {
        return wrong(format!("shapes {packed:?} and {scale_shape:?} are not those of a matrix and its scales"));
    };
    if rows != scale_rows || bias_shape != scale_shape {
        return wrong(format!("scales {scale_shape:?} and biases {bias_shape:?} do not belong to {packed:?}"));
    }
    let bits =
        words.checked_mul(32).filter(|bits| columns > 0 && bits.is_multiple_of(columns)).map(|bits| bits / columns);
    let group = (*groups > 0 && columns.is_multiple_of(*groups)).then(|| columns / groups);
    match (bits, group) {
        (Some(bits @ (4 | 8)), Some(group @ (32 | 64 | 128))) => Ok(Some(Affine { bits, group, scales, biases })),
        _ => wrong(format!(
            "{words} words and {groups} scales a row are no {columns} values of 4 or 8 bits in groups of 32, 64 or 128"
        )),
    }
}

/// Appends the values of whole groups: `words` are their bytes, `scales` and `biases` one number for each group.
pub(super) fn decode(affine: &Affine, words: &[u8], scales: &[f32], biases: &[f32], out: &mut Vec<f32>) {
    let bytes_per_group = affine.group * affine.bits / 8;
    for (group, (scale, bias)) in words.chunks_exact(bytes_per_group).zip(scales.iter().zip(biases)) {
        // Words are little endian and filled from their lowest bits on, so bytes are in order too.
        if affine.bits == 8 {
            out.extend(group.iter().map(|&byte| f32::from(byte) * scale + bias));
        } else {
            out.extend(group.iter().flat_map(|&byte| [byte & 15, byte >> 4]).map(|q| f32::from(q) * scale + bias));
        }
    }
}
