//! Stored number formats, to and from `f32`.
//!
//! All bytes are little endian and row-major. A quantized tensor of shape `[.., K]` is all its values, then one f16
//! scale for every `group` values along the last axis: scales have the shape `[rows, K / group]`.
//!
//! | format | value in bytes | value in numbers |
//! |---|---|---|
//! | `f32` | 4 bytes | itself |
//! | `f16` | 2 bytes | itself |
//! | `q8` | one `i8` q | `q * scale` |
//! | `q4` | half a byte n, the low half first | `(n - 8) * scale`; a scale may be negative |
//!
//! No stored number may be NaN or infinite: one such weight makes every frame black, with nothing to show why.

use std::ops::Range;

use half::f16;

use crate::error::{Error, Result};
use crate::model::manifest::DType;

/// Group sizes that exist.
pub const GROUPS: [usize; 2] = [32, 64];

fn wrong<T>(reason: String) -> Result<T> {
    Err(Error::Tensor(reason))
}

/// Bytes that `elements` values take, or `None` where that is more than can be counted or the group is not one that
/// this format has. The group must divide the last axis, which this function does not see.
pub fn stored_bytes(dtype: DType, elements: u64, group: Option<usize>) -> Option<u64> {
    let values = match dtype {
        DType::F32 => elements.checked_mul(4)?,
        DType::F16 => elements.checked_mul(2)?,
        DType::Q8 => elements,
        DType::Q4 => elements / 2,
    };
    match group {
        None if !dtype.quantized() => Some(values),
        Some(group) if dtype.quantized() && GROUPS.contains(&group) => {
            values.checked_add((elements / group as u64).checked_mul(2)?)
        }
        _ => None,
    }
}

/// Shape, format and bytes of a tensor that were found to fit one another.
struct Stored<'a> {
    dtype: DType,
    rows: usize,
    width: usize,
    group: usize,
    values: &'a [u8],
    scales: &'a [u8],
}

impl<'a> Stored<'a> {
    fn new(dtype: DType, shape: &[usize], group: Option<usize>, bytes: &'a [u8]) -> Result<Self> {
        let (rows, width) = rows_and_width(shape)?;
        let elements = rows as u64 * width as u64;
        let divides = group.is_none_or(|group| group > 0 && width.is_multiple_of(group));
        let Some(needed) = stored_bytes(dtype, elements, group).filter(|_| divides) else {
            return wrong(format!("shape {shape:?} as {dtype} in groups of {group:?} is not a stored format"));
        };
        if bytes.len() as u64 != needed {
            return wrong(format!("shape {shape:?} as {dtype} needs {needed} bytes and has {}", bytes.len()));
        }
        let scales = group.map_or(0, |group| rows * width / group * 2);
        let (values, scales) = bytes.split_at(bytes.len() - scales);
        Ok(Self { dtype, rows, width, group: group.unwrap_or(width), values, scales })
    }

    fn scale(&self, index: usize) -> Result<f32> {
        let scale = f16_at(self.scales, index);
        if scale.is_finite() { Ok(scale) } else { wrong(format!("scale {index} is {scale}, not a finite number")) }
    }

    /// Appends one row as f32.
    fn decode_row(&self, row: usize, out: &mut Vec<f32>) -> Result<()> {
        let (start, width) = (row * self.width, self.width);
        let first = out.len();
        match self.dtype {
            DType::F32 => out.extend((start..start + width).map(|index| f32_at(self.values, index))),
            DType::F16 => out.extend((start..start + width).map(|index| f16_at(self.values, index))),
            DType::Q8 => {
                let row = &self.values[start..start + width];
                for (index, group) in row.chunks_exact(self.group).enumerate() {
                    let scale = self.scale(start / self.group + index)?;
                    out.extend(group.iter().map(|&byte| f32::from(byte as i8) * scale));
                }
            }
            DType::Q4 => {
                let row = &self.values[start / 2..(start + width) / 2];
                for (index, group) in row.chunks_exact(self.group / 2).enumerate() {
                    let scale = self.scale(start / self.group + index)?;
                    let value = |nibble: u8| (f32::from(nibble) - 8.0) * scale;
                    out.extend(group.iter().flat_map(|&byte| [value(byte & 15), value(byte >> 4)]));
                }
            }
        }
        match out[first..].iter().position(|value| !value.is_finite()) {
            Some(column) => {
                wrong(format!("value {column} of row {row} is {}, not a finite number", out[first + column]))
            }
            None => Ok(()),
        }
    }
}

