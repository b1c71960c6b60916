//! Frames as bytes.

use crate::decode::taehv::Frame;

/// The middle `height` x `width` of a planar RGB frame of `[rows, columns]`, which must not be smaller.
pub fn cut(frame: &Frame, [rows, columns]: [usize; 2], height: usize, width: usize) -> Frame {
    let (top, left) = ((rows - height) / 2, (columns - width) / 2);
    let start = |plane: usize, y: usize| (plane * rows + top + y) * columns + left;
    // Collected, it would grow to as much as three times its length on the way.
    let mut out = Vec::with_capacity(3 * height * width);
    for (plane, y) in (0..3).flat_map(|plane| (0..height).map(move |y| (plane, y))) {
        out.extend_from_slice(&frame[start(plane, y)..start(plane, y) + width]);
    }
    out
}

/// Planar RGB in 0..1 -> interleaved RGBA bytes, rounded to nearest, behind those that are there.
pub fn to_rgba(frame: &Frame, height: usize, width: usize, out: &mut Vec<u8>) {
    let area = height * width;
    let byte = |v: f32| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
    out.extend((0..area).flat_map(|i| [byte(frame[i]), byte(frame[area + i]), byte(frame[2 * area + i]), 255]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_takes_the_middle_of_every_plane() {
        let frame: Frame = (0..3 * 4 * 6).map(|i| i as f32).collect();
        let middle = cut(&frame, [4, 6], 2, 4);
        assert_eq!(middle[..8], [7.0, 8.0, 9.0, 10.0, 13.0, 14.0, 15.0, 16.0]);
        assert_eq!(middle[8], 24.0 + 7.0);
        assert_eq!(middle[23], 48.0 + 16.0);
        assert_eq!(cut(&frame, [4, 6], 4, 6), frame);
    }
}
