//! Stored number formats, to and from `f32`.
//!
//! All bytes are little endian and row-major. A quantized tensor is all its values, then one f16 scale for every
//! `group` values along a row of [`row_width`] K: scales have the shape `[rows, K / group]`.
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

/// Fewer groups than this are not worth a thread.
const GROUPS_PER_THREAD: usize = 1024;

/// Scales that are tried for a group of q4: where its largest value comes to lie, and how far.
const Q4_REACHES: [f32; 2] = [-8.0, 7.0];
const Q4_PERCENTS: [f32; 18] =
    [70.0, 72.0, 74.0, 76.0, 78.0, 80.0, 82.0, 84.0, 86.0, 88.0, 90.0, 92.0, 94.0, 96.0, 98.0, 100.0, 102.0, 104.0];

fn wrong<T>(reason: String) -> Result<T> {
    Err(Error::Tensor(reason))
}

/// Bytes that `elements` values take, or `None` where that is more than can be counted or the group is not one that
/// this format has. The group must divide a row, which this function does not see.
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

/// Length of a row, the values that one output sums over: the last axis of a matrix or table, and all axes but the
/// first of a convolution's kernels (`[out, in, rows, columns]`, or with one more for time). `None` where there is no
/// axis, or more values than can be counted.
pub fn row_width(shape: &[usize]) -> Option<usize> {
    match shape {
        [_, kernel @ ..] if kernel.len() >= 3 => {
            kernel.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
        }
        shape => shape.last().copied(),
    }
}

fn rows_and_width(shape: &[usize]) -> Result<(usize, usize)> {
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match (row_width(shape), elements) {
        (Some(width), Some(elements)) if elements > 0 => Ok((elements / width, width)),
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
        (DType::Q8 | DType::Q4, group) => {
            let pieces = quantized_by_threads(dtype, group.unwrap_or(width), values)?;
            pieces.iter().for_each(|(steps, _)| out.extend(steps));
            pieces.iter().for_each(|(_, scales)| out.extend(scales));
        }
    }
    Ok(out)
}

/// Bytes of the steps and of the scales of some groups.
type Quantized = (Vec<u8>, Vec<u8>);

/// Quantizes on all processors; the bytes do not depend on how many there are. In a browser it is this thread alone.
fn quantized_by_threads(dtype: DType, group: usize, values: &[f32]) -> Result<Vec<Quantized>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let groups = (values.len() / group).div_ceil(threads).max(GROUPS_PER_THREAD);
    if groups * group >= values.len() {
        return Ok(vec![quantized(dtype, group, values)?]);
    }
    std::thread::scope(|scope| {
        let pieces = values.chunks(groups * group);
        let running: Vec<_> = pieces.map(|piece| scope.spawn(move || quantized(dtype, group, piece))).collect();
        let failed = |_| Err(Error::Internal("a thread that quantizes weights panicked".into()));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    })
}

fn quantized(dtype: DType, group: usize, values: &[f32]) -> Result<Quantized> {
    let (mut steps, mut scales) = (Vec::new(), Vec::new());
    for group in values.chunks_exact(group) {
        let scale = if dtype == DType::Q8 { to_f16(largest(group).abs() / 127.0)? } else { best_q4_scale(group)? };
        scales.extend(scale.to_le_bytes());
        let scale = scale.to_f32();
        if dtype == DType::Q8 {
            steps.extend(group.iter().map(|&value| step(value, scale, -127.0, 127.0) as u8));
        } else {
            let nibble = |value: f32| (step(value, scale, -8.0, 7.0) + 8) as u8;
            steps.extend(group.chunks_exact(2).map(|pair| nibble(pair[0]) | (nibble(pair[1]) << 4)));
        }
    }
    Ok((steps, scales))
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
    for reach in Q4_REACHES {
        let mut scales = [f16::ZERO; Q4_PERCENTS.len()];
        for (scale, percent) in scales.iter_mut().zip(Q4_PERCENTS) {
            *scale = to_f16(extreme / reach * (percent / 100.0))?;
        }
        for (error, scale) in q4_errors(group, scales.map(f16::to_f32)).into_iter().zip(scales) {
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
        if q4_errors(group, [scale.to_f32()])[0] < best.0 {
            best.1 = scale;
        }
    }
    Ok(best.1)
}

/// Squared errors of a group at several scales. Packing spends nearly all of its time here, so the scales lie side by
/// side for the processor's vectors, and rounding is the addition and subtraction of 1.5 * 2^23, which they have.
fn q4_errors<const N: usize>(group: &[f32], scales: [f32; N]) -> [f64; N] {
    const ROUND: f32 = 12_582_912.0;
    // A scale of 0 makes every step 0, as a division by infinity does.
    let divisors = scales.map(|scale| if scale == 0.0 { f32::INFINITY } else { scale });
    let mut errors = [0.0; N];
    for &value in group {
        for ((error, scale), divisor) in errors.iter_mut().zip(scales).zip(divisors) {
            let step = (value / divisor).clamp(-8.0, 7.0) + ROUND - ROUND;
            let difference = f64::from(value - step * scale);
            *error += difference * difference;
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that no two groups share, some of them large, some zero.
    fn values(count: usize) -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|index| if index % 97 == 0 { 0.0 } else { next() * next() * (1 + index % 13) as f32 }).collect()
    }

    #[test]
    fn the_kernels_of_an_output_are_one_row() {
        let values = values(4 * 32 * 9);
        let bytes = encode(DType::Q8, &[4, 32, 3, 3], Some(32), &values).unwrap();
        assert_eq!(bytes, encode(DType::Q8, &[4, 288], Some(32), &values).unwrap());
        let decoded = decode(DType::Q8, &[4, 32, 3, 3], Some(32), &bytes).unwrap();
        let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(values.iter().zip(&decoded).all(|(a, b)| (a - b).abs() <= largest / 127.0));
        // 27 values do not make groups of 32
        assert!(encode(DType::Q8, &[4, 3, 3, 3], Some(32), &values[..108]).is_err());
        assert_eq!(row_width(&[2, 6, 8]), Some(8));
    }

    #[test]
    fn errors_side_by_side_are_those_of_the_steps() {
        let values = values(64);
        for (group, scale) in values.chunks_exact(32).zip([0.11f32, -0.03]) {
            let scales = [scale, 0.0, scale * 1.7, 65504.0];
            for (error, scale) in q4_errors(group, scales).into_iter().zip(scales) {
                let difference = |value: f32| f64::from(value - f32::from(step(value, scale, -8.0, 7.0)) * scale);
                assert_eq!(error, group.iter().map(|&value| difference(value).powi(2)).sum::<f64>(), "at {scale}");
            }
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_threads() {
        let values = values(5 * 32 * GROUPS_PER_THREAD + 32);
        for dtype in [DType::Q4, DType::Q8] {
            let (steps, scales) = quantized(dtype, 32, &values).unwrap();
            let all = encode(dtype, &[values.len() / 32, 32], Some(32), &values).unwrap();
            assert_eq!(all, [steps, scales].concat());
        }
    }
}