/// The last axis is a row; all axes before it count rows.
fn rows_and_width(shape: &[usize]) -> Result<(usize, usize)> {
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match (shape.last(), elements) {
        (Some(&width), Some(elements)) if elements > 0 => Ok((elements / width, width)),
        _ => wrong(format!("shape {shape:?} has no values, or more than can be counted")),
    }
}

fn f32_at(bytes: &[u8], index: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * index], bytes[4 * index + 1], bytes[4 * index + 2], bytes[4 * index + 3]])
}

fn f16_at(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Decodes a whole tensor, row-major.
///
/// # Errors
/// [`Error::Tensor`] when shape, group and bytes do not fit one another or a number is not finite.
pub fn decode(dtype: DType, shape: &[usize], group: Option<usize>, bytes: &[u8]) -> Result<Vec<f32>> {
    let stored = Stored::new(dtype, shape, group, bytes)?;
    let mut out = Vec::new();
    let elements = stored.rows * stored.width;
    if out.try_reserve_exact(elements).is_err() {
        return Err(Error::OutOfMemory(format!("a tensor of shape {shape:?} needs {} bytes", 4 * elements as u64)));
    }
    for row in 0..stored.rows {
        stored.decode_row(row, &mut out)?;
    }
    Ok(out)
}

/// Decodes some rows, one after the other: `[rows.len(), K]`. A token table is read this way, and never decoded whole.
///
/// # Errors
/// [`Error::Tensor`] as in [`decode`], and for a row that does not exist.
pub fn decode_rows(
    dtype: DType,
    shape: &[usize],
    group: Option<usize>,
    bytes: &[u8],
    rows: &[usize],
) -> Result<Vec<f32>> {
    let stored = Stored::new(dtype, shape, group, bytes)?;
    let mut out = Vec::with_capacity(rows.len() * stored.width);
    for &row in rows {
        if row >= stored.rows {
            return wrong(format!("row {row} of a tensor of shape {shape:?} does not exist"));
        }
        stored.decode_row(row, &mut out)?;
    }
    Ok(out)
}

/// Where a row of a tensor `[rows, width]` lies among the tensor's bytes: its values, then its scales (none where the
/// format has none). Both together are a tensor `[1, width]` of the same format.
///
/// # Errors
/// [`Error::Tensor`] for a shape or group that the format does not have, or a row that does not exist.
pub fn row_bytes(dtype: DType, shape: &[usize], group: Option<usize>, row: usize) -> Result<(Range<u64>, Range<u64>)> {
    let (rows, width) = rows_and_width(shape)?;
    let divides = group.is_none_or(|group| group > 0 && width.is_multiple_of(group));
    let one = stored_bytes(dtype, width as u64, group).filter(|_| divides);
    let Some(one) = one.filter(|_| row < rows) else {
        return wrong(format!("row {row} of shape {shape:?} as {dtype} in groups of {group:?} does not exist"));
    };
    let scales = group.map_or(0, |group| (width / group * 2) as u64);
    let (values, row) = (one - scales, row as u64);
    let first_scale = rows as u64 * values;
    Ok((row * values..(row + 1) * values, first_scale + row * scales..first_scale + (row + 1) * scales))
}

/// Checks shape, group and bytes, and that every stored number is finite, without decoding.
///
/// # Errors
/// [`Error::Tensor`] as in [`decode`].
pub fn check(dtype: DType, shape: &[usize], group: Option<usize>, bytes: &[u8]) -> Result<()> {
    let stored = Stored::new(dtype, shape, group, bytes)?;
    let bad16 =
        |bytes: &[u8]| bytes.chunks_exact(2).position(|pair| !f16::from_le_bytes([pair[0], pair[1]]).is_finite());
    let bad = match dtype {
        DType::F32 => stored.values.chunks_exact(4).position(|four| !f32_at(four, 0).is_finite()),
        DType::F16 => bad16(stored.values),
        DType::Q8 | DType::Q4 => bad16(stored.scales),
    };
    let what = if dtype.quantized() { "scale" } else { "value" };
    match bad {
        Some(index) => wrong(format!("{what} {index} is not a finite number")),
        None => Ok(()),
    }
}

/// Encodes row-major values.
///
/// # Errors
/// [`Error::Tensor`] when shape, group and values do not fit one another, or a value is not finite or too large for
/// the format.
pub fn encode(dtype: DType, shape: &[usize], group: Option<usize>, values: &[f32]) -> Result<Vec<u8>> {
    let (rows, width) = rows_and_width(shape)?;
    if rows * width != values.len() {
        return wrong(format!("shape {shape:?} and {} values do not fit", values.len()));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return wrong(format!("value {index} is {}, not a finite number", values[index]));
    }
    let divides = group.is_none_or(|group| group > 0 && width.is_multiple_of(group));
    let Some(bytes) = stored_bytes(dtype, values.len() as u64, group).filter(|_| divides) else {
        return wrong(format!("shape {shape:?} as {dtype} in groups of {group:?} is not a stored format"));
    };
    let mut out = Vec::with_capacity(bytes as usize);
    match (dtype, group) {
        (DType::F32, _) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        (DType::F16, _) => {
            for &value in values {
                out.extend(to_f16(value)?.to_le_bytes());
            }
        }
        (DType::Q8, group) => {
            let mut scales = Vec::new();
            for group in values.chunks_exact(group.unwrap_or(width)) {
                let scale = to_f16(largest(group).abs() / 127.0)?;
                out.extend(group.iter().map(|&value| step(value, scale.to_f32(), -127.0, 127.0) as u8));
                scales.extend(scale.to_le_bytes());
            }
            out.extend(scales);
        }
        (DType::Q4, group) => {
            let mut scales = Vec::new();
            for group in values.chunks_exact(group.unwrap_or(width)) {
                let scale = best_q4_scale(group)?;
                let nibble = |value: f32| (step(value, scale.to_f32(), -8.0, 7.0) + 8) as u8;
                out.extend(group.chunks_exact(2).map(|pair| nibble(pair[0]) | (nibble(pair[1]) << 4)));
                scales.extend(scale.to_le_bytes());
            }
            out.extend(scales);
        }
    }
    Ok(out)
}

/// The value of the largest magnitude, with its sign.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |best: f32, &value| if value.abs() > best.abs() { value } else { best })
}

