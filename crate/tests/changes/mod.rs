//! Bytes that are changed at random, the same way in every run.
#![allow(dead_code)] // every test file uses a part of it

use std::ops::Range;

/// A linear congruential generator.
pub struct Changes(u32);

impl Changes {
    pub fn new(seed: u32) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % limit
    }

    /// The bytes with one to three changes to them, which begin within `places`.
    pub fn apply(&mut self, good: &[u8], places: Range<usize>) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..1 + self.below(3) {
            let at = (places.start + self.below(places.len())).min(bytes.len() - 1);
            match self.below(5) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = [0, 0xff, 0x7f, 0x80][self.below(4)],
                // A whole number of 8 bytes with its highest bits set: lengths and offsets.
                2 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
                3 => drop(bytes.drain(at..(at + 1 + self.below(16)).min(bytes.len() - 1).max(at))),
                _ => bytes.insert(at, self.below(256) as u8),
            }
        }
        bytes
    }

    /// As `apply`, for text: most changes leave JSON that can still be read.
    pub fn apply_to_text(&mut self, good: &str, places: Range<usize>) -> Vec<u8> {
        const SYNTAX: &[u8] = b"0123456789-.eE\"\\{}[]:,ntfu/_ <>";
        let mut bytes = good.as_bytes().to_vec();
        for _ in 0..1 + self.below(3) {
            let at = (places.start + self.below(places.len())).min(bytes.len() - 1);
            let syntax = SYNTAX[self.below(SYNTAX.len())];
            match (self.below(8), bytes[at]) {
                (0..=4, b'0'..=b'9') => bytes[at] = b'0' + self.below(10) as u8,
                (0..=4, b'a'..=b'z' | b'A'..=b'Z') => bytes[at] = b"ABabnrstxy"[self.below(10)],
                (0..=4, _) => {}
                (5, _) => bytes[at] = syntax,
                (6, _) => bytes.insert(at, syntax),
                _ => drop(bytes.drain(at..(at + 1 + self.below(16)).min(bytes.len() - 1).max(at))),
            }
        }
        bytes
    }
}
