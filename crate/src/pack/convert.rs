//! One tensor from a published file to the writer: decoded, merged and stored again in pieces of whole rows.

use super::CHUNK;
use super::lora::Delta;
use super::names::Origin;
use super::source::Source;
use super::writer::ShardWriter;
use crate::error::{Error, Result};
use crate::model::manifest::TensorInfo;
use crate::model::quant;

/// Where a tensor's values are.
pub(super) struct Reading<'a> {
    pub(super) source: &'a Source,
    pub(super) origin: &'a Origin,
    /// The rows to take, in order; all of them where there are none.
    pub(super) rows: Option<&'a [usize]>,
}

impl Reading<'_> {
    /// Appends `count` rows of `width` values from the `first` on.
    fn read(&self, first: usize, count: usize, width: usize, values: &mut Vec<f32>) -> Result<()> {
        let Self { source, origin, rows } = self;
        let mut read =
            |row: usize, count: usize| source.read(&origin.name, origin.skip + row * width, count * width, values);
        match rows {
            None => read(first, count),
            Some(rows) => rows[first..first + count].iter().try_for_each(|&row| read(row, 1)),
        }
    }
}

/// Reads, merges and writes a tensor; gives the relative error where it was quantized. `written` hears of the bytes.
///
/// # Errors
/// [`Error::Tensor`] for a number that is not finite or too large for the format, else what `source`, `writer` and
/// `written` report.
pub(super) fn write(
    writer: &mut ShardWriter<'_>,
    info: &TensorInfo,
    from: &Reading<'_>,
    delta: Option<&Delta>,
    written: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Option<f64>> {
    let TensorInfo { dtype, shape, group, .. } = info;
    let (rows, width) = match shape.as_slice() {
        [rows, rest @ ..] if !rest.is_empty() => (*rows, rest.iter().product::<usize>()),
        _ => (1, info.elements()),
    };
    let row = quant::row_width(shape).unwrap_or(1);
    let step = (CHUNK / width.max(1)).max(1);
    let mut values = Vec::new();
    let mut scales = Vec::new();
    let (mut error, mut total) = (0.0, 0.0);
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first) * width;
        values.clear();
        from.read(first, count / width.max(1), width, &mut values)?;
        if let Some(delta) = delta {
            delta.add_to(&mut values, first, width);
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let (value, index) = (values[index], first * width + index);
            return Err(Error::Tensor(format!("value {index} is {value}, not a finite number")));
        }
        let piece = [count / row.max(1), row];
        let bytes = quant::encode(*dtype, &piece, *group, &values)?;
        // A quantized tensor has all its scales after all its values.
        let tail = group.map_or(0, |group| count / group * 2);
        let (stored, piece_scales) = bytes.split_at(bytes.len() - tail);
        writer.write(stored)?;
        scales.extend_from_slice(piece_scales);
        if group.is_some() {
            let decoded = quant::decode(*dtype, &piece, *group, &bytes)?;
            let square = |value: f32| f64::from(value).powi(2);
            error += values.iter().zip(&decoded).map(|(value, decoded)| square(value - decoded)).sum::<f64>();
            total += values.iter().map(|&value| square(value)).sum::<f64>();
        }
        written(stored.len() as u64)?;
        // After every piece: a token table alone would otherwise keep gigabytes of the file in memory.
        from.source.release(&from.origin.name);
    }
    writer.write(&scales)?;
    written(scales.len() as u64)?;
    Ok((group.is_some() && total > 0.0).then(|| (error / total).sqrt()))
}