fn to_f16(value: f32) -> Result<f16> {
    let half = f16::from_f32(value);
    if half.is_finite() { Ok(half) } else { wrong(format!("{value} is too large for half precision")) }
}

/// The quantized step nearest to a value. A scale may round to 0 where all values are tiny.
fn step(value: f32, scale: f32, min: f32, max: f32) -> i8 {
    if scale == 0.0 { 0 } else { (value / scale).round_ties_even().clamp(min, max) as i8 }
}

/// Scale with the smallest squared error among a few around the one that just reaches the largest value. There is one
/// step more below zero than above, so scales of both signs are tried: the largest value may then lie at step -8.
/// Small values are the many, so giving up the largest one a little often pays; hence the factors below 1.
fn best_q4_scale(group: &[f32]) -> Result<f16> {
    let extreme = largest(group);
    let mut best = (f64::INFINITY, to_f16(extreme / -8.0)?);
    for reach in [-8.0, 7.0] {
        for percent in (70..=104).step_by(2) {
            let scale = to_f16(extreme / reach * (percent as f32 / 100.0))?;
            let error = q4_error(group, scale.to_f32());
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    // For the steps that were chosen, the best scale has a closed form; it is kept if it survives rounding.
    let scale = best.1.to_f32();
    let (mut product, mut square) = (0.0f64, 0.0f64);
    for &value in group {
        let step = f64::from(step(value, scale, -8.0, 7.0));
        product += f64::from(value) * step;
        square += step * step;
    }
    if square > 0.0 {
        let scale = to_f16((product / square) as f32)?;
        if q4_error(group, scale.to_f32()) < best.0 {
            best.1 = scale;
        }
    }
    Ok(best.1)
}

fn q4_error(group: &[f32], scale: f32) -> f64 {
    let difference = |value: f32| f64::from(value - f32::from(step(value, scale, -8.0, 7.0)) * scale);
    group.iter().map(|&value| difference(value).powi(2)).sum()
}
