//! Frames as bytes.

use crate::decode::taehv::Frame;

/// Planar RGB in 0..1 -> interleaved RGBA bytes, rounded to nearest.
pub fn to_rgba(frame: &Frame, height: usize, width: usize) -> Vec<u8> {
    let area = height * width;
    let byte = |v: f32| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
    (0..area).flat_map(|i| [byte(frame[i]), byte(frame[area + i]), byte(frame[2 * area + i]), 255]).collect()
}
