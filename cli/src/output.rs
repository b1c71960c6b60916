//! Frames to files: a folder of PNGs with a contact sheet, or one YUV4MPEG2 file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kinora::model::manifest::ClipSize;

use crate::files::{part, publish, write};

/// Frames on a contact sheet, at most.
const SHEET_FRAMES: usize = 20;
/// Columns of a contact sheet.
const SHEET_COLUMNS: usize = 5;
/// Widest picture on a contact sheet, in pixels.
const SHEET_WIDTH: usize = 320;
/// Space around the pictures of a contact sheet, in pixels.
const SHEET_GAP: usize = 4;

/// One frame: `4 * width * height` bytes, RGBA, rows from the top.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgba: Vec<u8>,
}

/// Where the frames go.
pub enum Output {
    Pngs { folder: PathBuf, frames: u32, count: usize, sheet: Vec<Picture> },
    Y4m { path: PathBuf, file: BufWriter<File>, complete: bool },
}

impl Output {
    pub fn create(path: &Path, size: ClipSize, fps: u32) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("y4m")) {
            let file = File::create(part(path)).with_context(|| format!("cannot write {}", path.display()))?;
            let mut file = BufWriter::new(file);
            let ClipSize { width, height, .. } = size;
            writeln!(file, "YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED")?;
            return Ok(Self::Y4m { path: path.into(), file, complete: false });
        }
        fs::create_dir_all(path).with_context(|| format!("cannot make the directory {}", path.display()))?;
        Ok(Self::Pngs { folder: path.into(), frames: size.frames, count: 0, sheet: Vec::new() })
    }

    /// Takes the next frame.
    pub fn add(&mut self, picture: Picture) -> Result<()> {
        match self {
            Self::Y4m { path, file, .. } => {
                let frame = yuv420(&picture);
                file.write_all(b"FRAME\n")
                    .and_then(|()| file.write_all(&frame))
                    .with_context(|| format!("cannot write {}", path.display()))
            }
            Self::Pngs { folder, frames, count, sheet } => {
                write(&folder.join(format!("frame-{:05}.png", *count + 1)), &png(&picture)?)?;
                if on_sheet(*count, *frames as usize) {
                    sheet.push(shrink(&picture, picture.width.div_ceil(SHEET_WIDTH)));
                }
                *count += 1;
                Ok(())
            }
        }
    }

    /// Completes the files.
    pub fn finish(mut self) -> Result<()> {
        match &mut self {
            Self::Y4m { path, file, complete } => {
                file.flush().with_context(|| format!("cannot write {}", path.display()))?;
                publish(path)?;
                *complete = true;
                Ok(())
            }
            Self::Pngs { folder, sheet, .. } => write(&folder.join("contact-sheet.png"), &png(&contact_sheet(sheet)?)?),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::Y4m { path, complete: false, .. } = self {
            // The error that led here is the one to report.
            let _ = fs::remove_file(part(path));
        }
    }
}

fn png(picture: &Picture) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgba)?;
    writer.finish()?;
    Ok(bytes)
}

/// Whether a frame is one of those spread evenly over the clip, first and last included.
fn on_sheet(index: usize, frames: usize) -> bool {
    frames <= SHEET_FRAMES
        || (0..SHEET_FRAMES).any(|slot| index == (slot * (frames - 1) + (SHEET_FRAMES - 1) / 2) / (SHEET_FRAMES - 1))
}

/// Averages squares of `factor` x `factor` pixels; a rest at the right and at the bottom is dropped.
fn shrink(picture: &Picture, factor: usize) -> Picture {
    let factor = factor.min(picture.height).max(1);
    let (width, height) = (picture.width / factor, picture.height / factor);
    let mut rgba = Vec::with_capacity(4 * width * height);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..4 {
                let pixels = (0..factor * factor).map(|pixel| {
                    let (column, row) = (factor * x + pixel % factor, factor * y + pixel / factor);
                    usize::from(picture.rgba[4 * (picture.width * row + column) + channel])
                });
                rgba.push((pixels.sum::<usize>() / (factor * factor)) as u8);
            }
        }
    }
    Picture { width, height, rgba }
}

