//! Numbers of bytes, and what is held while a computation is walked through.

use std::cell::Cell;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

use serde::{Serialize, Serializer};

use crate::model::plan::Target;
use crate::model::reader::{Held, Meter};

/// What a tensor in host memory costs beside its values: its name, its shapes, the allocator's own.
pub(super) const OVERHEAD: u64 = 512;

/// A number of bytes. It stops at 2^53 - 1, the largest whole number that JavaScript has, instead of wrapping: what
/// comes out of too large a request is still too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(u64);

impl Bytes {
    const MOST: u64 = (1 << 53) - 1;

    /// That many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(bytes.min(Self::MOST))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// f32 values of a tensor of this shape.
    pub(super) fn f32s(shape: &[u64]) -> Self {
        Self::new(shape.iter().fold(4, |product, &length| product.saturating_mul(length)))
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::new(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<u64> for Bytes {
    type Output = Self;

    fn mul(self, factor: u64) -> Self {
        Self::new(self.0.saturating_mul(factor))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            bytes if bytes < 1 << 10 => format!("{bytes} B"),
            bytes if bytes < 1 << 20 => format!("{:.1} KiB", bytes as f64 / 1024.0),
            bytes => format!("{:.2} MiB", bytes as f64 / 1_048_576.0),
        };
        f.pad(&text)
    }
}

/// A walk through operations in their order: tensors are held as long as the values that stand for them live.
pub(super) struct Walk {
    meter: Meter,
    largest: Cell<u64>,
    /// What computes.
    pub(super) target: Target,
    /// Whether LoRAs lie beside the linear layers.
    pub(super) lora: bool,
}

impl Walk {
    pub(super) fn new(target: Target, lora: bool) -> Self {
        Self { meter: Meter::default(), largest: Cell::new(0), target, lora }
    }

    pub(super) fn on_gpu(&self) -> bool {
        self.target == Target::Gpu
    }

    /// Bytes in one piece that are held as long as the result lives.
    pub(super) fn hold(&self, bytes: Bytes) -> Held {
        self.largest.set(self.largest.get().max(bytes.get()));
        let beside = if self.on_gpu() { 0 } else { OVERHEAD };
        self.meter.hold(bytes.get() + beside)
    }

    /// A tensor of f32.
    pub(super) fn tensor(&self, shape: &[u64]) -> Held {
        self.hold(Bytes::f32s(shape))
    }

    /// Bytes that are held for a moment, in pieces of any size.
    pub(super) fn during(&self, bytes: Bytes) {
        drop(self.meter.hold(bytes.get()));
    }

    /// The bytes that are held.
    pub(super) fn now(&self) -> Bytes {
        Bytes::new(self.meter.now())
    }

    /// The most bytes that were held.
    pub(super) fn peak(&self) -> Bytes {
        Bytes::new(self.meter.peak())
    }

    /// The longest single piece.
    pub(super) fn largest(&self) -> Bytes {
        Bytes::new(self.largest.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_products_stop_instead_of_wrapping() {
        let most = Bytes::new(u64::MAX);
        assert_eq!(most.get(), (1 << 53) - 1);
        assert_eq!(most + most, most);
        assert_eq!(most * 9, most);
        assert_eq!(Bytes::f32s(&[u64::MAX, 2, 3]), most);
        assert_eq!([Bytes::new(3), Bytes::new(4)].into_iter().sum::<Bytes>(), Bytes::new(7));
    }

    #[test]
    fn a_walk_remembers_the_most() {
        let walk = Walk::new(Target::Gpu, false);
        let first = walk.tensor(&[10]);
        walk.during(Bytes::new(100));
        drop(first);
        let _second = walk.tensor(&[5, 5]);
        assert_eq!((walk.peak(), walk.largest()), (Bytes::new(140), Bytes::new(100)));
    }
}