fn contact_sheet(pictures: &[Picture]) -> Result<Picture> {
    ensure!(!pictures.is_empty(), "the clip has no frames");
    let (cell_width, cell_height) = (pictures[0].width + SHEET_GAP, pictures[0].height + SHEET_GAP);
    let columns = pictures.len().min(SHEET_COLUMNS);
    let rows = pictures.len().div_ceil(columns);
    let (width, height) = (columns * cell_width + SHEET_GAP, rows * cell_height + SHEET_GAP);
    let mut rgba = [32, 32, 32, 255].repeat(width * height);
    for (index, picture) in pictures.iter().enumerate() {
        let (left, top) = (index % columns * cell_width + SHEET_GAP, index / columns * cell_height + SHEET_GAP);
        for (row, pixels) in picture.rgba.chunks_exact(4 * picture.width).enumerate() {
            rgba[4 * (width * (top + row) + left)..][..pixels.len()].copy_from_slice(pixels);
        }
    }
    Ok(Picture { width, height, rgba })
}

/// Planes Y, Cb, Cr by BT.601 in limited range; chroma is the mean of 2 x 2 pixels, fewer at an odd edge.
fn yuv420(picture: &Picture) -> Vec<u8> {
    let Picture { width, height, rgba } = picture;
    let pixel = |x: usize, y: usize| {
        let at = 4 * (width * y + x);
        [f32::from(rgba[at]), f32::from(rgba[at + 1]), f32::from(rgba[at + 2])].map(|value| value / 255.0)
    };
    let luma = |[r, g, b]: [f32; 3]| 0.299 * r + 0.587 * g + 0.114 * b;
    let mut out = Vec::with_capacity(width * height * 3 / 2 + width + height + 1);
    for y in 0..*height {
        out.extend((0..*width).map(|x| (16.0 + 219.0 * luma(pixel(x, y))).round() as u8));
    }
    // (channel, divisor): Cb = (B - Y) / 1.772 and Cr = (R - Y) / 1.402, both from -0.5 to 0.5.
    for (channel, divisor) in [(2, 1.772), (0, 1.402)] {
        for y in (0..*height).step_by(2) {
            for x in (0..*width).step_by(2) {
                let (mut sum, mut count) = (0.0, 0.0);
                for (x, y) in [(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)] {
                    if x < *width && y < *height {
                        let rgb = pixel(x, y);
                        sum += (rgb[channel] - luma(rgb)) / divisor;
                        count += 1.0;
                    }
                }
                out.push((128.0 + 224.0 * sum / count).round() as u8);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, rgb: [u8; 3]) -> Picture {
        Picture { width, height, rgba: [rgb[0], rgb[1], rgb[2], 255].repeat(width * height) }
    }

    #[test]
    fn colours_have_their_bt601_values() {
        for (rgb, yuv) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [81, 90, 240]),
            ([0, 255, 0], [145, 54, 34]),
            ([0, 0, 255], [41, 240, 110]),
        ] {
            let planes = yuv420(&plain(4, 2, rgb));
            assert_eq!(planes.len(), 8 + 2 + 2);
            assert_eq!([planes[0], planes[8], planes[10]], yuv, "{rgb:?}");
        }
    }

    #[test]
    fn odd_sizes_have_a_chroma_sample_for_the_edge() {
        assert_eq!(yuv420(&plain(3, 5, [9, 9, 9])).len(), 15 + 2 * (2 * 3));
    }

    #[test]
    fn a_sheet_shows_first_and_last_and_no_more_than_fit() {
        for frames in [1, 17, 20, 21, 81, 1000] {
            let shown: Vec<usize> = (0..frames).filter(|&index| on_sheet(index, frames)).collect();
            assert_eq!(shown.len(), frames.min(SHEET_FRAMES));
            assert_eq!((shown[0], shown[shown.len() - 1]), (0, frames - 1));
        }
    }

    #[test]
    fn a_sheet_holds_every_picture_at_its_place() {
        let pictures: Vec<Picture> = (0..6).map(|index| plain(10, 6, [index * 40, 0, 0])).collect();
        let sheet = contact_sheet(&pictures).unwrap();
        assert_eq!((sheet.width, sheet.height), (5 * 14 + 4, 2 * 10 + 4));
        assert_eq!(sheet.rgba[4 * (sheet.width * 4 + 4)], 0);
        assert_eq!(sheet.rgba[4 * (sheet.width * 14 + 4)], 200);
    }

    #[test]
    fn shrinking_averages() {
        let mut picture = plain(4, 2, [0, 0, 0]);
        picture.rgba[0] = 200;
        let small = shrink(&picture, 2);
        assert_eq!((small.width, small.height, small.rgba[0], small.rgba[4]), (2, 1, 50, 0));
    }
}
